// The n largest magnitudes of each group of m columns, and sums at what is not among them.
//
// Magnitudes are compared as integer keys, whose order is that of the absolute values, with every
// NaN above infinity. Keys are dealt out so that entry j of every group stands in lane array j:
// each step of a selection is then one vector operation on many groups.
#pragma once

#include "masks/cpu/select_registers.hpp"
#include "masks/select_table.hpp"
#include "simd/bits.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t select_columns = 256;
constexpr std::int64_t select_keys = SelectUnit::max_panels * select_columns;

// Of the widest group, whose lanes are rounded up to whole steps.
constexpr std::int64_t lane_step = 16;
constexpr std::int64_t max_group = 64;
constexpr std::int64_t lane_keys = select_keys + lane_step * max_group;

GOSSAMER_INLINE double magnitude(float x) noexcept { return __builtin_fabs(x); }
GOSSAMER_INLINE double magnitude(double x) noexcept { return __builtin_fabs(x); }
GOSSAMER_INLINE double magnitude(bf16 x) noexcept {
  return widen(bf16{static_cast<std::uint16_t>(x.bits & 0x7fff)});
}

// Entry j of group g goes to lanes[j * stride + g].
template <int M, class T>
GOSSAMER_INLINE void deal(const T* __restrict from, std::int64_t groups, std::int64_t stride,
                          Bits<T>* __restrict lanes) noexcept {
  for (std::int64_t g = 0; g < groups; ++g) {
#pragma GCC unroll 16
    for (int j = 0; j < M; ++j) {
      lanes[j * stride + g] = bits_of(from[g * M + j]);
    }
  }
}

template <class T>
GOSSAMER_INLINE void deal(const T* __restrict from, std::int64_t groups, std::int64_t m,
                          std::int64_t stride, Bits<T>* __restrict lanes) noexcept {
  for (std::int64_t j = 0; j < m; ++j) {
    for (std::int64_t g = 0; g < groups; ++g) {
      lanes[j * stride + g] = magnitude_key<T>(bits_of(from[g * m + j]));
    }
  }
}

template <int M, bool with_values, class T>
GOSSAMER_INLINE void first_of(const Bits<T>* __restrict lanes, std::int64_t stride,
                              std::int64_t groups, const std::uint8_t* __restrict base,
                              std::uint8_t* __restrict indices, T* __restrict values) noexcept {
  for (std::int64_t g = 0; g < groups; ++g) {
    Bits<T> best = lanes[g], top = magnitude_key<T>(best), at = 0;
#pragma GCC unroll 16
    for (int j = 1; j < M; ++j) {
      const Bits<T> bits = lanes[j * stride + g], key = magnitude_key<T>(bits);
      at = key > top ? static_cast<Bits<T>>(j) : at;
      best = key > top ? bits : best;
      top = key > top ? key : top;
    }
    indices[g] = static_cast<std::uint8_t>(base[g] + at);
    if constexpr (with_values) values[g] = from_bits<T>(best);
  }
}

template <int M, bool with_values, class T>
GOSSAMER_INLINE void two_of(const Bits<T>* __restrict lanes, std::int64_t stride,
                            std::int64_t groups, const std::uint8_t* __restrict base,
                            std::uint8_t* __restrict indices, T* __restrict values) noexcept {
  using B = Bits<T>;
  for (std::int64_t g = 0; g < groups; ++g) {
    const B a = lanes[g], b = lanes[stride + g], a_key = magnitude_key<T>(a),
            b_key = magnitude_key<T>(b);
    B top = b_key > a_key ? b_key : a_key, next = b_key > a_key ? a_key : b_key;
    B at = b_key > a_key ? B{1} : B{0}, next_at = b_key > a_key ? B{0} : B{1};
    B best = b_key > a_key ? b : a, other = b_key > a_key ? a : b;
#pragma GCC unroll 16
    for (int j = 2; j < M; ++j) {
      const B bits = lanes[j * stride + g], key = magnitude_key<T>(bits);
      const B second_at = key > next ? static_cast<B>(j) : next_at;
      const B second_bits = key > next ? bits : other;
      const B second = key > next ? key : next;
      next_at = key > top ? at : second_at;
      other = key > top ? best : second_bits;
      next = key > top ? top : second;
      at = key > top ? static_cast<B>(j) : at;
      best = key > top ? bits : best;
      top = key > top ? key : top;
    }
    const B low = at < next_at ? at : next_at, high = at < next_at ? next_at : at;
    indices[2 * g] = static_cast<std::uint8_t>(base[g] + low);
    indices[2 * g + 1] = static_cast<std::uint8_t>(base[g] + high);
    if constexpr (with_values) {
      values[2 * g] = from_bits<T>(at < next_at ? best : other);
      values[2 * g + 1] = from_bits<T>(at < next_at ? other : best);
    }
  }
}

