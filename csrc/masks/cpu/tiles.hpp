// Steps on sixteen tiles at a time, plain loops over lanes.
#pragma once

#include "masks/cpu/tiles_entropy.hpp"
#include "masks/tiles_table.hpp"
#include "simd/bits.hpp"

namespace gossamer {
namespace {

template <class K>
struct KeyTraits;

template <>
struct KeyTraits<std::int32_t> {
  using Real = float;
  static constexpr std::int32_t infinite = FloatBits<float>::infinity;
  static constexpr double smallest = 0x1p-126;
};

template <>
struct KeyTraits<std::int64_t> {
  using Real = double;
  static constexpr std::int64_t infinite = FloatBits<double>::infinity;
  static constexpr double smallest = 0x1p-1022;
};

// NaN and infinities alike.
template <class T>
GOSSAMER_INLINE auto tile_key(T x) noexcept {
  using C = Compute<T>;
  return magnitude_key<C, FloatBits<C>::infinity>(bits_of(widen(x)));
}

template <class T, class K>
void load_tiles(const void* first, std::int64_t row_stride, std::int64_t col_stride, std::int64_t m,
                std::int64_t tiles, void* keys) noexcept {
  for (std::int64_t i = 0; i < m; ++i) {
    const T* row = static_cast<const T*>(first) + i * row_stride;
    K* __restrict out = static_cast<K*>(keys) + i * m * lanes;
    if (tiles < lanes) {
      for (std::int64_t e = 0; e < m * lanes; ++e) out[e] = 0;
    }
    if (col_stride == 1) {
      for (std::int64_t l = 0; l < tiles; ++l) {
        for (std::int64_t j = 0; j < m; ++j) out[j * lanes + l] = tile_key(row[l * m + j]);
      }
    } else {
      for (std::int64_t l = 0; l < tiles; ++l) {
        for (std::int64_t j = 0; j < m; ++j) {
          out[j * lanes + l] = tile_key(row[(l * m + j) * col_stride]);
        }
      }
    }
  }
}

void store_tiles(const std::uint8_t* kept, std::int64_t m, std::int64_t tiles, std::uint8_t* mask,
                 std::int64_t mask_cols) noexcept {
  for (std::int64_t i = 0; i < m; ++i) {
    const std::uint8_t* in = kept + i * m * lanes;
    std::uint8_t* __restrict row = mask + i * mask_cols;
    for (std::int64_t l = 0; l < tiles; ++l) {
      for (std::int64_t j = 0; j < m; ++j) row[l * m + j] = in[j * lanes + l];
    }
  }
}

// ---- greedy: order ------------------------------------------------------------------------------

template <class K>
GOSSAMER_INLINE void compare_exchange(K* __restrict ka, K* __restrict kb, K* __restrict pa,
                                      K* __restrict pb) noexcept {
#pragma omp simd
  for (std::int64_t l = 0; l < lanes; ++l) {
    const K key_a = ka[l], key_b = kb[l], place_a = pa[l], place_b = pb[l];
    const bool swap = (key_b > key_a) | ((key_b == key_a) & (place_b < place_a));
    ka[l] = swap ? key_b : key_a;
    kb[l] = swap ? key_a : key_b;
    pa[l] = swap ? place_b : place_a;
    pb[l] = swap ? place_a : place_b;
  }
}

// Batcher's odd-even merge sort: the same exchanges for every tile, whatever it holds.
template <class K>
void sort_tiles(K* keys, K* places, std::int64_t count) noexcept {
  for (std::int64_t p = 1; p < count; p *= 2) {
    for (std::int64_t k = p; k >= 1; k /= 2) {
      for (std::int64_t j = k % p; j + k < count; j += 2 * k) {
        const std::int64_t last = k < count - j - k ? k : count - j - k;
        for (std::int64_t i = j; i < j + last; ++i) {
          if (i / (2 * p) != (i + k) / (2 * p)) continue;
          compare_exchange(keys + i * lanes, keys + (i + k) * lanes, places + i * lanes,
                           places + (i + k) * lanes);
        }
      }
    }
  }
}

// ---- exact, m = 4 -------------------------------------------------------------------------------

struct Tiles4 {
  int count = 0;               // of tiles
  int ways = 0;                // of choosing n of 4
  int row[6] = {};             // bit j: column j is kept
  int choice[90][4] = {};      // way of each row
  std::int64_t kept[90] = {};  // bit i * 4 + j
};

// Every 4x4 tile with row and column sums n, the ones that keep lower indices first.
constexpr Tiles4 tiles4_of(int n) {
  Tiles4 t;
  // Columns kept in lexicographic order: bit 0 first.
  for (int reversed = 15; reversed >= 0; --reversed) {
    int bits = 0, size = 0;
    for (int j = 0; j < 4; ++j) {
      if ((reversed >> (3 - j)) & 1) {
        bits |= 1 << j;
        ++size;
      }
    }
    if (size == n) t.row[t.ways++] = bits;
  }
  for (int a = 0; a < t.ways; ++a) {
    for (int b = 0; b < t.ways; ++b) {
      for (int c = 0; c < t.ways; ++c) {
        for (int d = 0; d < t.ways; ++d) {
          bool good = true;
          for (int j = 0; j < 4; ++j) {
            const int sum = ((t.row[a] >> j) & 1) + ((t.row[b] >> j) & 1) + ((t.row[c] >> j) & 1) +
                            ((t.row[d] >> j) & 1);
            good = good && sum == n;
          }
          if (!good) continue;
          const int ways[4] = {a, b, c, d};
          for (int i = 0; i < 4; ++i) {
            t.choice[t.count][i] = ways[i];
            t.kept[t.count] |= std::int64_t{t.row[ways[i]]} << (4 * i);
          }
          ++t.count;
        }
      }
    }
  }
  return t;
}

constexpr Tiles4 tiles4[3] = {tiles4_of(1), tiles4_of(2), tiles4_of(3)};
static_assert(tiles4[0].count == 24 && tiles4[1].count == 90 && tiles4[2].count == 24);

// Sums in double: those of float32 magnitudes of like size are exact, so that ties are ties.
template <class K>
void best_tiles4(const K* keys, std::int64_t n, std::uint8_t* kept) noexcept {
  using Real = typename KeyTraits<K>::Real;
  constexpr K infinite = KeyTraits<K>::infinite;
  const Tiles4& tiles = tiles4[n - 1];
  double w[16 * lanes], top[lanes];
  for (std::int64_t l = 0; l < lanes; ++l) top[l] = 0;
  for (std::int64_t e = 0; e < 16; ++e) {
#pragma omp simd
    for (std::int64_t l = 0; l < lanes; ++l) {
      const K key = keys[e * lanes + l];
      const double v = static_cast<double>(__builtin_bit_cast(Real, key < infinite ? key : K{0}));
      w[e * lanes + l] = v;
      top[l] = v > top[l] ? v : top[l];
    }
  }
  // Sixteen times the largest finite entry outweighs all that a tile can keep besides.
  for (std::int64_t e = 0; e < 16; ++e) {
#pragma omp simd
    for (std::int64_t l = 0; l < lanes; ++l) {
      const double scale = top[l] > 0x1p1000 ? 0x1p-64 : 1.0;
      const double most = top[l] > 0 ? top[l] * scale * 16 : 1.0;
      w[e * lanes + l] = keys[e * lanes + l] < infinite ? w[e * lanes + l] * scale : most;
    }
  }
  double sums[4 * 6 * lanes];
  for (std::int64_t i = 0; i < 4; ++i) {
    for (std::int64_t c = 0; c < tiles.ways; ++c) {
      double* __restrict s = sums + (i * 6 + c) * lanes;
      for (std::int64_t l = 0; l < lanes; ++l) s[l] = 0;
      for (std::int64_t j = 0; j < 4; ++j) {
        if (!((tiles.row[c] >> j) & 1)) continue;
        const double* v = w + (i * 4 + j) * lanes;
#pragma omp simd
        for (std::int64_t l = 0; l < lanes; ++l) s[l] += v[l];
      }
    }
  }
  double best[lanes];
  std::int64_t best_kept[lanes];
  for (std::int64_t l = 0; l < lanes; ++l) {
    best[l] = -1;
    best_kept[l] = 0;
  }
  for (std::int64_t t = 0; t < tiles.count; ++t) {
    const int* c = tiles.choice[t];
    const std::int64_t bits = tiles.kept[t];
    const double *s0 = sums + c[0] * lanes, *s1 = sums + (6 + c[1]) * lanes,
                 *s2 = sums + (12 + c[2]) * lanes, *s3 = sums + (18 + c[3]) * lanes;
#pragma omp simd
    for (std::int64_t l = 0; l < lanes; ++l) {
      const double s = (s0[l] + s1[l]) + (s2[l] + s3[l]);
      const bool better = s > best[l];
      best[l] = better ? s : best[l];
      best_kept[l] = better ? bits : best_kept[l];
    }
  }
  for (std::int64_t e = 0; e < 16; ++e) {
#pragma omp simd
    for (std::int64_t l = 0; l < lanes; ++l) {
      kept[e * lanes + l] = static_cast<std::uint8_t>((best_kept[l] >> e) & 1);
    }
  }
}

// ---- two-approximation --------------------------------------------------------------------------

// ranks[a] = how many of the m keys, `stride` apart, go before key a.
template <class K>
GOSSAMER_INLINE void rank_line(const K* keys, std::int64_t m, std::int64_t stride,
                               K* __restrict ranks) noexcept {
  for (std::int64_t e = 0; e < m * lanes; ++e) ranks[e] = 0;
  for (std::int64_t a = 0; a < m; ++a) {
    for (std::int64_t b = a + 1; b < m; ++b) {
      const K *ka = keys + a * stride, *kb = keys + b * stride;
      K *ra = ranks + a * lanes, *rb = ranks + b * lanes;
#pragma omp simd
      for (std::int64_t l = 0; l < lanes; ++l) {
        const K later = kb[l] > ka[l];
        ra[l] += later;
        rb[l] += 1 - later;
      }
    }
  }
}

template <class K>
void intersect_tiles(const K* keys, std::int64_t m, std::int64_t n, std::uint8_t* kept) noexcept {
  K ranks[max_tile * lanes];
  for (std::int64_t i = 0; i < m; ++i) {
    rank_line(keys + i * m * lanes, m, lanes, ranks);
    std::uint8_t* row = kept + i * m * lanes;
    for (std::int64_t e = 0; e < m * lanes; ++e) row[e] = ranks[e] < n;
  }
  for (std::int64_t j = 0; j < m; ++j) {
    rank_line(keys + j * lanes, m, m * lanes, ranks);
    for (std::int64_t i = 0; i < m; ++i) {
      std::uint8_t* at = kept + (i * m + j) * lanes;
      for (std::int64_t l = 0; l < lanes; ++l) at[l] &= ranks[i * lanes + l] < n;
    }
  }
}

// ---- entropy: scale -----------------------------------------------------------------------------

template <class K>
void tile_weights(const K* keys, std::int64_t m, float* w) noexcept {
  using Real = typename KeyTraits<K>::Real;
  constexpr K infinite = KeyTraits<K>::infinite;
  constexpr Real smallest = static_cast<Real>(KeyTraits<K>::smallest);
  Real top[lanes];
  for (std::int64_t l = 0; l < lanes; ++l) top[l] = smallest;
  for (std::int64_t e = 0; e < m * m; ++e) {
#pragma omp simd
    for (std::int64_t l = 0; l < lanes; ++l) {
      const K key = keys[e * lanes + l];
      const Real v = __builtin_bit_cast(Real, key < infinite ? key : K{0});
      top[l] = v > top[l] ? v : top[l];
    }
  }
  const float most = static_cast<float>(2 * m);
  for (std::int64_t e = 0; e < m * m; ++e) {
#pragma omp simd
    for (std::int64_t l = 0; l < lanes; ++l) {
      const K key = keys[e * lanes + l];
      const Real v = __builtin_bit_cast(Real, key < infinite ? key : K{0});
      w[e * lanes + l] = key < infinite ? static_cast<float>(v / top[l]) : most;
    }
  }
}

constexpr TilePasses tiles_passes = {
    {load_tiles<float, std::int32_t>, load_tiles<double, std::int64_t>,
     load_tiles<bf16, std::int32_t>},
    {sort_tiles<std::int32_t>, best_tiles4<std::int32_t>, intersect_tiles<std::int32_t>,
     tile_weights<std::int32_t>},
    {sort_tiles<std::int64_t>, best_tiles4<std::int64_t>, intersect_tiles<std::int64_t>,
     tile_weights<std::int64_t>},
    entropy_tiles,
    store_tiles,
};

}  // namespace
}  // namespace gossamer
