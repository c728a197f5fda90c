// AVX-512 (F, BW, DQ, VL): 16 floats or 8 doubles, 32 registers.
#pragma once

#include <immintrin.h>

#include "simd/bits.hpp"

namespace gossamer {
namespace {

inline constexpr int registers = 32;

template <class C>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int lanes = 16;
  __m512 r;

  static GOSSAMER_INLINE __mmask16 first(int n) noexcept {
    return static_cast<__mmask16>((1u << n) - 1u);
  }
  static GOSSAMER_INLINE Vec zero() noexcept { return {_mm512_setzero_ps()}; }
  static GOSSAMER_INLINE Vec set(float x) noexcept { return {_mm512_set1_ps(x)}; }
  static GOSSAMER_INLINE Vec load(const float* p) noexcept { return {_mm512_loadu_ps(p)}; }
  static GOSSAMER_INLINE Vec load_n(const float* p, int n) noexcept {
    return {_mm512_maskz_loadu_ps(first(n), p)};
  }
  static GOSSAMER_INLINE Vec load_bf16(const bf16* p) noexcept {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
  GOSSAMER_INLINE void store(float* p) const noexcept { _mm512_storeu_ps(p, r); }
  GOSSAMER_INLINE void store_n(float* p, int n) const noexcept {
    _mm512_mask_storeu_ps(p, first(n), r);
  }
  // n values are 2n - 1 lanes of two registers.
  static GOSSAMER_INLINE Vec load_even(const float* p, int n) noexcept {
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const unsigned ends = ((1u << (n - 1)) << n) - 1u;
    const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(ends), p);
    const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(ends >> lanes), p + lanes);
    return {_mm512_permutex2var_ps(low, even, high)};
  }
  GOSSAMER_INLINE void store_even(float* p, int n) const noexcept {
    const __m512i half = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const unsigned ends = (((1u << (n - 1)) << n) - 1u) & 0x55555555u;
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>(ends), _mm512_permutexvar_ps(half, r));
    _mm512_mask_storeu_ps(
        p + lanes, static_cast<__mmask16>(ends >> lanes),
        _mm512_permutexvar_ps(_mm512_add_epi32(half, _mm512_set1_epi32(lanes / 2)), r));
  }
  GOSSAMER_INLINE void store_bf16(bf16* p) const noexcept {
    const __m512i bits = _mm512_castps_si512(r);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(r, r, _CMP_UNORD_Q);
    const __m512i high =
        _mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16), nan, _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(high));
  }
  template <int V>
  static GOSSAMER_INLINE Vec spread(const float* x, const std::uint8_t* ids) noexcept {
    __m512 r = _mm512_set1_ps(x[ids[0]]);
#pragma GCC unroll 4
    for (int i = 1; i < lanes / V; ++i) {
      const auto part = static_cast<__mmask16>(((1u << V) - 1u) << (i * V));
      r = _mm512_mask_broadcastss_ps(r, part, _mm_load_ss(x + ids[i]));
    }
    return {r};
  }
  friend GOSSAMER_INLINE Vec add(Vec a, Vec b) noexcept { return {_mm512_add_ps(a.r, b.r)}; }
  friend GOSSAMER_INLINE Vec mul(Vec a, Vec b) noexcept { return {_mm512_mul_ps(a.r, b.r)}; }
  friend GOSSAMER_INLINE unsigned outside(Vec v, Vec low, Vec high) noexcept {
    return static_cast<unsigned>(_mm512_cmp_ps_mask(v.r, low.r, _CMP_NGE_UQ)) |
           static_cast<unsigned>(_mm512_cmp_ps_mask(v.r, high.r, _CMP_NLE_UQ));
  }
  friend GOSSAMER_INLINE Vec fma(Vec a, Vec b, Vec c) noexcept {
    return {_mm512_fmadd_ps(a.r, b.r, c.r)};
  }

  // A tree: each level halves the registers, 30 shuffles and 15 additions for 16 sums.
  static GOSSAMER_INLINE Vec sums(const Vec (&a)[16]) noexcept {
    __m512 q[4];  // q[k], 128-bit part j: the part's sum of a[4k], a[4k+1], a[4k+2], a[4k+3]
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a[4 * k].r, a[4 * k + 1].r),
                                      _mm512_unpackhi_ps(a[4 * k].r, a[4 * k + 1].r));
      const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(a[4 * k + 2].r, a[4 * k + 3].r),
                                      _mm512_unpackhi_ps(a[4 * k + 2].r, a[4 * k + 3].r));
      const __m512d x = _mm512_castps_pd(ab);
      const __m512d y = _mm512_castps_pd(cd);
      q[k] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                           _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
    const __m512 lo = _mm512_add_ps(_mm512_shuffle_f32x4(q[0], q[1], 0x88),
                                    _mm512_shuffle_f32x4(q[0], q[1], 0xdd));
    const __m512 hi = _mm512_add_ps(_mm512_shuffle_f32x4(q[2], q[3], 0x88),
                                    _mm512_shuffle_f32x4(q[2], q[3], 0xdd));
    return {_mm512_add_ps(_mm512_shuffle_f32x4(lo, hi, 0x88), _mm512_shuffle_f32x4(lo, hi, 0xdd))};
  }

  static GOSSAMER_INLINE void transpose(Vec (&a)[16]) noexcept {
    __m512 t[16];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {  // 4 x 4 inside each 128-bit part
      const __m512 ab0 = _mm512_unpacklo_ps(a[4 * k].r, a[4 * k + 1].r);
      const __m512 ab1 = _mm512_unpackhi_ps(a[4 * k].r, a[4 * k + 1].r);
      const __m512 cd0 = _mm512_unpacklo_ps(a[4 * k + 2].r, a[4 * k + 3].r);
      const __m512 cd1 = _mm512_unpackhi_ps(a[4 * k + 2].r, a[4 * k + 3].r);
      const auto d = [](__m512 x) { return _mm512_castps_pd(x); };
      t[4 * k + 0] = _mm512_castpd_ps(_mm512_unpacklo_pd(d(ab0), d(cd0)));
      t[4 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(d(ab0), d(cd0)));
      t[4 * k + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(d(ab1), d(cd1)));
      t[4 * k + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(d(ab1), d(cd1)));
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {  // then the 128-bit parts among each other
      const __m512 lo = _mm512_shuffle_f32x4(t[c], t[4 + c], 0x88);
      const __m512 hi = _mm512_shuffle_f32x4(t[8 + c], t[12 + c], 0x88);
      const __m512 lo1 = _mm512_shuffle_f32x4(t[c], t[4 + c], 0xdd);
      const __m512 hi1 = _mm512_shuffle_f32x4(t[8 + c], t[12 + c], 0xdd);
      a[c].r = _mm512_shuffle_f32x4(lo, hi, 0x88);
      a[4 + c].r = _mm512_shuffle_f32x4(lo1, hi1, 0x88);
      a[8 + c].r = _mm512_shuffle_f32x4(lo, hi, 0xdd);
      a[12 + c].r = _mm512_shuffle_f32x4(lo1, hi1, 0xdd);
    }
  }
};