// Any n of any m: an entry's rank is how many of its group stand before it.
template <class Key>
GOSSAMER_INLINE void any_of(const Key* __restrict lanes, std::int64_t stride, std::int64_t groups,
                            std::int64_t n, std::int64_t m, const std::uint8_t* __restrict base,
                            std::uint8_t* __restrict indices) noexcept {
  for (std::int64_t first = 0; first < groups; first += lane_step) {
    Key rank[max_group * lane_step];
    for (std::int64_t i = 0; i < m * lane_step; ++i) rank[i] = 0;
    for (std::int64_t j = 1; j < m; ++j) {
      Key* later = rank + j * lane_step;
      const Key* key = lanes + j * stride + first;
      for (std::int64_t i = 0; i < j; ++i) {
        Key* __restrict earlier = rank + i * lane_step;
        const Key* other = lanes + i * stride + first;
        // Of equal keys the earlier wins.
        for (std::int64_t g = 0; g < lane_step; ++g) {
          const Key wins = key[g] > other[g];
          earlier[g] = static_cast<Key>(earlier[g] + wins);
          later[g] = static_cast<Key>(later[g] + 1 - wins);
        }
      }
    }
    const std::int64_t count = groups - first < lane_step ? groups - first : lane_step;
    for (std::int64_t g = 0; g < count; ++g) {
      std::uint8_t found[max_group + 1];
      std::int64_t at = 0;
      for (std::int64_t j = 0; j < m; ++j) {
        found[at] = static_cast<std::uint8_t>(base[first + g] + j);
        at += rank[j * lane_step + g] < n;
      }
      std::uint8_t* out = indices + (first + g) * n;
      for (std::int64_t i = 0; i < n; ++i) out[i] = found[i];
    }
  }
}

// What the groups of a unit are dealt from: its rows, or the sums over the rows of its panels.
template <class T>
struct Scores {
  const T* data;
  std::int64_t panel_stride;
};

// With `full` the sizes are known: most units are full, and loops of known length need no tails.
template <int M, bool full, class T>
GOSSAMER_INLINE void select_known(const Scores<T>& scores, const SelectUnit& u,
                                  Bits<T>* __restrict lanes) noexcept {
  constexpr std::int64_t stride = select_keys / M;
  const std::int64_t panels = full ? SelectUnit::max_panels : u.panels;
  const std::int64_t groups = full ? select_columns / M : u.width / M, all = panels * groups;
  alignas(64) std::uint8_t base[stride];
  for (std::int64_t p = 0; p < panels; ++p) {
    for (std::int64_t g = 0; g < groups; ++g) {
      base[p * groups + g] = static_cast<std::uint8_t>(g * M);
    }
    deal<M>(scores.data + p * scores.panel_stride, groups, stride, lanes + p * groups);
  }
  T* values = static_cast<T*>(u.values);
  if (u.n == 1) {
    if (u.vector == 1) {
      first_of<M, true, T>(lanes, stride, all, base, u.indices, values);
    } else {
      first_of<M, false, T>(lanes, stride, all, base, u.indices, nullptr);
    }
  } else if (u.vector == 1) {
    two_of<M, true, T>(lanes, stride, all, base, u.indices, values);
  } else {
    two_of<M, false, T>(lanes, stride, all, base, u.indices, nullptr);
  }
}

template <int M, class T>
GOSSAMER_INLINE void select_known(const Scores<T>& scores, const SelectUnit& u,
                                  Bits<T>* lanes) noexcept {
  if (u.panels == SelectUnit::max_panels && u.width == select_columns) {
    select_known<M, true>(scores, u, lanes);
  } else {
    select_known<M, false>(scores, u, lanes);
  }
}

// Returns whether the values are packed as well.
template <class T>
bool select_scores(const Scores<T>& scores, const SelectUnit& u) noexcept {
  alignas(64) Bits<T> lanes[lane_keys];
  if (u.n <= 2 && (u.m == 4 || u.m == 8 || u.m == 16)) {
    if (u.m == 4) {
      select_known<4>(scores, u, lanes);
    } else if (u.m == 8) {
      select_known<8>(scores, u, lanes);
    } else {
      select_known<16>(scores, u, lanes);
    }
    return u.vector == 1;
  }
  const std::int64_t groups = u.width / u.m, all = u.panels * groups;
  const std::int64_t stride = round_up(all, lane_step);
  alignas(64) std::uint8_t base[select_keys];
  for (std::int64_t p = 0; p < u.panels; ++p) {
    for (std::int64_t g = 0; g < groups; ++g) {
      base[p * groups + g] = static_cast<std::uint8_t>(g * u.m);
    }
    deal(scores.data + p * scores.panel_stride, groups, u.m, stride, lanes + p * groups);
  }
  for (std::int64_t j = 0; j < u.m; ++j) {
    for (std::int64_t g = all; g < stride; ++g) lanes[j * stride + g] = 0;
  }
  any_of(lanes, stride, all, u.n, u.m, base, u.indices);
  return false;
}

