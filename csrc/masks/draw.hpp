// Random structures, uniform over all masks of a pattern: time and memory are those of the kept
// entries and of the row pointers, never those of the dense matrix. Cold code.
//
// The law is exact up to the quality of the generator: only whole numbers are drawn, without bias.
// Each (block, panel) has a stream of its own, so the result is the same for any number of threads.
#pragma once

#include "products/structure.hpp"

namespace gossamer {

// n of every m columns of each panel. Throws ShapeError, ArgumentError as check_layout does.
Encoded draw_groups(std::int64_t rows, std::int64_t cols, std::int64_t vector, std::int64_t n,
                    std::int64_t m, std::uint64_t seed);

// `entries` columns of panels out of all panels * cols.
Encoded draw_entries(std::int64_t rows, std::int64_t cols, std::int64_t vector,
                     std::int64_t entries, std::uint64_t seed);

// `tiles` of `high` x `wide` entries, which divide the weight; V divides `high`.
Encoded draw_tiles(std::int64_t rows, std::int64_t cols, std::int64_t vector, std::int64_t high,
                   std::int64_t wide, std::int64_t tiles, std::uint64_t seed);

// The structure whose tiles of high x wide are the entries of a grid: a checked structure of vector
// 1. Also refuses a vector that does not divide `high`.
Encoded spread_tiles(const Panels& grid, std::int64_t vector, std::int64_t high, std::int64_t wide);

}  // namespace gossamer
