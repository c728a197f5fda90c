// Picking n of every m consecutive entries of a dense matrix: the part compiled for each
// instruction set.
#pragma once

#include "core/types.hpp"

namespace gossamer {

// Panels that follow each other in one block of columns: their entries are written in one piece.
struct SelectUnit {
  static constexpr std::int64_t max_panels = 4;

  const void* rows = nullptr;  // first row, first column of the block
  std::int64_t row_stride = 0;
  std::int64_t vector = 1;
  std::int64_t panels = 0;  // at most max_panels, unless shared
  bool shared = false;      // all panels keep the same columns, those with the largest sums
  std::int64_t width = 0;   // columns of the block: a multiple of m
  std::int64_t n = 0;
  std::int64_t m = 0;
  void* values = nullptr;           // [panels * width / m * n * vector]
  std::uint8_t* indices = nullptr;  // [panels * width / m * n]
  bool stream = false;              // may be written past the caches: a fence must follow
};

using SelectKernel = void (*)(const SelectUnit& unit) noexcept;

// out += alpha * source at the entries whose byte in `kept` is 0. Both may be the same memory.
using AddPrunedKernel = void (*)(void* out, const void* source, double alpha,
                                 const std::uint8_t* kept, std::int64_t count) noexcept;

struct SelectPasses {
  SelectKernel select[dtype_count];
  AddPrunedKernel add_pruned[dtype_count];
};

}  // namespace gossamer
