// What is compiled once an instruction set: the kernels of a feed-forward network most of whose
// activations are zero.
//
//   h[t, k] = act(g[t, k]) u[t, k],   g = x Wg^T + bg,   u = x Wu^T + bu,   y = h Wd
//
// x and y are [tokens, d]; Wg, Wu and Wd are [neurons, d], so that a neuron is one row of each. A
// pair (token, neuron) is live where its gate g may be positive; every product but the gate's
// visits the live pairs alone.
//
// The live pairs lie in the order (tile, neuron, token): a tile is a range of tokens whose columns
// fit the second-level cache, and the row tile * neurons + k of `indptr` holds neuron k's tokens in
// it, ascending. Forward and backward use this one order.
//
//   a tile of x, 3 neurons        indptr  0 . 2 . 2 . 5
//       token 0 1 2 3 4           tokens  1 4   0 2 3
//   neuron 0    . x . . x         values  one each, in the same order
//          1    . . . . .
//          2    x . x x .
//
// A panel is a range of columns of x, y or a gradient for all tokens of a tile, packed
// [token][width] in the type of the sums. A neuron's slice of W is read once a panel and multiplied
// with the rows of its tokens.
#pragma once

#include "core/tables.hpp"
#include "core/types.hpp"

namespace gossamer {

// Widths of sampled panels are multiples of this: whole registers of every instruction set.
inline constexpr std::int64_t panel_unit = 16;

// Tokens that share a word of live bits, and a block of the int8 product.
inline constexpr std::int64_t word_tokens = 64;

// Rows [first, last) of `indptr`, all of one tile. Token ids are counted from `token0`, the first
// token of the panel.
struct PairRows {
  const std::int64_t* indptr;
  const std::int32_t* tokens;
  std::int64_t first, last;
  std::int64_t token0;
};

// Columns [0, cols) of a matrix [neurons, d]; `data` points at the first of them in row 0.
template <class T>
struct Slice {
  T* data;
  std::int64_t stride;
  std::int64_t cols;
};

// The gradients of the weights, the same columns of each.
template <class T>
struct Gradients {
  T *gate, *up, *down;
  std::int64_t stride, cols;
  std::int64_t neurons;
};

// Kernels on weights stored as T. Row r of `indptr` is row r - row0 of a weight.
template <class T>
struct PairKernels {
  using C = Compute<T>;

  // panel[t][c] = x[t, c] for tokens rows; columns from x.cols to width are zero.
  void (*pack)(Slice<const T> x, std::int64_t tokens, C* panel, std::int64_t width) noexcept;
  // y[t, c] = panel[t][c]
  void (*unpack)(const C* panel, std::int64_t width, std::int64_t tokens, Slice<T> y) noexcept;

  // out[p] += <panel[token of p], w[neuron of p]>
  void (*sample)(const C* panel, std::int64_t width, Slice<const T> w, PairRows rows,
                 std::int64_t row0, C* out) noexcept;

  // panel[token of p] += a[p] w[neuron of p], in panels of scatter_width[0] columns, and with a
  // second weight, += a[p] w[neuron of p] + b[p] w2[neuron of p], of scatter_width[1].
  void (*scatter)(C* panel, Slice<const T> w, PairRows rows, std::int64_t row0,
                  const C* a) noexcept;
  void (*scatter_two)(C* panel, Slice<const T> w, Slice<const T> w2, PairRows rows,
                      std::int64_t row0, const C* a, const C* b) noexcept;
  std::int64_t scatter_width[2];

  // The gradients of two or three weights in one sweep over all tiles (rows k, k + neurons, ...),
  // with x and dY of all tokens side by side in the panel, [token][2][width]:
  //   gate[k] = sum a[p] x,  up[k] = sum b[p] x (null: left out),  down[k] = sum c[p] dY.
  // Rows without a pair become zero. The width is accumulate_width, or a half, a quarter of it
  // and so on, down to one register.
  void (*accumulate)(const C* panel, std::int64_t width, const Gradients<T>& out, PairRows pairs,
                     std::int64_t tiles, const C* a, const C* b, const C* c) noexcept;
  std::int64_t accumulate_width, accumulate_least;

