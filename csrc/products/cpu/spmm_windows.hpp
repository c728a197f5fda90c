// spmm of a convolution of stride 1, whose images are packed once for all taps (windows.hpp).
//
//   spmm_windows      x is images: a task packs a window of all channels, of some tiles, and
//                     streams the weight past each, as in spmm.hpp; a column has a place in the
//                     window
//   spmm_to_windows   y is images, to which a product with W^T adds: a row has a place in a window
//                     of sums of some tiles, which is added to the images once
#pragma once

#include "products/cpu/spmm.hpp"

namespace gossamer {
namespace {

inline std::int64_t padded_columns(const Panels& w) noexcept {
  return w.blocks() * Panels::max_block_cols;
}

template <class T>
std::size_t window_scratch(const SpmmArgs& a) noexcept {
  using C = Compute<T>;
  const Patches& p = *a.x.patches;
  const std::int64_t tile = spmm_tile<T>(a);
  const std::int64_t slab = a.weight.rows < slab_rows ? a.weight.rows : slab_rows;
  const std::int64_t lines = window_of<C>(p, rows_at_once<C>(a.x, tile)).lines(p);
  return static_cast<std::size_t>(lines + slab * tile) * sizeof(C) +
         static_cast<std::size_t>(padded_columns(a.weight)) * sizeof(std::int32_t);
}

template <class T, int V>
void spmm_windows(const SpmmArgs& a, const Task& task, void* scratch) noexcept {
  using C = Compute<T>;
  constexpr int lanes = Vec<C>::lanes;
  const Panels& w = a.weight;
  const Patches& p = *a.x.patches;
  const T* values = static_cast<const T*>(a.values);
  const std::int64_t tile = spmm_tile<T>(a);
  const bool sparse = is_sparse(w);
  const std::int64_t run = rows_at_once<C>(a.x, tile);
  const Window window = window_of<C>(p, run);
  C* x = static_cast<C*>(scratch);
  C* y = x + window.lines(p);
  const std::int64_t slab = w.rows < slab_rows ? w.rows : slab_rows;
  auto* places = reinterpret_cast<std::int32_t*>(y + slab * tile);
  list_places(p, window, w.cols, w.block_cols, places);
  for (std::int64_t first = task.batch0; first < task.batch1; first += run) {
    const std::int64_t end = task.batch1 - first < run ? task.batch1 : first + run;
    pack_window<T>(a.x, window.of_rows(p, round_up(end - first, tile)), first, x);
    for (std::int64_t b = first; b < end; b += tile) {
      const std::int64_t rows = end - b < tile ? end - b : tile;
      const int vectors = registers_for(rows, lanes);
      const C* of_tile = x + (b - first);
      spmm_rows<T, V>(a, task, b, rows, vectors * lanes, y,
                      [&](Span together, std::int64_t p0, std::int64_t p1, Start<T> start) {
                        const Places at = Places{places}.of_block(together.first);
                        multiply_blocks<T, V>(w, values, together, p0, p1, of_tile, at,
                                              vectors * lanes, Lines{vectors * lanes}, vectors,
                                              sparse, start, y);
                      });
    }
  }
}

template <class T>
std::size_t window_sums_scratch(const SpmmArgs& a) noexcept {
  using C = Compute<T>;
  const Patches& p = *a.y.patches;
  const std::int64_t tile = spmm_tile<T>(a);
  const std::int64_t sums = window_of<C>(p, rows_at_once<C>(a.y, tile)).lines(p);
  return static_cast<std::size_t>(sums + spmm_packed_size<T>(a)) * sizeof(C) +
         static_cast<std::size_t>(round_up(a.weight.rows, Panels::max_block_cols)) *
             sizeof(std::int32_t);
}

template <class T>
void spmm_to_windows(const SpmmArgs& a, const Task& task, void* scratch) noexcept {
  using C = Compute<T>;
  constexpr int lanes = Vec<C>::lanes;
  const Panels& w = a.weight;
  const Patches& p = *a.y.patches;
  const T* values = static_cast<const T*>(a.values);
  const std::int64_t blocks = w.blocks();
  const std::int64_t tile = spmm_tile<T>(a);
  const bool sparse = is_sparse(w);
  const std::int64_t run = rows_at_once<C>(a.y, tile);
  const Window window = window_of<C>(p, run);
  C* sums = static_cast<C*>(scratch);
  C* x = sums + window.lines(p);
  auto* places = reinterpret_cast<std::int32_t*>(x + spmm_packed_size<T>(a));
  list_places(p, window, w.rows, Panels::max_block_cols, places);
  for (std::int64_t first = task.batch0; first < task.batch1; first += run) {
    const std::int64_t end = task.batch1 - first < run ? task.batch1 : first + run;
    zero_window(p, window, sums);
    for (std::int64_t b = first; b < end; b += tile) {
      const std::int64_t rows = end - b < tile ? end - b : tile;
      const int vectors = registers_for(rows, lanes);
      const std::int64_t ld = vectors * lanes;
      for (std::int64_t k = 0; k < blocks; ++k) {
        pack<T>(a.x, b, rows, k * w.block_cols, w.block_width(k),
                x + k * Panels::max_block_cols * ld, ld);
      }
      const std::int64_t step = blocks_at_once<T>(w, ld);
      for (std::int64_t k = 0; k < blocks; k += step) {
        const Span together{k, blocks - k < step ? blocks : k + step};
        multiply_blocks<T, 1>(w, values, together, task.part0, task.part1,
                              x + k * Panels::max_block_cols * ld, Lines{ld}, ld, Places{places},
                              vectors, sparse, {false, nullptr}, sums + (b - first));
      }
    }
    unpack_window<T>(sums, window.of_rows(p, end - first), a.y, first, task);
  }
}

}  // namespace
}  // namespace gossamer
