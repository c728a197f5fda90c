// Small integers with AVX-512 VNNI: one vpdpbusd is 128 operations.
#pragma once

#include <immintrin.h>

#include "simd/vec.hpp"

namespace gossamer {
namespace {

struct Bytes {
  __m512i r;

  static GOSSAMER_INLINE Bytes load(const std::uint8_t* p) noexcept {
    return {_mm512_loadu_si512(p)};
  }
  static GOSSAMER_INLINE Bytes load_signed(const std::int8_t* p) noexcept {
    return {_mm512_loadu_si512(p)};
  }
  static GOSSAMER_INLINE Bytes set(const std::int8_t* p) noexcept {
    std::int32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return {_mm512_set1_epi32(four)};
  }
};

struct Ints {
  static constexpr int lanes = 16;
  __m512i r;

  static GOSSAMER_INLINE Ints zero() noexcept { return {_mm512_setzero_si512()}; }
  friend GOSSAMER_INLINE Ints dot(Ints sum, Bytes x, Bytes w) noexcept {
    return {_mm512_dpbusd_epi32(sum.r, x.r, w.r)};
  }
  friend GOSSAMER_INLINE std::int32_t total(Ints a) noexcept {
    return _mm512_reduce_add_epi32(a.r);
  }
  friend GOSSAMER_INLINE Vec<float> floats(Ints a, std::int32_t offset) noexcept {
    return {_mm512_cvtepi32_ps(_mm512_add_epi32(a.r, _mm512_set1_epi32(offset)))};
  }
};

}  // namespace
}  // namespace gossamer
