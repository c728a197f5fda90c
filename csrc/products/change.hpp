// Changing the structure of a weight: the move of what belongs to its entries. Cold code: time is
// that of the entries and of the (block, panel) cells, memory that of the cells.
//
//   from   ids  1 4 7     values  a b c
//   to     ids  1 5 7     values  a 0 c
//
// Results are the same for any number of threads: each value is written by one task.
#pragma once

#include <span>

#include "layouts/panels.hpp"

namespace gossamer {

// What moves: V values per entry.
struct Moved {
  std::size_t itemsize = 4;      // 2, 4 or 8
  const void* before = nullptr;  // [entries of `from` * vector]
  void* after = nullptr;         // [entries of `to` * vector]: `before` itself, or other memory
};

// The values of an entry of `to` are those of the entry of `from` at the same place, or zeros where
// `from` keeps none. Throws ShapeError unless rows, cols, vector and the width of a block agree
// (n:m may differ), and StructureError if a cell has more entries than columns; nothing has moved
// then. The indices were checked before; whatever they hold, no other memory is touched.
void move(const Panels& from, const Panels& to, std::span<const Moved> tensors);

}  // namespace gossamer
