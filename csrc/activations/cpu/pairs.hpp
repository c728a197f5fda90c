// Sampled products, scatters and sums of rows at the live pairs, panel by panel.
//
// A neuron's slice of W is read once a panel, its tokens' rows come from the second-level cache:
// that is what bounds these loops, so `accumulate` uses each row for two or three products.
#pragma once

#include "activations/table.hpp"
#include "simd/vec.hpp"

namespace gossamer {
namespace {

// The slices of neurons that come this many places later are fetched.
constexpr std::int64_t ahead = 4;

template <class T>
GOSSAMER_INLINE void fetch(Slice<const T> w, std::int64_t row, const PairRows& rows,
                           std::int64_t r) noexcept {
  if (r + ahead >= rows.last || rows.indptr[r + ahead] == rows.indptr[r + ahead + 1]) return;
  const T* next = w.data + (row + ahead) * w.stride;
  constexpr std::int64_t line = static_cast<std::int64_t>(64 / sizeof(T));
  for (std::int64_t c = 0; c < w.cols; c += line) __builtin_prefetch(next + c);
}

// Register v of the slice's row; columns from w.cols on are zero.
template <class T>
GOSSAMER_INLINE Vec<Compute<T>> load_part(const T* row, std::int64_t cols,
                                          std::int64_t v) noexcept {
  constexpr std::int64_t lanes = Vec<Compute<T>>::lanes;
  const std::int64_t left = cols - v * lanes;
  if (left >= lanes) return load_as(row + v * lanes);
  return left > 0 ? load_as_n(row + v * lanes, static_cast<int>(left)) : Vec<Compute<T>>::zero();
}

template <class T>
void pack(Slice<const T> x, std::int64_t tokens, Compute<T>* panel, std::int64_t width) noexcept {
  constexpr std::int64_t lanes = Vec<Compute<T>>::lanes;
  for (std::int64_t t = 0; t < tokens; ++t) {
    const T* row = x.data + t * x.stride;
    for (std::int64_t v = 0; v * lanes < width; ++v) {
      load_part(row, x.cols, v).store(panel + t * width + v * lanes);
    }
  }
}

template <class T>
void unpack(const Compute<T>* panel, std::int64_t width, std::int64_t tokens, Slice<T> y) noexcept {
  using V = Vec<Compute<T>>;
  for (std::int64_t t = 0; t < tokens; ++t) {
    T* row = y.data + t * y.stride;
    std::int64_t c = 0;
    for (; c + V::lanes <= y.cols; c += V::lanes) store_as(row + c, V::load(panel + t * width + c));
    if (c < y.cols) {
      store_as_n(row + c, V::load(panel + t * width + c), static_cast<int>(y.cols - c));
    }
  }
}

// ---- sampled inner products --------------------------------------------------------------------

// sum[i] = the lanes of <w, row of token i>, for N tokens. One chain of sums a token: below five
// the chains wait for each other, so an odd end costs no more than five tokens do.
template <int N, class T>
GOSSAMER_INLINE void dots(const Compute<T>* panel, std::int64_t width, const T* w,
                          std::int64_t cols, const std::int32_t* tokens, std::int64_t token0,
                          Vec<Compute<T>>* sum) noexcept {
  using V = Vec<Compute<T>>;
  const Compute<T>* row[N];
  V acc[N];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    row[i] = panel + (tokens[i] - token0) * width;
    acc[i] = V::zero();
  }
  std::int64_t c = 0;
  for (; c + V::lanes <= cols; c += V::lanes) {
    const V part = load_as(w + c);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) acc[i] = fma(part, V::load(row[i] + c), acc[i]);
  }
  if (c < cols) {
    const V part = load_as_n(w + c, static_cast<int>(cols - c));
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) acc[i] = fma(part, V::load(row[i] + c), acc[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) sum[i] = acc[i];
}

constexpr int together = 8;  // tokens whose sums are in registers at once

template <int N, class T>
GOSSAMER_INLINE void dots_n(int n, const Compute<T>* panel, std::int64_t width, const T* w,
                            std::int64_t cols, const std::int32_t* tokens, std::int64_t token0,
                            Vec<Compute<T>>* sum) noexcept {
  if (n == N) return dots<N, T>(panel, width, w, cols, tokens, token0, sum);
  if constexpr (N > 1) dots_n<N - 1, T>(n, panel, width, w, cols, tokens, token0, sum);
}

// Pairs lie in the order of their neurons, so that the tree that turns registers of sums into one
// register of results serves pairs of several neurons.
template <class T>
void sample(const Compute<T>* panel, std::int64_t width, Slice<const T> w, PairRows rows,
            std::int64_t row0, Compute<T>* out) noexcept {
  using V = Vec<Compute<T>>;
  constexpr int group = V::lanes > together ? V::lanes : together;
  V sum[group];
  int filled = 0;
  std::int64_t p = rows.indptr[rows.first];
  const auto write = [&](int n) noexcept __attribute__((always_inline)) {
    for (int i = n; i < group; ++i) sum[i] = V::zero();
    for (int i = 0; i < n; i += V::lanes) {
      V(&part)[V::lanes] = *reinterpret_cast<V(*)[V::lanes]>(sum + i);
      Compute<T>* to = out + p - n + i;
      const int count = n - i < V::lanes ? n - i : V::lanes;
      add(V::sums(part), V::load_n(to, count)).store_n(to, count);
    }
    filled = 0;
  };
  for (std::int64_t r = rows.first; r < rows.last; ++r) {
    fetch(w, r - row0, rows, r);
    const T* slice = w.data + (r - row0) * w.stride;
    for (const std::int64_t end = rows.indptr[r + 1]; p < end;) {
      int n = end - p < together ? static_cast<int>(end - p) : together;
      n = n < group - filled ? n : group - filled;
      dots_n<together, T>(n, panel, width, slice, w.cols, rows.tokens + p, rows.token0,
                          sum + filled);
      p += n;
      filled += n;
      if (filled == group) write(group);
    }
  }
  if (filled != 0) write(filled);
}

// ---- scatter -----------------------------------------------------------------------------------

// A slice of one weight takes 8 registers, slices of two take half of the registers.
template <class C>
inline constexpr std::int64_t one_width = 8 * Vec<C>::lanes;
template <class C>
inline constexpr std::int64_t two_width = registers / 4 * Vec<C>::lanes;

template <class T, int R>
GOSSAMER_INLINE void load_slice(Vec<Compute<T>> (&part)[R], Slice<const T> w,
                                std::int64_t row) noexcept {
  const T* slice = w.data + row * w.stride;
  if (w.cols == R * Vec<Compute<T>>::lanes) {
#pragma GCC unroll 8
    for (int v = 0; v < R; ++v) part[v] = load_as(slice + v * Vec<Compute<T>>::lanes);
  } else {
#pragma GCC unroll 8
    for (int v = 0; v < R; ++v) part[v] = load_part(slice, w.cols, v);
  }
}

template <class T>
void scatter(Compute<T>* panel, Slice<const T> w, PairRows rows, std::int64_t row0,
             const Compute<T>* a) noexcept {
  using V = Vec<Compute<T>>;
  constexpr int parts = static_cast<int>(one_width<Compute<T>> / V::lanes);
  for (std::int64_t r = rows.first; r < rows.last; ++r) {
    fetch(w, r - row0, rows, r);
    std::int64_t p = rows.indptr[r];
    if (p == rows.indptr[r + 1]) continue;
    V part[parts];
    load_slice(part, w, r - row0);
    for (; p < rows.indptr[r + 1]; ++p) {
      Compute<T>* row = panel + (rows.tokens[p] - rows.token0) * (parts * V::lanes);
      const V factor = V::set(a[p]);
#pragma GCC unroll 8
      for (int v = 0; v < parts; ++v) {
        fma(factor, part[v], V::load(row + v * V::lanes)).store(row + v * V::lanes);
      }
    }
  }
}

template <class T>
void scatter_two(Compute<T>* panel, Slice<const T> w, Slice<const T> w2, PairRows rows,
                 std::int64_t row0, const Compute<T>* a, const Compute<T>* b) noexcept {
  using V = Vec<Compute<T>>;
  constexpr int parts = static_cast<int>(two_width<Compute<T>> / V::lanes);
  for (std::int64_t r = rows.first; r < rows.last; ++r) {
    fetch(w, r - row0, rows, r);
    fetch(w2, r - row0, rows, r);
    std::int64_t p = rows.indptr[r];
    if (p == rows.indptr[r + 1]) continue;
    V part[parts], part2[parts];
    load_slice(part, w, r - row0);
    load_slice(part2, w2, r - row0);
    for (; p < rows.indptr[r + 1]; ++p) {
      Compute<T>* row = panel + (rows.tokens[p] - rows.token0) * (parts * V::lanes);
      const V factor = V::set(a[p]), factor2 = V::set(b[p]);
#pragma GCC unroll 8
      for (int v = 0; v < parts; ++v) {
        const V sum = fma(factor, part[v], V::load(row + v * V::lanes));
        fma(factor2, part2[v], sum).store(row + v * V::lanes);
      }
    }
  }
}

// ---- gradients of the weights ------------------------------------------------------------------

template <class T, int R>
GOSSAMER_INLINE void store_slice(T* row, std::int64_t cols,
                                 const Vec<Compute<T>> (&sum)[R]) noexcept {
  constexpr std::int64_t lanes = Vec<Compute<T>>::lanes;
#pragma GCC unroll 8
  for (int v = 0; v < R; ++v) {
    const std::int64_t left = cols - v * lanes;
    if (left >= lanes) {
      store_as(row + v * lanes, sum[v]);
    } else if (left > 0) {
      store_as_n(row + v * lanes, sum[v], static_cast<int>(left));
    }
  }
}

template <class T, int R, bool Gated>
void accumulate_parts(const Compute<T>* panel, const Gradients<T>& out, const PairRows& pairs,
                      std::int64_t tiles, const Compute<T>* a, const Compute<T>* b,
                      const Compute<T>* c) noexcept {
  using V = Vec<Compute<T>>;
  constexpr std::int64_t width = R * V::lanes;
  for (std::int64_t k = pairs.first; k < pairs.last; ++k) {
    V gate[R], up[R], down[R];
#pragma GCC unroll 8
    for (int v = 0; v < R; ++v) gate[v] = up[v] = down[v] = V::zero();
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
      const std::int64_t* at = pairs.indptr + tile * out.neurons + k;
      for (std::int64_t p = at[0]; p < at[1]; ++p) {
        const Compute<T>* row = panel + pairs.tokens[p] * (2 * width);
        const V fa = V::set(a[p]), fb = Gated ? V::set(b[p]) : V::zero(), fc = V::set(c[p]);
#pragma GCC unroll 8
        for (int v = 0; v < R; ++v) {
          const V x = V::load(row + v * V::lanes);
          gate[v] = fma(fa, x, gate[v]);
          if constexpr (Gated) up[v] = fma(fb, x, up[v]);
          down[v] = fma(fc, V::load(row + width + v * V::lanes), down[v]);
        }
      }
    }
    store_slice(out.gate + k * out.stride, out.cols, gate);
    if constexpr (Gated) store_slice(out.up + k * out.stride, out.cols, up);
    store_slice(out.down + k * out.stride, out.cols, down);
  }
}

