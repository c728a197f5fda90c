// The bits of floating-point numbers: bf16 rounding and widening, and magnitudes as integers.
//
// The one home of these rules, for kernels of every instruction set and for plain C++ alike:
// branch-free, always inlined, in an unnamed namespace.
#pragma once

#include "core/types.hpp"

namespace gossamer {
namespace {

// ---- bf16: the upper half of a float32. It is stored only;
// arithmetic is done in float.

// A stored value in the type in which its products are summed.
GOSSAMER_INLINE float widen(float x) noexcept { return x; }
GOSSAMER_INLINE double widen(double x) noexcept { return x; }
GOSSAMER_INLINE float widen(bf16 x) noexcept {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(x.bits) << 16);
}

// Round to nearest, ties to even; a NaN stays a NaN.
GOSSAMER_INLINE bf16 round_bf16(float x) noexcept {
  const auto bits = __builtin_bit_cast(std::uint32_t, x);
  const std::uint32_t nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<std::uint16_t>(x != x ? 0x7fc0u : nearest)};
}

GOSSAMER_INLINE void narrow(float x, float& out) noexcept { out = x; }
GOSSAMER_INLINE void narrow(double x, double& out) noexcept { out = x; }
GOSSAMER_INLINE void narrow(float x, bf16& out) noexcept { out = round_bf16(x); }

template <class T>
inline constexpr T largest_finite = T(3.4028234663852886e38);  // the largest finite number
template <>
inline constexpr double largest_finite<double> = 1.7976931348623157e308;

// ---- numbers as signed integers: magnitudes are in the order
// of the integers.

// `nan` is the magnitude that stands for every NaN where they are to be told from infinity.
template <class T>
struct FloatBits;
template <>
struct FloatBits<float> {
  using type = std::int32_t;
  static constexpr int mantissa = 23;
  static constexpr type infinity = 0x7f800000, nan = infinity + 1;
};
template <>
struct FloatBits<double> {
  using type = std::int64_t;
  static constexpr int mantissa = 52;
  static constexpr type infinity = 0x7ff0000000000000, nan = infinity + 1;
};
template <>
struct FloatBits<bf16> {
  using type = std::int16_t;
  static constexpr int mantissa = 7;
  static constexpr type infinity = 0x7f80, nan = infinity + 1;
};
template <class T>
using Bits = typename FloatBits<T>::type;

template <class T>
GOSSAMER_INLINE Bits<T> bits_of(T x) noexcept {
  return __builtin_bit_cast(Bits<T>, x);
}
template <class T>
GOSSAMER_INLINE T from_bits(Bits<T> bits) noexcept {
  return __builtin_bit_cast(T, bits);
}
// By its member: a copy of the struct keeps GCC 12 from some of the vectors.
template <>
GOSSAMER_INLINE std::int16_t bits_of(bf16 x) noexcept {
  return static_cast<std::int16_t>(x.bits);
}
template <>
GOSSAMER_INLINE bf16 from_bits<bf16>(std::int16_t bits) noexcept {
  return {static_cast<std::uint16_t>(bits)};
}

// The magnitude as an integer, whose order is that of the absolute values; NaN lie above infinity.
template <class T>
GOSSAMER_INLINE Bits<T> magnitude_bits(Bits<T> bits) noexcept {
  constexpr Bits<T> all = static_cast<Bits<T>>((std::uint64_t{1} << (8 * sizeof(T) - 1)) - 1);
  return static_cast<Bits<T>>(bits & all);
}

// Magnitudes that can be compared, by one of two rules:
//   most = FloatBits<T>::nan        every NaN is equal, and larger than infinity
//   most = FloatBits<T>::infinity   NaN and infinities are equal, and the largest
template <class T, Bits<T> most = FloatBits<T>::nan>
GOSSAMER_INLINE Bits<T> magnitude_key(Bits<T> bits) noexcept {
  const Bits<T> key = magnitude_bits<T>(bits);
  return key < most ? key : most;
}

}  // namespace
}  // namespace gossamer
