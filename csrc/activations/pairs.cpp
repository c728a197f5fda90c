#include "activations/pairs.hpp"

#include <algorithm>
#include <string>

#include "core/caches.hpp"
#include "core/check.hpp"
#include "core/parallel.hpp"
#include "core/workspace.hpp"
#include "simd/bits.hpp"

namespace gossamer {
namespace {

// What a panel may take of the second-level cache: the smallest that is common has 512 KiB.
constexpr std::int64_t panel_bytes = std::int64_t{384} << 10;

template <class C>
C* panel_memory(std::int64_t elements, int workers) {
  return reinterpret_cast<C*>(
      Workspace::get(static_cast<std::size_t>(elements * workers) * sizeof(C)));
}

// The panels of different threads start on different pages.
template <class C>
std::int64_t panel_elements(std::int64_t tokens, std::int64_t width) noexcept {
  return round_up(tokens * width, static_cast<std::int64_t>(4096 / sizeof(C)));
}

// Cuts rows [0, rows) of a tile where about equally many pairs and rows lie between the cuts.
std::int64_t cut(const std::int64_t* indptr, std::int64_t rows, std::int64_t part,
                 std::int64_t parts) noexcept {
  const auto weight = [&](std::int64_t r) { return 4 * (indptr[r] - indptr[0]) + r; };
  const std::int64_t wanted = weight(rows) * part / parts;
  std::int64_t low = 0, high = rows;
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (weight(middle) < wanted) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <class F>
void over_rows(const std::int64_t* indptr, std::int64_t rows, int workers, F&& body) noexcept {
  const std::int64_t parts = workers == 1 ? 1 : 4 * workers;
  parallel_for(parts, workers, [&](std::int64_t part, int) noexcept {
    body(cut(indptr, rows, part, parts), cut(indptr, rows, part + 1, parts));
  });
}

constexpr std::int64_t tokens_a_task = 64;

}  // namespace

void check_pairs(const LivePairs& pairs) {
  const std::int64_t rows = pairs.tiles() * pairs.neurons;
  require<StructureError>(pairs.indptr[0] == 0 && pairs.indptr[rows] == pairs.count,
                          "indptr of the live pairs runs from " + std::to_string(pairs.indptr[0]) +
                              " to " + std::to_string(pairs.indptr[rows]) +
                              "; it must run from 0 to " + std::to_string(pairs.count) +
                              ", the number of tokens in them");
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t first = pairs.indptr[r], last = pairs.indptr[r + 1];
    if (first > last || last > pairs.count) {
      throw StructureError("indptr[" + std::to_string(r + 1) + "] of the live pairs is " +
                           std::to_string(last) + "; it must lie between its neighbours");
    }
    const std::int64_t token0 = r / pairs.neurons * pairs.tile;
    const std::int64_t end = std::min(pairs.batch, token0 + pairs.tile);
    std::int64_t before = token0 - 1;
    for (std::int64_t p = first; p < last; ++p) {
      const std::int64_t token = pairs.tokens[p];
      if (token <= before || token >= end) {
        throw StructureError("tokens[" + std::to_string(p) + "] of the live pairs is " +
                             std::to_string(token) + "; the tokens of a neuron must rise inside [" +
                             std::to_string(token0) + ", " + std::to_string(end) + ")");
      }
      before = token;
    }
  }
}

template <class T>
void sample_products(const LivePairs& pairs, const T* x, const T* w, std::int64_t d,
                     const Compute<T>* bias, Compute<T>* out) {
  using C = Compute<T>;
  const PairKernels<T>& kernels = pair_kernels<T>();
  const std::int64_t tokens = std::min(pairs.tile, pairs.batch);
  const std::int64_t fits = panel_bytes / static_cast<std::int64_t>(sizeof(C)) /
                            std::max<std::int64_t>(tokens, 1) / panel_unit * panel_unit;
  const std::int64_t width =
      std::min(std::clamp<std::int64_t>(fits, panel_unit, 256), round_up(d, panel_unit));
  const int workers = workers_for_products(pairs.count, d);
  const TrimWorkspace trim;
  C* panel = panel_memory<C>(panel_elements<C>(tokens, width), 1);
  for (std::int64_t tile = 0; tile < pairs.tiles(); ++tile) {
    const std::int64_t token0 = tile * pairs.tile, row0 = tile * pairs.neurons;
    const std::int64_t rows = std::min(pairs.tile, pairs.batch - token0);
    const std::int64_t* indptr = pairs.indptr + row0;
    if (indptr[0] == indptr[pairs.neurons]) continue;
    for (std::int64_t c = 0; c < d; c += width) {
      const std::int64_t cols = std::min(width, d - c);
      parallel_for(ceil_div(rows, tokens_a_task), workers, [&](std::int64_t task, int) noexcept {
        const std::int64_t t = task * tokens_a_task;
        kernels.pack({x + (token0 + t) * d + c, d, cols}, std::min(tokens_a_task, rows - t),
                     panel + t * width, width);
      });
      over_rows(indptr, pairs.neurons, workers, [&](std::int64_t first, std::int64_t last) {
        if (c == 0) {
          for (std::int64_t k = first; k < last; ++k) {
            std::fill(out + indptr[k], out + indptr[k + 1], bias == nullptr ? C{0} : bias[k]);
          }
        }
        kernels.sample(panel, width, {w + c, d, cols},
                       {pairs.indptr, pairs.tokens, row0 + first, row0 + last, token0}, row0, out);
      });
    }
  }
}

template <class T>
void scatter_rows(const LivePairs& pairs, std::int64_t d, const T* w, const Compute<T>* a,
                  const T* w2, const Compute<T>* b, T* y) {
  using C = Compute<T>;
  const PairKernels<T>& kernels = pair_kernels<T>();
  const std::int64_t width = kernels.scatter_width[w2 == nullptr ? 0 : 1];
  const std::int64_t panels = ceil_div(d, width), tasks = pairs.tiles() * panels;
  const std::int64_t elements = panel_elements<C>(std::min(pairs.tile, pairs.batch), width);
  const int workers = static_cast<int>(
      std::min<std::int64_t>(tasks, workers_for_products(pairs.count + pairs.batch, d)));
  const TrimWorkspace trim;
  C* memory = panel_memory<C>(elements, workers);
  parallel_for(tasks, workers, [&](std::int64_t task, int worker) noexcept {
    const std::int64_t tile = task / panels, c = task % panels * width;
    const std::int64_t token0 = tile * pairs.tile, row0 = tile * pairs.neurons;
    const std::int64_t rows = std::min(pairs.tile, pairs.batch - token0);
    const std::int64_t cols = std::min(width, d - c);
    C* panel = memory + worker * elements;
    std::fill_n(panel, rows * width, C{0});
    const PairRows part{pairs.indptr, pairs.tokens, row0, row0 + pairs.neurons, token0};
    if (w2 == nullptr) {
      kernels.scatter(panel, {w + c, d, cols}, part, row0, a);
    } else {
      kernels.scatter_two(panel, {w + c, d, cols}, {w2 + c, d, cols}, part, row0, a, b);
    }
    kernels.unpack(panel, width, rows, {y + token0 * d + c, d, cols});
  });
}

template <class T>
void accumulate_rows(const LivePairs& pairs, const T* x, const T* dy, const Compute<T>* a,
                     const Compute<T>* b, const Compute<T>* c, const Gradients<T>& out) {
  using C = Compute<T>;
  const PairKernels<T>& kernels = pair_kernels<T>();
  const std::int64_t d = out.cols;
  // Where the second-level cache is larger, fewer and longer pieces of each row are written. The
  // sums do not depend on it, those of `sample_products` would.
  const std::int64_t near = std::max(panel_bytes, second_level_cache() / 4 * 3);
  std::int64_t width = kernels.accumulate_width;
  while (width > kernels.accumulate_least &&
         2 * width * pairs.batch * static_cast<std::int64_t>(sizeof(C)) > near) {
    width /= 2;
  }
  const std::int64_t tasks = ceil_div(d, width);
  const std::int64_t elements = panel_elements<C>(pairs.batch, 2 * width);
  const int workers = static_cast<int>(
      std::min<std::int64_t>(tasks, workers_for_products(pairs.count + pairs.neurons, d)));
  const TrimWorkspace trim;
  C* memory = panel_memory<C>(elements, workers);
  parallel_for(tasks, workers, [&](std::int64_t task, int worker) noexcept {
    const std::int64_t at = task * width, cols = std::min(width, d - at);
    C* panel = memory + worker * elements;
    for (std::int64_t t = 0; t < pairs.batch; ++t) {
      kernels.pack({x + t * d + at, d, cols}, 1, panel + t * 2 * width, width);
      kernels.pack({dy + t * d + at, d, cols}, 1, panel + (t * 2 + 1) * width, width);
    }
    const Gradients<T> part{out.gate + at, out.up == nullptr ? nullptr : out.up + at,
                            out.down + at, d,
                            cols,          out.neurons};
    kernels.accumulate(panel, width, part, {pairs.indptr, pairs.tokens, 0, pairs.neurons, 0},
                       pairs.tiles(), a, b, c);
  });
}

template <class C>
void sum_neurons(const LivePairs& pairs, const C* values, C* out) noexcept {
  over_rows(pairs.indptr, pairs.neurons, workers_for_entries(pairs.count),
            [&](std::int64_t first, std::int64_t last) {
              for (std::int64_t k = first; k < last; ++k) {
                C sum = 0;
                for (std::int64_t row = k; row < pairs.tiles() * pairs.neurons;
                     row += pairs.neurons) {
                  for (std::int64_t p = pairs.indptr[row]; p < pairs.indptr[row + 1]; ++p) {
                    sum += values[p];
                  }
                }
                out[k] = sum;
              }
            });
}

namespace {

template <class C>
bool live(C gate) noexcept {
  return !(gate >= -largest_finite<C> && gate <= C{0});
}

}  // namespace

template <class C>
std::int64_t count_live(const LivePairs& pairs, const C* gate, std::int64_t* indptr) {
  const std::int64_t rows = pairs.tiles() * pairs.neurons;
  over_rows(pairs.indptr, rows, workers_for_entries(pairs.count),
            [&](std::int64_t first, std::int64_t last) {
              for (std::int64_t r = first; r < last; ++r) {
                std::int64_t n = 0;
                for (std::int64_t p = pairs.indptr[r]; p < pairs.indptr[r + 1]; ++p)
                  n += live(gate[p]);
                indptr[r + 1] = n;
              }
            });
  indptr[0] = 0;
  for (std::int64_t r = 0; r < rows; ++r) indptr[r + 1] += indptr[r];
  return indptr[rows];
}

template <class C>
void keep_live(const LivePairs& pairs, const C* gate, const std::int64_t* indptr,
               std::int32_t* tokens, C* kept) noexcept {
  const std::int64_t rows = pairs.tiles() * pairs.neurons;
  over_rows(pairs.indptr, rows, workers_for_entries(pairs.count),
            [&](std::int64_t first, std::int64_t last) {
              for (std::int64_t r = first; r < last; ++r) {
                std::int64_t n = indptr[r];
                for (std::int64_t p = pairs.indptr[r]; p < pairs.indptr[r + 1]; ++p) {
                  if (!live(gate[p])) continue;
                  tokens[n] = pairs.tokens[p];
                  kept[n++] = gate[p];
                }
              }
            });
}

#define GOSSAMER_INSTANTIATE(T)                                                              \
  template void sample_products<T>(const LivePairs&, const T*, const T*, std::int64_t,       \
                                   const Compute<T>*, Compute<T>*);                          \
  template void scatter_rows<T>(const LivePairs&, std::int64_t, const T*, const Compute<T>*, \
                                const T*, const Compute<T>*, T*);                            \
  template void accumulate_rows<T>(const LivePairs&, const T*, const T*, const Compute<T>*,  \
                                   const Compute<T>*, const Compute<T>*, const Gradients<T>&);
GOSSAMER_INSTANTIATE(float)
GOSSAMER_INSTANTIATE(double)
GOSSAMER_INSTANTIATE(bf16)
#undef GOSSAMER_INSTANTIATE
#define GOSSAMER_INSTANTIATE(C)                                                              \
  template void sum_neurons<C>(const LivePairs&, const C*, C*) noexcept;                     \
  template std::int64_t count_live<C>(const LivePairs&, const C*, std::int64_t*);            \
  template void keep_live<C>(const LivePairs&, const C*, const std::int64_t*, std::int32_t*, \
                             C*) noexcept;
GOSSAMER_INSTANTIATE(float)
GOSSAMER_INSTANTIATE(double)
#undef GOSSAMER_INSTANTIATE

}  // namespace gossamer
