// Packing of bf16 that is multiplied as bf16, and the order of the batch rows in it.
//
//   packed[c * ld + place] = X[first_row + b, first_col + c]       zero for b >= rows
//
// A register holds 2 L rows of one column (L = Pairs::lanes, 16 or 4): row i at place 2i, row L + i
// at place 2i + 1. That is how a transposition of L x L pairs leaves them, and nothing asks for
// another order: the products zip two registers, so that their sums lie in the order of
// `row_of_sum`, and whoever unpacks the sums writes each to its row. Rows of the matrix of a
// convolution lie so that their sums are in order (patches.hpp).
#pragma once

#include "products/cpu/prefetch.hpp"
#include "simd/pairs.hpp"

#if GOSSAMER_HAS_PAIRS
namespace gossamer {
namespace {

constexpr int row_of_place(int place) noexcept {
  constexpr int all = 2 * Pairs::lanes;
  return place / all * all + place % all / 2 + place % 2 * Pairs::lanes;
}

// Sums of zip_low fill one register, those of zip_high the next.
constexpr int row_of_sum(int place) noexcept {
  constexpr int lanes = Pairs::lanes;
  const int lane = place % lanes;
  const int high = place / lanes % 2;
  return row_of_place(place / (2 * lanes) * 2 * lanes + lane / 4 * 8 + high * 4 + lane % 4);
}

// `rows` batch rows of `cols` consecutive columns, 2 L each if Full.
template <bool Full>
GOSSAMER_INLINE void pack_square(const bf16* src, std::int64_t row_stride, int rows, int cols,
                                 bf16* dst, std::int64_t ld) noexcept {
  constexpr int lanes = Pairs::lanes;
  Pairs upper[lanes];
  Pairs lower[lanes];
  const auto load = [&](int i) noexcept __attribute__((always_inline)) {
    const bf16* from = src + i * row_stride;
    prefetch_row(from);
    return Full ? Pairs::load(from) : i < rows ? Pairs::load_n(from, cols) : Pairs::zero();
  };
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) upper[i] = load(i);
  Pairs::transpose(upper);
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) lower[i] = load(lanes + i);
  Pairs::transpose(lower);
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) {
    if (Full || 2 * i < cols) evens(upper[i], lower[i]).store(dst + 2 * i * ld);
    if (Full || 2 * i + 1 < cols) odds(upper[i], lower[i]).store(dst + (2 * i + 1) * ld);
  }
}

inline void pack_pairs(const Matrix& x, std::int64_t row, std::int64_t rows, std::int64_t col,
                       std::int64_t cols, bf16* packed, std::int64_t ld) noexcept {
  constexpr int wide = 2 * Pairs::lanes;
  for (std::int64_t b = 0; b < rows; b += wide) {
    const int live = static_cast<int>(rows - b < wide ? rows - b : wide);
    const bf16* src =
        static_cast<const bf16*>(x.data) + (row + b) * x.row_stride + col * x.col_stride;
    bf16* dst = packed + b;
    if (x.col_stride == 1) {
      std::int64_t c = 0;
      for (; c + wide <= cols; c += wide) {
        if (live == wide) {
          pack_square<true>(src + c, x.row_stride, wide, wide, dst + c * ld, ld);
        } else {
          pack_square<false>(src + c, x.row_stride, live, wide, dst + c * ld, ld);
        }
      }
      if (c < cols) {
        pack_square<false>(src + c, x.row_stride, live, static_cast<int>(cols - c), dst + c * ld,
                           ld);
      }
    } else {
      for (std::int64_t c = 0; c < cols; ++c) {
        for (int place = 0; place < wide; ++place) {
          const int i = row_of_place(place);
          dst[c * ld + place] = i < live ? src[i * x.row_stride + c * x.col_stride] : bf16{0};
        }
      }
    }
  }
}

// The way back, from the sums of up to 2 L rows and columns to bf16.
template <bool Full>
GOSSAMER_INLINE void unpack_square(const float* packed, std::int64_t ld, int rows, int cols,
                                   bf16* out, std::int64_t row_stride) noexcept {
  using R = Vec<float>;
  constexpr int lanes = Pairs::lanes;
  alignas(64) bf16 columns[2 * lanes][2 * lanes];
#pragma GCC unroll 4
  for (int c = 0; c < 2 * lanes; ++c) {
    const float* from = packed + c * ld;
    const Pairs column =
        Full || c < cols ? Pairs::narrow(R::load(from), R::load(from + lanes)) : Pairs::zero();
    column.store(columns[c]);
  }
  for (int odd = 0; odd < 2; ++odd) {
    Pairs tile[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
      const Pairs a = Pairs::load(columns[2 * i]);
      const Pairs b = Pairs::load(columns[2 * i + 1]);
      tile[i] = odd != 0 ? odds(a, b) : evens(a, b);
    }
    Pairs::transpose(tile);
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
      const int r = row_of_sum(2 * i + odd);
      bf16* to = out + r * row_stride;
      if constexpr (Full) {
        prefetch_row(to);
        tile[i].store(to);
      } else {
        if (r < rows) tile[i].store_n(to, cols);
      }
    }
  }
}

inline void unpack_pairs(const float* packed, std::int64_t ld, const Matrix& y, std::int64_t row,
                         std::int64_t rows, std::int64_t col, std::int64_t cols) noexcept {
  constexpr int wide = 2 * Pairs::lanes;
  for (std::int64_t b = 0; b < rows; b += wide) {
    const int live = static_cast<int>(rows - b < wide ? rows - b : wide);
    const float* src = packed + b;
    bf16* out = static_cast<bf16*>(y.data) + (row + b) * y.row_stride + col * y.col_stride;
    if (y.col_stride == 1) {
      std::int64_t c = 0;
      for (; c + wide <= cols; c += wide) {
        if (live == wide) {
          unpack_square<true>(src + c * ld, ld, wide, wide, out + c, y.row_stride);
        } else {
          unpack_square<false>(src + c * ld, ld, live, wide, out + c, y.row_stride);
        }
      }
      if (c < cols) {
        unpack_square<false>(src + c * ld, ld, live, static_cast<int>(cols - c), out + c,
                             y.row_stride);
      }
    } else {
      for (std::int64_t c = 0; c < cols; ++c) {
        for (int place = 0; place < wide; ++place) {
          const int i = row_of_sum(place);
          if (i < live) {
            out[i * y.row_stride + c * y.col_stride] = round_bf16(src[c * ld + place]);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace gossamer
#endif
