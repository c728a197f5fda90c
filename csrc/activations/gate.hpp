// Which pairs may be live: from a block of the dense gate, or from the gate in int8.
#pragma once

#include "activations/table.hpp"

namespace gossamer {

// Appends the live pairs of a block of the gate, [rows][tokens], whose tokens are counted from
// token0. indptr[0] says where they start; indptr[1 .. rows] is written. Returns indptr[rows];
// where that is more than `capacity`, tokens and values are not written.
template <class T>
std::int64_t compact(const T* gate, std::int64_t rows, std::int64_t count, std::int64_t token0,
                     std::int64_t capacity, std::int64_t* indptr, std::int32_t* tokens,
                     Compute<T>* values);

// Weights [neurons, d] rounded to int8: q [neurons][quads][4] (ScreenArgs).
struct QuantizedRows {
  std::int8_t* q;
  RowStats* stats;
  std::int32_t* sums;
};
template <class T>
void quantize_rows(const T* w, std::int64_t rows, std::int64_t d, const QuantizedRows& out);

// Tokens rounded to int8 and packed: q [blocks][quads][64][4], and their scales, rounded norms and
// errors, [blocks * 64] each.
struct QuantizedTokens {
  std::uint8_t* q;
  float *scale, *rounded, *error;
};
template <class T>
void quantize_tokens(const T* x, std::int64_t tokens, std::int64_t d, const QuantizedTokens& out);

// The live bits [neurons][blocks], and how many there are before and in each row: indptr[0] says
// where they start, indptr[1 .. neurons] is written.
void screen_rows(const ScreenArgs& args, std::int64_t neurons, std::uint64_t* bits,
                 std::int64_t* indptr);

// The table that serves it.
const char* screen_table() noexcept;

// tokens[indptr[r] ..] = token0 + the places of the bits of row r
void expand_bits(const std::uint64_t* bits, std::int64_t rows, std::int64_t blocks,
                 std::int64_t token0, const std::int64_t* indptr, std::int32_t* tokens) noexcept;

}  // namespace gossamer
