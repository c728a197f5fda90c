// Y[b, r] = sum_c X[b, c] W[r, c] + bias[r]
//
// A task packs one tile of the batch (up to 4 registers wide) and streams the weight past it:
//
//   for a slab of rows:                       its sums stay in the second-level cache
//     for a block of 256 columns:             the packed block stays in the first-level cache
//                                             (or several blocks, see blocks_at_once)
//       for a panel of V rows:                its V x NV sums stay in registers
//         for a kept column: sums[v][k] += value[v] * x[k]      1 load of x serves V products
//
// V * NV >= 8 independent sums hide the latency of the multiply-add (4 cycles, 2 a cycle). V = 1
// with NV = 4 has too few, so even and odd entries are summed apart (`Split`). The order of sums of
// one output depends on its row of W alone: not on the tile, the slab, or the number of threads.
#pragma once

#include "core/caches.hpp"
#include "products/cpu/dots.hpp"
#include "products/cpu/pack.hpp"
#include "products/cpu/spmm_few.hpp"
#include "products/cpu/windows.hpp"
#include "products/table.hpp"

namespace gossamer {
namespace {

template <class C>
inline constexpr std::int64_t tile_width = 4 * Vec<C>::lanes;

// With V = 1 and fewer entries a (block, panel) than this, the fixed costs of a row (its sums, a
// loop whose length cannot be predicted) outweigh the products: the tile is twice as wide, and the
// block of x comes from the second-level cache (bench_kernels).
inline constexpr std::int64_t sparse_count = 20;

inline bool is_sparse(const Panels& w) noexcept {
  return w.vector == 1 && w.total_entries() < sparse_count * w.blocks() * w.panels();
}

// With V = 1 each load of x serves one product, so that x must come from the first-level cache.
// Where registers are wide, 256 columns of a tile are twice its size: rows with many entries are
// then visited in two halves, each of which uses about half of the columns (bench_kernels).
template <class C>
inline constexpr bool block_outgrows_cache =
    Panels::max_block_cols * tile_width<C> * static_cast<std::int64_t>(sizeof(C)) > (48 << 10);
inline constexpr std::int64_t halved_count = 48;

template <class C>
inline bool is_halved(const Panels& w) noexcept {
  return block_outgrows_cache<C> && w.vector == 1 &&
         w.total_entries() >= halved_count * w.blocks() * w.panels();
}

// Registers of the batch that fit beside V rows of sums.
template <int V>
inline constexpr int sum_vectors = registers == 32 ? (V == 8 ? 2 : 4)
                                                   : (V == 1   ? 4
                                                      : V == 4 ? 2
                                                               : 1);

inline constexpr std::int64_t slab_rows = 1024;

// Adds the products of one list of columns.
template <class T, int V, int NV, bool Split, class At>
GOSSAMER_INLINE void accumulate_panel(const Compute<T>* x, At at, const T* values,
                                      const std::uint8_t* indices, std::int64_t count,
                                      Vec<Compute<T>> (&sums)[V][NV]) noexcept {
  using C = Compute<T>;
  using R = Vec<C>;
  constexpr int lanes = R::lanes;
  if constexpr (Split) {
    R odd[NV];
#pragma GCC unroll 8
    for (int k = 0; k < NV; ++k) odd[k] = R::zero();
    std::int64_t e = 0;
    for (; e + 2 <= count; e += 2) {
      const C* xe = x + at(indices[e]);
      const C* xo = x + at(indices[e + 1]);
      const R we = R::set(widen(values[e]));
      const R wo = R::set(widen(values[e + 1]));
#pragma GCC unroll 8
      for (int k = 0; k < NV; ++k) {
        sums[0][k] = fma(we, R::load(xe + k * lanes), sums[0][k]);
        odd[k] = fma(wo, R::load(xo + k * lanes), odd[k]);
      }
    }
    if (e < count) {
      const C* xe = x + at(indices[e]);
      const R we = R::set(widen(values[e]));
#pragma GCC unroll 8
      for (int k = 0; k < NV; ++k) sums[0][k] = fma(we, R::load(xe + k * lanes), sums[0][k]);
    }
#pragma GCC unroll 8
    for (int k = 0; k < NV; ++k) sums[0][k] = add(sums[0][k], odd[k]);
  } else {
    // --8<-- [start:inner_loop]
    for (std::int64_t e = 0; e < count; ++e) {
      const C* xe = x + at(indices[e]);
      R act[NV];
#pragma GCC unroll 8
      for (int k = 0; k < NV; ++k) act[k] = R::load(xe + k * lanes);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const R w = R::set(widen(values[e * V + v]));
#pragma GCC unroll 8
        for (int k = 0; k < NV; ++k) sums[v][k] = fma(w, act[k], sums[v][k]);
      }
    }
    // --8<-- [end:inner_loop]
  }
}

inline bool is_empty(const Panels::Lists& lists, Span blocks, std::int64_t panel) noexcept {
  for (std::int64_t block = blocks.first; block < blocks.last; ++block) {
    if (lists.of(block, panel).count > 0) return false;
  }
  return true;
}

// Blocks of columns against panels [first, last); x and y are `vectors` registers wide, and rows of
// y lie ld apart, or where `rows` says. A function of its own for each width: within one that holds
// them all, the narrow ones spill their addresses.
template <class T, int V, int NV, bool Split, class At, class Rows>
[[gnu::noinline]] void spmm_blocks(const Panels& w, const T* values, Span blocks,
                                   std::int64_t first, std::int64_t last, const Compute<T>* x,
                                   At at, std::int64_t ld, Rows rows, int vectors, Start<T> start,
                                   Visit visit, Compute<T>* y) noexcept {
  if constexpr (NV > 1) {
    if (vectors < NV) {  // a narrow remainder of the batch
      return spmm_blocks<T, V, NV / 2, Split>(w, values, blocks, first, last, x, at, ld, rows,
                                              vectors, start, visit, y);
    }
  }
  using R = Vec<Compute<T>>;
  const Panels::Lists lists = w.lists();
  for (std::int64_t p = first; p < last; ++p) {
    if constexpr (Rows::sums_stay) {
      if (is_empty(lists, blocks, p)) continue;
    }
    const Start<T> from = start.behind((p - first) * V);
    for (int k = 0; k < vectors; k += NV) {
      Compute<T>* out = y + rows.of_panel(p, first, V) + k * R::lanes;
      R sums[V][NV];
      from.load(out, ld, sums);
      for (std::int64_t block = blocks.first; block < blocks.last; ++block) {
        const auto [begin, count] = visit.of(lists.of(block, p));
        prefetch_panel<T, V>(values + begin * V, w.indices + begin, count);
        const std::int64_t nth = block - blocks.first;
        accumulate_panel<T, V, NV, Split>(x + at.before(nth) + k * R::lanes, at.of_block(nth),
                                          values + begin * V, w.indices + begin, count, sums);
      }
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
#pragma GCC unroll 8
        for (int i = 0; i < NV; ++i) sums[v][i].store(out + v * ld + i * R::lanes);
      }
    }
  }
}