template <class T, int R = registers / 4>
void accumulate(const Compute<T>* panel, std::int64_t width, const Gradients<T>& out,
                PairRows pairs, std::int64_t tiles, const Compute<T>* a, const Compute<T>* b,
                const Compute<T>* c) noexcept {
  if (width == R * Vec<Compute<T>>::lanes) {
    if (out.up != nullptr) {
      accumulate_parts<T, R, true>(panel, out, pairs, tiles, a, b, c);
    } else {
      accumulate_parts<T, R, false>(panel, out, pairs, tiles, a, b, c);
    }
  } else if constexpr (R > 1) {
    accumulate<T, R / 2>(panel, width, out, pairs, tiles, a, b, c);
  }
}

// ---- the live pairs of a gate
// --------------------------------------------------------------------

template <class T>
std::int64_t live_bits(const T* gate, std::int64_t n, std::uint64_t* bits) noexcept {
  using V = Vec<Compute<T>>;
  const V low = V::set(-largest_finite<Compute<T>>), high = V::zero();
  std::int64_t count = 0;
  for (std::int64_t t = 0; t < n; t += word_tokens) {
    const std::int64_t tokens = n - t < word_tokens ? n - t : word_tokens;
    std::uint64_t word = 0;
    for (std::int64_t i = 0; i < tokens; i += V::lanes) {
      const std::int64_t left = tokens - i;
      const V g = left >= V::lanes ? load_as(gate + t + i)
                                   : load_as_n(gate + t + i, static_cast<int>(left));
      word |= static_cast<std::uint64_t>(outside(g, low, high)) << i;
    }
    bits[t / word_tokens] = word;
    count += __builtin_popcountll(word);
  }
  return count;
}

template <class T>
constexpr PairKernels<T> pair_table = {
    pack<T>,
    unpack<T>,
    sample<T>,
    scatter<T>,
    scatter_two<T>,
    {one_width<Compute<T>>, two_width<Compute<T>>},
    accumulate<T>,
    registers / 4 * Vec<Compute<T>>::lanes,
    Vec<Compute<T>>::lanes,
    live_bits<T>,
};

}  // namespace
}  // namespace gossamer
