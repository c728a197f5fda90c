// The matrix of a convolution, read from images as they lie: it is never written down.
//
// --8<-- [start:drawing]
//   row = (image, od, oh, ow)      an output pixel
//   col = (kd, kh, kw, channel)    a tap and a channel; channels are innermost, so that groups of
//                                  N:M run along them
//   X[row, col] = x[image, channel, od sd + kd dd - pd, oh sh + kh dh - ph, ow sw + kw dw - pw]
//                 zero outside of the image           s stride, d dilation, p padding in front
//
//   3 x 3, one channel, padding 1      image          row of output pixel (0, 1)
//                                      a b c          (kh, kw) = 00 01 02 10 11 12 20 21 22
//                                      d e f                      0  0  0  a  b  c  d  e  f
//
//   For one column, the pixels of an output row are a run of an image row: with stride 1, and
//   images that lie by channels, packing a column copies such runs and transposes nothing.
// --8<-- [end:drawing]
//
// The output of a convolution is such a matrix too, of 1 x 1 taps.
#pragma once

#include "core/types.hpp"

namespace gossamer {

struct Patches {
  std::int64_t channels = 0;
  // Depth, height, width.
  std::int64_t kernel[3] = {1, 1, 1};
  std::int64_t stride[3] = {1, 1, 1};
  std::int64_t dilation[3] = {1, 1, 1};
  std::int64_t padding[3] = {0, 0, 0};
  std::int64_t size[3] = {1, 1, 1};  // of an image
  std::int64_t out[3] = {1, 1, 1};   // of an output
  // In elements.
  std::int64_t image_stride = 0;
  std::int64_t channel_stride = 0;
  std::int64_t strides[3] = {0, 0, 0};
  // Written, a matrix adds to the images: a pixel is in several rows. They are of the type in which
  // products are summed.
  bool adds = false;
  // Rows are a grid: `out` is larger than the output, with gaps that no tap of an output pixel
  // crosses, so that a tap is a fixed distance of rows (products/cpu/windows.hpp).
  bool shared = false;

  constexpr std::int64_t pixels() const noexcept { return out[0] * out[1] * out[2]; }
  constexpr std::int64_t taps() const noexcept { return kernel[0] * kernel[1] * kernel[2]; }

  struct Tap {
    std::int64_t shift[3];  // of the pixel that it reads from output pixel (0, 0, 0)
  };
  GOSSAMER_INLINE constexpr Tap tap(std::int64_t index) const noexcept {
    const std::int64_t k[3] = {index / kernel[2] / kernel[1], index / kernel[2] % kernel[1],
                               index % kernel[2]};
    return {{k[0] * dilation[0] - padding[0], k[1] * dilation[1] - padding[1],
             k[2] * dilation[2] - padding[2]}};
  }

  // Where `shared`: with a stride s, a tap reads every s-th pixel, one of s planes for each
  // dimension. Its plane, and the rows of the grid from an output pixel to what it reads there.
  struct Reading {
    std::int64_t plane, shift;
  };
  GOSSAMER_INLINE constexpr Reading reading(std::int64_t index) const noexcept {
    const Tap t = tap(index);
    Reading found{0, 0};
    for (int i = 0; i < 3; ++i) {
      const std::int64_t s = stride[i];
      const std::int64_t rest = (t.shift[i] % s + s) % s;
      found.plane = found.plane * s + rest;
      found.shift = found.shift * out[i] + (t.shift[i] - rest) / s;
    }
    return found;
  }
  constexpr std::int64_t planes() const noexcept { return stride[0] * stride[1] * stride[2]; }

  // Where X[row, col] lies, in elements from the first; -1 outside of the images.
  constexpr std::int64_t at(std::int64_t row, std::int64_t col) const noexcept {
    const Tap t = tap(col / channels);
    std::int64_t offset = row / pixels() * image_stride + col % channels * channel_stride;
    std::int64_t rest = row % pixels();
    for (int i = 2; i >= 0; --i) {
      const std::int64_t place = rest % out[i] * stride[i] + t.shift[i];
      if (place < 0 || place >= size[i]) return -1;
      offset += place * strides[i];
      rest /= out[i];
    }
    return offset;
  }
};

}  // namespace gossamer
