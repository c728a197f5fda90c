// Packing the matrix of a convolution (layouts/patches.hpp), and adding or writing it back.
//
//   packed[c * ld + b] = X[first_row + b, first_col + c]      as pack.hpp has it
//
// The rows of a tile are cut into pieces, for one tap at a time: pixels that lie side by side in
// one image row. All channels of the tap have the same pieces. What no piece covers is padding.
// A piece is copied if its pixels are neighbours in memory; where channels are (channels_last), 16
// pixels of 16 channels go through a register transpose.
#pragma once

#include "layouts/patches.hpp"
#include "products/cpu/pack_pairs.hpp"
#include "simd/vec.hpp"

namespace gossamer {
namespace {

struct Piece {
  std::int64_t offset;  // of its first pixel, channel 0
  int at;               // in the tile
  int count;
};

// Rows that are cut at once, which bounds the list of pieces.
inline constexpr int most_pieces = 256;

struct Cut {
  Piece pieces[most_pieces];
  int count = 0;
  std::int64_t pixels = 0;  // in all pieces
  std::int64_t step;        // from a pixel to the next, in elements
};

// Rows [row, row + rows), rows <= most_pieces, as the tap reads them.
inline void cut_rows(const Patches& p, const Patches::Tap& tap, std::int64_t row, std::int64_t rows,
                     Cut& cut) noexcept {
  cut.count = 0;
  cut.pixels = 0;
  cut.step = p.stride[2] * p.strides[2];
  std::int64_t image = row / p.pixels();
  std::int64_t w = row % p.out[2];
  std::int64_t h = row / p.out[2] % p.out[1];
  std::int64_t d = row / p.out[2] / p.out[1] % p.out[0];
  for (std::int64_t b = 0; b < rows;) {
    const std::int64_t run = p.out[2] - w < rows - b ? p.out[2] - w : rows - b;
    const std::int64_t x = d * p.stride[0] + tap.shift[0];
    const std::int64_t y = h * p.stride[1] + tap.shift[1];
    if (x >= 0 && x < p.size[0] && y >= 0 && y < p.size[1]) {
      const std::int64_t from = w * p.stride[2] + tap.shift[2];
      const std::int64_t room = p.size[2] - from;
      const std::int64_t first = from >= 0 ? 0 : ceil_div(-from, p.stride[2]);
      const std::int64_t fit = room <= 0 ? 0 : ceil_div(room, p.stride[2]);
      const std::int64_t last = fit < run ? fit : run;
      if (first < last) {
        cut.pieces[cut.count++] = {image * p.image_stride + x * p.strides[0] + y * p.strides[1] +
                                       (from + first * p.stride[2]) * p.strides[2],
                                   static_cast<int>(b + first), static_cast<int>(last - first)};
        cut.pixels += last - first;
      }
    }
    b += run;
    w = 0;
    if (++h == p.out[1]) {
      h = 0;
      if (++d == p.out[0]) {
        d = 0;
        ++image;
      }
    }
  }
}

// Calls body(c, live, channel, cut, b, rows) for the columns of each tap, and at most most_pieces
// rows at a time.
template <class Body>
GOSSAMER_INLINE void for_each_tap(const Matrix& x, std::int64_t row, std::int64_t rows,
                                  std::int64_t col, std::int64_t cols, Body&& body) noexcept {
  const Patches& p = *x.patches;
  Cut cut;
  for (std::int64_t c = 0; c < cols;) {
    const std::int64_t channel = (col + c) % p.channels;
    const std::int64_t left = p.channels - channel;
    const std::int64_t live = left < cols - c ? left : cols - c;
    const Patches::Tap tap = p.tap((col + c) / p.channels);
    for (std::int64_t b = 0; b < rows; b += most_pieces) {
      const std::int64_t n = rows - b < most_pieces ? rows - b : most_pieces;
      cut_rows(p, tap, row + b, n, cut);
      body(c, live, channel, static_cast<const Cut&>(cut), b, n);
    }
    c += live;
  }
}

// Pixels `step` apart; up to `room` places may be written, and places behind the last are zero.
template <class T>
GOSSAMER_INLINE void copy_pixels(const T* from, std::int64_t step, int count, Compute<T>* to,
                                 std::int64_t room) noexcept {
  using V = Vec<Compute<T>>;
  constexpr int lanes = V::lanes;
  if (step == 1) {
    int i = 0;
    for (; i + lanes <= count; i += lanes) load_as(from + i).store(to + i);
    if (i == count) return;
    const V rest = load_as_n(from + i, count - i);
    i + lanes <= room ? rest.store(to + i) : rest.store_n(to + i, count - i);
  } else if (step == 2) {
    for (int i = 0; i < count; ++i) to[i] = widen(from[2 * i]);
  } else {
    for (int i = 0; i < count; ++i) to[i] = widen(from[i * step]);
  }
}

// Where the pixels of a tile lie: null for padding.
template <class T>
GOSSAMER_INLINE void point_at(const Cut& cut, T* base, std::int64_t rows, T** pixels) noexcept {
  for (std::int64_t i = 0; i < rows; ++i) pixels[i] = nullptr;
  for (int i = 0; i < cut.count; ++i) {
    const Piece& piece = cut.pieces[i];
    for (int k = 0; k < piece.count; ++k) {
      pixels[piece.at + k] = base + piece.offset + k * cut.step;
    }
  }
}

inline bool by_channels(const Patches& p) noexcept {
  return p.channel_stride == 1 && p.stride[2] * p.strides[2] != 1;
}

// `lanes` pixels of consecutive channels, through a register transpose.
template <class T>
GOSSAMER_INLINE void pack_pixels(const T* const* pixels, std::int64_t channels, Compute<T>* dst,
                                 std::int64_t ld) noexcept {
  using V = Vec<Compute<T>>;
  constexpr int lanes = V::lanes;
  V tile[lanes];
  for (std::int64_t c = 0; c < channels; c += lanes) {
    const int live = static_cast<int>(channels - c < lanes ? channels - c : lanes);
    for (int i = 0; i < lanes; ++i) {
      tile[i] = pixels[i] == nullptr ? V::zero()
                : live == lanes      ? load_as(pixels[i] + c)
                                     : load_as_n(pixels[i] + c, live);
    }
    V::transpose(tile);
    for (int i = 0; i < live; ++i) tile[i].store(dst + (c + i) * ld);
  }
}

template <class T>
void pack_patches(const Matrix& x, std::int64_t row, std::int64_t rows, std::int64_t col,
                  std::int64_t cols, Compute<T>* packed, std::int64_t ld) noexcept {
  using C = Compute<T>;
  using V = Vec<C>;
  constexpr int lanes = V::lanes;
  const Patches& p = *x.patches;
  for_each_tap(x, row, rows, col, cols,
               [&](std::int64_t c, std::int64_t live, std::int64_t channel, const Cut& cut,
                   std::int64_t b, std::int64_t n) noexcept {
                 const T* base = static_cast<const T*>(x.data) + channel * p.channel_stride;
                 const std::int64_t width = round_up(n, lanes);
                 C* dst = packed + c * ld + b;
                 if (by_channels(p)) {
                   const T* pixels[most_pieces];
                   point_at<const T>(cut, base, width, pixels);
                   for (std::int64_t i = 0; i < width; i += lanes) {
                     pack_pixels<T>(pixels + i, live, dst + i, ld);
                   }
                   return;
                 }
                 const bool covered = cut.pixels == width;
                 for (std::int64_t k = 0; k < live; ++k, dst += ld, base += p.channel_stride) {
                   if (!covered) {
                     for (std::int64_t i = 0; i < width; i += lanes) V::zero().store(dst + i);
                   }
                   for (int i = 0; i < cut.count; ++i) {
                     const Piece& piece = cut.pieces[i];
                     copy_pixels<T>(base + piece.offset, cut.step, piece.count, dst + piece.at,
                                    width - piece.at);
                   }
                 }
               });
}

// Adds to or writes pixels `step` apart.
template <bool Adds, class O, class C>
GOSSAMER_INLINE void put_pixels(const C* from, int count, O* to, std::int64_t step) noexcept {
  using V = Vec<C>;
  constexpr int lanes = V::lanes;
  if (step == 1) {
    int i = 0;
    for (; i + lanes <= count; i += lanes) {
      const V sum = V::load(from + i);
      store_as(to + i, Adds ? add(load_as(to + i), sum) : sum);
    }
    if (i == count) return;
    const int rest = count - i;
    const V sum = V::load_n(from + i, rest);
    store_as_n(to + i, Adds ? add(load_as_n(to + i, rest), sum) : sum, rest);
  } else {
    for (int i = 0; i < count; ++i) {
      O& place = to[i * step];
      narrow(Adds ? widen(place) + from[i] : from[i], place);
    }
  }
}

template <bool Adds, class O, class C>
GOSSAMER_INLINE void put_channels(const C* packed, std::int64_t ld, std::int64_t channels,
                                  O* const* pixels) noexcept {
  using V = Vec<C>;
  constexpr int lanes = V::lanes;
  V tile[lanes];
  for (std::int64_t c = 0; c < channels; c += lanes) {
    const int live = static_cast<int>(channels - c < lanes ? channels - c : lanes);
    for (int i = 0; i < lanes; ++i) {
      tile[i] = i < live ? V::load(packed + (c + i) * ld) : V::zero();
    }
    V::transpose(tile);
    for (int i = 0; i < lanes; ++i) {
      if (pixels[i] == nullptr) continue;
      O* to = pixels[i] + c;
      if (live == lanes) {
        store_as(to, Adds ? add(load_as(to), tile[i]) : tile[i]);
      } else {
        store_as_n(to, Adds ? add(load_as_n(to, live), tile[i]) : tile[i], live);
      }
    }
  }
}

// Sums of pairs of bf16 lie in the order of row_of_sum (pack_pairs.hpp).
template <class T>
inline constexpr bool in_pairs = GOSSAMER_HAS_PAIRS && sizeof(T) == sizeof(bf16);

template <class T, class O, bool Adds>
void put_patches(const Compute<T>* packed, std::int64_t ld, const Matrix& y, std::int64_t row,
                 std::int64_t rows, std::int64_t col, std::int64_t cols) noexcept {
  using C = Compute<T>;
  constexpr int lanes = Vec<C>::lanes;
  const Patches& p = *y.patches;
  for_each_tap(y, row, rows, col, cols,
               [&](std::int64_t c, std::int64_t live, std::int64_t channel, const Cut& cut,
                   std::int64_t b, std::int64_t n) noexcept {
                 O* base = static_cast<O*>(y.data) + channel * p.channel_stride;
                 const C* from = packed + c * ld + b;
                 if (by_channels(p) && !in_pairs<T>) {
                   O* pixels[most_pieces];
                   const std::int64_t width = round_up(n, lanes);
                   point_at<O>(cut, base, width, pixels);
                   for (std::int64_t i = 0; i < width; i += lanes) {
                     put_channels<Adds>(from + i, ld, live, pixels + i);
                   }
                   return;
                 }
                 for (std::int64_t k = 0; k < live; ++k, from += ld, base += p.channel_stride) {
                   const C* sums = from;
#if GOSSAMER_HAS_PAIRS
                   C line[most_pieces];
                   if constexpr (in_pairs<T>) {
                     for (std::int64_t i = 0; i < round_up(n, 2 * Pairs::lanes); ++i) {
                       line[row_of_sum(static_cast<int>(i))] = from[i];
                     }
                     sums = line;
                   }
#endif
                   for (int i = 0; i < cut.count; ++i) {
                     const Piece& piece = cut.pieces[i];
                     put_pixels<Adds>(sums + piece.at, piece.count, base + piece.offset, cut.step);
                   }
                 }
               });
}

template <class T>
void unpack_patches(const Compute<T>* packed, std::int64_t ld, const Matrix& y, std::int64_t row,
                    std::int64_t rows, std::int64_t col, std::int64_t cols) noexcept {
  if (y.patches->adds) {
    put_patches<T, Compute<T>, true>(packed, ld, y, row, rows, col, cols);
  } else {
    put_patches<T, T, false>(packed, ld, y, row, rows, col, cols);
  }
}

#if GOSSAMER_HAS_PAIRS
inline void pack_patches_pairs(const Matrix& x, std::int64_t row, std::int64_t rows,
                               std::int64_t col, std::int64_t cols, bf16* packed,
                               std::int64_t ld) noexcept {
  constexpr int wide = 2 * Pairs::lanes;
  const Patches& p = *x.patches;
  for_each_tap(x, row, rows, col, cols,
               [&](std::int64_t c, std::int64_t live, std::int64_t channel, const Cut& cut,
                   std::int64_t b, std::int64_t n) noexcept {
                 const bf16* base = static_cast<const bf16*>(x.data) + channel * p.channel_stride;
                 const std::int64_t width = round_up(n, wide);
                 bf16* dst = packed + c * ld + b;
                 bf16 line[most_pieces];
                 for (std::int64_t i = 0; i < width; ++i) line[i] = bf16{0};
                 for (std::int64_t k = 0; k < live; ++k, dst += ld, base += p.channel_stride) {
                   for (int i = 0; i < cut.count; ++i) {
                     const Piece& piece = cut.pieces[i];
                     const bf16* from = base + piece.offset;
                     bf16* to = line + piece.at;
                     if (cut.step == 1) {
                       for (int j = 0; j < piece.count; ++j) to[j] = from[j];
                     } else {
                       for (int j = 0; j < piece.count; ++j) to[j] = from[j * cut.step];
                     }
                   }
                   for (std::int64_t i = 0; i < width; i += wide) {
                     for (int j = 0; j < Pairs::lanes; ++j) {
                       dst[i + 2 * j] = line[i + j];
                       dst[i + 2 * j + 1] = line[i + Pairs::lanes + j];
                     }
                   }
                 }
               });
}
#endif

}  // namespace
}  // namespace gossamer