template <>
struct Vec<double> {
  static constexpr int lanes = 8;
  __m512d r;

  static GOSSAMER_INLINE __mmask8 first(int n) noexcept {
    return static_cast<__mmask8>((1u << n) - 1u);
  }
  static GOSSAMER_INLINE Vec zero() noexcept { return {_mm512_setzero_pd()}; }
  static GOSSAMER_INLINE Vec set(double x) noexcept { return {_mm512_set1_pd(x)}; }
  static GOSSAMER_INLINE Vec load(const double* p) noexcept { return {_mm512_loadu_pd(p)}; }
  static GOSSAMER_INLINE Vec load_n(const double* p, int n) noexcept {
    return {_mm512_maskz_loadu_pd(first(n), p)};
  }
  GOSSAMER_INLINE void store(double* p) const noexcept { _mm512_storeu_pd(p, r); }
  GOSSAMER_INLINE void store_n(double* p, int n) const noexcept {
    _mm512_mask_storeu_pd(p, first(n), r);
  }
  static GOSSAMER_INLINE Vec load_even(const double* p, int n) noexcept {
    const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
    const unsigned ends = (1u << (2 * n - 1)) - 1u;
    const __m512d low = _mm512_maskz_loadu_pd(static_cast<__mmask8>(ends), p);
    const __m512d high = _mm512_maskz_loadu_pd(static_cast<__mmask8>(ends >> lanes), p + lanes);
    return {_mm512_permutex2var_pd(low, even, high)};
  }
  GOSSAMER_INLINE void store_even(double* p, int n) const noexcept {
    const __m512i half = _mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3);
    const unsigned ends = ((1u << (2 * n - 1)) - 1u) & 0x5555u;
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>(ends), _mm512_permutexvar_pd(half, r));
    _mm512_mask_storeu_pd(
        p + lanes, static_cast<__mmask8>(ends >> lanes),
        _mm512_permutexvar_pd(_mm512_add_epi64(half, _mm512_set1_epi64(lanes / 2)), r));
  }
  template <int V>
  static GOSSAMER_INLINE Vec spread(const double* x, const std::uint8_t* ids) noexcept {
    __m512d r = _mm512_set1_pd(x[ids[0]]);
#pragma GCC unroll 2
    for (int i = 1; i < lanes / V; ++i) {
      const auto part = static_cast<__mmask8>(((1u << V) - 1u) << (i * V));
      r = _mm512_mask_broadcastsd_pd(r, part, _mm_load_sd(x + ids[i]));
    }
    return {r};
  }
  friend GOSSAMER_INLINE Vec add(Vec a, Vec b) noexcept { return {_mm512_add_pd(a.r, b.r)}; }
  friend GOSSAMER_INLINE Vec mul(Vec a, Vec b) noexcept { return {_mm512_mul_pd(a.r, b.r)}; }
  friend GOSSAMER_INLINE unsigned outside(Vec v, Vec low, Vec high) noexcept {
    return static_cast<unsigned>(_mm512_cmp_pd_mask(v.r, low.r, _CMP_NGE_UQ)) |
           static_cast<unsigned>(_mm512_cmp_pd_mask(v.r, high.r, _CMP_NLE_UQ));
  }
  friend GOSSAMER_INLINE Vec fma(Vec a, Vec b, Vec c) noexcept {
    return {_mm512_fmadd_pd(a.r, b.r, c.r)};
  }

  static GOSSAMER_INLINE Vec sums(const Vec (&a)[8]) noexcept {
    __m512d p[4];  // p[k], 128-bit part j: the part's sum of a[2k], a[2k+1]
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      p[k] = _mm512_add_pd(_mm512_unpacklo_pd(a[2 * k].r, a[2 * k + 1].r),
                           _mm512_unpackhi_pd(a[2 * k].r, a[2 * k + 1].r));
    }
    const __m512d lo = _mm512_add_pd(_mm512_shuffle_f64x2(p[0], p[1], 0x88),
                                     _mm512_shuffle_f64x2(p[0], p[1], 0xdd));
    const __m512d hi = _mm512_add_pd(_mm512_shuffle_f64x2(p[2], p[3], 0x88),
                                     _mm512_shuffle_f64x2(p[2], p[3], 0xdd));
    return {_mm512_add_pd(_mm512_shuffle_f64x2(lo, hi, 0x88), _mm512_shuffle_f64x2(lo, hi, 0xdd))};
  }

  static GOSSAMER_INLINE void transpose(Vec (&a)[8]) noexcept {
    __m512d t[8];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      t[2 * k] = _mm512_unpacklo_pd(a[2 * k].r, a[2 * k + 1].r);
      t[2 * k + 1] = _mm512_unpackhi_pd(a[2 * k].r, a[2 * k + 1].r);
    }
#pragma GCC unroll 2
    for (int c = 0; c < 2; ++c) {
      const __m512d lo = _mm512_shuffle_f64x2(t[c], t[2 + c], 0x88);
      const __m512d hi = _mm512_shuffle_f64x2(t[4 + c], t[6 + c], 0x88);
      const __m512d lo1 = _mm512_shuffle_f64x2(t[c], t[2 + c], 0xdd);
      const __m512d hi1 = _mm512_shuffle_f64x2(t[4 + c], t[6 + c], 0xdd);
      a[c].r = _mm512_shuffle_f64x2(lo, hi, 0x88);
      a[2 + c].r = _mm512_shuffle_f64x2(lo1, hi1, 0x88);
      a[4 + c].r = _mm512_shuffle_f64x2(lo, hi, 0xdd);
      a[6 + c].r = _mm512_shuffle_f64x2(lo1, hi1, 0xdd);
    }
  }
};

}  // namespace
}  // namespace gossamer
