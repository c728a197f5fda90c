// Keys and masks in plain C++, so that every machine runs the loops that use them.
#pragma once

#include "simd/vec.hpp"

namespace gossamer {
namespace {

template <class T>
struct Keys {
  using Lane = Bits<T>;
  static constexpr int lanes = Vec<T>::lanes;
  Lane r[lanes];

  template <class F>
  static GOSSAMER_INLINE Keys each(F&& f) noexcept {
    Keys out;
    for (int i = 0; i < lanes; ++i) out.r[i] = static_cast<Lane>(f(i));
    return out;
  }
  template <class F>
  static GOSSAMER_INLINE unsigned mask(F&& f) noexcept {
    unsigned out = 0;
    for (int i = 0; i < lanes; ++i) out |= static_cast<unsigned>(f(i)) << i;
    return out;
  }

  static GOSSAMER_INLINE Keys of(Vec<T> v) noexcept {
    return each([&](int i) { return bits_of(v.r[i]); });
  }
  static GOSSAMER_INLINE Keys zero() noexcept {
    return each([](int) { return 0; });
  }
  static GOSSAMER_INLINE Keys load(const Lane* p) noexcept {
    return each([&](int i) { return p[i]; });
  }
  friend GOSSAMER_INLINE Keys magnitudes(Keys a) noexcept {
    return each([&](int i) { return magnitude_key<T>(a.r[i]); });
  }
  friend GOSSAMER_INLINE Keys add(Keys a, Keys b) noexcept {
    return each([&](int i) { return a.r[i] + b.r[i]; });
  }
  friend GOSSAMER_INLINE Keys sub(Keys a, Keys b) noexcept {
    return each([&](int i) { return a.r[i] - b.r[i]; });
  }
  friend GOSSAMER_INLINE Keys min(Keys a, Keys b) noexcept {
    return each([&](int i) { return a.r[i] < b.r[i] ? a.r[i] : b.r[i]; });
  }
  friend GOSSAMER_INLINE Keys max(Keys a, Keys b) noexcept {
    return each([&](int i) { return a.r[i] > b.r[i] ? a.r[i] : b.r[i]; });
  }
  friend GOSSAMER_INLINE Keys signs(Keys a) noexcept {
    return each([&](int i) { return a.r[i] < 0 ? -1 : 0; });
  }
  friend GOSSAMER_INLINE unsigned negative(Keys a) noexcept {
    return mask([&](int i) { return a.r[i] < 0; });
  }
  friend GOSSAMER_INLINE unsigned greater(Keys a, int n) noexcept {
    return mask([&](int i) { return a.r[i] > n; });
  }
  friend GOSSAMER_INLINE unsigned equal(Keys a, Keys b) noexcept {
    return mask([&](int i) { return a.r[i] == b.r[i]; });
  }
  friend GOSSAMER_INLINE unsigned not_less(Keys a, Keys b) noexcept {
    return mask([&](int i) { return a.r[i] >= b.r[i]; });
  }
  friend GOSSAMER_INLINE Keys under_two(Keys a, Keys b, Keys c) noexcept {
    return each([&](int i) { return (a.r[i] < 0) + (b.r[i] < 0) + (c.r[i] >= 0) < 2 ? -1 : 0; });
  }
  friend GOSSAMER_INLINE Keys permute(Keys from, Keys a) noexcept {
    return each([&](int i) { return a.r[from.r[i]]; });
  }
  friend GOSSAMER_INLINE Keys lowered(Keys a, unsigned lanes_of) noexcept {
    return each([&](int i) { return (lanes_of >> i & 1u) != 0 ? Lane{-1} : a.r[i]; });
  }
  template <int by>
  static GOSSAMER_INLINE Keys swap(Keys x) noexcept {
    return each([&](int i) { return x.r[i ^ by]; });
  }
};

// ---- numbers under a mask ----------------------------------------------------------------------
GOSSAMER_INLINE bool has(unsigned mask, int lane) noexcept { return (mask >> lane & 1u) != 0; }

GOSSAMER_INLINE Vec<float> load_where(const float* p, unsigned mask) noexcept {
  Vec<float> out = Vec<float>::zero();
  for (int i = 0; i < 16; ++i) {
    if (has(mask, i)) out.r[i] = p[i];
  }
  return out;
}
GOSSAMER_INLINE void store_where(float* p, Vec<float> v, unsigned mask) noexcept {
  for (int i = 0; i < 16; ++i) {
    if (has(mask, i)) p[i] = v.r[i];
  }
}
GOSSAMER_INLINE Vec<float> compress(Vec<float> v, unsigned mask) noexcept {
  Vec<float> out = Vec<float>::zero();
  int at = 0;
  for (int i = 0; i < 16; ++i) {
    if (has(mask, i)) out.r[at++] = v.r[i];
  }
  return out;
}
GOSSAMER_INLINE void store_first(float* p, Vec<float> v, int count) noexcept {
  v.store_n(p, count);
}
GOSSAMER_INLINE void store_ids(std::uint8_t* p, unsigned mask, int first, int count) noexcept {
  std::uint8_t ids[16] = {};
  int at = 0;
  for (int i = 0; i < 16; ++i) {
    if (has(mask, i)) ids[at++] = static_cast<std::uint8_t>(first + i);
  }
  for (int i = 0; i < count; ++i) p[i] = ids[i];
}

GOSSAMER_INLINE Vec<float> absolute(Vec<float> v) noexcept {
  for (int i = 0; i < 16; ++i) v.r[i] = __builtin_fabsf(v.r[i]);
  return v;
}
GOSSAMER_INLINE Vec<double> lower(Vec<float> v) noexcept {
  Vec<double> out;
  for (int i = 0; i < 8; ++i) out.r[i] = v.r[i];
  return out;
}
GOSSAMER_INLINE Vec<double> upper(Vec<float> v) noexcept {
  Vec<double> out;
  for (int i = 0; i < 8; ++i) out.r[i] = v.r[8 + i];
  return out;
}
GOSSAMER_INLINE Vec<float> narrow_halves(Vec<double> low, Vec<double> high) noexcept {
  Vec<float> out;
  for (int i = 0; i < 8; ++i) {
    out.r[i] = static_cast<float>(low.r[i]);
    out.r[8 + i] = static_cast<float>(high.r[i]);
  }
  return out;
}

GOSSAMER_INLINE Vec<float> four_lanes(const Vec<float> (&x)[4], int first) noexcept {
  Vec<float> out;
  for (int i = 0; i < 16; ++i) out.r[i] = x[i % 4].r[first + i / 4];
  return out;
}
GOSSAMER_INLINE Vec<float> entries_of_four(const Vec<float> (&x)[4]) noexcept {
  return four_lanes(x, 0);
}
GOSSAMER_INLINE Vec<float> entries_behind(const Vec<float> (&x)[4]) noexcept {
  return four_lanes(x, 4);
}

GOSSAMER_INLINE unsigned zero_bytes(const std::uint8_t* p, unsigned mask) noexcept {
  unsigned out = 0;
  for (int i = 0; i < 16; ++i) {
    if (has(mask, i) && p[i] == 0) out |= 1u << i;
  }
  return out;
}
GOSSAMER_INLINE void stream(void* to, const void* from, std::int64_t bytes) noexcept {
  __builtin_memcpy(to, from, static_cast<std::size_t>(bytes));
}

}  // namespace
}  // namespace gossamer
