// Pairs of bf16 with AVX-512 BF16: one vdpbf16ps is 64 operations.
#pragma once

#include <immintrin.h>

#include "simd/vec.hpp"

namespace gossamer {
namespace {

struct Pairs {
  static constexpr int lanes = 16;
  __m512i r;

  static GOSSAMER_INLINE __mmask32 first(int n) noexcept {
    return static_cast<__mmask32>((std::uint64_t{1} << n) - 1u);
  }
  static GOSSAMER_INLINE Pairs zero() noexcept { return {_mm512_setzero_si512()}; }
  static GOSSAMER_INLINE Pairs load(const bf16* p) noexcept { return {_mm512_loadu_si512(p)}; }
  static GOSSAMER_INLINE Pairs load_n(const bf16* p, int n) noexcept {
    return {_mm512_maskz_loadu_epi16(first(n), p)};
  }
  static GOSSAMER_INLINE Pairs spaced(const bf16* p) noexcept {
    return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static GOSSAMER_INLINE Pairs set(const bf16* p) noexcept {
    std::int32_t pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return {_mm512_set1_epi32(pair)};
  }
  GOSSAMER_INLINE void store(bf16* p) const noexcept { _mm512_storeu_si512(p, r); }
  GOSSAMER_INLINE void store_n(bf16* p, int n) const noexcept {
    _mm512_mask_storeu_epi16(p, first(n), r);
  }

  friend GOSSAMER_INLINE Vec<float> dot(Vec<float> sum, Pairs a, Pairs b) noexcept {
    return {_mm512_dpbf16_ps(sum.r, __builtin_bit_cast(__m512bh, a.r),
                             __builtin_bit_cast(__m512bh, b.r))};
  }
  static GOSSAMER_INLINE Pairs narrow(Vec<float> low, Vec<float> high) noexcept {
    return {__builtin_bit_cast(__m512i, _mm512_cvtne2ps_pbh(high.r, low.r))};
  }
  friend GOSSAMER_INLINE Pairs evens(Pairs a, Pairs b) noexcept {
    return {_mm512_mask_blend_epi16(0xaaaaaaaau, a.r, _mm512_slli_epi32(b.r, 16))};
  }
  friend GOSSAMER_INLINE Pairs odds(Pairs a, Pairs b) noexcept {
    return {_mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(a.r, 16), b.r)};
  }
  friend GOSSAMER_INLINE Pairs zip_low(Pairs a, Pairs b) noexcept {
    return {_mm512_unpacklo_epi16(a.r, b.r)};
  }
  friend GOSSAMER_INLINE Pairs zip_high(Pairs a, Pairs b) noexcept {
    return {_mm512_unpackhi_epi16(a.r, b.r)};
  }
  template <int V>
  static GOSSAMER_INLINE Pairs pair_entries(Pairs a) noexcept {
    static_assert(V == 4 || V == 8);
    if constexpr (V == 4) {  // two entries in each part of eight numbers
      return {_mm512_unpacklo_epi16(a.r, _mm512_bsrli_epi128(a.r, 8))};
    } else {  // an entry in each part
      const __m512i even = _mm512_shuffle_i64x2(a.r, a.r, 0xa0);
      const __m512i odd = _mm512_shuffle_i64x2(a.r, a.r, 0xf5);
      return {_mm512_mask_blend_epi64(0xcc, _mm512_unpacklo_epi16(even, odd),
                                      _mm512_unpackhi_epi16(even, odd))};
    }
  }
  static GOSSAMER_INLINE void transpose(Pairs (&a)[16]) noexcept {
    Vec<float> t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) t[i].r = _mm512_castsi512_ps(a[i].r);
    Vec<float>::transpose(t);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) a[i].r = _mm512_castps_si512(t[i].r);
  }
};

}  // namespace
}  // namespace gossamer
