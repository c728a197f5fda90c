// The k-th largest of a short list, which is put out of order. Expected time O(count).
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>

namespace gossamer {

template <class T>
T nth_largest(T* values, std::int64_t count, std::int64_t k) noexcept {
  std::nth_element(values, values + (k - 1), values + count, std::greater<T>());
  return values[k - 1];
}

}  // namespace gossamer
