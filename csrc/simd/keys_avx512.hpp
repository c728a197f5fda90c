// Keys and masks with AVX-512.
#pragma once

#include <immintrin.h>

#include "simd/vec.hpp"

namespace gossamer {
namespace {

template <class T>
struct Keys;

template <>
struct Keys<float> {
  using Lane = std::int32_t;
  static constexpr int lanes = 16;
  __m512i r;

  static GOSSAMER_INLINE Keys of(Vec<float> v) noexcept { return {_mm512_castps_si512(v.r)}; }
  static GOSSAMER_INLINE Keys zero() noexcept { return {_mm512_setzero_si512()}; }
  static GOSSAMER_INLINE Keys load(const Lane* p) noexcept { return {_mm512_load_si512(p)}; }
  friend GOSSAMER_INLINE Keys magnitudes(Keys a) noexcept {
    return {_mm512_min_epi32(_mm512_and_si512(a.r, _mm512_set1_epi32(0x7fffffff)),
                             _mm512_set1_epi32(FloatBits<float>::nan))};
  }
  friend GOSSAMER_INLINE Keys add(Keys a, Keys b) noexcept { return {_mm512_add_epi32(a.r, b.r)}; }
  friend GOSSAMER_INLINE Keys sub(Keys a, Keys b) noexcept { return {_mm512_sub_epi32(a.r, b.r)}; }
  friend GOSSAMER_INLINE Keys min(Keys a, Keys b) noexcept { return {_mm512_min_epi32(a.r, b.r)}; }
  friend GOSSAMER_INLINE Keys max(Keys a, Keys b) noexcept { return {_mm512_max_epi32(a.r, b.r)}; }
  friend GOSSAMER_INLINE Keys signs(Keys a) noexcept { return {_mm512_srai_epi32(a.r, 31)}; }
  friend GOSSAMER_INLINE unsigned negative(Keys a) noexcept { return _mm512_movepi32_mask(a.r); }
  friend GOSSAMER_INLINE unsigned greater(Keys a, int n) noexcept {
    return _mm512_cmpgt_epi32_mask(a.r, _mm512_set1_epi32(n));
  }
  friend GOSSAMER_INLINE unsigned equal(Keys a, Keys b) noexcept {
    return _mm512_cmpeq_epi32_mask(a.r, b.r);
  }
  friend GOSSAMER_INLINE unsigned not_less(Keys a, Keys b) noexcept {
    return _mm512_cmpge_epi32_mask(a.r, b.r);
  }
  friend GOSSAMER_INLINE Keys under_two(Keys a, Keys b, Keys c) noexcept {
    return {_mm512_ternarylogic_epi32(a.r, b.r, c.r, 0x2b)};
  }
  friend GOSSAMER_INLINE Keys permute(Keys from, Keys a) noexcept {
    return {_mm512_permutexvar_epi32(from.r, a.r)};
  }
  friend GOSSAMER_INLINE Keys lowered(Keys a, unsigned mask) noexcept {
    return {_mm512_mask_set1_epi32(a.r, static_cast<__mmask16>(mask), -1)};
  }
  template <int by>
  static GOSSAMER_INLINE Keys swap(Keys x) noexcept {
    if constexpr (by == 1) return {_mm512_shuffle_epi32(x.r, _MM_PERM_CDAB)};
    if constexpr (by == 2) return {_mm512_shuffle_epi32(x.r, _MM_PERM_BADC)};
    if constexpr (by == 4) return {_mm512_shuffle_i32x4(x.r, x.r, 0xb1)};
    if constexpr (by == 8) return {_mm512_shuffle_i32x4(x.r, x.r, 0x4e)};
  }
};

template <>
struct Keys<double> {
  using Lane = std::int64_t;
  static constexpr int lanes = 8;
  __m512i r;

