// Products of runs of panels, 16 rows or more that share one list of columns, by matrix tiles.
//
// A product of tiles is C[16][16] += A[16][32] B[32][16], in bf16 with sums in float32; the two
// neighbours in each direction make four of them of two A and two B:
//
//   L x R tiles of sums            left (A)                 right (B)
//     spmm    rows x batch         values, transposed       x of 32 kept columns, by pairs
//     spmm_t  entries x batch      values of 32 rows        dY of 32 rows, by pairs
//     sddmm   entries x rows       x of 16 kept columns     dY of 32 batch rows, by pairs
//
// By the manual a product takes 16 cycles, a load of a tile 8, a store 16, and the vector
// ports work beside them. What stands in the inner loops, for 32 x 32 x 32 multiply-adds (V = 32):
//
//              products       loads         stores       copies                        cycles
//     spmm     4, 64 cycles   4, 32 cycles  -            32 zips, 32 loads, 32 stores  64
//     spmm_t   4, 64          4, 32         4, 64        64 additions into dX          128
//     sddmm    4, 64          4, 32         -            32 loads, 32 stores           64
//
// A product is 512 multiply-adds a cycle, so that the copies are what other shapes lose: at V = 16
// they are the same for half of the products; at V = 64 and 128 spmm and sddmm make them once for
// 2 and 4 times as many, and spmm_t stores half and a quarter as often. Copies are made a step
// before the tiles are loaded, because a load cannot take what still waits to be written.
//
// Where a list ends inside a tile, both operands are zero (spmm, sddmm's batch), or the sums of the
// rest are never read (entries): zero times infinity is no zero.
#pragma once

#include "products/cpu/pack.hpp"
#include "products/table.hpp"
#include "simd/tiles.hpp"

