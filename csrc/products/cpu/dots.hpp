// The products of a panel by dot products of bf16 pairs: two multiply-adds per lane at once.
//
//   spmm      a pair is two kept columns, e and e + 1, of one batch row:
//               sums[v] += <(w[e][v], w[e + 1][v]), (x[c_e], x[c_e+1])>
//             Two loads and two zips serve 2 V dot products. Values lie [entry][V], so the pairs of
//             a panel are made first, in a few hundred bytes of stack; V = 1 reads them where they
//             are. A last odd entry is paired with zeros on both sides: zero times infinity is no
//             zero.
//   spmm_t    a pair is two rows of the panel:
//               dx[c_e] += <(w[e][v], w[e][v + 1]), (g[v], g[v + 1])>
//             V = 1 pairs its row with zeros.
//
// The order of sums of one output depends on its row of W alone, as in spmm.hpp.
#pragma once

#include "products/cpu/pack.hpp"
#include "products/cpu/prefetch.hpp"

#if GOSSAMER_HAS_PAIRS
namespace gossamer {
namespace {

// [entry][V] -> [entry / 2][V][2], with zeros behind the last entry.
template <int V>
GOSSAMER_INLINE void pair_panel(const bf16* values, std::int64_t count, bf16* pairs) noexcept {
  constexpr std::int64_t all = 2 * Pairs::lanes;
  if constexpr (V == all) {  // an entry fills a register
    for (std::int64_t e = 0; e < count; e += 2) {
      const Pairs a = Pairs::load(values + e * V);
      const Pairs b = e + 1 < count ? Pairs::load(values + (e + 1) * V) : Pairs::zero();
      zip_low(a, b).store(pairs + e * V);
      zip_high(a, b).store(pairs + (e + 1) * V);
    }
  } else {
    const std::int64_t size = count * V;
    std::int64_t i = 0;
    for (; i + all <= size; i += all) {
      Pairs::pair_entries<V>(Pairs::load(values + i)).store(pairs + i);
    }
    if (i < size) {
      Pairs::pair_entries<V>(Pairs::load_n(values + i, static_cast<int>(size - i)))
          .store(pairs + i);
    }
  }
}

// sums[v] += one pair of columns, U registers of x wide.
template <int V, int U>
GOSSAMER_INLINE void dot_columns(const bf16* pairs, const Pairs (&a)[U], const Pairs (&b)[U],
                                 Vec<float> (&sums)[V][2 * U]) noexcept {
  Pairs low[U];
  Pairs high[U];
#pragma GCC unroll 8
  for (int k = 0; k < U; ++k) {
    low[k] = zip_low(a[k], b[k]);
    high[k] = zip_high(a[k], b[k]);
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    const Pairs w = Pairs::set(pairs + 2 * v);
#pragma GCC unroll 8
    for (int k = 0; k < U; ++k) {
      sums[v][2 * k] = dot(sums[v][2 * k], low[k], w);
      sums[v][2 * k + 1] = dot(sums[v][2 * k + 1], high[k], w);
    }
  }
}

// One list of columns, U registers of x: 2 U registers of sums for each row. `odd` holds the sums
// of every other pair (Split): one row has too few chains of dependent sums to hide the latency of
// a dot product.
template <int V, int U, bool Split>
GOSSAMER_INLINE void dots_panel(const bf16* x, std::int64_t ld, const bf16* pairs, const bf16* tail,
                                const std::uint8_t* indices, std::int64_t count,
                                Vec<float> (&sums)[V][2 * U]) noexcept {
  using R = Vec<float>;
  constexpr int wide = 2 * Pairs::lanes;
  const auto load = [&](std::int64_t e, Pairs(&a)[U]) noexcept __attribute__((always_inline)) {
    const bf16* from = x + indices[e] * ld;
#pragma GCC unroll 8
    for (int k = 0; k < U; ++k) a[k] = Pairs::load(from + k * wide);
  };
  Pairs a[U];
  Pairs b[U];
  std::int64_t e = 0;
  if constexpr (Split) {
    R odd[V][2 * U];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
#pragma GCC unroll 8
      for (int k = 0; k < 2 * U; ++k) odd[v][k] = R::zero();
    }
    for (; e + 4 <= count; e += 4) {
      load(e, a);
      load(e + 1, b);
      dot_columns<V, U>(pairs + e * V, a, b, sums);
      load(e + 2, a);
      load(e + 3, b);
      dot_columns<V, U>(pairs + (e + 2) * V, a, b, odd);
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
#pragma GCC unroll 8
      for (int k = 0; k < 2 * U; ++k) sums[v][k] = add(sums[v][k], odd[v][k]);
    }
  }
  for (; e + 2 <= count; e += 2) {
    load(e, a);
    load(e + 1, b);
    dot_columns<V, U>(pairs + e * V, a, b, sums);
  }
  if (e < count) {
    load(e, a);
#pragma GCC unroll 8
    for (int k = 0; k < U; ++k) b[k] = Pairs::zero();
    dot_columns<V, U>(tail, a, b, sums);
  }
}

// Registers of x beside V rows of sums; each stands for two registers of sums.
template <int V>
inline constexpr int dot_vectors = V == 8 ? 1 : 2;

// Blocks of columns against panels [first, last), as spmm_blocks.
template <int V, int U, bool Split>
[[gnu::noinline]] void spmm_dots(const Panels& w, const bf16* values, Span blocks,
                                 std::int64_t first, std::int64_t last, const bf16* x,
                                 std::int64_t ld, int vectors, Start<bf16> start,
                                 float* y) noexcept {
  if constexpr (U > 1) {
    if (vectors < U) {
      return spmm_dots<V, U / 2, Split>(w, values, blocks, first, last, x, ld, vectors, start, y);
    }
  }
  using R = Vec<float>;
  constexpr std::int64_t wide = 2 * Pairs::lanes;
  constexpr std::int64_t most = Panels::max_block_cols;
  alignas(64) bf16 made[V == 1 ? 2 : most * V];
  const Panels::Lists lists = w.lists();
  for (std::int64_t p = first; p < last; ++p) {
    const Start<bf16> from = start.behind((p - first) * V);
    for (int k = 0; k < vectors; k += U) {
      float* out = y + (p - first) * V * ld + k * wide;
      R sums[V][2 * U];
      from.load(out, ld, sums);
      for (std::int64_t block = blocks.first; block < blocks.last; ++block) {
        auto [begin, left] = lists.of(block, p);
        prefetch_panel<bf16, V>(values + begin * V, w.indices + begin, left);
        // A list has at most `most` entries, unless somebody wrote into indptr.
        for (; left > 0; begin += most, left -= most) {
          const std::int64_t count = left < most ? left : most;
          const bf16* pairs = values + begin * V;
          const bf16* tail = made;
          if constexpr (V == 1) {
            made[0] = count % 2 != 0 ? pairs[count - 1] : bf16{0};
            made[1] = bf16{0};
          } else {
            pair_panel<V>(pairs, count, made);
            pairs = made;
            tail = made + count / 2 * 2 * V;
          }
          dots_panel<V, U, Split>(x + (block - blocks.first) * most * ld + k * wide, ld, pairs,
                                  tail, w.indices + begin, count, sums);
        }
      }
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
#pragma GCC unroll 8
        for (int i = 0; i < 2 * U; ++i) sums[v][i].store(out + v * ld + i * R::lanes);
      }
    }
  }
}

