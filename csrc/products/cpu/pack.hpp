// Packing: activations are row-major (or of any strides) outside and batch-innermost inside, as a
// GEMM packs its operands.
//
//   packed[c * ld + b] = X[first_row + b, first_col + c]      b < width, zero for b >= rows
//
// width is `rows` rounded up to whole registers, so the kernels have no batch remainder.
//
// Where an instruction set multiplies pairs of bf16, activations of bf16 stay bf16 when packed, and
// rows lie in another order (pack_pairs.hpp). The matrix of a convolution: patches.hpp.
#pragma once

#include "products/cpu/pack_pairs.hpp"
#include "products/cpu/patches.hpp"
#include "simd/vec.hpp"

namespace gossamer {
namespace {

template <class T>
GOSSAMER_INLINE const T* at(const Matrix& x, std::int64_t row, std::int64_t col) noexcept {
  return static_cast<const T*>(x.data) + row * x.row_stride + col * x.col_stride;
}

// Activations are packed in the type in which they are multiplied, `packed_lanes` batch rows in a
// register.
template <class T>
struct PackedOf {
  using type = Compute<T>;
  using Register = Vec<type>;
  static constexpr int lanes = Register::lanes;
};
#if GOSSAMER_HAS_PAIRS
template <>
struct PackedOf<bf16> {
  using type = bf16;
  using Register = Pairs;
  static constexpr int lanes = 2 * Register::lanes;
};
#endif
template <class T>
using Packed = typename PackedOf<T>::type;
template <class T>
inline constexpr int packed_lanes = PackedOf<T>::lanes;

// Blocks of columns [first, last).
struct Span {
  std::int64_t first, last;
};

// A part of each panel's list: all of it, or a half, cut at a multiple of `step`.
struct Visit {
  int half = 0;
  int halves = 1;
  std::int64_t step = 1;

  constexpr Panels::Entries of(Panels::Entries all) const noexcept {
    const std::int64_t middle = halves == 1 ? all.count : all.count / 2 / step * step;
    return half == 0 ? Panels::Entries{all.begin, middle}
                     : Panels::Entries{all.begin + middle, all.count - middle};
  }
};

// What the sums of a panel start from: those of the blocks before, or the bias of its rows.
template <class T>
struct Start {
  bool first;     // the first block of columns
  const T* bias;  // of the panel's first row, or null

  Start behind(std::int64_t rows) const noexcept {
    return {first, bias == nullptr ? nullptr : bias + rows};
  }
  GOSSAMER_INLINE Vec<Compute<T>> of_row(int row) const noexcept {
    using R = Vec<Compute<T>>;
    return bias == nullptr ? R::zero() : R::set(widen(bias[row]));
  }
  // One branch for all sums: y [V][ld], N registers of each row.
  template <int V, int N>
  GOSSAMER_INLINE void load(const Compute<T>* y, std::int64_t ld,
                            Vec<Compute<T>> (&sums)[V][N]) const noexcept {
    using R = Vec<Compute<T>>;
    if (first) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const R value = of_row(v);
#pragma GCC unroll 8
        for (int k = 0; k < N; ++k) sums[v][k] = value;
      }
    } else {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
#pragma GCC unroll 8
        for (int k = 0; k < N; ++k) sums[v][k] = R::load(y + v * ld + k * R::lanes);
      }
    }
  }
};

// `lanes` batch rows of consecutive columns, through a register transpose.
template <class T>
GOSSAMER_INLINE void pack_rows(const T* src, std::int64_t row_stride, int rows, std::int64_t cols,
                               Compute<T>* dst, std::int64_t ld) noexcept {
  using V = Vec<Compute<T>>;
  constexpr int lanes = V::lanes;
  V tile[lanes];
  std::int64_t c = 0;
  for (; c + lanes <= cols; c += lanes) {
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
      const T* from = src + i * row_stride + c;
      if (i < rows) prefetch_row(from);
      tile[i] = i < rows ? load_as(from) : V::zero();
    }
    V::transpose(tile);
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) tile[i].store(dst + (c + i) * ld);
  }
  const int left = static_cast<int>(cols - c);
  if (left == 0) return;
  for (int i = 0; i < lanes; ++i) {
    tile[i] = i < rows ? load_as_n(src + i * row_stride + c, left) : V::zero();
  }
  V::transpose(tile);
  for (int i = 0; i < left; ++i) tile[i].store(dst + (c + i) * ld);
}

