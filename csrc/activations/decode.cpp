#include "activations/decode.hpp"

#include <algorithm>
#include <cstring>

#include "core/parallel.hpp"
#include "core/workspace.hpp"
#include "simd/bits.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t rows_a_task = 64, pairs_a_task = 16, columns_a_task = 256;

template <class T>
const FewKernels<T>& few_kernels() noexcept {
  const FewTable& table = activations_tables.active().few;
  if constexpr (sizeof(T) == sizeof(double)) {
    return table.f64;
  } else if constexpr (sizeof(T) == sizeof(float)) {
    return table.f32;
  } else {
    return table.bf16_;
  }
}

// The first table from the one in use that has the int8 product; the reference has it.
auto find_screen() noexcept {
  for (int isa = static_cast<int>(current_isa());; ++isa) {
    const ActivationsTable* table = activations_tables.by_isa[isa];
    if (table != nullptr && table->few.screen != nullptr) return table->few.screen;
  }
}

// What a call needs, one block of scratch memory.
template <class T>
struct Scratch {
  using C = Compute<T>;
  C* x;                         // [tokens][width]
  C* y;                         // [tokens][width]
  C *g, *u;                     // a number each pair
  std::int32_t *rows, *tokens;  // of the pairs
  std::uint16_t* masks;         // a row's tokens that may be live
  std::uint8_t* bytes;          // FewScreen::x
  std::int64_t width, padded;

  explicit Scratch(const DecodeArgs<T>& args)
      : width(round_up(args.d, panel_unit)), padded(round_up(args.d, 64)) {
    const std::int64_t pairs = args.tokens * args.neurons;
    std::byte* memory = nullptr;
    std::size_t used = 0;
    const auto place = [&]<class P>(P*& part, std::int64_t count) {
      part = reinterpret_cast<P*>(memory + used);
      used += round_up(static_cast<std::int64_t>(sizeof(P)) * count, std::int64_t{64});
    };
    const auto place_all = [&] {
      place(x, args.tokens * width);
      place(y, args.tokens * width);
      place(g, pairs);
      place(u, pairs);
      place(rows, pairs);
      place(tokens, pairs);
      place(masks, args.neurons);
      place(bytes, args.tokens * padded);
    };
    place_all();
    memory = Workspace::get(used);
    used = 0;
    place_all();
  }
};

RowStats quantize(const float* v, std::int64_t d, std::int8_t* q) noexcept {
  return activations_tables.active().gate.quantize_f32(v, d, q);
}
RowStats quantize(const bf16* v, std::int64_t d, std::int8_t* q) noexcept {
  return activations_tables.active().gate.quantize_bf16(v, d, q);
}

template <class T>
void screen(const DecodeArgs<T>& args, const Scratch<T>& s) noexcept {
  FewScreen few{};
  few.x = s.bytes;
  few.padded = s.padded;
  few.tokens = args.tokens;
  few.w = args.rows.q;
  few.w_stats = args.rows.stats;
  few.w_sums = args.rows.sums;
  few.row_bytes = round_up(args.d, std::int64_t{4});
  few.slack = args.slack;
  if constexpr (sizeof(T) != sizeof(double)) {
    few.bias = args.gate_bias;
    for (std::int64_t t = 0; t < args.tokens; ++t) {
      std::uint8_t* row = s.bytes + t * s.padded;
      few.x_stats[t] = quantize(args.x + t * args.d, args.d, reinterpret_cast<std::int8_t*>(row));
      for (std::int64_t i = 0; i < few.row_bytes; ++i) row[i] ^= 0x80u;  // 128 added to each
    }
  }
  const auto run = find_screen();
  parallel_for(ceil_div(args.neurons, rows_a_task), workers_for_entries(args.neurons * args.d),
               [&](std::int64_t task, int) noexcept {
                 const std::int64_t first = task * rows_a_task;
                 run(few, first, std::min(args.neurons, first + rows_a_task), s.masks);
               });
}

template <class C>
bool live(C gate) noexcept {
  return !(gate >= -largest_finite<C> && gate <= C{0});
}

// The screened pairs, or the live ones of a dense gate.
template <class T>
std::int64_t list(const DecodeArgs<T>& args, const Scratch<T>& s) noexcept {
  std::int64_t n = 0;
  for (std::int64_t k = 0; k < args.neurons; ++k) {
    if (args.dense_gate == nullptr) {
      for (unsigned mask = s.masks[k]; mask != 0; mask &= mask - 1) {
        s.rows[n] = static_cast<std::int32_t>(k);
        s.tokens[n++] = __builtin_ctz(mask);
      }
    } else {
      for (std::int64_t t = 0; t < args.tokens; ++t) {
        const Compute<T> gate = widen(args.dense_gate[t * args.neurons + k]);
        if (!live(gate)) continue;
        s.rows[n] = static_cast<std::int32_t>(k);
        s.tokens[n] = static_cast<std::int32_t>(t);
        s.g[n++] = gate;
      }
    }
  }
  return n;
}

