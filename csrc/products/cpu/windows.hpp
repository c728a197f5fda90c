// Packing images once for all taps of a convolution (Patches::shared).
//
//   packed[c * ld + q - first] = the pixel of channel c that lies at row q of the grid
//
// The rows of such a matrix are a grid with a gap behind each image row, at least as wide as the
// padding. Zeros lie in the gaps, so a tap reads the same line at a fixed distance:
//
//   X[q, (tap, c)] = packed[c * ld + q + shift(tap) - first]
//
//   3 x 3, padding 1, rows of 4      q     0 1 2 3 4 | 5 6 7 8 9 | ...
//                                    line  a b c d 0   e f g h 0
//                                    tap (0, -1) of q = 5 is the 0 at 4; tap (1, 0) of q = 1 is f
//
// With a stride s, taps read planes of every s-th pixel, which are packed one after the other.
//
// A row in a gap is no output pixel: what is summed there is dropped, and its gradient is zero.
// (Zero times an infinite pixel is NaN: an infinite pixel may make more entries of dW NaN than it
// would in exact arithmetic.) A column has a place instead of a line of its own.
#pragma once

#include "products/cpu/pack.hpp"
#include "products/table.hpp"

namespace gossamer {
namespace {

// Where the column of an id lies in a packed block: at a multiple of ld, or where a table says.
struct Lines {
  static constexpr bool sums_stay = false;
  std::int64_t ld;
  GOSSAMER_INLINE std::int64_t operator()(std::uint8_t id) const noexcept { return id * ld; }
  GOSSAMER_INLINE std::int64_t before(std::int64_t block) const noexcept {
    return block * Panels::max_block_cols * ld;
  }
  GOSSAMER_INLINE Lines of_block(std::int64_t) const noexcept { return *this; }
  // As rows of y, of which the first is that of panel `first`.
  GOSSAMER_INLINE std::int64_t of_panel(std::int64_t panel, std::int64_t first,
                                        int vector) const noexcept {
    return (panel - first) * vector * ld;
  }
};
struct Places {
  static constexpr bool sums_stay = true;  // a row without entries has nothing to write
  const std::int32_t* table;
  GOSSAMER_INLINE std::int64_t operator()(std::uint8_t id) const noexcept { return table[id]; }
  GOSSAMER_INLINE std::int64_t before(std::int64_t) const noexcept { return 0; }
  GOSSAMER_INLINE Places of_block(std::int64_t block) const noexcept {
    return {table + block * Panels::max_block_cols};
  }
  GOSSAMER_INLINE std::int64_t of_panel(std::int64_t panel, std::int64_t, int) const noexcept {
    return table[panel];
  }
};

// Pairs of bf16 rows lie zipped and cannot be read from any row on.
template <class T>
inline constexpr bool has_windows = sizeof(Packed<T>) == sizeof(Compute<T>);

template <class T>
bool is_window(const Matrix& x) noexcept {
  return has_windows<T> && x.patches != nullptr && x.patches->shared;
}

// Rows of the grid that all taps read, but for one.
inline std::int64_t reach_of_taps(const Patches& p) noexcept {
  return p.reading(p.taps() - 1).shift - p.reading(0).shift;
}

struct Window {
  std::int64_t low;   // the smallest shift
  std::int64_t ld;    // of the lines of a tile
  std::int64_t rows;  // of the grid that a tile reads

