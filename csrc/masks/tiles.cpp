// Cuts the matrix into batches of sixteen tiles, and turns an order of the entries into a mask.
#include "masks/tiles.hpp"

#include <algorithm>
#include <bit>

#include "core/parallel.hpp"
#include "core/workspace.hpp"
#include "masks/table.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t batches_a_task = 4;

template <class K>
struct Scratch {
  K* keys;
  K* places;
  float* weights;  // entropy only, as the rest
  float* plan;
  std::int32_t* order;
  std::int32_t* order_places;
  std::uint8_t* kept;

  // Cuts a worker's share of the scratch memory, or counts its bytes when `base` is null.
  std::size_t cut(std::byte* base, const TransposableMask& args) {
    std::size_t used = 0;
    const auto take = [&]<class U>(U*& pointer, std::int64_t entries) {
      pointer = base == nullptr ? nullptr : reinterpret_cast<U*>(base + used);
      used += (static_cast<std::size_t>(entries * tile_lanes) * sizeof(U) + 63) / 64 * 64;
    };
    const std::int64_t m = args.m, size = m * m;
    const std::int64_t entropic = args.method == TileMethod::entropy ? size : 0;
    take(keys, size);
    take(places, args.method == TileMethod::greedy ? size : 0);
    take(weights, entropic);
    take(plan, entropic == 0 ? 0 : size + 4 * m);
    take(order, entropic);
    take(order_places, entropic);
    take(kept, size);
    return (used + 4095) / 4096 * 4096;
  }
};

template <class K>
void place_all(std::int64_t m, K* places) noexcept {
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < m; ++j) {
      std::fill_n(places + (i * m + j) * tile_lanes, tile_lanes,
                  static_cast<K>(i * place_base + j));
    }
  }
}

// One tile of a batch: which columns each row keeps, and which rows each column.
struct Tile {
  std::int64_t m, n;
  std::uint64_t rows[max_tile] = {};
  std::uint64_t cols[max_tile] = {};

  static constexpr std::uint64_t bit(std::int64_t i) noexcept { return std::uint64_t{1} << i; }
  bool room(std::uint64_t line) const noexcept { return std::popcount(line) < n; }

  void flip(std::int64_t i, std::int64_t j) noexcept {
    rows[i] ^= bit(j);
    cols[j] ^= bit(i);
  }

  // Heavy first, while row and column have room.
  template <class K>
  void fill(const K* places) noexcept {
    std::uint8_t row_count[max_tile] = {}, col_count[max_tile] = {};
    std::int64_t left = n * m;
    for (std::int64_t e = 0; e < m * m && left > 0; ++e) {
      const std::int64_t i = places[e * tile_lanes] / place_base;
      const std::int64_t j = places[e * tile_lanes] % place_base;
      const bool take = (row_count[i] < n) & (col_count[j] < n);
      row_count[i] = static_cast<std::uint8_t>(row_count[i] + take);
      col_count[j] = static_cast<std::uint8_t>(col_count[j] + take);
      rows[i] |= std::uint64_t{take} << j;
      cols[j] |= std::uint64_t{take} << i;
      left -= take;
    }
  }

  // Gives row i and column j, which have room, one entry more: for a kept (p, q) come (i, q) and
  // (p, j). After fill such a (p, q) is always there: (i, j) is kept itself, every column that row
  // i lacks is full, and fewer than n rows hold column j.
  bool swap(std::int64_t i, std::int64_t j, const float* w) noexcept {
    const auto weight = [&](std::int64_t row, std::int64_t col) {
      return w[(row * m + col) * tile_lanes];
    };
    float best = 0;
    std::int64_t best_row = -1, best_col = -1;
    for (std::int64_t p = 0; p < m; ++p) {
      if (cols[j] & bit(p)) continue;
      for (std::uint64_t open = rows[p] & ~rows[i]; open != 0; open &= open - 1) {
        const std::int64_t q = std::countr_zero(open);
        const float gain = weight(i, q) + weight(p, j) - weight(p, q);
        if (best_row < 0 || gain > best) {
          best = gain;
          best_row = p;
          best_col = q;
        }
      }
    }
    if (best_row < 0) return false;
    flip(best_row, best_col);
    flip(i, best_col);
    flip(best_row, j);
    return true;
  }

