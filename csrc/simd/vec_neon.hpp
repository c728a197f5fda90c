// NEON, which every 64-bit ARM processor has: 4 floats or 2 doubles, 32 registers.
#pragma once

#include <arm_neon.h>

#include "simd/bits.hpp"

namespace gossamer {
namespace {

inline constexpr int registers = 32;

template <class C>
struct Vec;

// There are no masked loads and stores: a part of a register goes through the stack.
template <>
struct Vec<float> {
  static constexpr int lanes = 4;
  float32x4_t r;

  static GOSSAMER_INLINE Vec zero() noexcept { return set(0.0f); }
  static GOSSAMER_INLINE Vec set(float x) noexcept { return {vdupq_n_f32(x)}; }
  static GOSSAMER_INLINE Vec load(const float* p) noexcept { return {vld1q_f32(p)}; }
  static GOSSAMER_INLINE Vec load_n(const float* p, int n) noexcept {
    float full[lanes] = {};
    for (int i = 0; i < n; ++i) full[i] = p[i];
    return load(full);
  }
  static GOSSAMER_INLINE Vec load_bf16(const bf16* p) noexcept {
    return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&p->bits), 16))};
  }
  GOSSAMER_INLINE void store(float* p) const noexcept { vst1q_f32(p, r); }
  GOSSAMER_INLINE void store_n(float* p, int n) const noexcept {
    float full[lanes];
    store(full);
    for (int i = 0; i < n; ++i) p[i] = full[i];
  }
  static GOSSAMER_INLINE Vec load_even(const float* p, int n) noexcept {
    float full[lanes] = {};
    for (int i = 0; i < n; ++i) full[i] = p[2 * i];
    return load(full);
  }
  GOSSAMER_INLINE void store_even(float* p, int n) const noexcept {
    float full[lanes];
    store(full);
    for (int i = 0; i < n; ++i) p[2 * i] = full[i];
  }
  GOSSAMER_INLINE void store_bf16(bf16* p) const noexcept {
    const uint32x4_t bits = vreinterpretq_u32_f32(r);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t number = vceqq_f32(r, r);
    const uint32x4_t high = vbslq_u32(number, vshrq_n_u32(up, 16), vdupq_n_u32(0x7fc0));
    vst1_u16(&p->bits, vmovn_u32(high));
  }
  template <int V>
  static GOSSAMER_INLINE Vec spread(const float* x, const std::uint8_t* ids) noexcept {
    static_assert(V % lanes == 0);
    return set(x[ids[0]]);
  }
  friend GOSSAMER_INLINE Vec add(Vec a, Vec b) noexcept { return {vaddq_f32(a.r, b.r)}; }
  friend GOSSAMER_INLINE Vec mul(Vec a, Vec b) noexcept { return {vmulq_f32(a.r, b.r)}; }
  friend GOSSAMER_INLINE Vec fma(Vec a, Vec b, Vec c) noexcept {
    return {vfmaq_f32(c.r, a.r, b.r)};
  }
  friend GOSSAMER_INLINE unsigned outside(Vec v, Vec low, Vec high) noexcept {
    const uint32x4_t inside = vandq_u32(vcgeq_f32(v.r, low.r), vcleq_f32(v.r, high.r));
    const uint32x4_t lane = {1, 2, 4, 8};
    return vaddvq_u32(vbicq_u32(lane, inside));
  }

  static GOSSAMER_INLINE Vec sums(const Vec (&a)[4]) noexcept {
    return {vpaddq_f32(vpaddq_f32(a[0].r, a[1].r), vpaddq_f32(a[2].r, a[3].r))};
  }

  static GOSSAMER_INLINE void transpose(Vec (&a)[4]) noexcept {
    const auto d = [](float32x4_t x) { return vreinterpretq_f64_f32(x); };
    const float64x2_t ab0 = d(vtrn1q_f32(a[0].r, a[1].r));
    const float64x2_t ab1 = d(vtrn2q_f32(a[0].r, a[1].r));
    const float64x2_t cd0 = d(vtrn1q_f32(a[2].r, a[3].r));
    const float64x2_t cd1 = d(vtrn2q_f32(a[2].r, a[3].r));
    a[0].r = vreinterpretq_f32_f64(vtrn1q_f64(ab0, cd0));
    a[1].r = vreinterpretq_f32_f64(vtrn1q_f64(ab1, cd1));
    a[2].r = vreinterpretq_f32_f64(vtrn2q_f64(ab0, cd0));
    a[3].r = vreinterpretq_f32_f64(vtrn2q_f64(ab1, cd1));
  }
};

template <>
struct Vec<double> {
  static constexpr int lanes = 2;
  float64x2_t r;

  static GOSSAMER_INLINE Vec zero() noexcept { return set(0.0); }
  static GOSSAMER_INLINE Vec set(double x) noexcept { return {vdupq_n_f64(x)}; }
  static GOSSAMER_INLINE Vec load(const double* p) noexcept { return {vld1q_f64(p)}; }
  static GOSSAMER_INLINE Vec load_n(const double* p, int n) noexcept {
    double full[lanes] = {};
    for (int i = 0; i < n; ++i) full[i] = p[i];
    return load(full);
  }
  GOSSAMER_INLINE void store(double* p) const noexcept { vst1q_f64(p, r); }
  GOSSAMER_INLINE void store_n(double* p, int n) const noexcept {
    double full[lanes];
    store(full);
    for (int i = 0; i < n; ++i) p[i] = full[i];
  }
  static GOSSAMER_INLINE Vec load_even(const double* p, int n) noexcept {
    double full[lanes] = {};
    for (int i = 0; i < n; ++i) full[i] = p[2 * i];
    return load(full);
  }
  GOSSAMER_INLINE void store_even(double* p, int n) const noexcept {
    double full[lanes];
    store(full);
    for (int i = 0; i < n; ++i) p[2 * i] = full[i];
  }
  template <int V>
  static GOSSAMER_INLINE Vec spread(const double* x, const std::uint8_t* ids) noexcept {
    static_assert(V % lanes == 0);
    return set(x[ids[0]]);
  }
  friend GOSSAMER_INLINE Vec add(Vec a, Vec b) noexcept { return {vaddq_f64(a.r, b.r)}; }
  friend GOSSAMER_INLINE Vec mul(Vec a, Vec b) noexcept { return {vmulq_f64(a.r, b.r)}; }
  friend GOSSAMER_INLINE Vec fma(Vec a, Vec b, Vec c) noexcept {
    return {vfmaq_f64(c.r, a.r, b.r)};
  }
  friend GOSSAMER_INLINE unsigned outside(Vec v, Vec low, Vec high) noexcept {
    const uint64x2_t inside = vandq_u64(vcgeq_f64(v.r, low.r), vcleq_f64(v.r, high.r));
    const uint64x2_t lane = {1, 2};
    return static_cast<unsigned>(vaddvq_u64(vbicq_u64(lane, inside)));
  }

  static GOSSAMER_INLINE Vec sums(const Vec (&a)[2]) noexcept {
    return {vpaddq_f64(a[0].r, a[1].r)};
  }

  static GOSSAMER_INLINE void transpose(Vec (&a)[2]) noexcept {
    const float64x2_t first = vtrn1q_f64(a[0].r, a[1].r);
    a[1].r = vtrn2q_f64(a[0].r, a[1].r);
    a[0].r = first;
  }
};

}  // namespace
}  // namespace gossamer
