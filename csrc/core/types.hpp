// Element types and views. A view says where data lies; it owns nothing.
#pragma once

#include <cstddef>
#include <cstdint>

// The steps of a kernel, which hold their operands in vector registers: a call would spill them,
// and the compiler's own limits on inlining know nothing of that.
#define GOSSAMER_INLINE inline __attribute__((always_inline))

namespace gossamer {

// The upper half of an IEEE binary32: storage only, arithmetic is done in float.
struct bf16 {
  std::uint16_t bits;
};

enum class DType : int { f32 = 0, f64 = 1, bf16 = 2 };
inline constexpr int dtype_count = 3;

constexpr std::size_t itemsize(DType dtype) noexcept {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

// The type in which products of T are summed.
template <class T>
struct ComputeOf {
  using type = T;
};
template <>
struct ComputeOf<bf16> {
  using type = float;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

constexpr std::size_t compute_itemsize(DType dtype) noexcept {
  return dtype == DType::f64 ? sizeof(double) : sizeof(float);
}

struct Patches;  // layouts/patches.hpp

// A matrix anywhere in memory. Strides are in elements and may be zero (an expanded gradient) or
// negative (a flipped NumPy array). Outputs are written through `data` as well: the owner of the
// view knows whether it may. With `patches` it is the matrix of a convolution, read from images,
// and its strides mean nothing.
struct Matrix {
  void* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;
  std::int64_t col_stride = 0;
  const Patches* patches = nullptr;
};

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) noexcept { return (a + b - 1) / b; }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) noexcept {
  return ceil_div(a, b) * b;
}

}  // namespace gossamer
