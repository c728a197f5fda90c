// spmm_t and sddmm of runs of panels by matrix tiles; tiles.hpp explains the tiles.
#pragma once

#include "products/cpu/sddmm.hpp"
#include "products/cpu/spmm_t.hpp"
#include "products/cpu/tiles.hpp"

#if GOSSAMER_HAS_TILES
namespace gossamer {
namespace {

// ---- spmm_t: dX[list][batch] += W[list][rows] dY[rows][batch] -----------------------------------
//
// Prepared once a call, for each block and run: values [32 rows][entry][32]; a run of 16 rows has
// half lines, and products of 8 pairs. A task zips its dY into pairs of rows where it lies, then
//
//   for a block of 256 columns, for 32 batch rows:     their dX stays in the first-level cache
//     for a run, for 32 entries of its list:           their sums stay in tiles
//       for 32 rows: 4 products; then 4 stores of tiles, and 64 additions into dX
//
// At V = 32 the stores take as long as the products, and the additions as well; V = 64 and 128
// halve and quarter them.

inline std::int64_t line_rows(const Panels& w) noexcept {
  return run_rows(w) < tile_step ? run_rows(w) : tile_step;
}
// The end of the last list is read as whole tiles.
inline std::size_t spmm_t_tiles_prepared(const SpmmTArgs& a) noexcept {
  return static_cast<std::size_t>(a.weight.nnz() + tile_step * tile_step) * sizeof(bf16);
}

inline void spmm_t_tiles_prepare(const SpmmTArgs& a, std::int64_t run, void* prepared) noexcept {
  const Panels& w = a.weight;
  const std::int64_t wide = line_rows(w), pieces = wide / w.vector;
  for (std::int64_t k = 0; k < w.blocks(); ++k) {
    const auto [begin, count] = w.entries(k, run * w.run);
    const bf16* values = static_cast<const bf16*>(a.values) + begin * w.vector;
    bf16* to = static_cast<bf16*>(prepared) + begin * w.vector;
    for (std::int64_t q = 0; q < w.run; q += pieces) {
      for (std::int64_t e = 0; e < count; ++e, to += wide) {
        copy_entry(w, values + e * w.vector, count, q, pieces, to);
      }
    }
  }
}

// L tiles of entries; g is the dY of the run, zipped; sums [32][32] is scratch.
template <int L>
void scatter_tiles(Tiles& tiles, const bf16* values, const std::uint8_t* indices,
                   std::int64_t count, std::int64_t live, std::int64_t rows, const bf16* g,
                   float* sums, float* dx) noexcept {
  const std::int64_t wide = rows < tile_step ? rows : tile_step;
  zero_sums<L, 2>(tiles);
  for (std::int64_t row = 0; row < rows; row += wide) {
    multiply_tiles<L, 2>(tiles, {values + row * count, wide, tile_side * wide},
                         {g + row * tile_batch, 2 * tile_batch, tile_batch});
  }
  store_sums<L, 2>(tiles, sums, tile_batch);
  for (std::int64_t e = 0; e < live; ++e) {
    float* out = dx + indices[e] * tile_batch;
    for (std::int64_t b = 0; b < tile_batch; b += tile_side) {
      add(Vec<float>::load(out + b), Vec<float>::load(sums + e * tile_batch + b)).store(out + b);
    }
  }
}

inline std::size_t spmm_t_tiles_scratch(const SpmmTArgs& a) noexcept {
  const std::int64_t sums = (Panels::max_block_cols + tile_step) * tile_batch;
  return static_cast<std::size_t>(sums) * sizeof(float) +
         static_cast<std::size_t>(a.weight.rows * tile_task) * sizeof(bf16);
}

inline void spmm_t_tiles(const SpmmTArgs& a, const Task& task, void* scratch) noexcept {
  const Panels& w = a.weight;
  const std::int64_t rows = run_rows(w), wide = line_rows(w);
  const bf16* values = static_cast<const bf16*>(a.prepared.values);
  float* dx = static_cast<float*>(scratch);
  float* sums = dx + Panels::max_block_cols * tile_batch;
  auto* g = reinterpret_cast<bf16*>(sums + tile_step * tile_batch);
  Tiles tiles(static_cast<int>(wide / 2));
  const std::int64_t batch = task.batch1 - task.batch0;
  const auto live_rows = [&](std::int64_t b) noexcept {
    return batch - b < tile_batch ? batch - b : tile_batch;
  };
  for (std::int64_t b = 0; b < batch; b += tile_batch) {
    bf16* to = g + b * w.rows;
    pack<bf16>(a.grad_output, task.batch0 + b, live_rows(b), 0, w.rows, to, tile_batch);
    for (std::int64_t r = 0; r < w.rows; r += 2) {
      bf16* pair = to + r * tile_batch;
      zip_lines(pair, pair + tile_batch, pair, pair + tile_batch);
    }
  }
  for (std::int64_t k = task.part0; k < task.part1; ++k) {
    const std::int64_t width = w.block_width(k);
    for (std::int64_t b = 0; b < batch; b += tile_batch) {
      for (std::int64_t i = 0; i < width * tile_batch; i += tile_side) {
        Vec<float>::zero().store(dx + i);
      }
      for (std::int64_t run = 0; run < w.runs(); ++run) {
        const auto [begin, count] = w.entries(k, run * w.run);
        const bf16* lines = values + begin * w.vector;
        const bf16* pairs = g + b * w.rows + run * rows * tile_batch;
        for (std::int64_t e = 0; e < count; e += tile_step) {
          const std::int64_t live = count - e < tile_step ? count - e : tile_step;
          const auto scatter = live > tile_side ? scatter_tiles<2> : scatter_tiles<1>;
          scatter(tiles, lines + e * wide, w.indices + begin + e, count, live, rows, pairs, sums,
                  dx);
        }
      }
      unpack<bf16>(dx, tile_batch, a.grad_input, task.batch0 + b, live_rows(b), k * w.block_cols,
                   width);
    }
  }
}

// ---- sddmm: dW[list][rows] = X[list][batch] dY[batch][rows] -------------------------------------
//
// Packed in chunks of 512 batch rows, x as for the other kernels, dY as tiles: [16 rows][32 batch
// rows][16 pairs][16]. A pair is two batch rows, 16 apart, as pack_pairs lays those of x.
//
//   for a run, for 32 entries of its list, for 32 of its rows:     their sums stay in tiles
//     for 32 batch rows: 4 products of 32 copied lines of x
//
// With V > 32 the copies of the first rows serve the others.

constexpr std::int64_t tile_size = tile_side * tile_step;
constexpr std::int64_t chunk_batch = long_run<bf16>;

inline void pack_dy_tiles(const Matrix& g, std::int64_t first, std::int64_t count,
                          bf16* to) noexcept {
  for (std::int64_t row = 0; row < g.cols; row += tile_side) {
    for (std::int64_t b = 0; b < count; b += tile_step) {
      bf16* tile = to + row * chunk_batch + b * tile_side;
      for (std::int64_t i = 0; i < tile_side; ++i) {
        bf16 lines[2][tile_side] = {};
        const bf16* from[2];
        for (std::int64_t half = 0; half < 2; ++half) {
          const std::int64_t at_row = b + i + half * tile_side;
          from[half] = lines[half];
          if (at_row >= count) continue;
          const bf16* source = at<bf16>(g, first + at_row, row);
          if (g.col_stride == 1) {
            from[half] = source;
            continue;
          }
          for (std::int64_t r = 0; r < tile_side; ++r) lines[half][r] = source[r * g.col_stride];
        }
        evens(Pairs::spaced(from[0]), Pairs::spaced(from[1])).store(tile + i * 2 * tile_side);
      }
    }
  }
}

inline void sddmm_tiles_pack(const SddmmArgs& a, std::int64_t first, std::int64_t count,
                             std::int64_t chunk, std::int64_t chunks, void* packed) noexcept {
  const Panels& w = a.weight;
  const std::int64_t x_chunk = w.blocks() * Panels::max_block_cols * chunk_batch;
  bf16* x = static_cast<bf16*>(packed) + chunk * x_chunk;
  bf16* g = static_cast<bf16*>(packed) + chunks * x_chunk + chunk * w.rows * chunk_batch;
  for (std::int64_t k = 0; k < w.blocks(); ++k) {
    pack<bf16>(a.x, first, count, k * w.block_cols, w.block_width(k),
               x + k * Panels::max_block_cols * chunk_batch, chunk_batch);
  }
  pack_dy_tiles(a.grad_output, first, count, g);
}

// L tiles of entries, R of rows; x [column][512], g [tile of rows][32 batch rows] in tiles.
template <int L, int R>
void dot_tiles(Tiles& tiles, const bf16* x, const bf16* g, std::int64_t length,
               const std::uint8_t* indices, std::int64_t live, std::int64_t rows, bf16* copies,
               std::int64_t count, RunOutput<bf16> to) noexcept {
  constexpr std::int64_t lines = L * tile_side;
  const bool kept = rows > R * tile_side;
  const auto copies_of = [&](std::int64_t t) noexcept
      __attribute__((always_inline)) { return copies + (kept ? t : t % 2) * lines * tile_step; };
  const bf16* from[lines];  // the rest of the last list repeats its first
  for (std::int64_t e = 0; e < lines; ++e) from[e] = x + indices[e < live ? e : 0] * chunk_batch;
  const auto copy = [&](std::int64_t t) noexcept __attribute__((always_inline)) {
    bf16* line = copies_of(t);
#pragma GCC unroll 16
    for (std::int64_t e = 0; e < lines; ++e) {
      Pairs::load(from[e] + t * tile_step).store(line + e * tile_step);
    }
  };
  alignas(64) float sums[lines * R * tile_side];
  alignas(64) float panel[lines * 8];
  copy(0);
  for (std::int64_t row = 0; row < rows; row += R * tile_side) {
    zero_sums<L, R>(tiles);
    for (std::int64_t t = 0; t < length; ++t) {
      if (row == 0 && t + 1 < length) copy(t + 1);
      multiply_tiles<L, R>(
          tiles, {copies_of(t), tile_step, tile_side * tile_step},
          {g + row * chunk_batch + t * tile_size, 2 * tile_side, tile_side * chunk_batch});
    }
    store_sums<L, R>(tiles, sums, R * tile_side);
    for (std::int64_t q = 0; q < 2 * R; ++q) {  // [entry][rows] -> [panel][entry][8]
      for (std::int64_t e = 0; e < lines; ++e) {
        __builtin_memcpy(panel + e * 8, sums + e * R * tile_side + q * 8, 32);
      }
      const RunOutput<bf16> out = to.behind((row / 8 + q) * count * 8);
      for (std::int64_t i = 0; i < live * 8; i += tile_side) {
        const std::int64_t left = live * 8 - i;
        out.write(Vec<float>::load(panel + i), i,
                  static_cast<int>(left < tile_side ? left : tile_side));
      }
    }
  }
}

inline void sddmm_tiles(const SddmmArgs& a, const SddmmTask& task, std::int64_t chunks,
                        const void* packed) noexcept {
  const Panels& w = a.weight;
  const std::int64_t rows = run_rows(w);
  const std::int64_t x_chunk = w.blocks() * Panels::max_block_cols * chunk_batch;
  alignas(64) bf16 copies[tile_step * chunk_batch];
  Tiles tiles(tile_side);
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    const bf16* x = static_cast<const bf16*>(packed) + chunk * x_chunk +
                    task.block * Panels::max_block_cols * chunk_batch;
    const bf16* g =
        static_cast<const bf16*>(packed) + chunks * x_chunk + chunk * w.rows * chunk_batch;
    const std::int64_t left = task.batch - chunk * chunk_batch;
    const std::int64_t length = ceil_div(left < chunk_batch ? left : chunk_batch, tile_step);
    const RunOutput<bf16> to{static_cast<float*>(a.sums), static_cast<bf16*>(a.grad_values),
                             task.accumulate || chunk > 0, task.last && chunk == chunks - 1};
    for (std::int64_t p = task.panel0; p < task.panel1; p += w.run) {
      const auto [begin, count] = w.entries(task.block, p);
      for (std::int64_t e = 0; e < count; e += tile_step) {
        const std::int64_t live = count - e < tile_step ? count - e : tile_step;
        const auto dot = rows == tile_side ? (live > tile_side ? dot_tiles<2, 1> : dot_tiles<1, 1>)
                                           : (live > tile_side ? dot_tiles<2, 2> : dot_tiles<1, 2>);
        dot(tiles, x, g + p * w.vector * chunk_batch, length, w.indices + begin + e, live, rows,
            copies, count, to.behind((begin + e) * w.vector));
      }
    }
  }
}

}  // namespace
}  // namespace gossamer
#endif
