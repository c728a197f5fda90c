// Small integers in plain C++, so that every machine runs the kernels that use them.
#pragma once

#include "simd/vec.hpp"

namespace gossamer {
namespace {

struct Bytes {
  std::uint8_t r[4 * Vec<float>::lanes];

  static GOSSAMER_INLINE Bytes load(const std::uint8_t* p) noexcept {
    Bytes out;
    __builtin_memcpy(out.r, p, sizeof out.r);
    return out;
  }
  static GOSSAMER_INLINE Bytes load_signed(const std::int8_t* p) noexcept {
    Bytes out;
    __builtin_memcpy(out.r, p, sizeof out.r);
    return out;
  }
  static GOSSAMER_INLINE Bytes set(const std::int8_t* p) noexcept {
    Bytes out;
    for (int i = 0; i < Vec<float>::lanes; ++i) __builtin_memcpy(out.r + 4 * i, p, 4);
    return out;
  }
};

struct Ints {
  static constexpr int lanes = Vec<float>::lanes;
  std::int32_t r[lanes];

  static GOSSAMER_INLINE Ints zero() noexcept {
    Ints out;
    for (int i = 0; i < lanes; ++i) out.r[i] = 0;
    return out;
  }
  friend GOSSAMER_INLINE Ints dot(Ints sum, Bytes x, Bytes w) noexcept {
    for (int i = 0; i < 4 * lanes; ++i) {
      sum.r[i / 4] += static_cast<std::int32_t>(x.r[i]) * static_cast<std::int8_t>(w.r[i]);
    }
    return sum;
  }
  friend GOSSAMER_INLINE std::int32_t total(Ints a) noexcept {
    std::int32_t sum = 0;
    for (int i = 0; i < lanes; ++i) sum += a.r[i];
    return sum;
  }
  friend GOSSAMER_INLINE Vec<float> floats(Ints a, std::int32_t offset) noexcept {
    Vec<float> out;
    for (int i = 0; i < lanes; ++i) out.r[i] = static_cast<float>(a.r[i] + offset);
    return out;
  }
};

}  // namespace
}  // namespace gossamer
