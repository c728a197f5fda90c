// dW[r, c] = sum_b G[b, r] X[b, c], at the kept (r, c) only.
//
// Both operands are packed batch-innermost in chunks of `batch_tile` rows, so an entry is a dot
// product of two contiguous runs. A group of `lanes / V` entries has `lanes` sums in registers, one
// load of x serves V of them and one load of g serves all entries of the group; at the end of the
// run a tree of shuffles turns the registers into one register of results, which is stored as it
// lies in memory.
//
// The length of a run is a choice between the tree, paid once a run, and the cache that holds x:
//
//   dense V = 1: runs of one tile, so that a block of x, or half of it (spmm.hpp), stays in the
//                first-level cache: every load of x serves one product only. Not for pairs of
//                bf16, whose tiles are too few products to pay for a tree.
//   else:        long runs, x from the second-level cache. With V >= 4 a load serves V
//                products; with few entries a row the fixed costs of a row outweigh the loads.
#pragma once

#include "products/cpu/spmm_windows.hpp"

namespace gossamer {
namespace {

template <class T>
inline constexpr std::int64_t long_run = sizeof(Packed<T>) == 2 ? 512 : 256;

template <class T, int V>
std::int64_t sddmm_run(const SddmmArgs& a) noexcept {
  const bool shortened = V == 1 && !is_sparse(a.weight) && sizeof(Packed<T>) > 2;
  return shortened ? tile_width<Compute<T>> : long_run<T>;
}

// Where the sums of a run go.
template <class T>
struct RunOutput {
  Compute<T>* sums;
  T* grad_values;
  bool accumulate;  // add to sums
  bool last;        // write grad_values, not sums; nobody reads sums then, and they may be null
  std::int64_t first = 0;

