// AVX2 with FMA: 8 floats or 4 doubles, 16 registers.
#pragma once

#include <immintrin.h>

#include "simd/bits.hpp"

namespace gossamer {
namespace {

inline constexpr int registers = 16;

template <class C>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int lanes = 8;
  __m256 r;

  static GOSSAMER_INLINE __m256i first(int n) noexcept {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
  }
  static GOSSAMER_INLINE Vec zero() noexcept { return {_mm256_setzero_ps()}; }
  static GOSSAMER_INLINE Vec set(float x) noexcept { return {_mm256_set1_ps(x)}; }
  static GOSSAMER_INLINE Vec load(const float* p) noexcept { return {_mm256_loadu_ps(p)}; }
  static GOSSAMER_INLINE Vec load_n(const float* p, int n) noexcept {
    return {_mm256_maskload_ps(p, first(n))};
  }
  static GOSSAMER_INLINE Vec load_bf16(const bf16* p) noexcept {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
  }
  GOSSAMER_INLINE void store(float* p) const noexcept { _mm256_storeu_ps(p, r); }
  GOSSAMER_INLINE void store_n(float* p, int n) const noexcept {
    _mm256_maskstore_ps(p, first(n), r);
  }
  static GOSSAMER_INLINE Vec load_even(const float* p, int n) noexcept {
    const __m256 low = _mm256_maskload_ps(p, first(2 * n - 1));
    const __m256 high = _mm256_maskload_ps(p + lanes, first(2 * n - 1 - lanes));
    const __m256d even = _mm256_castps_pd(_mm256_shuffle_ps(low, high, 0x88));
    return {_mm256_castpd_ps(_mm256_permute4x64_pd(even, 0xd8))};
  }
  // Masked stores are slower than these on many processors.
  GOSSAMER_INLINE void store_even(float* p, int n) const noexcept {
    float full[lanes];
    store(full);
    for (int i = 0; i < n; ++i) p[2 * i] = full[i];
  }
  GOSSAMER_INLINE void store_bf16(bf16* p) const noexcept {
    const __m256i bits = _mm256_castps_si256(r);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(r, r, _CMP_UNORD_Q));
    const __m256i high =
        _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), _mm256_set1_epi32(0x7fc0), nan);
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(p),
        _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
  }
  template <int V>
  static GOSSAMER_INLINE Vec spread(const float* x, const std::uint8_t* ids) noexcept {
    if constexpr (V == 8) return set(x[ids[0]]);
    return {_mm256_set_m128(_mm_set1_ps(x[ids[1]]), _mm_set1_ps(x[ids[0]]))};
  }
  friend GOSSAMER_INLINE Vec add(Vec a, Vec b) noexcept { return {_mm256_add_ps(a.r, b.r)}; }
  friend GOSSAMER_INLINE Vec mul(Vec a, Vec b) noexcept { return {_mm256_mul_ps(a.r, b.r)}; }
  friend GOSSAMER_INLINE Vec fma(Vec a, Vec b, Vec c) noexcept {
    return {_mm256_fmadd_ps(a.r, b.r, c.r)};
  }
  friend GOSSAMER_INLINE unsigned outside(Vec v, Vec low, Vec high) noexcept {
    const auto below = _mm256_cmp_ps(v.r, low.r, _CMP_NGE_UQ);
    const auto above = _mm256_cmp_ps(v.r, high.r, _CMP_NLE_UQ);
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_or_ps(below, above)));
  }

  static GOSSAMER_INLINE Vec sums(const Vec (&a)[8]) noexcept {
    __m256 q[2];  // q[k], 128-bit part j: the part's sum of a[4k] .. a[4k+3]
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a[4 * k].r, a[4 * k + 1].r),
                                      _mm256_unpackhi_ps(a[4 * k].r, a[4 * k + 1].r));
      const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(a[4 * k + 2].r, a[4 * k + 3].r),
                                      _mm256_unpackhi_ps(a[4 * k + 2].r, a[4 * k + 3].r));
      const __m256d x = _mm256_castps_pd(ab);
      const __m256d y = _mm256_castps_pd(cd);
      q[k] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)),
                           _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
    }
    return {_mm256_add_ps(_mm256_permute2f128_ps(q[0], q[1], 0x20),
                          _mm256_permute2f128_ps(q[0], q[1], 0x31))};
  }

  static GOSSAMER_INLINE void transpose(Vec (&a)[8]) noexcept {
    __m256 t[8];
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {  // 4 x 4 inside each 128-bit part
      const __m256 ab0 = _mm256_unpacklo_ps(a[4 * k].r, a[4 * k + 1].r);
      const __m256 ab1 = _mm256_unpackhi_ps(a[4 * k].r, a[4 * k + 1].r);
      const __m256 cd0 = _mm256_unpacklo_ps(a[4 * k + 2].r, a[4 * k + 3].r);
      const __m256 cd1 = _mm256_unpackhi_ps(a[4 * k + 2].r, a[4 * k + 3].r);
      const auto d = [](__m256 x) { return _mm256_castps_pd(x); };
      t[4 * k + 0] = _mm256_castpd_ps(_mm256_unpacklo_pd(d(ab0), d(cd0)));
      t[4 * k + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(d(ab0), d(cd0)));
      t[4 * k + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(d(ab1), d(cd1)));
      t[4 * k + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(d(ab1), d(cd1)));
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      a[c].r = _mm256_permute2f128_ps(t[c], t[4 + c], 0x20);
      a[4 + c].r = _mm256_permute2f128_ps(t[c], t[4 + c], 0x31);
    }
  }
};