template <class T, int V>
GOSSAMER_INLINE void multiply_blocks(const Panels& w, const T* values, Span blocks,
                                     std::int64_t first, std::int64_t last, const bf16* x,
                                     std::int64_t ld, int vectors, bool sparse, Start<bf16> start,
                                     float* y) noexcept {
  if constexpr (V == 1) {
    if (sparse)
      return spmm_dots<1, 4, false>(w, values, blocks, first, last, x, ld, vectors, start, y);
  }
  spmm_dots<V, dot_vectors<V>, V == 1>(w, values, blocks, first, last, x, ld, vectors, start, y);
}

// Zips the rows of each panel by twos, where they lie: all blocks of columns read them zipped.
template <int V>
void zip_rows(bf16* g, std::int64_t ld, std::int64_t rows) noexcept {
  constexpr int wide = 2 * Pairs::lanes;
  if constexpr (V == 1) return;
  for (std::int64_t r = 0; r < rows; r += 2) {
    for (bf16 *even = g + r * ld, *odd = even + ld; even < g + (r + 1) * ld;
         even += wide, odd += wide) {
      const Pairs a = Pairs::load(even);
      const Pairs b = Pairs::load(odd);
      zip_low(a, b).store(even);
      zip_high(a, b).store(odd);
    }
  }
}

