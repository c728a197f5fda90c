// The gate in int8: rows rounded with one scale each, and a product whose epilogue keeps one bit a
// pair, whether its gate may be positive.
#pragma once

#include "activations/table.hpp"
#include "simd/bytes.hpp"
#include "simd/vec.hpp"

namespace gossamer {
namespace {

// Rounds to the nearest whole number: |v| < 2^22.
GOSSAMER_INLINE float nearest(float v) noexcept {
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23: the spacing of floats there is 1
  return (v + magic) - magic;
}

template <class T>
RowStats quantize(const T* v, std::int64_t d, std::int8_t* q) noexcept {
  float top = 0, squares = 0;
#pragma omp simd reduction(max : top) reduction(+ : squares)
  for (std::int64_t i = 0; i < d; ++i) {
    const float x = widen(v[i]), size = __builtin_fabsf(x);
    top = size > top ? size : top;
    squares += x * x;
  }
  for (std::int64_t i = d; i < round_up(d, 4); ++i) q[i] = 0;
  if (!roundable(top, squares)) {
    for (std::int64_t i = 0; i < d; ++i) q[i] = 0;
    return unbounded;
  }
  const float scale = top / 127.0f;
  const float inverse = top > 0 ? 1.0f / scale : 0.0f;
  float rounded = 0, error = 0;
#pragma omp simd reduction(+ : rounded, error)
  for (std::int64_t i = 0; i < d; ++i) {
    const float x = widen(v[i]), n = nearest(x * inverse), kept = n * scale, off = x - kept;
    q[i] = static_cast<std::int8_t>(static_cast<std::int32_t>(n));
    rounded += kept * kept;
    error += off * off;
  }
  return {scale, __builtin_sqrtf(squares), __builtin_sqrtf(rounded), __builtin_sqrtf(error)};
}

#if GOSSAMER_HAS_BYTES

// Of float32's own rounding: of the norms, and of the gate that is computed afterwards.
constexpr float norm_margin = 1.0001f;
constexpr float sum_margin = 0x1p-20f;

constexpr int word_parts = static_cast<int>(word_tokens) / Ints::lanes;

// The live bits of one row and block, from the sums of its int8 products.
inline std::uint64_t screen_row(const ScreenArgs& args, std::int64_t token, std::int64_t row,
                                const Ints (&sums)[word_parts]) noexcept {
  using V = Vec<float>;
  const V low = V::set(-largest_finite<float>), high = V::zero();
  const RowStats& stats = args.w_stats[row];
  const V scale = V::set(stats.scale);
  const V bias = V::set(args.bias == nullptr ? 0.0f : args.bias[row]);
  const V norm = V::set(stats.norm * args.slack * norm_margin);
  const V error = V::set(stats.error * args.slack * norm_margin + stats.norm * sum_margin);
  std::uint64_t word = 0;
  for (int i = 0; i < word_parts; ++i) {
    const std::int64_t t = token + i * Ints::lanes;
    const V product =
        mul(floats(sums[i], -128 * args.w_sums[row]), mul(scale, V::load(args.x_scale + t)));
    const V bound = fma(V::load(args.x_error + t), norm, mul(V::load(args.x_rounded + t), error));
    word |= static_cast<std::uint64_t>(outside(add(add(product, bias), bound), low, high))
            << (i * Ints::lanes);
  }
  return word;
}

template <int R>
GOSSAMER_INLINE void screen_rows(const ScreenArgs& args, std::int64_t block, std::int64_t blocks,
                                 std::int64_t row, std::uint64_t mask,
                                 std::uint64_t* bits) noexcept {
  Ints acc[R][word_parts];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < word_parts; ++i) acc[r][i] = Ints::zero();
  }
  const std::uint8_t* x = args.x + block * args.quads * (4 * word_tokens);
  const std::int8_t* w = args.w + row * args.quads * 4;
  for (std::int64_t quad = 0; quad < args.quads; ++quad, x += 4 * word_tokens, w += 4) {
    Bytes tokens[word_parts];
#pragma GCC unroll 4
    for (int i = 0; i < word_parts; ++i) tokens[i] = Bytes::load(x + i * 4 * Ints::lanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Bytes weight = Bytes::set(w + r * args.quads * 4);
#pragma GCC unroll 4
      for (int i = 0; i < word_parts; ++i) acc[r][i] = dot(acc[r][i], tokens[i], weight);
    }
  }
  Ints sums[R][word_parts];  // a copy, because `acc` stays in registers only if nothing else
                             // indexes it
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < word_parts; ++i) sums[r][i] = acc[r][i];
  }
  for (int r = 0; r < R; ++r) {
    bits[(row + r) * blocks + block] =
        screen_row(args, block * word_tokens, row + r, sums[r]) & mask;
  }
}

// A block of tokens stays in the nearest caches while all rows of the task pass.
inline void screen(const ScreenArgs& args, std::int64_t first, std::int64_t last,
                   std::uint64_t* bits) noexcept {
  constexpr int rows = registers == 32 ? 6 : 2;
  const std::int64_t blocks = ceil_div(args.tokens, word_tokens);
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t tokens = args.tokens - block * word_tokens;
    const std::uint64_t mask =
        tokens >= word_tokens ? ~std::uint64_t{0} : (std::uint64_t{1} << tokens) - 1;
    std::int64_t row = first;
    for (; row + rows <= last; row += rows) screen_rows<rows>(args, block, blocks, row, mask, bits);
    for (; row < last; ++row) screen_rows<1>(args, block, blocks, row, mask, bits);
  }
}

constexpr GateKernels gate_table = {quantize<float>, quantize<bf16>, screen};
#else
constexpr GateKernels gate_table = {quantize<float>, quantize<bf16>, nullptr};
#endif

}  // namespace
}  // namespace gossamer
