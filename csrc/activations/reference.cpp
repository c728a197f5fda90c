// Every kernel of sparse activations once, plain, sums in double.
#include "activations/table.hpp"
#include "simd/bits.hpp"

namespace gossamer {
namespace {

template <class T>
void pack(Slice<const T> x, std::int64_t tokens, Compute<T>* panel, std::int64_t width) noexcept {
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t c = 0; c < width; ++c) {
      panel[t * width + c] = c < x.cols ? widen(x.data[t * x.stride + c]) : Compute<T>{0};
    }
  }
}

template <class T>
void unpack(const Compute<T>* panel, std::int64_t width, std::int64_t tokens, Slice<T> y) noexcept {
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t c = 0; c < y.cols; ++c)
      narrow(panel[t * width + c], y.data[t * y.stride + c]);
  }
}

template <class T>
void sample(const Compute<T>* panel, std::int64_t width, Slice<const T> w, PairRows rows,
            std::int64_t row0, Compute<T>* out) noexcept {
  for (std::int64_t r = rows.first; r < rows.last; ++r) {
    for (std::int64_t p = rows.indptr[r]; p < rows.indptr[r + 1]; ++p) {
      double sum = 0;
      for (std::int64_t c = 0; c < w.cols; ++c) {
        const double x = panel[(rows.tokens[p] - rows.token0) * width + c];
        sum += x * static_cast<double>(widen(w.data[(r - row0) * w.stride + c]));
      }
      out[p] = static_cast<Compute<T>>(static_cast<double>(out[p]) + sum);
    }
  }
}

constexpr std::int64_t columns = 32;  // of a panel

template <class T>
void scatter(Compute<T>* panel, Slice<const T> w, PairRows rows, std::int64_t row0,
             const Compute<T>* a) noexcept {
  for (std::int64_t r = rows.first; r < rows.last; ++r) {
    for (std::int64_t p = rows.indptr[r]; p < rows.indptr[r + 1]; ++p) {
      for (std::int64_t c = 0; c < w.cols; ++c) {
        panel[(rows.tokens[p] - rows.token0) * columns + c] +=
            a[p] * widen(w.data[(r - row0) * w.stride + c]);
      }
    }
  }
}

template <class T>
void scatter_two(Compute<T>* panel, Slice<const T> w, Slice<const T> w2, PairRows rows,
                 std::int64_t row0, const Compute<T>* a, const Compute<T>* b) noexcept {
  scatter(panel, w, rows, row0, a);
  scatter(panel, w2, rows, row0, b);
}

template <class T>
void accumulate_one(const Compute<T>* panel, std::int64_t at, std::int64_t width, T* out,
                    const Gradients<T>& like, PairRows pairs, std::int64_t tiles,
                    const Compute<T>* factors) noexcept {
  for (std::int64_t k = pairs.first; k < pairs.last; ++k) {
    for (std::int64_t c = 0; c < like.cols; ++c) {
      double sum = 0;
      for (std::int64_t tile = 0; tile < tiles; ++tile) {
        const std::int64_t row = tile * like.neurons + k;
        for (std::int64_t p = pairs.indptr[row]; p < pairs.indptr[row + 1]; ++p) {
          sum += static_cast<double>(factors[p]) *
                 static_cast<double>(panel[(pairs.tokens[p] * 2 + at) * width + c]);
        }
      }
      narrow(static_cast<Compute<T>>(sum), out[k * like.stride + c]);
    }
  }
}

template <class T>
void accumulate(const Compute<T>* panel, std::int64_t width, const Gradients<T>& out,
                PairRows pairs, std::int64_t tiles, const Compute<T>* a, const Compute<T>* b,
                const Compute<T>* c) noexcept {
  accumulate_one(panel, 0, width, out.gate, out, pairs, tiles, a);
  if (out.up != nullptr) accumulate_one(panel, 0, width, out.up, out, pairs, tiles, b);
  accumulate_one(panel, 1, width, out.down, out, pairs, tiles, c);
}

template <class T>
std::int64_t live_bits(const T* gate, std::int64_t n, std::uint64_t* bits) noexcept {
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < ceil_div(n, word_tokens); ++i) bits[i] = 0;
  for (std::int64_t t = 0; t < n; ++t) {
    const Compute<T> g = widen(gate[t]);
    if (g >= -largest_finite<Compute<T>> && g <= 0) continue;
    bits[t / word_tokens] |= std::uint64_t{1} << (t % word_tokens);
    ++count;
  }
  return count;
}