  void saturate(const float* w) noexcept {
    for (std::int64_t i = 0, j = 0; i < m; ++i) {
      while (room(rows[i])) {
        while (j < m && !room(cols[j])) ++j;
        if (j == m || !swap(i, j, w)) return;
      }
    }
  }

  void write(std::uint8_t* kept) const noexcept {
    for (std::int64_t i = 0; i < m; ++i) {
      for (std::int64_t j = 0; j < m; ++j) {
        kept[(i * m + j) * tile_lanes] = static_cast<std::uint8_t>((rows[i] >> j) & 1);
      }
    }
  }
};

template <class K>
void choose(const TransposableMask& args, std::int64_t tiles, const Scratch<K>& s) noexcept {
  const TilePasses& passes = masks_tables.active().tiles;
  const TileKeyPasses<K>& by_key = [&]() -> const TileKeyPasses<K>& {
    if constexpr (sizeof(K) == sizeof(std::int32_t)) {
      return passes.k32;
    } else {
      return passes.k64;
    }
  }();
  const std::int64_t m = args.m, n = args.n;
  switch (args.method) {
    case TileMethod::exact: by_key.best4(s.keys, n, s.kept); return;
    case TileMethod::two_approximation: by_key.intersect(s.keys, m, n, s.kept); return;
    case TileMethod::greedy:
      place_all(m, s.places);
      by_key.sort(s.keys, s.places, m * m);
      for (std::int64_t l = 0; l < tiles; ++l) {
        Tile tile{m, n};
        tile.fill(s.places + l);
        tile.write(s.kept + l);
      }
      return;
    case TileMethod::entropy:
      by_key.weights(s.keys, m, s.weights);
      passes.entropy(s.weights, {m, n, args.sharpness, args.iterations, 1e-3f}, s.plan, s.order);
      place_all(m, s.order_places);
      passes.k32.sort(s.order, s.order_places, m * m);
      for (std::int64_t l = 0; l < tiles; ++l) {
        Tile tile{m, n};
        tile.fill(s.order_places + l);
        tile.saturate(s.weights + l);
        tile.write(s.kept + l);
      }
      return;
  }
}

template <class K>
void run(const TransposableMask& args) {
  const Matrix& w = args.weight;
  const std::int64_t m = args.m, down = w.rows / m, across = w.cols / m;
  const std::int64_t span = tile_lanes * batches_a_task;
  const std::int64_t tasks_across = ceil_div(across, span);
  const int workers = w.rows * w.cols < 16384 ? 1 : max_threads();
  const TilePasses& passes = masks_tables.active().tiles;
  const std::size_t share = Scratch<K>{}.cut(nullptr, args);
  std::byte* base = Workspace::get(share * static_cast<std::size_t>(workers));
  const auto size = static_cast<std::int64_t>(itemsize(args.dtype));
  parallel_for(down * tasks_across, workers, [&](std::int64_t task, int worker) noexcept {
    Scratch<K> scratch;
    scratch.cut(base + share * static_cast<std::size_t>(worker), args);
    const std::int64_t row = task / tasks_across * m;
    const std::int64_t first = task % tasks_across * span;
    const std::int64_t last = std::min(across, first + span);
    for (std::int64_t t = first; t < last; t += tile_lanes) {
      const std::int64_t tiles = std::min(tile_lanes, last - t);
      const std::int64_t offset = row * w.row_stride + t * m * w.col_stride;
      passes.load[static_cast<int>(args.dtype)](
          static_cast<const std::byte*>(w.data) + offset * size, w.row_stride, w.col_stride, m,
          tiles, scratch.keys);
      choose<K>(args, tiles, scratch);
      passes.store(scratch.kept, m, tiles, args.mask + row * w.cols + t * m, w.cols);
    }
  });
  Workspace::trim();
}

}  // namespace

void transposable_mask(const TransposableMask& args) {
  if (args.weight.rows == 0 || args.weight.cols == 0) return;
  if (args.dtype == DType::f64) {
    run<std::int64_t>(args);
  } else {
    run<std::int32_t>(args);
  }
}

}  // namespace gossamer