  // bits[i] bit t = the gate of token 64 i + t may be live: positive, NaN, or -inf, which a
  // product with an infinite u makes NaN. Bits from n on are zero. Returns their number.
  std::int64_t (*live_bits)(const T* gate, std::int64_t n, std::uint64_t* bits) noexcept;
};

// A row of numbers rounded to int8 with one scale: v is about scale * q.
struct RowStats {
  float scale;
  float norm;     // of v
  float rounded;  // of scale * q
  float error;    // of v - scale * q, all Euclidean
};

// A row that is not finite, or whose squares leave the range of float32, is not rounded: it has
// zeros and an infinite error, so that every pair of it is kept.
inline constexpr RowStats unbounded = {0.0f, __builtin_inff(), 0.0f, __builtin_inff()};
constexpr bool roundable(float top, float squares) noexcept {
  return squares <= 1e38f && (top == 0.0f || top >= 1e-15f);
}

// The int8 gate: for rounded rows x', w' (Cauchy and Schwarz)
//   |<x, w> - <x', w'>| <= |x - x'| |w| + |x'| |w - w'|,
// so a pair whose rounded gate plus this bound is not positive is not live.
struct ScreenArgs {
  const std::uint8_t* x;  // [blocks][quads][64 tokens][4], 128 added to each
  // [blocks * 64] each, of the RowStats of x; tokens that pad the last block are all zero.
  const float *x_scale, *x_rounded, *x_error;
  const std::int8_t* w;        // [neurons][quads][4]
  const RowStats* w_stats;     // [neurons]
  const std::int32_t* w_sums;  // [neurons]: the sum of a row of w
  const float* bias;           // [neurons], or null
  std::int64_t tokens;
  std::int64_t quads;  // d / 4, rounded up
  float slack;         // scales the bound: 1 is rigorous
};

struct GateKernels {
  // Rounds a row of d numbers, zeros to the end of the last quad.
  RowStats (*quantize_f32)(const float* v, std::int64_t d, std::int8_t* q) noexcept;
  RowStats (*quantize_bf16)(const bf16* v, std::int64_t d, std::int8_t* q) noexcept;
  // The live bits of neurons [first, last): bits [neuron][blocks]. Null where an instruction set
  // has no products of int8.
  void (*screen)(const ScreenArgs& args, std::int64_t first, std::int64_t last,
                 std::uint64_t* bits) noexcept;
};

// Tokens of a call that decodes.
inline constexpr std::int64_t few_tokens = 16;

// Pairs of a few tokens, in rising order of the rows.
struct FewPairs {
  const std::int32_t *rows, *tokens;
  std::int64_t count;
};

// Kernels for a few tokens. x and y are [tokens][width] in the type of the sums; columns of x from
// w.cols to width are zero.
template <class T>
struct FewKernels {
  using C = Compute<T>;
  // out[p] = <x[token of p], w[row of p]> for the pairs [first, last)
  void (*dots)(const C* x, std::int64_t width, Slice<const T> w, FewPairs pairs, std::int64_t first,
               std::int64_t last, C* out) noexcept;
  // y[token of p] += factors[p] w[row of p] for all pairs
  void (*add_rows)(C* y, std::int64_t width, Slice<const T> w, FewPairs pairs,
                   const C* factors) noexcept;
};

// The int8 gate of a few tokens, by the bound of ScreenArgs.
struct FewScreen {
  const std::uint8_t* x;  // [tokens][padded], 128 added to each of the first row_bytes
  std::int64_t padded;    // a multiple of 64
  std::int64_t tokens;
  RowStats x_stats[few_tokens];
  const std::int8_t* w;        // [neurons][row_bytes]
  const RowStats* w_stats;     // [neurons]
  const std::int32_t* w_sums;  // [neurons]
  const float* bias;           // [neurons], or null
  std::int64_t row_bytes;      // d, rounded up to 4
  float slack;
};

struct FewTable {
  FewKernels<float> f32;
  FewKernels<double> f64;
  FewKernels<bf16> bf16_;
  // masks[k] bit t = the gate of neuron k and token t may be live, for neurons [first, last). Null
  // where an instruction set has no products of int8.
  void (*screen)(const FewScreen& args, std::int64_t first, std::int64_t last,
                 std::uint16_t* masks) noexcept;
};

struct ActivationsTable {
  PairKernels<float> f32;
  PairKernels<double> f64;
  PairKernels<bf16> bf16_;
  GateKernels gate;
  FewTable few;
};

extern "C" {
extern const ActivationsTable gossamer_activations_avx512vnni;
extern const ActivationsTable gossamer_activations_emulated;
extern const ActivationsTable gossamer_activations_reference;
}
GOSSAMER_TABLES(ActivationsTable, activations_tables, gossamer_activations,
                .avx512vnni = GOSSAMER_IF_AVX512VNNI(&gossamer_activations_avx512vnni),
                .emulated = &gossamer_activations_emulated,
                .reference = &gossamer_activations_reference);

template <class T>
const PairKernels<T>& pair_kernels() {
  const ActivationsTable& table = activations_tables.active();
  if constexpr (sizeof(T) == sizeof(double)) {
    return table.f64;
  } else if constexpr (sizeof(T) == sizeof(float)) {
    return table.f32;
  } else {
    return table.bf16_;
  }
}

}  // namespace gossamer