template <class T>
std::int64_t keep_live(const Scratch<T>& s, std::int64_t count) noexcept {
  std::int64_t n = 0;
  for (std::int64_t p = 0; p < count; ++p) {
    if (!live(s.g[p])) continue;
    s.rows[n] = s.rows[p];
    s.tokens[n] = s.tokens[p];
    s.g[n++] = s.g[p];
  }
  return n;
}

// out[p] = <x[token of p], w[row of p]> + bias[row of p]
template <class T>
void dots(const DecodeArgs<T>& args, const Scratch<T>& s, const T* w, const Compute<T>* bias,
          std::int64_t count, Compute<T>* out) noexcept {
  const FewKernels<T>& kernels = few_kernels<T>();
  parallel_for(ceil_div(count, pairs_a_task), workers_for_products(count, args.d),
               [&](std::int64_t task, int) noexcept {
                 const std::int64_t first = task * pairs_a_task;
                 const std::int64_t last = std::min(count, first + pairs_a_task);
                 kernels.dots(s.x, s.width, {w, args.d, args.d}, {s.rows, s.tokens, count}, first,
                              last, out);
                 if (bias == nullptr) return;
                 for (std::int64_t p = first; p < last; ++p) out[p] += bias[s.rows[p]];
               });
}

template <class T>
void hidden(const DecodeArgs<T>& args, const Scratch<T>& s, std::int64_t count) noexcept {
  using C = Compute<T>;
  for (std::int64_t p = 0; p < count; ++p) {
    C h = s.g[p] < C{0} ? C{0} : s.g[p];  // NaN stays
    if (args.square) h *= h;
    s.g[p] = args.up == nullptr ? h : h * s.u[p];
  }
}

template <class T>
void add_rows(const DecodeArgs<T>& args, const Scratch<T>& s, std::int64_t count, T* y) noexcept {
  using C = Compute<T>;
  const FewKernels<T>& kernels = few_kernels<T>();
  const int workers = workers_for_products(count, args.d);
  const std::int64_t width = workers == 1 ? args.d : columns_a_task;
  parallel_for(ceil_div(args.d, width), workers, [&](std::int64_t task, int) noexcept {
    const std::int64_t c = task * width, cols = std::min(width, args.d - c);
    for (std::int64_t t = 0; t < args.tokens; ++t) {
      C* row = s.y + t * s.width + c;
      if (args.down_bias == nullptr) {
        std::fill_n(row, cols, C{0});
      } else {
        std::copy_n(args.down_bias + c, cols, row);
      }
    }
    kernels.add_rows(s.y + c, s.width, {args.down + c, args.d, cols}, {s.rows, s.tokens, count},
                     s.g);
    for (std::int64_t t = 0; t < args.tokens; ++t) {
      for (std::int64_t i = 0; i < cols; ++i) {
        narrow(s.y[t * s.width + c + i], y[t * args.d + c + i]);
      }
    }
  });
}

}  // namespace

template <class T>
DecodeCounts decode(const DecodeArgs<T>& args, T* y) {
  const TrimWorkspace trim;
  const Scratch<T> s(args);
  for (std::int64_t t = 0; t < args.tokens; ++t) {
    for (std::int64_t c = 0; c < s.width; ++c) {
      s.x[t * s.width + c] = c < args.d ? widen(args.x[t * args.d + c]) : Compute<T>{0};
    }
  }
  if (args.dense_gate == nullptr) screen(args, s);
  std::int64_t count = list(args, s), screened = 0;
  if (args.dense_gate == nullptr) {
    screened = count;
    dots(args, s, args.gate, args.gate_bias, count, s.g);
    count = keep_live(s, count);
  }
  if (args.up != nullptr) dots(args, s, args.up, args.up_bias, count, s.u);
  hidden(args, s, count);
  add_rows(args, s, count, y);
  return {count, screened};
}

template DecodeCounts decode<float>(const DecodeArgs<float>&, float*);
template DecodeCounts decode<double>(const DecodeArgs<double>&, double*);
template DecodeCounts decode<bf16>(const DecodeArgs<bf16>&, bf16*);

}  // namespace gossamer