template <class T>
void pack(const Matrix& x, std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols,
          Compute<T>* packed, std::int64_t ld) noexcept {
  if (x.patches != nullptr) return pack_patches<T>(x, row, rows, col, cols, packed, ld);
  using V = Vec<Compute<T>>;
  constexpr int lanes = V::lanes;
  for (std::int64_t b = 0; b < rows; b += lanes) {
    const int live = static_cast<int>(rows - b < lanes ? rows - b : lanes);
    const T* src = at<T>(x, row + b, col);
    Compute<T>* dst = packed + b;
    if (x.col_stride == 1) {
      if (live == lanes) {
        pack_rows<T>(src, x.row_stride, lanes, cols, dst, ld);
      } else {
        pack_rows<T>(src, x.row_stride, live, cols, dst, ld);
      }
    } else if (x.row_stride == 1) {
      for (std::int64_t c = 0; c < cols; ++c) {
        load_as_n(src + c * x.col_stride, live).store(dst + c * ld);
      }
    } else {
      for (std::int64_t c = 0; c < cols; ++c) {
        for (int i = 0; i < lanes; ++i) {
          dst[c * ld + i] =
              i < live ? widen(src[i * x.row_stride + c * x.col_stride]) : Compute<T>(0);
        }
      }
    }
  }
}

#if GOSSAMER_HAS_PAIRS
template <class T>
void pack(const Matrix& x, std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols,
          bf16* packed, std::int64_t ld) noexcept {
  if (x.patches != nullptr) return pack_patches_pairs(x, row, rows, col, cols, packed, ld);
  pack_pairs(x, row, rows, col, cols, packed, ld);
}
#endif

// The way back: Y[row + b, col + c] = packed[c * ld + b].
template <class T>
void unpack(const Compute<T>* packed, std::int64_t ld, const Matrix& y, std::int64_t row,
            std::int64_t rows, std::int64_t col, std::int64_t cols) noexcept {
  if (y.patches != nullptr) return unpack_patches<T>(packed, ld, y, row, rows, col, cols);
#if GOSSAMER_HAS_PAIRS
  if constexpr (sizeof(T) == sizeof(bf16)) {
    return unpack_pairs(packed, ld, y, row, rows, col, cols);
  }
#endif
  using V = Vec<Compute<T>>;
  constexpr int lanes = V::lanes;
  T* out = static_cast<T*>(y.data) + row * y.row_stride + col * y.col_stride;
  if (y.col_stride != 1) {
    for (std::int64_t c = 0; c < cols; ++c) {
      for (std::int64_t b = 0; b < rows; ++b) {
        narrow(packed[c * ld + b], out[b * y.row_stride + c * y.col_stride]);
      }
    }
    return;
  }
  for (std::int64_t b = 0; b < rows; b += lanes) {
    const int live = static_cast<int>(rows - b < lanes ? rows - b : lanes);
    V tile[lanes];
    std::int64_t c = 0;
    for (; c + lanes <= cols; c += lanes) {
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) tile[i] = V::load(packed + (c + i) * ld + b);
      V::transpose(tile);
      if (live == lanes) {
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) {
          T* to = out + (b + i) * y.row_stride + c;
          prefetch_row(to);
          store_as(to, tile[i]);
        }
      } else {
        for (int i = 0; i < live; ++i) store_as(out + (b + i) * y.row_stride + c, tile[i]);
      }
    }
    const int left = static_cast<int>(cols - c);
    if (left == 0) continue;
    for (int i = 0; i < lanes; ++i) {
      tile[i] = i < left ? V::load(packed + (c + i) * ld + b) : V::zero();
    }
    V::transpose(tile);
    for (int i = 0; i < live; ++i) store_as_n(out + (b + i) * y.row_stride + c, tile[i], left);
  }
}

}  // namespace
}  // namespace gossamer
