// Products for a few tokens at a time. Rows of the weights come from memory, each once; x and y
// stay in the nearest caches.
#pragma once

#include "activations/cpu/gate.hpp"
#include "activations/table.hpp"
#include "simd/vec.hpp"

namespace gossamer {
namespace {

// The lanes of <x, w>. Four chains of sums hide the latency; the row after this one is fetched.
template <class T>
GOSSAMER_INLINE Vec<Compute<T>> few_dot(const Compute<T>* x, const T* w, const T* next,
                                        std::int64_t cols) noexcept {
  using V = Vec<Compute<T>>;
  V acc[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  std::int64_t c = 0;
  for (; c + 4 * V::lanes <= cols; c += 4 * V::lanes) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      __builtin_prefetch(next + c + i * V::lanes);
      acc[i] = fma(load_as(w + c + i * V::lanes), V::load(x + c + i * V::lanes), acc[i]);
    }
  }
  for (; c < cols; c += V::lanes) {
    const std::int64_t left = cols - c;
    const V part = left >= V::lanes ? load_as(w + c) : load_as_n(w + c, static_cast<int>(left));
    acc[0] = fma(part, V::load(x + c), acc[0]);
  }
  return add(add(acc[0], acc[1]), add(acc[2], acc[3]));
}

template <class T>
void few_dots(const Compute<T>* x, std::int64_t width, Slice<const T> w, FewPairs pairs,
              std::int64_t first, std::int64_t last, Compute<T>* out) noexcept {
  using V = Vec<Compute<T>>;
  for (std::int64_t p = first; p < last; p += V::lanes) {
    const std::int64_t n = last - p < V::lanes ? last - p : V::lanes;
    V sum[V::lanes];
    for (std::int64_t i = n; i < V::lanes; ++i) sum[i] = V::zero();
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t after = p + i + 1 < pairs.count ? p + i + 1 : p + i;
      sum[i] = few_dot(x + pairs.tokens[p + i] * width, w.data + pairs.rows[p + i] * w.stride,
                       w.data + pairs.rows[after] * w.stride, w.cols);
    }
    V::sums(sum).store_n(out + p, static_cast<int>(n));
  }
}

template <class T>
void few_add_rows(Compute<T>* y, std::int64_t width, Slice<const T> w, FewPairs pairs,
                  const Compute<T>* factors) noexcept {
  using V = Vec<Compute<T>>;
  for (std::int64_t p = 0; p < pairs.count; ++p) {
    const T* row = w.data + pairs.rows[p] * w.stride;
    const T* next = w.data + pairs.rows[p + 1 < pairs.count ? p + 1 : p] * w.stride;
    Compute<T>* to = y + pairs.tokens[p] * width;
    const V factor = V::set(factors[p]);
    std::int64_t c = 0;
    for (; c + V::lanes <= w.cols; c += V::lanes) {
      __builtin_prefetch(next + c);
      fma(factor, load_as(row + c), V::load(to + c)).store(to + c);
    }
    if (const int left = static_cast<int>(w.cols - c); left > 0) {
      fma(factor, load_as_n(row + c, left), V::load_n(to + c, left)).store_n(to + c, left);
    }
  }
}

#if GOSSAMER_HAS_BYTES

// Bit t of mask[r]: whether the gate of row r may be live for token t, by the bound of ScreenArgs.
template <int R, int N>
GOSSAMER_INLINE void few_screen_block(const FewScreen& args, std::int64_t row, std::int64_t token,
                                      std::uint16_t* masks) noexcept {
  constexpr std::int64_t step = 4 * Ints::lanes;
  Ints acc[R][N];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < N; ++t) acc[r][t] = Ints::zero();
  }
  const std::uint8_t* x = args.x + token * args.padded;
  const std::int8_t* w = args.w + row * args.row_bytes;
  std::int64_t c = 0;
  for (; c + step <= args.row_bytes; c += step) {
    Bytes part[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) part[r] = Bytes::load_signed(w + r * args.row_bytes + c);
#pragma GCC unroll 4
    for (int t = 0; t < N; ++t) {
      const Bytes from = Bytes::load(x + t * args.padded + c);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[r][t] = dot(acc[r][t], from, part[r]);
    }
  }
  std::int32_t sums[R][N];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < N; ++t) sums[r][t] = total(acc[r][t]);
  }
  for (; c < args.row_bytes; ++c) {
    for (int r = 0; r < R; ++r) {
      for (int t = 0; t < N; ++t) {
        sums[r][t] += std::int32_t{x[t * args.padded + c]} * w[r * args.row_bytes + c];
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    const RowStats& stats = args.w_stats[row + r];
    const float norm = stats.norm * args.slack * norm_margin;
    const float error = stats.error * args.slack * norm_margin + stats.norm * sum_margin;
    const float bias = args.bias == nullptr ? 0.0f : args.bias[row + r];
    for (int t = 0; t < N; ++t) {
      const RowStats& of_x = args.x_stats[token + t];
      const float product =
          static_cast<float>(sums[r][t] - 128 * args.w_sums[row + r]) * (stats.scale * of_x.scale);
      const float gate = product + bias + of_x.error * norm + of_x.rounded * error;
      if (gate >= -largest_finite<float> && gate <= 0.0f) continue;
      masks[row + r] = static_cast<std::uint16_t>(masks[row + r] | 1u << (token + t));
    }
  }
}

template <int R>
GOSSAMER_INLINE void few_screen_rows(const FewScreen& args, std::int64_t row,
                                     std::uint16_t* masks) noexcept {
  for (int r = 0; r < R; ++r) masks[row + r] = 0;
  std::int64_t token = 0;
  for (; token + 4 <= args.tokens; token += 4) few_screen_block<R, 4>(args, row, token, masks);
  for (; token < args.tokens; ++token) few_screen_block<R, 1>(args, row, token, masks);
}

inline void few_screen(const FewScreen& args, std::int64_t first, std::int64_t last,
                       std::uint16_t* masks) noexcept {
  std::int64_t row = first;
  for (; row + 4 <= last; row += 4) few_screen_rows<4>(args, row, masks);
  for (; row < last; ++row) few_screen_rows<1>(args, row, masks);
}
constexpr auto few_screen_or_null = &few_screen;
#else
constexpr void (*few_screen_or_null)(const FewScreen&, std::int64_t, std::int64_t,
                                     std::uint16_t*) noexcept = nullptr;
#endif

template <class T>
constexpr FewKernels<T> few_kernels_of = {few_dots<T>, few_add_rows<T>};

constexpr FewTable few_table = {few_kernels_of<float>, few_kernels_of<double>, few_kernels_of<bf16>,
                                few_screen_or_null};

}  // namespace
}  // namespace gossamer
