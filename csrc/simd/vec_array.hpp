// The vocabulary on plain arrays of GOSSAMER_VECTOR_BYTES bytes, no intrinsics.
//
// With 16 bytes it is the portable table, for processors that have none of their own. With 64 it
// has the shape of AVX-512, so those code paths run under test on every machine. Multiply and add
// are rounded separately: a fused one would be a call into libm where the processor lacks it.
#pragma once

#include "simd/bits.hpp"

namespace gossamer {
namespace {

inline constexpr int registers = GOSSAMER_VECTOR_BYTES == 64 ? 32 : 16;

template <class C>
struct Vec {
  static constexpr int lanes = GOSSAMER_VECTOR_BYTES / static_cast<int>(sizeof(C));
  C r[lanes];

  static GOSSAMER_INLINE Vec set(C x) noexcept {
    Vec out;
    for (int i = 0; i < lanes; ++i) out.r[i] = x;
    return out;
  }
  static GOSSAMER_INLINE Vec zero() noexcept { return set(C(0)); }
  static GOSSAMER_INLINE Vec load(const C* p) noexcept { return load_n(p, lanes); }
  static GOSSAMER_INLINE Vec load_n(const C* p, int n) noexcept {
    Vec out = zero();
    for (int i = 0; i < n; ++i) out.r[i] = p[i];
    return out;
  }
  static GOSSAMER_INLINE Vec load_bf16(const bf16* p) noexcept {
    Vec out;
    for (int i = 0; i < lanes; ++i) out.r[i] = widen(p[i]);
    return out;
  }
  GOSSAMER_INLINE void store(C* p) const noexcept { store_n(p, lanes); }
  GOSSAMER_INLINE void store_n(C* p, int n) const noexcept {
    for (int i = 0; i < n; ++i) p[i] = r[i];
  }
  static GOSSAMER_INLINE Vec load_even(const C* p, int n) noexcept {
    Vec out = zero();
    for (int i = 0; i < n; ++i) out.r[i] = p[2 * i];
    return out;
  }
  GOSSAMER_INLINE void store_even(C* p, int n) const noexcept {
    for (int i = 0; i < n; ++i) p[2 * i] = r[i];
  }
  GOSSAMER_INLINE void store_bf16(bf16* p) const noexcept {
    for (int i = 0; i < lanes; ++i) p[i] = round_bf16(r[i]);
  }
  template <int V>
  static GOSSAMER_INLINE Vec spread(const C* x, const std::uint8_t* ids) noexcept {
    Vec out;
    for (int i = 0; i < lanes; ++i) out.r[i] = x[ids[i / V]];
    return out;
  }
  friend GOSSAMER_INLINE Vec add(Vec a, Vec b) noexcept {
    for (int i = 0; i < lanes; ++i) a.r[i] += b.r[i];
    return a;
  }
  friend GOSSAMER_INLINE Vec mul(Vec a, Vec b) noexcept {
    for (int i = 0; i < lanes; ++i) a.r[i] *= b.r[i];
    return a;
  }
  friend GOSSAMER_INLINE Vec fma(Vec a, Vec b, Vec c) noexcept {
    for (int i = 0; i < lanes; ++i) c.r[i] += a.r[i] * b.r[i];
    return c;
  }
  friend GOSSAMER_INLINE unsigned outside(Vec v, Vec low, Vec high) noexcept {
    unsigned bits = 0;
    for (int i = 0; i < lanes; ++i) {
      bits |= (v.r[i] >= low.r[i] && v.r[i] <= high.r[i] ? 0u : 1u) << i;
    }
    return bits;
  }
  static GOSSAMER_INLINE Vec sums(const Vec (&a)[lanes]) noexcept {
    Vec out = zero();
    for (int i = 0; i < lanes; ++i) {
      for (int k = 0; k < lanes; ++k) out.r[i] += a[i].r[k];
    }
    return out;
  }
  static GOSSAMER_INLINE void transpose(Vec (&a)[lanes]) noexcept {
    for (int i = 0; i < lanes; ++i) {
      for (int k = 0; k < i; ++k) {
        const C kept = a[i].r[k];
        a[i].r[k] = a[k].r[i];
        a[k].r[i] = kept;
      }
    }
  }
};

}  // namespace
}  // namespace gossamer