  std::int64_t plane(const Patches& p) const noexcept { return p.channels * ld; }
  std::int64_t lines(const Patches& p) const noexcept { return p.planes() * plane(p); }
  // For fewer rows of outputs, on the same lines.
  Window of_rows(const Patches& p, std::int64_t outputs) const noexcept {
    return {low, ld, outputs + reach_of_taps(p)};
  }
};

// Of tiles of `tile` rows.
template <class C>
Window window_of(const Patches& p, std::int64_t tile) noexcept {
  constexpr int lanes = Vec<C>::lanes;
  const std::int64_t low = p.reading(0).shift;
  const std::int64_t rows = tile + reach_of_taps(p);
  // A register more, because zeros and rests are stored whole; and an odd number of registers, so
  // that the lines of many channels spread over the sets of the cache.
  const std::int64_t line = ceil_div(rows, lanes) + 1;
  return {low, (line | 1) * lanes, rows};
}

// Rows of a task that packs one window of images for several tiles: what taps read beyond a tile is
// then packed once for all of them. As many as lie well in the second-level cache, but few enough
// that the tasks are many. Sums that lie in the first-level cache stay there: one tile. It must not
// depend on the machine, because the order of sums follows it.
template <class C>
std::int64_t rows_at_once(const Matrix& x, std::int64_t tile) noexcept {
  constexpr std::int64_t near = 256 << 10;
  constexpr std::int64_t tasks = 8;
  const Patches& p = *x.patches;
  const std::int64_t bytes = p.planes() * p.channels * std::int64_t{sizeof(C)};
  constexpr std::int64_t first_level = 32 << 10;
  if (p.adds && window_of<C>(p, tile).lines(p) * std::int64_t{sizeof(C)} <= first_level)
    return tile;
  const std::int64_t fit = (near / bytes - reach_of_taps(p)) / tile;
  const std::int64_t most = x.rows / tile / tasks;
  const std::int64_t tiles = fit < most ? fit : most;
  return (tiles < 1 ? 1 : tiles) * tile;
}

// Places of the columns (tap, channel) of a weight, 256 per block of columns. Ids past the last
// column of a block read what the first reads.
inline void list_places(const Patches& p, const Window& window, std::int64_t cols,
                        std::int64_t block_cols, std::int32_t* places) noexcept {
  const std::int64_t blocks = ceil_div(cols, block_cols);
  std::int64_t tap = 0, channel = 0;
  Patches::Reading reads = p.reading(0);
  for (std::int64_t k = 0; k < blocks; ++k) {
    const std::int64_t left = cols - k * block_cols;
    const std::int64_t width = left < block_cols ? left : block_cols;
    std::int32_t* of_block = places + k * Panels::max_block_cols;
    for (std::int64_t c = 0; c < Panels::max_block_cols; ++c) {
      if (c >= width) {
        of_block[c] = of_block[0];
        continue;
      }
      of_block[c] = static_cast<std::int32_t>(reads.plane * window.plane(p) + channel * window.ld +
                                              reads.shift - window.low);
      if (++channel == p.channels) {
        channel = 0;
        if (++tap < p.taps()) reads = p.reading(tap);
      }
    }
  }
}

// Calls body(plane, matrix) for each plane that a tap reads: its pixels as rows of the grid.
template <class Body>
GOSSAMER_INLINE void for_each_plane(const Matrix& x, std::int64_t bytes, Body&& body) noexcept {
  const Patches& p = *x.patches;
  for (std::int64_t k = 0; k < p.planes(); ++k) {
    bool read = false;
    for (std::int64_t t = 0; t < p.taps(); ++t) read |= p.reading(t).plane == k;
    if (!read) continue;
    Patches plane = p;
    std::int64_t offset = 0, left = k;
    for (int i = 2; i >= 0; --i) {
      const std::int64_t rest = left % p.stride[i];
      left /= p.stride[i];
      offset += rest * p.strides[i];
      plane.kernel[i] = plane.dilation[i] = plane.stride[i] = 1;
      plane.padding[i] = 0;
      plane.size[i] = ceil_div(p.size[i] - rest, p.stride[i]);
      plane.strides[i] *= p.stride[i];
    }
    body(k, Matrix{static_cast<std::byte*>(x.data) + offset * bytes, x.rows, p.channels, 0, 0,
                   &plane});
  }
}

// The rows of the grid in a window that lie in [begin, end).
struct Reach {
  std::int64_t first, count, behind;  // behind: its place in the window
};
inline Reach reach_of(const Window& window, std::int64_t row, std::int64_t begin,
                      std::int64_t end) noexcept {
  const std::int64_t low = row + window.low;
  const std::int64_t high = low + window.rows;
  const std::int64_t first = low < begin ? begin : low;
  const std::int64_t last = high < end ? high : end;
  return {first, last > first ? last - first : 0, first - low};
}

template <class C>
void zero_window(const Patches& p, const Window& window, C* packed) noexcept {
  using R = Vec<C>;
  for (std::int64_t i = 0; i < window.lines(p); i += R::lanes) R::zero().store(packed + i);
}

template <class T>
void pack_window(const Matrix& x, const Window& window, std::int64_t row,
                 Compute<T>* packed) noexcept {
  const Patches& p = *x.patches;
  const Reach reach = reach_of(window, row, 0, x.rows);
  if (reach.count < window.rows) zero_window(p, window, packed);
  for_each_plane(x, sizeof(T), [&](std::int64_t k, const Matrix& pixels) noexcept {
    pack_patches<T>(pixels, reach.first, reach.count, 0, p.channels,
                    packed + k * window.plane(p) + reach.behind, window.ld);
  });
}

// Adds a window of sums to the images of a task, which owns whole images: the others have their
// own.
template <class T>
void unpack_window(const Compute<T>* packed, const Window& window, const Matrix& y,
                   std::int64_t row, const Task& task) noexcept {
  using C = Compute<T>;
  const Patches& p = *y.patches;
  const Reach reach = reach_of(window, row, task.batch0, task.batch1);
  for_each_plane(y, sizeof(C), [&](std::int64_t k, const Matrix& pixels) noexcept {
    put_patches<T, C, true>(packed + k * window.plane(p) + reach.behind, window.ld, pixels,
                            reach.first, reach.count, 0, p.channels);
  });
}

}  // namespace
}  // namespace gossamer