// The sums of panel p lie at sums + p * stride; with a stride of 0 they are added to what is there.
template <int V, class T>
void sum_rows(const SelectUnit& u, std::int64_t stride, double* __restrict sums) noexcept {
  for (std::int64_t p = 0; p < u.panels; ++p) {
    const T* rows = static_cast<const T*>(u.rows) + p * V * u.row_stride;
    double* __restrict out = sums + p * stride;
    for (std::int64_t c = 0; c < u.width; ++c) {
      double sum = stride == 0 ? out[c] + magnitude(rows[c]) : magnitude(rows[c]);
#pragma GCC unroll 8
      for (std::int64_t v = 1; v < V; ++v) sum += magnitude(rows[v * u.row_stride + c]);
      out[c] = sum;
    }
  }
}

template <int V, class T>
void pack(const SelectUnit& u) noexcept {
  const std::int64_t count = u.width / u.m * u.n;
  const std::int64_t stride = u.row_stride;
  for (std::int64_t p = 0; p < u.panels; ++p) {
    const T* rows = static_cast<const T*>(u.rows) + p * V * stride;
    const std::uint8_t* __restrict indices = u.indices + p * count;
    T* __restrict values = static_cast<T*>(u.values) + p * count * V;
    for (std::int64_t e = 0; e < count; ++e) {
#pragma GCC unroll 8
      for (std::int64_t v = 0; v < V; ++v) values[e * V + v] = rows[v * stride + indices[e]];
    }
  }
}

template <int V, class T>
void select_panels(const SelectUnit& u) noexcept {
  if constexpr (V == 1) {
    if (select_scores<T>({static_cast<const T*>(u.rows), u.row_stride}, u)) return;
  } else {
    alignas(64) double sums[select_keys];
    sum_rows<V, T>(u, select_columns, sums);
    select_scores<double>({sums, select_columns}, u);
  }
  pack<V, T>(u);
}

// One list of columns for all panels, written to each of them.
template <int V, class T>
void select_shared(const SelectUnit& u) noexcept {
  alignas(64) double sums[select_columns] = {};
  sum_rows<V, T>(u, 0, sums);
  SelectUnit first = u;
  first.panels = 1;
  select_scores<double>({sums, select_columns}, first);
  const std::int64_t count = u.width / u.m * u.n;
  for (std::int64_t p = 1; p < u.panels; ++p) {
    __builtin_memcpy(u.indices + p * count, u.indices, static_cast<std::size_t>(count));
  }
  pack<V, T>(u);
}

template <class T>
void select_unit(const SelectUnit& u) noexcept {
#if GOSSAMER_HAS_KEYS
  if constexpr (sizeof(T) == sizeof(float)) {
    if (select_masked(u)) return;
  }
#endif
  // The next block of these rows: the processor itself does not foresee a walk from row to row.
  for (std::int64_t r = 0; r < u.panels * u.vector; ++r) {
    const T* next = static_cast<const T*>(u.rows) + r * u.row_stride + u.width;
    for (std::int64_t c = 0; c < u.width; c += 64 / static_cast<std::int64_t>(sizeof(T))) {
      __builtin_prefetch(next + c, 0, 2);
    }
  }
  if (u.shared) {
    select_shared<8, T>(u);
  } else if (u.vector == 1) {
    select_panels<1, T>(u);
  } else if (u.vector == 4) {
    select_panels<4, T>(u);
  } else {
    select_panels<8, T>(u);
  }
}

#if !GOSSAMER_HAS_KEYS
// float32 is summed in float64, where the product is exact: fused or not gives the same bits.
void add_pruned_f32(void* out, const void* source, double alpha, const std::uint8_t* kept,
                    std::int64_t count) noexcept {
  float* y = static_cast<float*>(out);
  const float* x = static_cast<const float*>(source);
  const double factor = static_cast<float>(alpha);
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    const float old = y[i];
    const float sum = static_cast<float>(old + factor * x[i]);
    y[i] = kept[i] != 0 ? old : sum;
  }
}
#endif

void add_pruned_f64(void* out, const void* source, double alpha, const std::uint8_t* kept,
                    std::int64_t count) noexcept {
  double* y = static_cast<double*>(out);
  const double* x = static_cast<const double*>(source);
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    const double old = y[i];
    const double sum = old + alpha * x[i];
    y[i] = kept[i] != 0 ? old : sum;
  }
}

void add_pruned_bf16(void* out, const void* source, double alpha, const std::uint8_t* kept,
                     std::int64_t count) noexcept {
  std::uint16_t* y = static_cast<std::uint16_t*>(out);
  const std::uint16_t* x = static_cast<const std::uint16_t*>(source);
  const double factor = static_cast<float>(alpha);
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint16_t old = y[i];
    const double a = widen(bf16{old}), b = widen(bf16{x[i]});
    const std::uint16_t sum = round_bf16(static_cast<float>(a + factor * b)).bits;
    y[i] = kept[i] != 0 ? old : sum;
  }
}

constexpr SelectPasses select_passes = {
    {select_unit<float>, select_unit<double>, select_unit<bf16>},
    {add_pruned_f32, add_pruned_f64, add_pruned_bf16},
};

}  // namespace
}  // namespace gossamer
