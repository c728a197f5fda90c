// The two passes of the top-k selection that read a whole row: maxima of groups, and a scan.
#pragma once

#include "codes/table.hpp"

namespace gossamer {
namespace {

// Loads and compares only: as fast as the row can be read.
template <class T>
bool group_max(const T* x, std::int64_t blocks, T* out) noexcept {
  int unordered = 0;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const T* p = x + b * group_block;
    T* __restrict m = out + b * group_lanes;
    // Vectors are taken 256 bytes apart, which the processor's own prefetcher does not follow.
    for (std::int64_t i = 0; i < group_block; i += static_cast<std::int64_t>(64 / sizeof(T))) {
      __builtin_prefetch(p + group_block + i);
    }
#pragma omp simd reduction(| : unordered)
    for (std::int64_t g = 0; g < group_lanes; ++g) {
      T top = p[g];
      int bad = 0;
#pragma GCC unroll 16
      for (std::int64_t j = 1; j < group_fan; ++j) {
        const T v = p[g + j * group_lanes];
        top = top > v ? top : v;
        // One test serves two entries.
        if (j % 2 == 1) bad |= __builtin_isunordered(v, p[g + (j - 1) * group_lanes]);
      }
      m[g] = top;
      unordered |= bad;
    }
  }
  return unordered != 0;
}

template <class T>
void pick(const T* x, std::int64_t n, T threshold, std::int64_t cap, Picked& out) noexcept {
  std::int32_t* above = out.above;
  std::int32_t* ties = out.ties;
  std::int64_t above_count = 0, tie_count = 0;
  for (std::int64_t start = 0; start < n; start += group_lanes) {
    const std::int64_t end = start + group_lanes < n ? start + group_lanes : n;
    int hits = 0;
    if (tie_count < cap) {
#pragma omp simd reduction(+ : hits)
      for (std::int64_t i = start; i < end; ++i) hits += x[i] >= threshold;
    } else {
#pragma omp simd reduction(+ : hits)
      for (std::int64_t i = start; i < end; ++i) hits += x[i] > threshold;
    }
    if (hits == 0) continue;
    for (std::int64_t i = start; i < end; ++i) {
      if (x[i] > threshold) {
        above[above_count++] = static_cast<std::int32_t>(i);
      } else if (x[i] == threshold && tie_count < cap) {
        ties[tie_count++] = static_cast<std::int32_t>(i);
      }
    }
  }
  out.above_count = above_count;
  out.tie_count = tie_count;
}

}  // namespace
}  // namespace gossamer