  static GOSSAMER_INLINE Keys of(Vec<double> v) noexcept { return {_mm512_castpd_si512(v.r)}; }
  static GOSSAMER_INLINE Keys zero() noexcept { return {_mm512_setzero_si512()}; }
  static GOSSAMER_INLINE Keys load(const Lane* p) noexcept { return {_mm512_load_si512(p)}; }
  friend GOSSAMER_INLINE Keys magnitudes(Keys a) noexcept {
    return {_mm512_min_epi64(_mm512_and_si512(a.r, _mm512_set1_epi64(0x7fffffffffffffff)),
                             _mm512_set1_epi64(FloatBits<double>::nan))};
  }
  friend GOSSAMER_INLINE Keys add(Keys a, Keys b) noexcept { return {_mm512_add_epi64(a.r, b.r)}; }
  friend GOSSAMER_INLINE Keys sub(Keys a, Keys b) noexcept { return {_mm512_sub_epi64(a.r, b.r)}; }
  friend GOSSAMER_INLINE Keys min(Keys a, Keys b) noexcept { return {_mm512_min_epi64(a.r, b.r)}; }
  friend GOSSAMER_INLINE Keys max(Keys a, Keys b) noexcept { return {_mm512_max_epi64(a.r, b.r)}; }
  friend GOSSAMER_INLINE Keys signs(Keys a) noexcept { return {_mm512_srai_epi64(a.r, 63)}; }
  friend GOSSAMER_INLINE unsigned negative(Keys a) noexcept { return _mm512_movepi64_mask(a.r); }
  friend GOSSAMER_INLINE unsigned greater(Keys a, int n) noexcept {
    return _mm512_cmpgt_epi64_mask(a.r, _mm512_set1_epi64(n));
  }
  friend GOSSAMER_INLINE unsigned equal(Keys a, Keys b) noexcept {
    return _mm512_cmpeq_epi64_mask(a.r, b.r);
  }
  friend GOSSAMER_INLINE unsigned not_less(Keys a, Keys b) noexcept {
    return _mm512_cmpge_epi64_mask(a.r, b.r);
  }
  friend GOSSAMER_INLINE Keys under_two(Keys a, Keys b, Keys c) noexcept {
    return {_mm512_ternarylogic_epi32(a.r, b.r, c.r, 0x2b)};
  }
  friend GOSSAMER_INLINE Keys permute(Keys from, Keys a) noexcept {
    return {_mm512_permutexvar_epi64(from.r, a.r)};
  }
  friend GOSSAMER_INLINE Keys lowered(Keys a, unsigned mask) noexcept {
    return {_mm512_mask_set1_epi64(a.r, static_cast<__mmask8>(mask), -1)};
  }
  template <int by>
  static GOSSAMER_INLINE Keys swap(Keys x) noexcept {
    if constexpr (by == 1) return {_mm512_shuffle_epi32(x.r, _MM_PERM_BADC)};
    if constexpr (by == 2) return {_mm512_permutex_epi64(x.r, 0x4e)};
    if constexpr (by == 4) return {_mm512_shuffle_i64x2(x.r, x.r, 0x4e)};
  }
};

// ---- numbers under a mask ----------------------------------------------------------------------
GOSSAMER_INLINE Vec<float> load_where(const float* p, unsigned mask) noexcept {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p)};
}
GOSSAMER_INLINE void store_where(float* p, Vec<float> v, unsigned mask) noexcept {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), v.r);
}
GOSSAMER_INLINE Vec<float> compress(Vec<float> v, unsigned mask) noexcept {
  return {_mm512_maskz_compress_ps(static_cast<__mmask16>(mask), v.r)};
}
GOSSAMER_INLINE void store_first(float* p, Vec<float> v, int count) noexcept {
  if (count == 8) {
    _mm256_storeu_ps(p, _mm512_castps512_ps256(v.r));
  } else if (count == 4) {
    _mm_storeu_ps(p, _mm512_castps512_ps128(v.r));
  } else if (count == 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), _mm512_castps512_ps128(v.r));
  } else {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), v.r);
  }
}
GOSSAMER_INLINE void store_ids(std::uint8_t* p, unsigned mask, int first, int count) noexcept {
  const __m512i columns = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i ids = _mm512_maskz_compress_epi32(
      static_cast<__mmask16>(mask), _mm512_add_epi32(columns, _mm512_set1_epi32(first)));
  const __m128i bytes = _mm512_cvtepi32_epi8(ids);
  if (count == 8) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), bytes);
  } else if (count == 4) {
    _mm_storeu_si32(p, bytes);
  } else if (count == 2) {
    _mm_storeu_si16(p, bytes);
  } else {
    _mm_mask_storeu_epi8(p, static_cast<__mmask16>((1u << count) - 1), bytes);
  }
}

GOSSAMER_INLINE Vec<float> absolute(Vec<float> v) noexcept {
  return {_mm512_and_ps(v.r, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffffff)))};
}
GOSSAMER_INLINE Vec<double> lower(Vec<float> v) noexcept {
  return {_mm512_cvtps_pd(_mm512_castps512_ps256(v.r))};
}
GOSSAMER_INLINE Vec<double> upper(Vec<float> v) noexcept {
  return {_mm512_cvtps_pd(_mm512_extractf32x8_ps(v.r, 1))};
}
GOSSAMER_INLINE Vec<float> narrow_halves(Vec<double> low, Vec<double> high) noexcept {
  return {_mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low.r)),
                             _mm512_cvtpd_ps(high.r), 1)};
}

GOSSAMER_INLINE Vec<float> four_lanes(const Vec<float> (&x)[4], __m512i from) noexcept {
  const __m512 top = _mm512_insertf32x8(x[0].r, _mm512_castps512_ps256(x[1].r), 1);
  const __m512 bottom = _mm512_insertf32x8(x[2].r, _mm512_castps512_ps256(x[3].r), 1);
  return {_mm512_permutex2var_ps(top, from, bottom)};
}
GOSSAMER_INLINE Vec<float> entries_of_four(const Vec<float> (&x)[4]) noexcept {
  return four_lanes(x, _mm512_set_epi32(27, 19, 11, 3, 26, 18, 10, 2, 25, 17, 9, 1, 24, 16, 8, 0));
}
GOSSAMER_INLINE Vec<float> entries_behind(const Vec<float> (&x)[4]) noexcept {
  return four_lanes(x,
                    _mm512_set_epi32(31, 23, 15, 7, 30, 22, 14, 6, 29, 21, 13, 5, 28, 20, 12, 4));
}

GOSSAMER_INLINE unsigned zero_bytes(const std::uint8_t* p, unsigned mask) noexcept {
  const auto part = static_cast<__mmask16>(mask);
  const __m128i bytes = _mm_maskz_loadu_epi8(part, p);
  return _mm_mask_testn_epi8_mask(part, bytes, bytes);
}
GOSSAMER_INLINE void stream(void* to, const void* from, std::int64_t bytes) noexcept {
  for (std::int64_t b = 0; b < bytes; b += 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(static_cast<char*>(to) + b),
                        _mm512_load_si512(static_cast<const char*>(from) + b));
  }
}

}  // namespace
}  // namespace gossamer