#if GOSSAMER_HAS_TILES
namespace gossamer {
namespace {

constexpr std::int64_t tile_side = 16;
constexpr std::int64_t tile_step = 32;                   // what a product sums
constexpr std::int64_t tile_batch = packed_lanes<bf16>;  // batch rows of two tiles side by side
constexpr std::int64_t packed_block = Panels::max_block_cols * tile_batch;  // of x, in numbers
static_assert(tile_batch == 2 * tile_side && Vec<float>::lanes == tile_side);

// Batch rows of a task, for all of which the values of a run come from a near cache: for 32 alone
// each product would wait for 32 bytes a cycle from memory.
constexpr std::int64_t tile_task = 128;

// Two neighbouring tiles, each a number of lines.
struct Operand {
  const bf16* first;
  std::int64_t line;  // numbers from a line to the next
  std::int64_t next;  // numbers from a tile to the other
};

template <int L, int R>
GOSSAMER_INLINE void zero_sums(Tiles& tiles) noexcept {
  tiles.zero<0>();
  if constexpr (R == 2) tiles.zero<1>();
  if constexpr (L == 2) tiles.zero<2>();
  if constexpr (L == 2 && R == 2) tiles.zero<3>();
}
template <int L, int R>
GOSSAMER_INLINE void load_sums(Tiles& tiles, const float* from, std::int64_t ld) noexcept {
  const std::int64_t line = ld * 4;
  tiles.load<0>(from, line);
  if constexpr (R == 2) tiles.load<1>(from + tile_side, line);
  if constexpr (L == 2) tiles.load<2>(from + tile_side * ld, line);
  if constexpr (L == 2 && R == 2) tiles.load<3>(from + tile_side * ld + tile_side, line);
}
template <int L, int R>
GOSSAMER_INLINE void store_sums(Tiles& tiles, float* to, std::int64_t ld) noexcept {
  const std::int64_t line = ld * 4;
  tiles.store<0>(to, line);
  if constexpr (R == 2) tiles.store<1>(to + tile_side, line);
  if constexpr (L == 2) tiles.store<2>(to + tile_side * ld, line);
  if constexpr (L == 2 && R == 2) tiles.store<3>(to + tile_side * ld + tile_side, line);
}
template <int L, int R>
GOSSAMER_INLINE void multiply_tiles(Tiles& tiles, const Operand& a, const Operand& b) noexcept {
  tiles.load<Tiles::left>(a.first, 2 * a.line);
  tiles.load<Tiles::right>(b.first, 2 * b.line);
  tiles.dot<0, Tiles::left, Tiles::right>();
  if constexpr (R == 2) {
    tiles.load<Tiles::right + 1>(b.first + b.next, 2 * b.line);
    tiles.dot<1, Tiles::left, Tiles::right + 1>();
  }
  if constexpr (L == 2) {
    tiles.load<Tiles::left + 1>(a.first + a.next, 2 * a.line);
    tiles.dot<2, Tiles::left + 1, Tiles::right>();
    if constexpr (R == 2) tiles.dot<3, Tiles::left + 1, Tiles::right + 1>();
  }
}

// Two lines of 32 numbers become a line of pairs for each of two tiles.
GOSSAMER_INLINE void zip_lines(const bf16* a, const bf16* b, bf16* low, bf16* high) noexcept {
  const Pairs x = Pairs::load(a), y = Pairs::load(b);
  zip_low(x, y).store(low);
  zip_high(x, y).store(high);
}

inline std::int64_t run_rows(const Panels& w) noexcept { return w.run * w.vector; }

// The values of one entry, all rows of the run: V / 8 pieces, `count` entries apart.
GOSSAMER_INLINE void copy_entry(const Panels& w, const bf16* values, std::int64_t count,
                                std::int64_t first, std::int64_t pieces, bf16* to) noexcept {
  for (std::int64_t q = first; q < first + pieces; ++q) {
    __builtin_memcpy(to, values + q * count * w.vector, 16);
    to += w.vector;
  }
}

// ---- spmm: Y[rows][batch] = W[rows][list] X[list][batch] ----------------------------------------
//
// The list of a run goes on over the blocks of columns, so that its sums never leave the tiles and
// only its end is padded, with zeros and a column of zeros. Prepared once a call, for each 32 of
// its entries (a step): columns [step][32], the lines of the packed x, and then values
// [step][row of the run][32]. Run r has the steps from starts[r] / 32 + r, which leaves room for
// the padding of the runs before.

inline std::int64_t all_steps(const Panels& w) noexcept {
  return w.total_entries() / w.run / tile_step + w.runs();
}
inline std::int64_t first_step(const Prepared& prepared, std::int64_t run) noexcept {
  return prepared.starts[run] / tile_step + run;
}
inline std::size_t spmm_tiles_prepared(const SpmmArgs& a) noexcept {
  const auto entries = static_cast<std::size_t>(all_steps(a.weight) * tile_step);
  return entries *
         (sizeof(std::int32_t) + static_cast<std::size_t>(run_rows(a.weight)) * sizeof(bf16));
}

inline void spmm_tiles_prepare(const SpmmArgs& a, std::int64_t run, void* prepared) noexcept {
  const Panels& w = a.weight;
  const std::int64_t rows = run_rows(w), zero_column = w.blocks() * Panels::max_block_cols;
  const std::int64_t step = first_step(a.prepared, run);
  auto* columns = static_cast<std::int32_t*>(prepared);
  bf16* to = reinterpret_cast<bf16*>(columns + all_steps(w) * tile_step) + step * tile_step * rows;
  columns += step * tile_step;
  constexpr std::int64_t most_rows = 128;
  alignas(64) bf16 entries[tile_step * most_rows];
  std::int64_t filled = 0;
  const auto finish_step = [&]() noexcept {
    for (std::int64_t i = filled; i < tile_step; ++i) {
      columns[i] = static_cast<std::int32_t>(zero_column);
    }
    pack_pairs({entries, filled, rows, rows, 1}, 0, filled, 0, rows, to, tile_step);
    columns += tile_step;
    to += tile_step * rows;
    filled = 0;
  };
  for (std::int64_t k = 0; k < w.blocks(); ++k) {
    const auto [begin, count] = w.entries(k, run * w.run);
    const bf16* values = static_cast<const bf16*>(a.values) + begin * w.vector;
    for (std::int64_t e = 0; e < count; ++e) {
      columns[filled] =
          static_cast<std::int32_t>(k * Panels::max_block_cols + w.indices[begin + e]);
      copy_entry(w, values + e * w.vector, count, 0, w.run, entries + filled * rows);
      if (++filled == tile_step) finish_step();
    }
  }
  if (filled > 0) finish_step();
}

// y [rows][32], its bias in it if `biased`. Pairs of x are made with the first tiles of rows; where
// more follow they are kept (`pairs` [steps][32][32]), else two steps take turns.
template <int L>
void spmm_run(Tiles& tiles, const bf16* x, const std::int32_t* columns, const bf16* values,
              std::int64_t steps, std::int64_t rows, bool biased, bf16* pairs, float* y) noexcept {
  const bool kept = rows > L * tile_side;
  const auto pairs_of = [&](std::int64_t s) noexcept __attribute__((always_inline)) {
    return pairs + (kept ? s : s % 2) * tile_step * tile_batch;
  };
  // An entry meets the sixteenth after it, as pack_pairs lays the values.
  const auto zip = [&](std::int64_t s) noexcept __attribute__((always_inline)) {
    const std::int32_t* column = columns + s * tile_step;
    bf16* to = pairs_of(s);
    for (std::int64_t i = 0; i < tile_side; ++i) {
      zip_lines(x + column[i] * tile_batch, x + column[tile_side + i] * tile_batch,
                to + 2 * i * tile_batch, to + (2 * i + 1) * tile_batch);
    }
  };
  if (steps > 0) zip(0);
  for (std::int64_t row = 0; row < rows; row += L * tile_side) {
    if (biased) {
      load_sums<L, 2>(tiles, y + row * tile_batch, tile_batch);
    } else {
      zero_sums<L, 2>(tiles);
    }
    for (std::int64_t s = 0; s < steps; ++s) {
      if (row == 0 && s + 1 < steps) zip(s + 1);
      const bf16* a = values + (s * rows + row) * tile_step;
      multiply_tiles<L, 2>(tiles, {a, tile_step, tile_side * tile_step},
                           {pairs_of(s), 2 * tile_batch, tile_batch});
    }
    store_sums<L, 2>(tiles, y + row * tile_batch, tile_batch);
  }
}

// Rows of y that are unpacked at once, of whole runs.
inline std::int64_t spmm_slab(const Panels& w) noexcept {
  return w.run * w.vector < 64 ? 64 / run_rows(w) : 1;
}
// The packed x of 32 batch rows, and a column of zeros.
inline std::int64_t packed_x_size(const Panels& w) noexcept {
  return w.blocks() * packed_block + tile_batch;
}

template <class Args>
std::int64_t tile_task_rows(const Args&) noexcept {
  return tile_task;
}

inline std::size_t spmm_tiles_scratch(const SpmmArgs& a) noexcept {
  const Panels& w = a.weight;
  const std::int64_t x = tile_task / tile_batch * packed_x_size(w);
  const std::int64_t pairs = (w.blocks() * Panels::max_block_cols + 2 * tile_step) * tile_batch;
  const std::int64_t y = spmm_slab(w) * run_rows(w) * tile_batch;
  return static_cast<std::size_t>(x + pairs) * sizeof(bf16) +
         static_cast<std::size_t>(y) * sizeof(float);
}

inline void spmm_tiles(const SpmmArgs& a, const Task& task, void* scratch) noexcept {
  const Panels& w = a.weight;
  const std::int64_t rows = run_rows(w), slab = spmm_slab(w), x_size = packed_x_size(w);
  const auto* columns = static_cast<const std::int32_t*>(a.prepared.values);
  const auto* values = reinterpret_cast<const bf16*>(columns + all_steps(w) * tile_step);
  const bf16* bias = static_cast<const bf16*>(a.bias);
  float* y = static_cast<float*>(scratch);
  auto* pairs = reinterpret_cast<bf16*>(y + slab * rows * tile_batch);
  bf16* x = pairs + (w.blocks() * Panels::max_block_cols + 2 * tile_step) * tile_batch;
  Tiles tiles(tile_side);
  const std::int64_t batch = task.batch1 - task.batch0;
  for (std::int64_t b = 0; b < batch; b += tile_batch) {
    const std::int64_t live = batch - b < tile_batch ? batch - b : tile_batch;
    bf16* to = x + b / tile_batch * x_size;
    for (std::int64_t k = 0; k < w.blocks(); ++k) {
      pack<bf16>(a.x, task.batch0 + b, live, k * w.block_cols, w.block_width(k),
                 to + k * packed_block, tile_batch);
    }
    Pairs::zero().store(to + w.blocks() * packed_block);
  }
  for (std::int64_t first = task.part0; first < task.part1; first += slab) {
    const std::int64_t last = task.part1 - first < slab ? task.part1 : first + slab;
    for (std::int64_t b = 0; b < batch; b += tile_batch) {
      for (std::int64_t run = first; run < last; ++run) {
        float* out = y + (run - first) * rows * tile_batch;
        for (std::int64_t r = 0; bias != nullptr && r < rows; ++r) {
          const Vec<float> start = Vec<float>::set(widen(bias[run * rows + r]));
          start.store(out + r * tile_batch);
          start.store(out + r * tile_batch + tile_side);
        }
        const std::int64_t step = first_step(a.prepared, run);
        const std::int64_t steps =
            ceil_div(a.prepared.starts[run + 1] - a.prepared.starts[run], tile_step);
        const auto multiply = rows == tile_side ? spmm_run<1> : spmm_run<2>;
        multiply(tiles, x + b / tile_batch * x_size, columns + step * tile_step,
                 values + step * tile_step * rows, steps, rows, bias != nullptr, pairs, out);
      }
      const std::int64_t live = batch - b < tile_batch ? batch - b : tile_batch;
      unpack<bf16>(y, tile_batch, a.y, task.batch0 + b, live, first * rows, (last - first) * rows);
    }
  }
}

}  // namespace
}  // namespace gossamer
#endif