template <>
struct Vec<double> {
  static constexpr int lanes = 4;
  __m256d r;

  static GOSSAMER_INLINE __m256i first(int n) noexcept {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
  static GOSSAMER_INLINE Vec zero() noexcept { return {_mm256_setzero_pd()}; }
  static GOSSAMER_INLINE Vec set(double x) noexcept { return {_mm256_set1_pd(x)}; }
  static GOSSAMER_INLINE Vec load(const double* p) noexcept { return {_mm256_loadu_pd(p)}; }
  static GOSSAMER_INLINE Vec load_n(const double* p, int n) noexcept {
    return {_mm256_maskload_pd(p, first(n))};
  }
  GOSSAMER_INLINE void store(double* p) const noexcept { _mm256_storeu_pd(p, r); }
  GOSSAMER_INLINE void store_n(double* p, int n) const noexcept {
    _mm256_maskstore_pd(p, first(n), r);
  }
  static GOSSAMER_INLINE Vec load_even(const double* p, int n) noexcept {
    const __m256d low = _mm256_maskload_pd(p, first(2 * n - 1));
    const __m256d high = _mm256_maskload_pd(p + lanes, first(2 * n - 1 - lanes));
    return {_mm256_permute4x64_pd(_mm256_unpacklo_pd(low, high), 0xd8)};
  }
  GOSSAMER_INLINE void store_even(double* p, int n) const noexcept {
    double full[lanes];
    store(full);
    for (int i = 0; i < n; ++i) p[2 * i] = full[i];
  }
  template <int V>
  static GOSSAMER_INLINE Vec spread(const double* x, const std::uint8_t* ids) noexcept {
    return set(x[ids[0]]);
  }
  friend GOSSAMER_INLINE Vec add(Vec a, Vec b) noexcept { return {_mm256_add_pd(a.r, b.r)}; }
  friend GOSSAMER_INLINE Vec mul(Vec a, Vec b) noexcept { return {_mm256_mul_pd(a.r, b.r)}; }
  friend GOSSAMER_INLINE Vec fma(Vec a, Vec b, Vec c) noexcept {
    return {_mm256_fmadd_pd(a.r, b.r, c.r)};
  }
  friend GOSSAMER_INLINE unsigned outside(Vec v, Vec low, Vec high) noexcept {
    const auto below = _mm256_cmp_pd(v.r, low.r, _CMP_NGE_UQ);
    const auto above = _mm256_cmp_pd(v.r, high.r, _CMP_NLE_UQ);
    return static_cast<unsigned>(_mm256_movemask_pd(_mm256_or_pd(below, above)));
  }

  static GOSSAMER_INLINE Vec sums(const Vec (&a)[4]) noexcept {
    const __m256d ab = _mm256_hadd_pd(a[0].r, a[1].r);
    const __m256d cd = _mm256_hadd_pd(a[2].r, a[3].r);
    return {
        _mm256_add_pd(_mm256_permute2f128_pd(ab, cd, 0x20), _mm256_permute2f128_pd(ab, cd, 0x31))};
  }

  static GOSSAMER_INLINE void transpose(Vec (&a)[4]) noexcept {
    const __m256d t0 = _mm256_unpacklo_pd(a[0].r, a[1].r);
    const __m256d t1 = _mm256_unpackhi_pd(a[0].r, a[1].r);
    const __m256d t2 = _mm256_unpacklo_pd(a[2].r, a[3].r);
    const __m256d t3 = _mm256_unpackhi_pd(a[2].r, a[3].r);
    a[0].r = _mm256_permute2f128_pd(t0, t2, 0x20);
    a[1].r = _mm256_permute2f128_pd(t1, t3, 0x20);
    a[2].r = _mm256_permute2f128_pd(t0, t2, 0x31);
    a[3].r = _mm256_permute2f128_pd(t1, t3, 0x31);
  }
};

}  // namespace
}  // namespace gossamer
