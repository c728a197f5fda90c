// The words of words.cuh on an emulated GPU. Each checks what a GPU would only suffer: alignment,
// bounds of shared memory, lanes that do not meet, work that nobody waits for.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "gpu/emulation.hpp"

#define GOSSAMER_WORD inline
#define GOSSAMER_UNROLL

namespace gossamer::gpu {

inline unsigned char* dynamic_shared() {
  const auto p = reinterpret_cast<std::uintptr_t>(emulated::block.shared.data());
  return reinterpret_cast<unsigned char*>((p + 127) / 128 * 128);
}

inline void check_shared(const void* p, const char* who) {
  const auto* at = static_cast<const unsigned char*>(p);
  const auto& shared = emulated::block.shared;
  if (reinterpret_cast<std::uintptr_t>(at) % 16 != 0) {
    emulated::fail(std::string(who) + ": not aligned to 16 bytes");
  }
  if (at < shared.data() || at + 16 > shared.data() + shared.size()) {
    emulated::fail(std::string(who) + ": outside of shared memory");
  }
}

inline std::uint32_t load32(const void* p) {
  if (reinterpret_cast<std::uintptr_t>(p) % 4 != 0) emulated::fail("load32: not aligned");
  std::uint32_t x;
  std::memcpy(&x, p, 4);
  return x;
}
inline void store32(void* p, std::uint32_t x) {
  if (reinterpret_cast<std::uintptr_t>(p) % 4 != 0) emulated::fail("store32: not aligned");
  std::memcpy(p, &x, 4);
}

inline void copy16(void* to, const void* from, bool valid) {
  check_shared(to, "copy16");
  if (reinterpret_cast<std::uintptr_t>(from) % 16 != 0) {
    emulated::fail("copy16: its source is not aligned to 16 bytes");
  }
  const emulated::Copy copy{to, from, valid ? 16u : 0u};
  if (emulated::next_random() % 2 == 0) {
    copy.land();
    emulated::block.self->unfenced = true;
    return;
  }
  emulated::fill_with_nan(static_cast<unsigned char*>(to), 16);  // until it is waited for
  emulated::block.self->copies.open.push_back(copy);
}
inline void copies_commit() { emulated::block.self->copies.commit(); }
template <int open>
void copies_wait() {
  emulated::block.self->copies.wait(open, [](const emulated::Copy& copy) {
    copy.land();
    emulated::block.self->unfenced = true;
  });
}

struct FourWords {
  std::uint32_t word[4];
};

// Element [2 (lane % 4) + half][lane / 4] of each matrix; lane i names row i % 8 of matrix i / 8.
inline void load_matrices_t(std::uint32_t (&r)[4], const void* row) {
  static const char instruction = 0;
  check_shared(row, "load_matrices_t");
  const auto found = emulated::together<FourWords>(&instruction, row, [](emulated::Warp& warp) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        std::uint16_t element[2];
        for (int half = 0; half < 2; ++half) {
          const auto* from =
              emulated::in_of<const unsigned char*>(warp, matrix * 8 + lane % 4 * 2 + half);
          std::memcpy(&element[half], from + lane / 4 * 2, 2);
        }
        emulated::out_of<FourWords>(warp, lane).word[matrix] =
            element[0] | static_cast<std::uint32_t>(element[1]) << 16;
      }
    }
  });
  std::memcpy(r, found.word, sizeof(r));
}

inline std::uint32_t turn_matrix(std::uint32_t x) {
  static const char instruction = 0;
  return emulated::together<std::uint32_t>(&instruction, x, [](emulated::Warp& warp) {
    for (int lane = 0; lane < 32; ++lane) {
      std::uint32_t y = 0;
      for (int half = 0; half < 2; ++half) {
        const int row = lane % 4 * 2 + half, col = lane / 4;
        const auto from = emulated::in_of<std::uint32_t>(warp, row * 4 + col / 2);
        y |= (from >> (col % 2 * 16) & 0xffffu) << (half * 16);
      }
      emulated::out_of<std::uint32_t>(warp, lane) = y;
    }
  });
}

