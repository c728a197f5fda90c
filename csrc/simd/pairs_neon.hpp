// Pairs of bf16 with the BF16 extension of ARMv8.2: one bfdot is 16 operations.
#pragma once

#include <arm_neon.h>

#include "simd/vec.hpp"

namespace gossamer {
namespace {

struct Pairs {
  static constexpr int lanes = 4;
  uint16x8_t r;

  static GOSSAMER_INLINE Pairs zero() noexcept { return {vdupq_n_u16(0)}; }
  static GOSSAMER_INLINE Pairs load(const bf16* p) noexcept { return {vld1q_u16(&p->bits)}; }
  static GOSSAMER_INLINE Pairs load_n(const bf16* p, int n) noexcept {
    bf16 full[2 * lanes] = {};
    for (int i = 0; i < n; ++i) full[i] = p[i];
    return load(full);
  }
  static GOSSAMER_INLINE Pairs spaced(const bf16* p) noexcept {
    return {vreinterpretq_u16_u32(vmovl_u16(vld1_u16(&p->bits)))};
  }
  static GOSSAMER_INLINE Pairs set(const bf16* p) noexcept {
    std::uint32_t pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return {vreinterpretq_u16_u32(vdupq_n_u32(pair))};
  }
  GOSSAMER_INLINE void store(bf16* p) const noexcept { vst1q_u16(&p->bits, r); }
  GOSSAMER_INLINE void store_n(bf16* p, int n) const noexcept {
    bf16 full[2 * lanes];
    store(full);
    for (int i = 0; i < n; ++i) p[i] = full[i];
  }

  friend GOSSAMER_INLINE Vec<float> dot(Vec<float> sum, Pairs a, Pairs b) noexcept {
    return {vbfdotq_f32(sum.r, vreinterpretq_bf16_u16(a.r), vreinterpretq_bf16_u16(b.r))};
  }
  static GOSSAMER_INLINE Pairs narrow(Vec<float> low, Vec<float> high) noexcept {
    return {vreinterpretq_u16_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(low.r), high.r))};
  }
  friend GOSSAMER_INLINE Pairs evens(Pairs a, Pairs b) noexcept { return {vtrn1q_u16(a.r, b.r)}; }
  friend GOSSAMER_INLINE Pairs odds(Pairs a, Pairs b) noexcept { return {vtrn2q_u16(a.r, b.r)}; }
  friend GOSSAMER_INLINE Pairs zip_low(Pairs a, Pairs b) noexcept { return {vzip1q_u16(a.r, b.r)}; }
  friend GOSSAMER_INLINE Pairs zip_high(Pairs a, Pairs b) noexcept {
    return {vzip2q_u16(a.r, b.r)};
  }
  template <int V>
  static GOSSAMER_INLINE Pairs pair_entries(Pairs a) noexcept {
    static_assert(V == 4);  // two entries in a register
    return {vzip1q_u16(a.r, vextq_u16(a.r, a.r, 4))};
  }
  static GOSSAMER_INLINE void transpose(Pairs (&a)[4]) noexcept {
    Vec<float> t[4];
    for (int i = 0; i < 4; ++i) t[i].r = vreinterpretq_f32_u16(a[i].r);
    Vec<float>::transpose(t);
    for (int i = 0; i < 4; ++i) a[i].r = vreinterpretq_u16_f32(t[i].r);
  }
};

}  // namespace
}  // namespace gossamer
