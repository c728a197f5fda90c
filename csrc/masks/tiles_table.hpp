// Masks of square tiles that are N:M along rows and columns: the part compiled for each instruction
// set.
//
// Sixteen tiles are worked on side by side: entry e = i * m + j of tile l is at e * 16 + l, so that
// every step on an entry is a step on a vector. A magnitude is compared by its bits, a signed
// integer ("key"): exact for every dtype, infinities and NaN largest and equal.
#pragma once

#include "core/types.hpp"

namespace gossamer {

inline constexpr std::int64_t tile_lanes = 16;
inline constexpr std::int64_t max_tile = 64;

// A place in a tile is its row times this, plus its column: ordered like the row-major index.
inline constexpr int place_base = 256;

// Keys K are int32 for float32 and bfloat16, int64 for float64.
template <class K>
struct TileKeyPasses {
  // Largest key first, of equal keys the lower place. keys and places are [count, lanes].
  void (*sort)(K* keys, K* places, std::int64_t count) noexcept;

  // The best of all tiles for m = 4 and n < 4.
  void (*best4)(const K* keys, std::int64_t n, std::uint8_t* kept) noexcept;

  // Keeps what is among the n largest of its row and among the n largest of its column.
  void (*intersect)(const K* keys, std::int64_t m, std::int64_t n, std::uint8_t* kept) noexcept;

  // Magnitudes over the largest finite one of the tile; not finite counts as 2 m.
  void (*weights)(const K* keys, std::int64_t m, float* w) noexcept;
};

struct EntropyPlan {
  std::int64_t m;
  std::int64_t n;
  float sharpness;  // of exp, in units of 1 / a typical magnitude of the tile
  std::int64_t iterations;
  float tolerance;  // of row and column sums, as a share of n
};

struct TilePasses {
  // `tiles` tiles side by side from `first` on; the lanes left over are zero. By DType.
  void (*load[dtype_count])(const void* first, std::int64_t row_stride, std::int64_t col_stride,
                            std::int64_t m, std::int64_t tiles, void* keys) noexcept;
  TileKeyPasses<std::int32_t> k32;
  TileKeyPasses<std::int64_t> k64;

  // keys = the order of the fractional plan of the entropic problem, for sort. scratch: [m * m + 4
  // m, lanes].
  void (*entropy)(const float* w, const EntropyPlan& plan, float* scratch,
                  std::int32_t* keys) noexcept;

  void (*store)(const std::uint8_t* kept, std::int64_t m, std::int64_t tiles, std::uint8_t* mask,
                std::int64_t mask_cols) noexcept;
};

}  // namespace gossamer
