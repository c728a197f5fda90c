// dX[b, c] = sum_r G[b, r] W[r, c], from the same panels as spmm: no transposed copy.
//
// A task packs one tile of G and owns some blocks of columns:
//
//   for a block of 256 columns:              its dX, packed, stays in the first-level cache
//     for a panel of V rows:                 its V x NV values of G stay in registers
//       for a kept column: dx[k] += sum_v value[v] * g[v][k]
//
// With V = 4 one load and one store of dx serve four products, so it runs at the speed of spmm.
// With V = 1 it is bound by those stores; a packed transpose (spmm on W^T) is the other way.
#pragma once

#include "products/cpu/spmm_windows.hpp"

namespace gossamer {
namespace {

template <class T, int V, int NV, class At>
GOSSAMER_INLINE void scatter_panel(const Compute<T>* g, std::int64_t ld, const T* values,
                                   const std::uint8_t* indices, std::int64_t count, At at,
                                   Compute<T>* dx) noexcept {
  using C = Compute<T>;
  using R = Vec<C>;
  constexpr int lanes = R::lanes;
  R grad[V][NV];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
#pragma GCC unroll 4
    for (int k = 0; k < NV; ++k) grad[v][k] = R::load(g + v * ld + k * lanes);
  }
  for (std::int64_t e = 0; e < count; ++e) {
    C* out = dx + at(indices[e]);
    R sum[NV];
#pragma GCC unroll 4
    for (int k = 0; k < NV; ++k) sum[k] = R::load(out + k * lanes);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const R w = R::set(widen(values[e * V + v]));
#pragma GCC unroll 4
      for (int k = 0; k < NV; ++k) sum[k] = fma(w, grad[v][k], sum[k]);
    }
#pragma GCC unroll 4
    for (int k = 0; k < NV; ++k) sum[k].store(out + k * lanes);
  }
}

template <class T, int V, int NV, class At>
[[gnu::noinline]] void spmm_t_block(const Panels& w, const T* values, std::int64_t block,
                                    const Compute<T>* g, std::int64_t ld, int vectors, At at,
                                    Compute<T>* dx) noexcept {
  if constexpr (NV > 1) {
    if (vectors < NV) {
      return spmm_t_block<T, V, NV / 2>(w, values, block, g, ld, vectors, at, dx);
    }
  }
  constexpr int lanes = Vec<Compute<T>>::lanes;
  const Panels::Lists lists = w.lists();
  const std::int64_t panels = w.panels();
  for (std::int64_t p = 0; p < panels; ++p) {
    const auto [begin, count] = lists.of(block, p);
    prefetch_panel<T, V>(values + begin * V, w.indices + begin, count);
    for (int k = 0; k < vectors; k += NV) {
      scatter_panel<T, V, NV>(g + p * V * ld + k * lanes, ld, values + begin * V, w.indices + begin,
                              count, at, dx + k * lanes);
    }
  }
}

// dots.hpp has the overload for pairs of bf16.
template <class T, int V>
GOSSAMER_INLINE void scatter_block(const Panels& w, const T* values, std::int64_t block,
                                   const Compute<T>* g, std::int64_t ld, int vectors,
                                   Compute<T>* dx) noexcept {
  spmm_t_block<T, V, sum_vectors<V>>(w, values, block, g, ld, vectors, Lines{ld}, dx);
}

template <class T>
std::int64_t spmm_t_tile(const SpmmTArgs&) noexcept {
  return tile_width<Compute<T>>;
}

