// Changing the structure of a weight: which entry stays which, and the move of what belongs to the
// entries. Cold code: time and memory are those of the entries and of the (block, panel) cells.
//
//   from   ids  1 4 7          origins of `to`   0 -1 2
//   to     ids  1 5 7          moved             v0 0 v2
//
// Results are the same for any number of threads: each entry of `to` is written by one task.
#pragma once

#include "layouts/panels.hpp"

namespace gossamer {

// origins[e] is the entry of `from` at the place of entry e of `to`, or -1 where `from` keeps none.
// Throws ShapeError unless rows, cols, vector and the width of a block agree; n:m may differ. The
// indices were checked before; whatever they hold, nothing outside the arrays is touched.
void match(const Panels& from, const Panels& to, std::int32_t* origins);

// The V values of entry e of `out` are those of entry origins[e] of `values`, or zero where
// origins[e] is no entry of `values`, which has `from_entries`.
struct Move {
  const std::int32_t* origins = nullptr;  // [to_entries]
  std::int64_t to_entries = 0;
  std::int64_t from_entries = 0;
  std::int64_t vector = 1;
  std::size_t itemsize = 4;      // 2, 4 or 8
  const void* values = nullptr;  // [from_entries * vector]
  void* out = nullptr;           // [to_entries * vector]
};
void move(const Move& args) noexcept;

}  // namespace gossamer
