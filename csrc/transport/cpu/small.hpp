// Tiny transport problems, a problem a lane: see transport/small.hpp.
#pragma once

#include "simd/math.hpp"
#include "transport/small.hpp"

namespace gossamer {
namespace {

#if defined(__AVX512F__)
constexpr int small_bytes = 64;
#elif defined(__AVX2__)
constexpr int small_bytes = 32;
#else
constexpr int small_bytes = 16;
#endif

template <class T>
struct SmallVectors {
  using Type [[gnu::vector_size(small_bytes)]] = T;
  static constexpr int lanes = small_bytes / static_cast<int>(sizeof(T));
};
template <class T>
using SmallVector = typename SmallVectors<T>::Type;

template <class T>
GOSSAMER_INLINE SmallVector<T> all_lanes(T value) noexcept {
  return SmallVector<T>{} + value;
}

// The scratch of a block of problems, in vectors. N is the size if it is known when compiling, else
// 0: loops of known length keep K in registers.
template <class T, int N>
struct SmallBlock {
  using V = SmallVector<T>;
  static constexpr int lanes = SmallVectors<T>::lanes;

  SmallBlock(const SmallArgs<T>& args, std::byte* scratch) noexcept
      : args_(args), k(reinterpret_cast<V*>(scratch)) {
    p = k + n() * m();
    g = p + n() * m();
    x = g + n() * m();
    y = x + (args.iterations + 1) * n();
  }

  std::int64_t n() const noexcept { return N > 0 ? N : args_.n; }
  std::int64_t m() const noexcept { return N > 0 ? N : args_.m; }

  // Problems [first, first + lanes), those from `last` on being copies of the last one.
  void load(const T* from, V* to, std::int64_t first, std::int64_t last) const noexcept {
    const std::int64_t size = n() * m();
    T* lane = reinterpret_cast<T*>(to);
    for (int l = 0; l < lanes; ++l) {
      const T* own = from + (first + l < last ? first + l : last - 1) * size;
      for (std::int64_t e = 0; e < size; ++e) lane[e * lanes + l] = own[e];
    }
  }

  void store(const V* from, T* to, std::int64_t first, std::int64_t last) const noexcept {
    const std::int64_t size = n() * m();
    const T* lane = reinterpret_cast<const T*>(from);
    for (int l = 0; l < lanes && first + l < last; ++l) {
      T* own = to + (first + l) * size;
      for (std::int64_t e = 0; e < size; ++e) own[e] = lane[e * lanes + l];
    }
  }

  // K from the scores that it holds, and y0; returns 0 a lane, or NaN for a problem without a plan.
  V start() noexcept {
    V poison{};
    for (std::int64_t i = 0; i < n(); ++i) {
      V top = k[i * m()];
      for (std::int64_t j = 1; j < m(); ++j) top = larger(k[i * m() + j], top);
      for (std::int64_t j = 0; j < m(); ++j) k[i * m() + j] -= top;
      poison += top * T(0);
    }
    for (std::int64_t j = 0; j < m(); ++j) {
      V top = k[j];
      for (std::int64_t i = 1; i < n(); ++i) top = larger(k[i * m() + j], top);
      for (std::int64_t i = 0; i < n(); ++i) k[i * m() + j] -= top;
      y[j] = top;
      poison += top * T(0);
    }
    exponentials(k, n() * m());
    exponentials(y, m());
    return poison;
  }

  // Round t: x[t] from y[t], y[t + 1] from x[t]; with `keep` false all rounds write to round 0.
  void iterate(bool keep) noexcept {
    for (std::int64_t t = 0; t < args_.iterations; ++t) {
      V* own = keep ? x + t * n() : x;
      const V* before = keep ? y + t * m() : y;
      V* after = keep ? y + (t + 1) * m() : y;
      V sums[small_most];
      products(n(), m(), m(), 1, before, sums);
      for (std::int64_t i = 0; i < n(); ++i) own[i] = all_lanes(args_.a[i]) / sums[i];
      products(m(), n(), 1, m(), own, sums);
      for (std::int64_t j = 0; j < m(); ++j) after[j] = all_lanes(args_.b[j]) / sums[j];
    }
  }

  // out[i] = sum_j k[i * outer + j * inner] by[j]; four sums at a time, so that none waits for the
  // one before.
  void products(std::int64_t outs, std::int64_t count, std::int64_t outer, std::int64_t inner,
                const V* by, V* out) const noexcept {
    const std::int64_t fours = outs / 4;
    for (std::int64_t f = 0; f < fours; ++f) {
      some_products<4>(k + 4 * f * outer, count, outer, inner, by, out + 4 * f);
    }
    for (std::int64_t i = 4 * fours; i != outs; ++i) {
      some_products<1>(k + i * outer, count, outer, inner, by, out + i);
    }
  }

  template <int Some>
  GOSSAMER_INLINE static void some_products(const V* from, std::int64_t count, std::int64_t outer,
                                            std::int64_t inner, const V* by, V* out) noexcept {
    V sums[Some] = {};
    for (std::int64_t j = 0; j < count; ++j) {
      for (int u = 0; u < Some; ++u) sums[u] += from[u * outer + j * inner] * by[j];
    }
    for (int u = 0; u < Some; ++u) out[u] = sums[u];
  }