// In the order that suits the density; see spmm_blocks.
template <class T, int V, class At, class Rows>
GOSSAMER_INLINE void multiply_blocks(const Panels& w, const T* values, Span blocks,
                                     std::int64_t first, std::int64_t last, const Compute<T>* x,
                                     At at, std::int64_t ld, Rows rows, int vectors, bool sparse,
                                     Start<T> start, Compute<T>* y) noexcept {
  if constexpr (V == 1) {
    if (sparse) {
      return spmm_blocks<T, 1, 8, false>(w, values, blocks, first, last, x, at, ld, rows, vectors,
                                         start, {}, y);
    }
    if (is_halved<Compute<T>>(w)) {
      spmm_blocks<T, 1, sum_vectors<1>, true>(w, values, blocks, first, last, x, at, ld, rows,
                                              vectors, start, {0, 2, 2}, y);
      start.first = false;
      return spmm_blocks<T, 1, sum_vectors<1>, true>(w, values, blocks, first, last, x, at, ld,
                                                     rows, vectors, start, {1, 2, 2}, y);
    }
  }
  spmm_blocks<T, V, sum_vectors<V>, V == 1>(w, values, blocks, first, last, x, at, ld, rows,
                                            vectors, start, {}, y);
}

// dots.hpp has the overload for pairs of bf16.
template <class T, int V>
GOSSAMER_INLINE void multiply_blocks(const Panels& w, const T* values, Span blocks,
                                     std::int64_t first, std::int64_t last, const Compute<T>* x,
                                     std::int64_t ld, int vectors, bool sparse, Start<T> start,
                                     Compute<T>* y) noexcept {
  multiply_blocks<T, V>(w, values, blocks, first, last, x, Lines{ld}, ld, Lines{ld}, vectors,
                        sparse, start, y);
}

