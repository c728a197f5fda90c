// Transposable masks: every m x m sub-matrix keeps at most n entries of each row and each column. A
// tile's mask depends on its entries alone: the same bits for any number of threads.
#pragma once

#include "core/types.hpp"

namespace gossamer {

enum class TileMethod : int { exact = 0, greedy = 1, two_approximation = 2, entropy = 3 };

struct TransposableMask {
  Matrix weight;  // rows and cols are multiples of m
  DType dtype;
  std::int64_t n;  // in [1, m)
  std::int64_t m;  // in [2, max_tile]; 4 for the exact method
  TileMethod method;
  float sharpness;          // of the entropy method, positive and finite
  std::int64_t iterations;  // of the entropy method, at least 0
  std::uint8_t* mask;       // [rows, cols], contiguous
};

// Throws std::bad_alloc.
void transposable_mask(const TransposableMask& args);

}  // namespace gossamer