template <class T>
RowStats quantize(const T* v, std::int64_t d, std::int8_t* q) noexcept {
  double top = 0, squares = 0, rounded = 0, error = 0;
  for (std::int64_t i = 0; i < d; ++i) {
    const double x = widen(v[i]);
    top = __builtin_fabs(x) > top ? __builtin_fabs(x) : top;
    squares += x * x;
  }
  for (std::int64_t i = 0; i < round_up(d, 4); ++i) q[i] = 0;
  if (!roundable(static_cast<float>(top), static_cast<float>(squares))) return unbounded;
  const double scale = static_cast<float>(top / 127);
  for (std::int64_t i = 0; i < d; ++i) {
    const double x = widen(v[i]);
    const double n = top > 0 ? __builtin_nearbyint(x / scale) : 0;
    q[i] = static_cast<std::int8_t>(n);
    rounded += n * scale * (n * scale);
    error += (x - n * scale) * (x - n * scale);
  }
  return {static_cast<float>(scale), static_cast<float>(__builtin_sqrt(squares)),
          static_cast<float>(__builtin_sqrt(rounded)), static_cast<float>(__builtin_sqrt(error))};
}

// Whether the gate may be live, by the bound of ScreenArgs; a bound that is NaN says nothing.
bool may_be_live(std::int64_t product, const RowStats& x, const RowStats& w, float bias,
                 float slack) noexcept {
  const double bound =
      slack * (double{x.error} * double{w.norm} + double{x.rounded} * double{w.error});
  const double sum =
      static_cast<double>(product) * double{x.scale} * double{w.scale} + double{bias};
  // A little more, for the rounding of the gate that is computed in float32 afterwards.
  const double margin = 1e-4 * bound + 0x1p-20 * double{x.rounded} * double{w.norm};
  return !(sum + bound + margin <= 0);
}

void screen(const ScreenArgs& args, std::int64_t first, std::int64_t last,
            std::uint64_t* bits) noexcept {
  const std::int64_t blocks = ceil_div(args.tokens, word_tokens), d = args.quads * 4;
  for (std::int64_t k = first; k < last; ++k) {
    for (std::int64_t b = 0; b < blocks; ++b) bits[k * blocks + b] = 0;
    const RowStats& w = args.w_stats[k];
    for (std::int64_t t = 0; t < args.tokens; ++t) {
      std::int64_t product = 0;
      for (std::int64_t i = 0; i < d; ++i) {
        const std::int64_t at = (t / word_tokens * args.quads + i / 4) * word_tokens;
        product += (args.x[(at + t % word_tokens) * 4 + i % 4] - 128) * args.w[k * d + i];
      }
      const RowStats x = {args.x_scale[t], 0.0f, args.x_rounded[t], args.x_error[t]};
      const float bias = args.bias == nullptr ? 0.0f : args.bias[k];
      if (!may_be_live(product, x, w, bias, args.slack)) continue;
      bits[k * blocks + t / word_tokens] |= std::uint64_t{1} << (t % word_tokens);
    }
  }
}

template <class T>
void few_dots(const Compute<T>* x, std::int64_t width, Slice<const T> w, FewPairs pairs,
              std::int64_t first, std::int64_t last, Compute<T>* out) noexcept {
  for (std::int64_t p = first; p < last; ++p) {
    double sum = 0;
    for (std::int64_t c = 0; c < w.cols; ++c) {
      sum += static_cast<double>(x[pairs.tokens[p] * width + c]) *
             static_cast<double>(widen(w.data[pairs.rows[p] * w.stride + c]));
    }
    out[p] = static_cast<Compute<T>>(sum);
  }
}

template <class T>
void few_add_rows(Compute<T>* y, std::int64_t width, Slice<const T> w, FewPairs pairs,
                  const Compute<T>* factors) noexcept {
  for (std::int64_t p = 0; p < pairs.count; ++p) {
    for (std::int64_t c = 0; c < w.cols; ++c) {
      y[pairs.tokens[p] * width + c] += factors[p] * widen(w.data[pairs.rows[p] * w.stride + c]);
    }
  }
}

void few_screen(const FewScreen& args, std::int64_t first, std::int64_t last,
                std::uint16_t* masks) noexcept {
  for (std::int64_t k = first; k < last; ++k) {
    masks[k] = 0;
    for (std::int64_t t = 0; t < args.tokens; ++t) {
      std::int64_t product = 0;
      for (std::int64_t i = 0; i < args.row_bytes; ++i) {
        product += (args.x[t * args.padded + i] - 128) * args.w[k * args.row_bytes + i];
      }
      const float bias = args.bias == nullptr ? 0.0f : args.bias[k];
      if (!may_be_live(product, args.x_stats[t], args.w_stats[k], bias, args.slack)) continue;
      masks[k] = static_cast<std::uint16_t>(masks[k] | 1u << t);
    }
  }
}

template <class T>
constexpr FewKernels<T> few = {few_dots<T>, few_add_rows<T>};

template <class T>
constexpr PairKernels<T> plain = {pack<T>,        unpack<T>,          sample<T>,     scatter<T>,
                                  scatter_two<T>, {columns, columns}, accumulate<T>, columns,
                                  columns,        live_bits<T>};

}  // namespace

extern "C" constexpr ActivationsTable gossamer_activations_reference = {
    plain<float>,
    plain<double>,
    plain<bf16>,
    {quantize<float>, quantize<bf16>, screen},
    {few<float>, few<double>, few<bf16>, few_screen}};

}  // namespace gossamer