// Panels with few entries in a block spend much of their time on the way of their sums to memory
// and back. Those pass several blocks at once, as many as lie well in the second-level cache: a
// tenth of the time at 90 % and V = 4 in pairs of bf16, and at 98 % and V = 1 in float32
// (bench_kernels). The sums are the same ones, in the same order.
template <class T>
inline std::int64_t blocks_at_once(const Panels& w, std::int64_t ld) noexcept {
  constexpr bool pairs = sizeof(Packed<T>) == 2;
  const std::int64_t few = pairs || w.vector > 1 ? 40 : 14;
  if (w.total_entries() > few * w.blocks() * w.panels()) return 1;
  const std::int64_t near = second_level_cache() / (pairs ? 8 : 2);
  const std::int64_t bytes = Panels::max_block_cols * ld * std::int64_t{sizeof(Packed<T>)};
  return ceil_div(near, bytes);
}

template <class T>
std::int64_t spmm_tile(const SpmmArgs& a) noexcept {
  return (is_sparse(a.weight) ? 2 : 1) * tile_width<Compute<T>>;
}

// Rows of a task.
template <class T>
std::int64_t spmm_task_rows(const SpmmArgs& a) noexcept {
  const std::int64_t tile = spmm_tile<T>(a);
  return is_window<T>(a.x) ? rows_at_once<Compute<T>>(a.x, tile) : tile;
}

// Elements of T and of Compute<T> in a task's scratch: packed x, then y.
template <class T>
std::int64_t spmm_packed_size(const SpmmArgs& a) noexcept {
  return a.weight.blocks() * Panels::max_block_cols * spmm_tile<T>(a);
}

template <class T>
std::size_t window_scratch(const SpmmArgs&) noexcept;
template <class T>
std::size_t window_sums_scratch(const SpmmArgs&) noexcept;
template <class T, int V>
void spmm_windows(const SpmmArgs&, const Task&, void*) noexcept;
template <class T>
void spmm_to_windows(const SpmmArgs&, const Task&, void*) noexcept;

template <class T>
std::size_t tiled_scratch(const SpmmArgs& a) noexcept {
  const std::int64_t slab = a.weight.rows < slab_rows ? a.weight.rows : slab_rows;
  return static_cast<std::size_t>(spmm_packed_size<T>(a)) * sizeof(Packed<T>) +
         static_cast<std::size_t>(slab * spmm_tile<T>(a)) * sizeof(Compute<T>);
}

template <class T>
std::size_t spmm_scratch(const SpmmArgs& a) noexcept {
  if (is_window<T>(a.x)) return window_scratch<T>(a);
  if (is_window<T>(a.y)) return window_sums_scratch<T>(a);
  const auto few = static_cast<std::size_t>(few_elements(a.weight)) * sizeof(Compute<T>);
  const std::size_t tiled = tiled_scratch<T>(a);
  return tiled > few ? tiled : few;
}

