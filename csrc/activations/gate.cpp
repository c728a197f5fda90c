#include "activations/gate.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/parallel.hpp"
#include "core/workspace.hpp"
#include "simd/bits.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t rows_a_task = 48;  // a multiple of the rows that the int8 product takes

template <class F>
void over_rows(std::int64_t rows, int workers, F&& body) noexcept {
  parallel_for(ceil_div(rows, rows_a_task), workers, [&](std::int64_t task, int) noexcept {
    body(task * rows_a_task, std::min(rows, (task + 1) * rows_a_task));
  });
}

// Calls body(token, i) for the set bits of a row in order, i counted from `at`.
template <class F>
void over_bits(const std::uint64_t* bits, std::int64_t blocks, F&& body) noexcept {
  for (std::int64_t b = 0; b < blocks; ++b) {
    for (std::uint64_t word = bits[b]; word != 0; word &= word - 1) {
      body(b * word_tokens + __builtin_ctzll(word));
    }
  }
}

// The first table from the one in use that has the product; the reference has it.
const GateKernels& find_screen(const char** name) noexcept {
  for (int isa = static_cast<int>(current_isa());; ++isa) {
    const ActivationsTable* table = activations_tables.by_isa[isa];
    if (table == nullptr || (table->gate.screen == nullptr && isa < isa_count - 1)) continue;
    if (name != nullptr) *name = name_of(static_cast<Isa>(isa));
    return table->gate;
  }
}

RowStats quantize(const float* v, std::int64_t d, std::int8_t* q) noexcept {
  return activations_tables.active().gate.quantize_f32(v, d, q);
}
RowStats quantize(const bf16* v, std::int64_t d, std::int8_t* q) noexcept {
  return activations_tables.active().gate.quantize_bf16(v, d, q);
}

void sum_up(std::int64_t rows, std::int64_t* indptr) noexcept {
  for (std::int64_t r = 0; r < rows; ++r) indptr[r + 1] += indptr[r];
}

}  // namespace

template <class T>
std::int64_t compact(const T* gate, std::int64_t rows, std::int64_t count, std::int64_t token0,
                     std::int64_t capacity, std::int64_t* indptr, std::int32_t* tokens,
                     Compute<T>* values) {
  const PairKernels<T>& kernels = pair_kernels<T>();
  const std::int64_t blocks = ceil_div(count, word_tokens);
  const int workers = workers_for_entries(rows * count);
  const TrimWorkspace trim;
  auto* bits = reinterpret_cast<std::uint64_t*>(
      Workspace::get(static_cast<std::size_t>(rows * blocks) * sizeof(std::uint64_t)));
  over_rows(rows, workers, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) {
      indptr[r + 1] = kernels.live_bits(gate + r * count, count, bits + r * blocks);
    }
  });
  sum_up(rows, indptr);
  if (indptr[rows] > capacity) return indptr[rows];
  over_rows(rows, workers, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) {
      std::int64_t p = indptr[r];
      const T* row = gate + r * count;
      over_bits(bits + r * blocks, blocks, [&](std::int64_t t) {
        tokens[p] = static_cast<std::int32_t>(token0 + t);
        values[p++] = widen(row[t]);
      });
    }
  });
  return indptr[rows];
}

template <class T>
void quantize_rows(const T* w, std::int64_t rows, std::int64_t d, const QuantizedRows& out) {
  const std::int64_t bytes = round_up(d, 4);
  over_rows(rows, workers_for_entries(rows * d), [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) {
      std::int8_t* q = out.q + r * bytes;
      out.stats[r] = quantize(w + r * d, d, q);
      std::int32_t sum = 0;
      for (std::int64_t i = 0; i < d; ++i) sum += q[i];
      out.sums[r] = sum;
    }
  });
}

template <class T>
void quantize_tokens(const T* x, std::int64_t tokens, std::int64_t d, const QuantizedTokens& out) {
  const std::int64_t blocks = ceil_div(tokens, word_tokens), quads = ceil_div(d, 4);
  const int workers = workers_for_entries(tokens * d);
  const TrimWorkspace trim;
  std::byte* memory = Workspace::get(static_cast<std::size_t>(workers * quads * 4));
  parallel_for(blocks, workers, [&](std::int64_t block, int worker) noexcept {
    auto* row = reinterpret_cast<std::int8_t*>(memory) + worker * quads * 4;
    std::uint8_t* packed = out.q + block * quads * 4 * word_tokens;
    for (std::int64_t t = 0; t < word_tokens; ++t) {
      const std::int64_t token = block * word_tokens + t;
      RowStats stats{};
      if (token < tokens) {
        stats = quantize(x + token * d, d, row);
      } else {
        std::fill_n(row, quads * 4, std::int8_t{0});
      }
      out.scale[token] = stats.scale;
      out.rounded[token] = stats.rounded;
      out.error[token] = stats.error;
      for (std::int64_t quad = 0; quad < quads; ++quad) {
        std::uint32_t four;
        std::memcpy(&four, row + quad * 4, sizeof four);
        four ^= 0x80808080u;  // 128 added to each
        std::memcpy(packed + (quad * word_tokens + t) * 4, &four, sizeof four);
      }
    }
  });
}

void screen_rows(const ScreenArgs& args, std::int64_t neurons, std::uint64_t* bits,
                 std::int64_t* indptr) {
  const auto screen = find_screen(nullptr).screen;
  const std::int64_t blocks = ceil_div(args.tokens, word_tokens);
  over_rows(neurons, workers_for_entries(neurons * args.tokens),
            [&](std::int64_t first, std::int64_t last) {
              screen(args, first, last, bits);
              for (std::int64_t r = first; r < last; ++r) {
                std::int64_t n = 0;
                for (std::int64_t b = 0; b < blocks; ++b) {
                  n += __builtin_popcountll(bits[r * blocks + b]);
                }
                indptr[r + 1] = n;
              }
            });
  sum_up(neurons, indptr);
}

const char* screen_table() noexcept {
  const char* name = nullptr;
  find_screen(&name);
  return name;
}

void expand_bits(const std::uint64_t* bits, std::int64_t rows, std::int64_t blocks,
                 std::int64_t token0, const std::int64_t* indptr, std::int32_t* tokens) noexcept {
  over_rows(rows, workers_for_entries(rows * blocks * word_tokens),
            [&](std::int64_t first, std::int64_t last) {
              for (std::int64_t r = first; r < last; ++r) {
                std::int64_t p = indptr[r];
                over_bits(bits + r * blocks, blocks, [&](std::int64_t t) {
                  tokens[p++] = static_cast<std::int32_t>(token0 + t);
                });
              }
            });
}

#define GOSSAMER_INSTANTIATE(T)                                                        \
  template std::int64_t compact<T>(const T*, std::int64_t, std::int64_t, std::int64_t, \
                                   std::int64_t, std::int64_t*, std::int32_t*, Compute<T>*);
GOSSAMER_INSTANTIATE(float)
GOSSAMER_INSTANTIATE(double)
GOSSAMER_INSTANTIATE(bf16)
#undef GOSSAMER_INSTANTIATE
#define GOSSAMER_INSTANTIATE(T)                                                               \
  template void quantize_rows<T>(const T*, std::int64_t, std::int64_t, const QuantizedRows&); \
  template void quantize_tokens<T>(const T*, std::int64_t, std::int64_t, const QuantizedTokens&);
GOSSAMER_INSTANTIATE(float)
GOSSAMER_INSTANTIATE(bf16)
#undef GOSSAMER_INSTANTIATE

}  // namespace gossamer
