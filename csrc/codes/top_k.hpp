// The k largest entries of each row, in descending order, ties to the lowest index.
#pragma once

#include "core/types.hpp"

namespace gossamer {

template <class T>
struct TopK {
  const T* x;  // [batch, n], entries of a row contiguous
  std::int64_t batch;
  std::int64_t n;  // below 2^31
  std::int64_t row_stride;
  std::int64_t k;       // in [1, n]
  T* values;            // [batch, k]
  std::int32_t* ids32;  // [batch, k], or null
  std::int64_t* ids64;  // the other one
};

// Returns the first row that holds a NaN, or -1; outputs mean nothing when there is one.
// Throws std::bad_alloc.
template <class T>
std::int64_t top_k(const TopK<T>& args);

}  // namespace gossamer