// g: V rows, zipped by twos.
template <int V, int U>
GOSSAMER_INLINE void scatter_dots(const bf16* g, std::int64_t ld, const bf16* values,
                                  const std::uint8_t* indices, std::int64_t count,
                                  float* dx) noexcept {
  using R = Vec<float>;
  constexpr int wide = 2 * Pairs::lanes;
  constexpr int pairs = (V + 1) / 2;
  Pairs grad[pairs][2 * U];
#pragma GCC unroll 8
  for (int v = 0; v < pairs; ++v) {
#pragma GCC unroll 4
    for (int k = 0; k < U; ++k) {
      const Pairs a = Pairs::load(g + 2 * v * ld + k * wide);
      if constexpr (V == 1) {
        grad[v][2 * k] = zip_low(a, Pairs::zero());
        grad[v][2 * k + 1] = zip_high(a, Pairs::zero());
      } else {
        grad[v][2 * k] = a;
        grad[v][2 * k + 1] = Pairs::load(g + (2 * v + 1) * ld + k * wide);
      }
    }
  }
  for (std::int64_t e = 0; e < count; ++e) {
    float* out = dx + indices[e] * ld;
    R sum[2 * U];
#pragma GCC unroll 8
    for (int k = 0; k < 2 * U; ++k) sum[k] = R::load(out + k * R::lanes);
#pragma GCC unroll 8
    for (int v = 0; v < pairs; ++v) {
      const bf16 single[2] = {values[e * V], bf16{0}};
      const Pairs w = Pairs::set(V == 1 ? single : values + e * V + 2 * v);
#pragma GCC unroll 8
      for (int k = 0; k < 2 * U; ++k) sum[k] = dot(sum[k], grad[v][k], w);
    }
#pragma GCC unroll 8
    for (int k = 0; k < 2 * U; ++k) sum[k].store(out + k * R::lanes);
  }
}

// The sums of a block are twice the first-level cache. Panels with this many entries in it are
// visited in two halves, each of which uses about half of the columns (bench_kernels).
inline constexpr std::int64_t scatter_halved_count = 96;

template <int V, int U>
[[gnu::noinline]] void spmm_t_dots(const Panels& w, const bf16* values, std::int64_t block,
                                   const bf16* g, std::int64_t ld, int vectors, Visit visit,
                                   float* dx) noexcept {
  if constexpr (U > 1) {
    if (vectors < U) return spmm_t_dots<V, U / 2>(w, values, block, g, ld, vectors, visit, dx);
  }
  constexpr std::int64_t wide = 2 * Pairs::lanes;
  const Panels::Lists lists = w.lists();
  const std::int64_t panels = w.panels();
  for (std::int64_t p = 0; p < panels; ++p) {
    const auto [begin, count] = visit.of(lists.of(block, p));
    prefetch_panel<bf16, V>(values + begin * V, w.indices + begin, count);
    for (int k = 0; k < vectors; k += U) {
      scatter_dots<V, U>(g + p * V * ld + k * wide, ld, values + begin * V, w.indices + begin,
                         count, dx + k * wide);
    }
  }
}

template <class T, int V>
GOSSAMER_INLINE void scatter_block(const Panels& w, const T* values, std::int64_t block,
                                   const bf16* g, std::int64_t ld, int vectors,
                                   float* dx) noexcept {
  if (V == 4 && w.total_entries() >= scatter_halved_count * w.blocks() * w.panels()) {
    spmm_t_dots<V, 2>(w, values, block, g, ld, vectors, {0, 2, 1}, dx);
    return spmm_t_dots<V, 2>(w, values, block, g, ld, vectors, {1, 2, 1}, dx);
  }
  spmm_t_dots<V, 2>(w, values, block, g, ld, vectors, {}, dx);
}

}  // namespace
}  // namespace gossamer
#endif
