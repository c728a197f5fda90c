// Pairs of bf16 in plain C++, so that every machine runs the kernels that use them.
#pragma once

#include "simd/vec.hpp"

namespace gossamer {
namespace {

struct Pairs {
  static constexpr int lanes = Vec<float>::lanes;
  static constexpr int size = 2 * lanes;
  bf16 r[size];

  static GOSSAMER_INLINE Pairs zero() noexcept {
    Pairs out;
    for (int i = 0; i < size; ++i) out.r[i] = bf16{0};
    return out;
  }
  static GOSSAMER_INLINE Pairs load(const bf16* p) noexcept { return load_n(p, size); }
  static GOSSAMER_INLINE Pairs load_n(const bf16* p, int n) noexcept {
    Pairs out = zero();
    for (int i = 0; i < n; ++i) out.r[i] = p[i];
    return out;
  }
  static GOSSAMER_INLINE Pairs spaced(const bf16* p) noexcept {
    Pairs out = zero();
    for (int i = 0; i < lanes; ++i) out.r[2 * i] = p[i];
    return out;
  }
  static GOSSAMER_INLINE Pairs set(const bf16* p) noexcept {
    Pairs out;
    for (int i = 0; i < size; ++i) out.r[i] = p[i % 2];
    return out;
  }
  GOSSAMER_INLINE void store(bf16* p) const noexcept { store_n(p, size); }
  GOSSAMER_INLINE void store_n(bf16* p, int n) const noexcept {
    for (int i = 0; i < n; ++i) p[i] = r[i];
  }

  friend GOSSAMER_INLINE Vec<float> dot(Vec<float> sum, Pairs a, Pairs b) noexcept {
    for (int i = 0; i < lanes; ++i) {
      sum.r[i] += widen(a.r[2 * i + 1]) * widen(b.r[2 * i + 1]);
      sum.r[i] += widen(a.r[2 * i]) * widen(b.r[2 * i]);
    }
    return sum;
  }
  static GOSSAMER_INLINE Pairs narrow(Vec<float> low, Vec<float> high) noexcept {
    Pairs out;
    for (int i = 0; i < lanes; ++i) {
      out.r[i] = round_bf16(low.r[i]);
      out.r[lanes + i] = round_bf16(high.r[i]);
    }
    return out;
  }
  friend GOSSAMER_INLINE Pairs evens(Pairs a, Pairs b) noexcept { return alternate(a, b, 0); }
  friend GOSSAMER_INLINE Pairs odds(Pairs a, Pairs b) noexcept { return alternate(a, b, 1); }
  friend GOSSAMER_INLINE Pairs zip_low(Pairs a, Pairs b) noexcept { return zip(a, b, 0); }
  friend GOSSAMER_INLINE Pairs zip_high(Pairs a, Pairs b) noexcept { return zip(a, b, 4); }
  template <int V>
  static GOSSAMER_INLINE Pairs pair_entries(Pairs a) noexcept {
    Pairs out;
    for (int i = 0; i < size; ++i) {
      const int entry = i / (2 * V) * 2 + i % 2;
      out.r[i] = a.r[entry * V + i / 2 % V];
    }
    return out;
  }
  static GOSSAMER_INLINE void transpose(Pairs (&a)[lanes]) noexcept {
    for (int i = 0; i < lanes; ++i) {
      for (int k = 0; k < i; ++k) {
        for (int half = 0; half < 2; ++half) {
          const bf16 kept = a[i].r[2 * k + half];
          a[i].r[2 * k + half] = a[k].r[2 * i + half];
          a[k].r[2 * i + half] = kept;
        }
      }
    }
  }

 private:
  static GOSSAMER_INLINE Pairs alternate(Pairs a, Pairs b, int odd) noexcept {
    Pairs out;
    for (int i = 0; i < lanes; ++i) {
      out.r[2 * i] = a.r[2 * i + odd];
      out.r[2 * i + 1] = b.r[2 * i + odd];
    }
    return out;
  }
  static GOSSAMER_INLINE Pairs zip(Pairs a, Pairs b, int from) noexcept {
    Pairs out;
    for (int i = 0; i < lanes; ++i) {
      const int at = i / 4 * 8 + from + i % 4;
      out.r[2 * i] = a.r[at];
      out.r[2 * i + 1] = b.r[at];
    }
    return out;
  }
};

}  // namespace
}  // namespace gossamer