// Registers that cover so many rows of the batch: a power of two.
inline int registers_for(std::int64_t rows, int lanes) noexcept {
  int vectors = 1;
  while (vectors * lanes < rows) vectors *= 2;
  return vectors;
}

// All rows of a part, slab by slab, from what `multiply` makes of blocks of packed x.
template <class T, int V, class Multiply>
GOSSAMER_INLINE void spmm_rows(const SpmmArgs& a, const Task& task, std::int64_t b,
                               std::int64_t rows, std::int64_t ld, Compute<T>* y,
                               Multiply&& multiply) noexcept {
  using R = Vec<Compute<T>>;
  const Panels& w = a.weight;
  const T* bias = static_cast<const T*>(a.bias);
  const std::int64_t blocks = w.blocks();
  const std::int64_t step = blocks_at_once<T>(w, ld);
  const std::int64_t slab = slab_rows / V * tile_width<Compute<T>> / spmm_tile<T>(a);
  for (std::int64_t p = task.part0; p < task.part1; p += slab) {
    const std::int64_t last = task.part1 - p < slab ? task.part1 : p + slab;
    const Start<T> start{true, bias == nullptr ? nullptr : bias + p * V};
    if (blocks == 0) {  // W has no columns: the bias alone
      for (std::int64_t i = 0; i < (last - p) * V * ld; i += R::lanes) {
        start.of_row(static_cast<int>(i / ld)).store(y + i);
      }
    }
    for (std::int64_t k = 0; k < blocks; k += step) {
      const Span together{k, blocks - k < step ? blocks : k + step};
      multiply(together, p, last, Start<T>{k == 0, start.bias});
    }
    unpack<T>(y, ld, a.y, b, rows, p * V, (last - p) * V);
  }
}

template <class T, int V>
void spmm(const SpmmArgs& a, const Task& task, void* scratch) noexcept {
  using C = Compute<T>;
  if constexpr (constexpr std::int64_t few = few_rows<C, V>; few > 0) {
    if (a.x.rows <= few && a.x.patches == nullptr && a.y.patches == nullptr) {
      return spmm_few<T, V>(a, task, scratch);
    }
  }
  if constexpr (has_windows<T>) {
    if (is_window<T>(a.x)) return spmm_windows<T, V>(a, task, scratch);
    if constexpr (V == 1) {
      if (is_window<T>(a.y)) return spmm_to_windows<T>(a, task, scratch);
    }
  }
  const Panels& w = a.weight;
  const T* values = static_cast<const T*>(a.values);
  const std::int64_t blocks = w.blocks();
  const std::int64_t tile = spmm_tile<T>(a);
  const bool sparse = is_sparse(w);
  auto* x = static_cast<Packed<T>*>(scratch);
  C* y = reinterpret_cast<C*>(x + spmm_packed_size<T>(a));
  for (std::int64_t b = task.batch0; b < task.batch1; b += tile) {
    const std::int64_t rows = task.batch1 - b < tile ? task.batch1 - b : tile;
    const int vectors = registers_for(rows, packed_lanes<T>);
    const std::int64_t ld = vectors * packed_lanes<T>;
    for (std::int64_t k = 0; k < blocks; ++k) {
      pack<T>(a.x, b, rows, k * w.block_cols, w.block_width(k), x + k * Panels::max_block_cols * ld,
              ld);
    }
    spmm_rows<T, V>(a, task, b, rows, ld, y,
                    [&](Span together, std::int64_t p, std::int64_t last, Start<T> start) {
                      const Packed<T>* packed = x + together.first * Panels::max_block_cols * ld;
                      multiply_blocks<T, V>(w, values, together, p, last, packed, ld, vectors,
                                            sparse, start, y);
                    });
  }
}

}  // namespace
}  // namespace gossamer
