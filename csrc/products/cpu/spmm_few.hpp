// spmm for a batch of at most V rows, as in decoding: bound by reading the weight once.
//
//   for a block of 256 columns, for a panel:      the weight is one forward stream
//     for a register of values (lanes / V entries of V rows):
//       for a batch row:  sums[b] += values * spread(x[b])       spread: V copies of x[b, c_entry]
//
// The tile kernel would fill a register with `lanes` batch rows, most of them zeros.
#pragma once

#include "products/cpu/pack.hpp"
#include "products/table.hpp"

namespace gossamer {
namespace {

// Spreading costs lanes / V loads a batch row, so beyond V rows the tile kernel wins.
template <class C, int V>
inline constexpr std::int64_t few_rows = V > 1 && Vec<C>::lanes % V == 0 ? V : 0;

// y[b * V + v] += sum over the panel's entries; x is [B][ld].
template <class T, int V, int B>
GOSSAMER_INLINE void few_panel(const Compute<T>* x, std::int64_t ld, const T* values,
                               const std::uint8_t* indices, std::int64_t count,
                               Compute<T>* y) noexcept {
  using C = Compute<T>;
  using R = Vec<C>;
  constexpr int lanes = R::lanes;
  constexpr int group = lanes / V;
  R sums[B];
#pragma GCC unroll 8
  for (int b = 0; b < B; ++b) sums[b] = R::zero();
  std::int64_t e = 0;
  for (; e + group <= count; e += group) {
    const R w = load_as(values + e * V);
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) {
      sums[b] = fma(w, R::template spread<V>(x + b * ld, indices + e), sums[b]);
    }
  }
#pragma GCC unroll 8
  for (int b = 0; b < B; ++b) {
    C parts[lanes];
    sums[b].store(parts);
    for (int i = 0; i < lanes; ++i) y[b * V + i % V] += parts[i];
  }
  for (; e < count; ++e) {
    for (int b = 0; b < B; ++b) {
      const C act = x[b * ld + indices[e]];
      for (int v = 0; v < V; ++v) y[b * V + v] += widen(values[e * V + v]) * act;
    }
  }
}

template <class T, int V, int B>
void few_panels(const SpmmArgs& a, const Task& task, const Compute<T>* x, std::int64_t ld,
                Compute<T>* y) noexcept {
  const Panels& w = a.weight;
  const T* values = static_cast<const T*>(a.values);
  const Panels::Lists lists = w.lists();
  for (std::int64_t k = 0; k < w.blocks(); ++k) {
    for (std::int64_t p = task.part0; p < task.part1; ++p) {
      const auto [begin, count] = lists.of(k, p);
      few_panel<T, V, B>(x + k * Panels::max_block_cols, ld, values + begin * V, w.indices + begin,
                         count, y + (p - task.part0) * V * B);
    }
  }
}

// Elements of scratch: x [width][blocks * 256] and y [panels][width][V], width <= V.
inline std::int64_t few_elements(const Panels& w) noexcept {
  return w.vector * (w.blocks() * Panels::max_block_cols + w.rows);
}

template <class T, int V>
void spmm_few(const SpmmArgs& a, const Task& task, void* scratch) noexcept {
  using C = Compute<T>;
  const Panels& w = a.weight;
  const T* bias = static_cast<const T*>(a.bias);
  const std::int64_t rows = task.batch1 - task.batch0;
  const std::int64_t width = rows <= 1 ? 1 : rows <= 2 ? 2 : rows <= 4 ? 4 : 8;
  const std::int64_t ld = w.blocks() * Panels::max_block_cols;
  C* x = static_cast<C*>(scratch);
  C* y = x + width * ld;
  for (std::int64_t b = 0; b < width; ++b) {
    for (std::int64_t k = 0; k < w.blocks(); ++k) {
      C* out = x + b * ld + k * Panels::max_block_cols;
      for (std::int64_t c = 0; c < w.block_width(k); ++c) {
        out[c] = b < rows ? widen(*at<T>(a.x, task.batch0 + b, k * w.block_cols + c)) : C(0);
      }
    }
  }
  for (std::int64_t i = 0; i < (task.part1 - task.part0) * V * width; ++i) {
    const std::int64_t row = task.part0 * V + i / (V * width) * V + i % V;
    y[i] = bias != nullptr ? widen(bias[row]) : C(0);
  }
  switch (width) {
    case 1: few_panels<T, V, 1>(a, task, x, ld, y); break;
    case 2: few_panels<T, V, 2>(a, task, x, ld, y); break;
    case 4: few_panels<T, V, 4>(a, task, x, ld, y); break;
    default: few_panels<T, V, V>(a, task, x, ld, y); break;
  }
  for (std::int64_t p = task.part0; p < task.part1; ++p) {
    for (std::int64_t b = 0; b < rows; ++b) {
      for (int v = 0; v < V; ++v) {
        T* out = static_cast<T*>(a.y.data) + (task.batch0 + b) * a.y.row_stride +
                 (p * V + v) * a.y.col_stride;
        narrow(y[((p - task.part0) * width + b) * V + v], *out);
      }
    }
  }
}

}  // namespace
}  // namespace gossamer