  RunOutput behind(std::int64_t values) const noexcept {
    return {sums, grad_values, accumulate, last, first + values};
  }
  GOSSAMER_INLINE void write(Vec<Compute<T>> total, std::int64_t at, int n) const noexcept {
    constexpr int lanes = Vec<Compute<T>>::lanes;
    Compute<T>* sum = sums + (last && !accumulate ? 0 : first + at);
    if (accumulate) {
      total = add(total, n == lanes ? Vec<Compute<T>>::load(sum) : Vec<Compute<T>>::load_n(sum, n));
    }
    if (!last) {
      n == lanes ? total.store(sum) : total.store_n(sum, n);
    } else if (n == lanes) {
      store_as(grad_values + first + at, total);
    } else {
      store_as_n(grad_values + first + at, total, n);
    }
  }
};

// [entry * V + v] (+)= <g[v], x[indices[entry]]> for `live` <= E entries.
template <class T, int V, int E, class At>
GOSSAMER_INLINE void dot_group(const Packed<T>* x, At at, const Packed<T>* g, std::int64_t ld,
                               std::int64_t length, const std::uint8_t* indices, int live,
                               RunOutput<T> to) noexcept {
  using R = Vec<Compute<T>>;
  using P = typename PackedOf<T>::Register;
  constexpr int lanes = R::lanes;
  R acc[E * V];
#pragma GCC unroll 16
  for (int i = 0; i < E * V; ++i) acc[i] = R::zero();
  const Packed<T>* columns[E];
#pragma GCC unroll 16
  for (int e = 0; e < E; ++e) columns[e] = x + at(indices[e < live ? e : 0]);
  for (std::int64_t b = 0; b < length; b += packed_lanes<T>) {
    if constexpr (V == 1) {
      const P grad = P::load(g + b);
#pragma GCC unroll 16
      for (int e = 0; e < E; ++e) acc[e] = dot(acc[e], P::load(columns[e] + b), grad);
    } else {
      P act[E];
#pragma GCC unroll 16
      for (int e = 0; e < E; ++e) act[e] = P::load(columns[e] + b);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const P grad = P::load(g + v * ld + b);
#pragma GCC unroll 16
        for (int e = 0; e < E; ++e) acc[e * V + v] = dot(acc[e * V + v], act[e], grad);
      }
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k * lanes < E * V; ++k) {
    const int left = live * V - k * lanes;
    if (left <= 0) break;
    const int n = left < lanes ? left : lanes;
    R group[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
      group[i] = k * lanes + i < E * V ? acc[k * lanes + i] : R::zero();
    }
    to.write(R::sums(group), k * lanes, n);
  }
}

// All entries of one panel: full groups, then the rest in the smallest group that holds it.
template <class T, int V, class At>
GOSSAMER_INLINE void dot_panel(const Packed<T>* x, At at, const Packed<T>* g, std::int64_t ld,
                               std::int64_t length, const std::uint8_t* indices, std::int64_t count,
                               RunOutput<T> to) noexcept {
  constexpr int lanes = Vec<Compute<T>>::lanes;
  constexpr int full = lanes / V > 0 ? lanes / V : 1;
  constexpr int half = full >= 2 ? full / 2 : 1;
  constexpr int quarter = full >= 4 ? full / 4 : 1;
  std::int64_t e = 0;
  for (; e + full <= count; e += full) {
    dot_group<T, V, full>(x, at, g, ld, length, indices + e, full, to.behind(e * V));
  }
  const int left = static_cast<int>(count - e);
  if (left == 0) return;
  if (full >= 4 && left <= quarter) {
    dot_group<T, V, quarter>(x, at, g, ld, length, indices + e, left, to.behind(e * V));
  } else if (full >= 2 && left <= half) {
    dot_group<T, V, half>(x, at, g, ld, length, indices + e, left, to.behind(e * V));
  } else {
    dot_group<T, V, full>(x, at, g, ld, length, indices + e, left, to.behind(e * V));
  }
}

// Elements of a chunk's packed x, with the table of places where it is a window.
template <class T, int V>
std::int64_t sddmm_x_size(const SddmmArgs& a) noexcept {
  const std::int64_t run = sddmm_run<T, V>(a);
  const std::int64_t columns = padded_columns(a.weight);
  if (!is_window<T>(a.x)) return columns * run;
  const Patches& p = *a.x.patches;
  constexpr std::int64_t places = sizeof(Packed<T>) > sizeof(std::int32_t) ? 2 : 1;
  return window_of<Compute<T>>(p, run).lines(p) + columns / places;
}

template <class T, int V>
std::size_t sddmm_chunk_bytes(const SddmmArgs& a) noexcept {
  return static_cast<std::size_t>(sddmm_x_size<T, V>(a) + a.weight.rows * sddmm_run<T, V>(a)) *
         sizeof(Packed<T>);
}

template <class T, int V>
void sddmm_pack(const SddmmArgs& a, std::int64_t first, std::int64_t count, std::int64_t chunk,
                std::int64_t chunks, void* packed) noexcept {
  using P = Packed<T>;
  const std::int64_t ld = sddmm_run<T, V>(a);
  const Panels& w = a.weight;
  const std::int64_t x_chunk = sddmm_x_size<T, V>(a);
  P* x = static_cast<P*>(packed) + chunk * x_chunk;
  P* g = static_cast<P*>(packed) + chunks * x_chunk + chunk * w.rows * ld;
  bool packs = true;
  if constexpr (has_windows<T>) {
    if (is_window<T>(a.x)) {
      const Patches& p = *a.x.patches;
      const Window window = window_of<P>(p, ld);
      pack_window<T>(a.x, window, first, x);
      list_places(p, window, w.cols, w.block_cols,
                  reinterpret_cast<std::int32_t*>(x + window.lines(p)));
      packs = false;
    }
  }
  for (std::int64_t k = 0; packs && k < w.blocks(); ++k) {
    pack<T>(a.x, first, count, k * w.block_cols, w.block_width(k),
            x + k * Panels::max_block_cols * ld, ld);
  }
  constexpr std::int64_t strip = 256;  // few enough lines of the packed side to stay in cache
  for (std::int64_t r = 0; r < w.rows; r += strip) {
    pack<T>(a.grad_output, first, count, r, w.rows - r < strip ? w.rows - r : strip, g + r * ld,
            ld);
  }
}

// The panels of a task against one chunk.
template <class T, int V, class At>
GOSSAMER_INLINE void sddmm_chunk(const Panels& w, const SddmmTask& task, const Packed<T>* x, At at,
                                 const Packed<T>* g, std::int64_t ld, std::int64_t length,
                                 RunOutput<T> to) noexcept {
  const Panels::Lists lists = w.lists();
  const bool halved = ld == tile_width<Compute<T>> && is_halved<Compute<T>>(w);
  const int halves = halved ? 2 : 1;
  for (int half = 0; half < halves; ++half) {
    const Visit visit{half, halves, Vec<Compute<T>>::lanes};
    for (std::int64_t p = task.panel0; p < task.panel1; ++p) {
      const auto [begin, count] = visit.of(lists.of(task.block, p));
      dot_panel<T, V>(x, at, g + p * V * ld, ld, length, w.indices + begin, count,
                      to.behind(begin * V));
    }
  }
}

template <class T, int V>
void sddmm(const SddmmArgs& a, const SddmmTask& task, std::int64_t chunks,
           const void* packed) noexcept {
  using P = Packed<T>;
  const std::int64_t ld = sddmm_run<T, V>(a);
  const Panels& w = a.weight;
  const std::int64_t x_chunk = sddmm_x_size<T, V>(a);
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    const P* x = static_cast<const P*>(packed) + chunk * x_chunk;
    const P* g = static_cast<const P*>(packed) + chunks * x_chunk + chunk * w.rows * ld;
    const std::int64_t rows = task.batch - chunk * ld < ld ? task.batch - chunk * ld : ld;
    const std::int64_t length = round_up(rows, packed_lanes<T>);
    const RunOutput<T> to{static_cast<Compute<T>*>(a.sums), static_cast<T*>(a.grad_values),
                          task.accumulate || chunk > 0, task.last && chunk == chunks - 1};
    if constexpr (has_windows<T>) {
      if (is_window<T>(a.x)) {
        const Patches& p = *a.x.patches;
        const P* table = x + window_of<P>(p, ld).lines(p);
        const Places at{reinterpret_cast<const std::int32_t*>(table)};
        sddmm_chunk<T, V>(w, task, x, at.of_block(task.block), g, ld, length, to);
        continue;
      }
    }
    const Lines at{ld};
    sddmm_chunk<T, V>(w, task, x + at.before(task.block), at, g, ld, length, to);
  }
}

}  // namespace
}  // namespace gossamer