template <class T>
std::size_t spmm_t_scratch(const SpmmTArgs& a) noexcept {
  const auto tile = static_cast<std::size_t>(spmm_t_tile<T>(a));
  if (is_window<T>(a.grad_input)) {
    const Patches& p = *a.grad_input.patches;
    const std::int64_t run = rows_at_once<Compute<T>>(a.grad_input, spmm_t_tile<T>(a));
    const std::int64_t sums = window_of<Compute<T>>(p, run).lines(p);
    return static_cast<std::size_t>(sums + a.weight.rows * spmm_t_tile<T>(a)) * sizeof(Compute<T>) +
           static_cast<std::size_t>(padded_columns(a.weight)) * sizeof(std::int32_t);
  }
  return Panels::max_block_cols * tile * sizeof(Compute<T>) +
         static_cast<std::size_t>(a.weight.rows) * tile * sizeof(Packed<T>);
}

// The sums of all blocks, and of some tiles, lie in one window of the images (windows.hpp), which
// is added to them once.
template <class T, int V>
void spmm_t_windows(const SpmmTArgs& a, const Task& task, void* scratch) noexcept {
  using C = Compute<T>;
  constexpr int lanes = Vec<C>::lanes;
  const Panels& w = a.weight;
  const Patches& p = *a.grad_input.patches;
  const T* values = static_cast<const T*>(a.values);
  const std::int64_t tile = spmm_t_tile<T>(a);
  const std::int64_t run = rows_at_once<C>(a.grad_input, tile);
  const Window window = window_of<C>(p, run);
  C* dx = static_cast<C*>(scratch);
  C* g = dx + window.lines(p);
  auto* places = reinterpret_cast<std::int32_t*>(g + w.rows * tile);
  list_places(p, window, w.cols, w.block_cols, places);
  for (std::int64_t first = task.batch0; first < task.batch1; first += run) {
    const std::int64_t end = task.batch1 - first < run ? task.batch1 : first + run;
    zero_window(p, window, dx);
    for (std::int64_t b = first; b < end; b += tile) {
      const std::int64_t rows = end - b < tile ? end - b : tile;
      const int vectors = registers_for(rows, lanes);
      const std::int64_t ld = vectors * lanes;
      pack<T>(a.grad_output, b, rows, 0, w.rows, g, ld);
      for (std::int64_t k = task.part0; k < task.part1; ++k) {
        spmm_t_block<T, V, sum_vectors<V>>(w, values, k, g, ld, vectors, Places{places}.of_block(k),
                                           dx + (b - first));
      }
    }
    unpack_window<T>(dx, window.of_rows(p, end - first), a.grad_input, first, task);
  }
}

template <class T, int V>
void spmm_t(const SpmmTArgs& a, const Task& task, void* scratch) noexcept {
  using C = Compute<T>;
  using R = Vec<C>;
  if constexpr (has_windows<T>) {
    if (is_window<T>(a.grad_input)) return spmm_t_windows<T, V>(a, task, scratch);
  }
  constexpr int lanes = packed_lanes<T>;
  const std::int64_t tile = spmm_t_tile<T>(a);
  const Panels& w = a.weight;
  const T* values = static_cast<const T*>(a.values);
  C* dx = static_cast<C*>(scratch);
  auto* g = reinterpret_cast<Packed<T>*>(dx + Panels::max_block_cols * tile);
  for (std::int64_t b = task.batch0; b < task.batch1; b += tile) {
    const std::int64_t rows = task.batch1 - b < tile ? task.batch1 - b : tile;
    const int vectors = registers_for(rows, lanes);
    const std::int64_t ld = vectors * lanes;
    pack<T>(a.grad_output, b, rows, 0, w.rows, g, ld);
    if constexpr (sizeof(Packed<T>) == 2) zip_rows<V>(g, ld, w.rows);
    for (std::int64_t k = task.part0; k < task.part1; ++k) {
      const std::int64_t width = w.block_width(k);
      for (std::int64_t i = 0; i < width * ld; i += R::lanes) R::zero().store(dx + i);
      scatter_block<T, V>(w, values, k, g, ld, vectors, dx);
      unpack<T>(dx, ld, a.grad_input, b, rows, k * w.block_cols, width);
    }
  }
}

}  // namespace
}  // namespace gossamer
