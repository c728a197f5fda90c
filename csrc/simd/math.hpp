// exp, exp2, log2 and powers as plain arithmetic, which the compiler turns into vectors. Three
// accuracies live here side by side because each loop pays for no more than it needs:
//
//   exp_clamped                         float64, below 2 ulp of the reduced argument
//   exp2_of, log2_of, log1p_of, power   float32 and float64, near full precision
//   coarse_exp2, coarse_log2            float32, to about 3e-6
#pragma once

#include <type_traits>

#include "simd/bits.hpp"

namespace gossamer {
namespace {

template <class T>
struct MathBits;
template <>
struct MathBits<float> {
  static constexpr std::int32_t half_root = 0x3f3504f3;  // sqrt(1/2)
  static constexpr float round = 0x1.8p23f;              // its last bits count whole numbers
};
template <>
struct MathBits<double> {
  static constexpr std::int64_t half_root = 0x3fe6a09e667f3bcd;
  static constexpr double round = 0x1.8p52;
};

// exp(r) for |r| <= log(2) / 2 by its Taylor sum: to degree 13 in float64 (the next term is below
// 1e-17), to degree 7 in float32.
template <class T>
GOSSAMER_INLINE T exp_taylor(T r) noexcept {
  T p = T(1) / T(5040);
  if constexpr (std::is_same_v<T, double>) {
    p = T(1) / T(6227020800.0);
    p = p * r + T(1) / T(479001600.0);
    p = p * r + T(1) / T(39916800.0);
    p = p * r + T(1) / T(3628800.0);
    p = p * r + T(1) / T(362880.0);
    p = p * r + T(1) / T(40320.0);
    p = p * r + T(1) / T(5040.0);
  }
  p = p * r + T(1) / T(720);
  p = p * r + T(1) / T(120);
  p = p * r + T(1) / T(24);
  p = p * r + T(1) / T(6);
  p = p * r + T(0.5);
  p = p * r + T(1);
  p = p * r + T(1);
  return p;
}

// 2^k p, where the last bits of `shifted` are k: added to the exponent's bits.
template <class T>
GOSSAMER_INLINE T scale_by_power(T p, T shifted) noexcept {
  const Bits<T> exponent = bits_of(shifted) << FloatBits<T>::mantissa;
  return from_bits<T>(static_cast<Bits<T>>(bits_of(p) + exponent));
}

// exp with an error below 2 ulp of the reduced argument: x = k log 2 + r, log 2 in two parts.
// Clamped to normal numbers: below exp(-708) arithmetic is several times slower, and an entry so
// small changes no sum.
GOSSAMER_INLINE double exp_clamped(double x) noexcept {
  x = x > -708.0 ? x : -708.0;
  x = x < 709.0 ? x : 709.0;
  constexpr double shift = MathBits<double>::round;
  const double t = x * 0x1.71547652b82fep0 + shift;
  const double k = t - shift;
  const double r = (x - k * 0x1.62e42fefa39efp-1) - k * 0x1.abc9e3b39803fp-56;
  return scale_by_power(exp_taylor(r), t);
}

// 2^x for |x| <= 120. With log2_of, a power t^q, 1 <= t <= 2^60 and |q| <= 1, has a relative error
// below 4e-7 in float32 and 2e-15 in float64.
template <class T>
GOSSAMER_INLINE T exp2_of(T x) noexcept {
  const T shifted = x + MathBits<T>::round;
  const T whole = shifted - MathBits<T>::round;
  const T r = (x - whole) * T(0.6931471805599453);
  return scale_by_power(exp_taylor(r), shifted);
}

// 2 atanh(s) for |s| <= 0.172, by its odd series.
template <class T>
GOSSAMER_INLINE T twice_atanh(T s) noexcept {
  const T q = s * s;
  T sum = T(1) / T(9);
  if constexpr (std::is_same_v<T, double>) {
    sum = T(1) / T(21);
    sum = sum * q + T(1) / T(19);
    sum = sum * q + T(1) / T(17);
    sum = sum * q + T(1) / T(15);
    sum = sum * q + T(1) / T(13);
    sum = sum * q + T(1) / T(11);
    sum = sum * q + T(1) / T(9);
  }
  sum = sum * q + T(1) / T(7);
  sum = sum * q + T(1) / T(5);
  sum = sum * q + T(1) / T(3);
  sum = sum * q + T(1);
  return T(2) * s * sum;
}

// log2 of a normal positive number: x = 2^e m with sqrt(1/2) <= m < sqrt(2).
template <class T>
GOSSAMER_INLINE T log2_of(T x) noexcept {
  const Bits<T> bits = bits_of(x);
  const Bits<T> e = (bits - MathBits<T>::half_root) >> FloatBits<T>::mantissa;
  const T m = from_bits<T>(bits - (e << FloatBits<T>::mantissa));
  constexpr T per_log = T(1.4426950408889634);
  return T(e) + per_log * twice_atanh((m - T(1)) / (m + T(1)));
}

// log(1 + x) for x >= 0; exact to the last bits also where x is small.
template <class T>
GOSSAMER_INLINE T log1p_of(T x) noexcept {
  const T small = twice_atanh(x / (T(2) + x));
  const T large = T(0.6931471805599453) * log2_of(T(1) + x);
  return x < T(0.4) ? small : large;
}

// t^q.
template <class T>
GOSSAMER_INLINE T power(T t, T q) noexcept {
  return exp2_of(q * log2_of(t));
}

// 2^x for x <= 0, to 3e-6.
GOSSAMER_INLINE float coarse_exp2(float x) noexcept {
  x = x > -126.0f ? x : -126.0f;
  const float shifted = x + 12582912.0f;
  const float f = x - (shifted - 12582912.0f);
  const std::int32_t k = bits_of(shifted) - 0x4b400000;
  float p = 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  return p * from_bits<float>((k + 127) << 23);
}

// log2 of a positive normal number.
GOSSAMER_INLINE float coarse_log2(float x) noexcept {
  const std::int32_t bits = bits_of(x);
  const std::int32_t e = (bits - MathBits<float>::half_root) >> 23;
  const float f = from_bits<float>(bits - (e << 23));
  const float s = (f - 1.0f) / (f + 1.0f);
  const float z = s * s;
  const float p = 2.8853901f + z * (0.96179669f + z * (0.57707802f + z * 0.41219859f));
  return static_cast<float>(e) + s * p;
}

}  // namespace
}  // namespace gossamer
