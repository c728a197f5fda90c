// Tiles in plain C++, so that every machine runs the kernels that use them. Sums are taken in the
// order that Intel's manual gives for tdpbf16ps: even and odd entries apart, then both.
#pragma once

#include "simd/bits.hpp"

namespace gossamer {
namespace {

class Tiles {
 public:
  static constexpr int left = 4, right = 6;

  // NaN everywhere: what is used before it is loaded shows.
  explicit Tiles(int pairs) noexcept : pairs_(pairs) {
    __builtin_memset(words_, 0xff, sizeof words_);
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  template <int T>
  void zero() noexcept {
    __builtin_memset(words_[T], 0, sizeof words_[T]);
  }
  template <int T>
  void load(const void* from, std::int64_t stride) noexcept {
    for (int i = 0; i < lines(T); ++i) {
      __builtin_memcpy(words_[T][i], static_cast<const char*>(from) + i * stride, line_bytes(T));
    }
  }
  template <int T>
  void store(void* to, std::int64_t stride) noexcept {
    for (int i = 0; i < lines(T); ++i) {
      __builtin_memcpy(static_cast<char*>(to) + i * stride, words_[T][i], line_bytes(T));
    }
  }
  template <int C, int A, int B>
  void dot() noexcept {
    for (int i = 0; i < side; ++i) {
      float even[side] = {}, odd[side] = {};
      for (int k = 0; k < pairs_; ++k) {
        const float a = low(words_[A][i][k]), b = high(words_[A][i][k]);
        for (int j = 0; j < side; ++j) {
          even[j] += a * low(words_[B][k][j]);
          odd[j] += b * high(words_[B][k][j]);
        }
      }
      for (int j = 0; j < side; ++j) {
        std::uint32_t& sum = words_[C][i][j];
        sum =
            __builtin_bit_cast(std::uint32_t, __builtin_bit_cast(float, sum) + (even[j] + odd[j]));
      }
    }
  }

 private:
  static constexpr int side = 16;

  // The numbers of a pair; the even one lies first in memory.
  static GOSSAMER_INLINE float low(std::uint32_t pair) noexcept {
    return __builtin_bit_cast(float, pair << 16);
  }
  static GOSSAMER_INLINE float high(std::uint32_t pair) noexcept {
    return __builtin_bit_cast(float, pair & 0xffff0000u);
  }
  int lines(int tile) const noexcept { return tile >= right ? pairs_ : side; }
  std::size_t line_bytes(int tile) const noexcept {
    return 4 * static_cast<std::size_t>(tile >= left && tile < right ? pairs_ : side);
  }

  alignas(64) std::uint32_t words_[8][side][side];
  int pairs_;
};

}  // namespace
}  // namespace gossamer
