// Tiles with AMX: one tdpbf16ps is 8192 multiply-adds.
//
// Written as assembler: the intrinsics of GCC 12 take the number of a register as a token, which a
// template cannot give, and do not say that they read and write memory.
#pragma once

#include "core/types.hpp"

namespace gossamer {
namespace {

class Tiles {
 public:
  static constexpr int left = 4, right = 6;

  explicit GOSSAMER_INLINE Tiles(int pairs) noexcept {
    struct alignas(64) {  // as ldtilecfg reads it
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t bytes[16] = {};  // of a line
      std::uint8_t lines[16] = {};
    } shape;
    static_assert(sizeof shape == 64);
    for (int t = 0; t < 8; ++t) {
      const bool is_left = t >= left && t < right;
      shape.bytes[t] = static_cast<std::uint16_t>(is_left ? 4 * pairs : 64);
      shape.lines[t] = static_cast<std::uint8_t>(t >= right ? pairs : 16);
    }
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  GOSSAMER_INLINE ~Tiles() { asm volatile("tilerelease" ::: "memory"); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  template <int T>
  GOSSAMER_INLINE void zero() noexcept {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  template <int T>
  GOSSAMER_INLINE void load(const void* from, std::int64_t stride) noexcept {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  GOSSAMER_INLINE void store(void* to, std::int64_t stride) noexcept {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
  }
  template <int C, int A, int B>
  GOSSAMER_INLINE void dot() noexcept {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};

}  // namespace
}  // namespace gossamer