inline float half_of(std::uint32_t pair, int half) {
  const std::uint32_t bits = (pair >> (half * 16) & 0xffffu) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

struct MmaIn {
  float c[4];
  std::uint32_t a[4], b[2];
};
struct MmaOut {
  float c[4];
};

inline void mma_bf16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                     std::uint32_t b1) {
  static const char instruction = 0;
  const MmaIn in{{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  const auto found = emulated::together<MmaOut>(&instruction, in, [](emulated::Warp& warp) {
    float left[16][16], right[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const auto& given = emulated::in_of<MmaIn>(warp, lane);
      const int row = lane / 4, col = lane % 4 * 2;
      for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 4; ++i) {
          left[row + i % 2 * 8][col + half + i / 2 * 8] = half_of(given.a[i], half);
        }
        for (int i = 0; i < 2; ++i) right[col + half + i * 8][row] = half_of(given.b[i], half);
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, col = lane % 4 * 2 + i % 2;
        float sum = emulated::in_of<MmaIn>(warp, lane).c[i];
        for (int k = 0; k < 16; ++k) sum += left[row][k] * right[k][col];
        emulated::out_of<MmaOut>(warp, lane).c[i] = sum;
      }
    }
  });
  std::memcpy(c, found.c, sizeof(c));
}

inline std::uint32_t pack_bf16(float low, float high) {
  const auto round = [](float x) -> std::uint32_t {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  };
  return round(low) | round(high) << 16;
}

// The address is an offset into shared memory.
inline std::uint64_t matrix_descriptor(const void* p, unsigned k_stride, unsigned mn_stride) {
  check_shared(p, "matrix_descriptor");
  const auto at =
      static_cast<std::uint64_t>(static_cast<const unsigned char*>(p) - dynamic_shared());
  if (at >> 18 != 0 || k_stride % 16 != 0 || mn_stride % 16 != 0 || k_stride >> 18 != 0 ||
      mn_stride >> 18 != 0) {
    emulated::fail("matrix_descriptor: out of range");
  }
  return at >> 4 | static_cast<std::uint64_t>(k_stride >> 4) << 16 |
         static_cast<std::uint64_t>(mn_stride >> 4) << 32;
}

// Element (mn, k) of an operand whose 8 x 8 pieces, k outermost, are 128 bytes: ((8, n), (8, k)) :
// ((2 bytes, mn_stride), (16 bytes, k_stride)).
inline float element(std::uint64_t descriptor, int mn, int k) {
  const auto field = [&](int shift) { return descriptor >> shift & 0x3fff; };
  const std::uint64_t row = field(0) + static_cast<std::uint64_t>(mn / 8) * field(32) +
                            static_cast<std::uint64_t>(k / 8) * field(16) +
                            static_cast<std::uint64_t>(k % 8);
  const unsigned char* at = dynamic_shared() + row * 16;
  check_shared(at, "operand of wgmma");
  std::uint16_t bits;
  std::memcpy(&bits, at + mn % 8 * 2, 2);
  return half_of(bits, 0);
}

inline constexpr bool warpgroup_products = true;

inline void fence_shared_for_tensor_cores() { emulated::block.self->unfenced = false; }
inline void wgmma_fence() {}

// The thread's share of d[64 x n] += A B: rows of its warp, pairs of columns.
template <int n>
void add_product(float* d, std::uint64_t a, std::uint64_t b) {
  const int thread = static_cast<int>(emulated::block.self->number) % 128;
  const int row = thread / 32 * 16 + thread % 32 / 4, col = thread % 4 * 2;
  for (int j = 0; j < n / 8; ++j) {
    for (int i = 0; i < 4; ++i) {
      float sum = d[j * 4 + i];
      for (int k = 0; k < 16; ++k) {
        sum += element(a, row + i / 2 * 8, k) * element(b, j * 8 + col + i % 2, k);
      }
      d[j * 4 + i] = sum;
    }
  }
}
inline void wgmma_n128(float (&d)[64], std::uint64_t a, std::uint64_t b) {
  if (emulated::block.unfenced) {
    emulated::fail("wgmma reads what ordinary stores wrote, without a fence for tensor cores");
  }
  float* const to = d;
  emulated::block.self->products.open.push_back([=] { add_product<128>(to, a, b); });
}
inline void wgmma_commit() { emulated::block.self->products.commit(); }
template <int open>
void wgmma_wait() {
  emulated::block.self->products.wait(open, [](const auto& product) { product(); });
}

}  // namespace gossamer::gpu