  static V larger(V a, V b) noexcept { return (a > b) | (a != a) ? a : b; }

  static void exponentials(V* at, std::int64_t count) noexcept {
    T* entry = reinterpret_cast<T*>(at);
    for (std::int64_t e = 0; e < count * lanes; ++e) {
      const T power = entry[e] * T(1.4426950408889634);
      entry[e] = exp2_of(power > T(-100) ? power : T(-100));
    }
  }

  const SmallArgs<T>& args_;
  V* k;  // [n, m]
  V* p;  // [n, m]
  V* g;  // [n, m]
  V* x;  // [iterations + 1, n]
  V* y;  // [iterations + 1, m]
};

template <class T, int N>
void small_forward(const SmallArgs<T>& args, std::int64_t first, std::int64_t last,
                   std::byte* scratch, T* plan) noexcept {
  SmallBlock<T, N> block(args, scratch);
  const std::int64_t n = block.n(), m = block.m();
  for (std::int64_t at = first; at < last; at += block.lanes) {
    block.load(args.scores, block.k, at, last);
    const auto poison = block.start();
    block.iterate(false);
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < m; ++j) {
        block.p[i * m + j] = block.x[i] * block.k[i * m + j] * block.y[j] + poison;
      }
    }
    block.store(block.p, plan, at, last);
  }
}

// Reverse, round by round. With bars for gradients, and the sums of a round s_j = sum_i K_ij x_i,
// r_i = sum_j K_ij y_j:
//
//   y_j = b_j / s_j:   s'_j = -y'_j y_j^2 / b_j,   K'_ij += s'_j x_i,   x'_i += sum_j s'_j K_ij
//   x_i = a_i / r_i:   r'_i = -x'_i x_i^2 / a_i,   K'_ij += r'_i y_j,   y'_j  = sum_i r'_i K_ij
template <class T, int N>
void small_backward(const SmallArgs<T>& args, const T* grad, std::int64_t first, std::int64_t last,
                    std::byte* scratch, T* grad_scores) noexcept {
  SmallBlock<T, N> block(args, scratch);
  using V = SmallVector<T>;
  const std::int64_t n = block.n(), m = block.m(), rounds = args.iterations;
  V x_bar[small_most], y_bar[small_most], s_bar[small_most];
  for (std::int64_t at = first; at < last; at += block.lanes) {
    block.load(args.scores, block.k, at, last);
    block.load(grad, block.g, at, last);
    const V poison = block.start();
    block.iterate(true);
    const V* k = block.k;
    V* bar = block.p;
    const V* x = block.x + (rounds - 1) * n;
    const V* y = block.y + rounds * m;
    for (std::int64_t j = 0; j < m; ++j) y_bar[j] = V{};
    for (std::int64_t i = 0; i < n; ++i) {
      V sum{};
      for (std::int64_t j = 0; j < m; ++j) {
        const V g = block.g[i * m + j], gk = g * k[i * m + j];
        sum += gk * y[j];
        y_bar[j] += gk * x[i];
        bar[i * m + j] = g * x[i] * y[j];
      }
      block.g[i] = sum;  // x' of the plan itself; the row was read
    }
    const V* x_plan = block.g;
    for (std::int64_t t = rounds - 1; t >= 0; --t) {
      x = block.x + t * n;
      y = block.y + (t + 1) * m;
      for (std::int64_t j = 0; j < m; ++j) {
        s_bar[j] = -y_bar[j] * y[j] * y[j] / args.b[j];
        y_bar[j] = V{};
      }
      y = block.y + t * m;
      block.products(n, m, m, 1, s_bar, x_bar);
      for (std::int64_t i = 0; i < n; ++i) {
        const V all = t == rounds - 1 ? x_bar[i] + x_plan[i] : x_bar[i];
        const V r_bar = -all * x[i] * x[i] / args.a[i];
        for (std::int64_t j = 0; j < m; ++j) {
          bar[i * m + j] += s_bar[j] * x[i] + r_bar * y[j];
          y_bar[j] += r_bar * k[i * m + j];
        }
      }
    }
    for (std::int64_t e = 0; e < n * m; ++e) bar[e] = bar[e] * k[e] + poison;
    block.store(bar, grad_scores, at, last);
  }
}

template <class T>
void small_forward_any(const SmallArgs<T>& args, std::int64_t first, std::int64_t last,
                       std::byte* scratch, T* plan) noexcept {
  const auto run = args.n != args.m ? small_forward<T, 0>
                   : args.n == 4    ? small_forward<T, 4>
                   : args.n == 8    ? small_forward<T, 8>
                                    : small_forward<T, 0>;
  run(args, first, last, scratch, plan);
}

template <class T>
void small_backward_any(const SmallArgs<T>& args, const T* grad, std::int64_t first,
                        std::int64_t last, std::byte* scratch, T* grad_scores) noexcept {
  const auto run = args.n != args.m ? small_backward<T, 0>
                   : args.n == 4    ? small_backward<T, 4>
                   : args.n == 8    ? small_backward<T, 8>
                                    : small_backward<T, 0>;
  run(args, grad, first, last, scratch, grad_scores);
}

template <class T>
constexpr SmallPasses<T> small_passes = {small_forward_any<T>, small_backward_any<T>};

}  // namespace
}  // namespace gossamer
