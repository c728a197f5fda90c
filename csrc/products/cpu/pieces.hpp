// Tiles of the matrix of a convolution, cut into pieces: the pixels of a tile that lie side by side
// in one image row, for one tap at a time. All channels of the tap have the same pieces.
#pragma once

#include "core/types.hpp"
#include "layouts/patches.hpp"

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
  std::int64_t step;  // from a pixel to the next, in elements
};

// Rows [row, row + rows), rows <= most_pieces, as the tap reads them.
inline void cut_rows(const Patches& p, const Patches::Tap& tap, std::int64_t row, std::int64_t rows,
                     Cut& cut) noexcept {
  cut.count = 0;
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

}  // namespace
}  // namespace gossamer
