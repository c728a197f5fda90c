// Packing the matrix of a convolution (layouts/patches.hpp), and adding or writing it back.
//
//   packed[c * ld + b] = X[first_row + b, first_col + c]      as pack.hpp has it
//
// A tile is cut into pieces (pieces.hpp); what no piece covers is padding. A piece is copied if its
// pixels are neighbours in memory; where channels are (channels_last), a register of pixels of as
// many channels goes through a transpose.
#pragma once

#include "products/cpu/pack_pairs.hpp"
#include "products/cpu/pieces.hpp"
#include "simd/vec.hpp"

namespace gossamer {
namespace {

// One piece of all channels, N whole registers and a rest of `rest` pixels. Where Spill, the rest
// is stored as a whole register, zeros behind it: the next piece, or padding, begins there.
template <class T, int N, bool Spill>
GOSSAMER_INLINE void copy_registers(const T* from, std::int64_t channel_stride,
                                    std::int64_t channels, int rest, Compute<T>* to,
                                    std::int64_t ld) noexcept {
  using V = Vec<Compute<T>>;
  constexpr int lanes = V::lanes;
  for (std::int64_t c = 0; c < channels; ++c, from += channel_stride, to += ld) {
#pragma GCC unroll 4
    for (int k = 0; k < N; ++k) load_as(from + k * lanes).store(to + k * lanes);
    if (rest == 0) continue;
    const V last = load_as_n(from + N * lanes, rest);
    Spill ? last.store(to + N * lanes) : last.store_n(to + N * lanes, rest);
  }
}

template <class T, int N>
void copy_rest(const T* from, std::int64_t channel_stride, std::int64_t channels, int rest,
               bool spill, Compute<T>* to, std::int64_t ld) noexcept {
  if (spill) {
    copy_registers<T, N, true>(from, channel_stride, channels, rest, to, ld);
  } else {
    copy_registers<T, N, false>(from, channel_stride, channels, rest, to, ld);
  }
}

// Pixels that lie side by side in memory. Channels are the inner loop, so that what depends on the
// piece is worked out once.
template <class T>
void copy_rows(const T* from, std::int64_t channel_stride, std::int64_t channels, int count,
               bool spill, Compute<T>* to, std::int64_t ld) noexcept {
  constexpr int lanes = Vec<Compute<T>>::lanes;
  for (; count > 4 * lanes; count -= 4 * lanes, from += 4 * lanes, to += 4 * lanes) {
    copy_registers<T, 4, false>(from, channel_stride, channels, 0, to, ld);
  }
  const int rest = count % lanes;
  switch (count / lanes) {
    case 0: return copy_rest<T, 0>(from, channel_stride, channels, rest, spill, to, ld);
    case 1: return copy_rest<T, 1>(from, channel_stride, channels, rest, spill, to, ld);
    case 2: return copy_rest<T, 2>(from, channel_stride, channels, rest, spill, to, ld);
    case 3: return copy_rest<T, 3>(from, channel_stride, channels, rest, spill, to, ld);
    default: return copy_rest<T, 4>(from, channel_stride, channels, rest, spill, to, ld);
  }
}

// Whether pixels `step` apart are copied by registers.
template <class T>
constexpr bool by_registers(std::int64_t step) noexcept {
  return step == 1 || (step == 2 && sizeof(T) == sizeof(Compute<T>));
}

// Every second pixel; `spill` as for copy_rows.
template <class T>
void copy_even(const T* from, std::int64_t channel_stride, std::int64_t channels, int count,
               bool spill, T* to, std::int64_t ld) noexcept {
  using V = Vec<T>;
  constexpr int lanes = V::lanes;
  for (; count > 0; count -= lanes, from += 2 * lanes, to += lanes) {
    const int n = count < lanes ? count : lanes;
    for (std::int64_t c = 0; c < channels; ++c) {
      const V pixels = V::load_even(from + c * channel_stride, n);
      spill ? pixels.store(to + c * ld) : pixels.store_n(to + c * ld, n);
    }
  }
}

// Pixels `step` apart.
template <class T>
void copy_spaced(const T* from, std::int64_t step, std::int64_t channel_stride,
                 std::int64_t channels, int count, bool spill, Compute<T>* to,
                 std::int64_t ld) noexcept {
  if constexpr (by_registers<T>(2)) {
    if (step == 2) return copy_even<T>(from, channel_stride, channels, count, spill, to, ld);
  }
  for (std::int64_t c = 0; c < channels; ++c, from += channel_stride, to += ld) {
    if (step == 2) {
      for (int i = 0; i < count; ++i) to[i] = widen(from[2 * i]);
    } else {
      for (int i = 0; i < count; ++i) to[i] = widen(from[i * step]);
    }
  }
}

// Zeros in the places [begin, end) of all channels, and around them within [0, width).
template <class C>
void zero_places(std::int64_t begin, std::int64_t end, std::int64_t width, std::int64_t channels,
                 C* to, std::int64_t ld) noexcept {
  using V = Vec<C>;
  constexpr int lanes = V::lanes;
  for (std::int64_t c = 0; c < channels; ++c, to += ld) {
    for (std::int64_t i = begin; i < end; i += lanes) {
      V::zero().store(to + (i + lanes <= width ? i : width - lanes));
    }
  }
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
                 // What lies between the pieces is padding. Zeros come first.
                 const auto reach = [&](const Piece& piece) noexcept {
                   const std::int64_t whole = piece.at + round_up(piece.count, lanes);
                   const bool spills = by_registers<T>(cut.step) && whole <= width;
                   return spills ? whole : std::int64_t{piece.at} + piece.count;
                 };
                 std::int64_t done = 0;
                 for (int i = 0; i < cut.count; ++i) {
                   const Piece& piece = cut.pieces[i];
                   if (piece.at > done) zero_places(done, piece.at, width, live, dst, ld);
                   done = reach(piece);
                 }
                 if (done < width) zero_places(done, width, width, live, dst, ld);
                 for (int i = 0; i < cut.count; ++i) {
                   const Piece& piece = cut.pieces[i];
                   const T* from = base + piece.offset;
                   C* to = dst + piece.at;
                   const bool spill = piece.at + round_up(piece.count, lanes) <= width;
                   if (cut.step == 1) {
                     copy_rows<T>(from, p.channel_stride, live, piece.count, spill, to, ld);
                   } else {
                     copy_spaced<T>(from, cut.step, p.channel_stride, live, piece.count, spill, to,
                                    ld);
                   }
                 }
               });
}

// Adds or writes pixels that lie side by side in memory, N whole registers and a rest.
template <bool Adds, int N, class O, class C>
GOSSAMER_INLINE void put_registers(const C* from, std::int64_t ld, int rest, std::int64_t channels,
                                   O* to, std::int64_t channel_stride) noexcept {
  using V = Vec<C>;
  constexpr int lanes = V::lanes;
  for (std::int64_t c = 0; c < channels; ++c, from += ld, to += channel_stride) {
#pragma GCC unroll 4
    for (int k = 0; k < N; ++k) {
      const V sum = V::load(from + k * lanes);
      store_as(to + k * lanes, Adds ? add(load_as(to + k * lanes), sum) : sum);
    }
    if (rest == 0) continue;
    const V sum = V::load_n(from + N * lanes, rest);
    O* last = to + N * lanes;
    store_as_n(last, Adds ? add(load_as_n(last, rest), sum) : sum, rest);
  }
}

template <bool Adds, class O, class C>
void put_rows(const C* from, std::int64_t ld, int count, std::int64_t channels, O* to,
              std::int64_t channel_stride) noexcept {
  constexpr int lanes = Vec<C>::lanes;
  for (; count > 4 * lanes; count -= 4 * lanes, from += 4 * lanes, to += 4 * lanes) {
    put_registers<Adds, 4>(from, ld, 0, channels, to, channel_stride);
  }
  const int rest = count % lanes;
  switch (count / lanes) {
    case 0: return put_registers<Adds, 0>(from, ld, rest, channels, to, channel_stride);
    case 1: return put_registers<Adds, 1>(from, ld, rest, channels, to, channel_stride);
    case 2: return put_registers<Adds, 2>(from, ld, rest, channels, to, channel_stride);
    case 3: return put_registers<Adds, 3>(from, ld, rest, channels, to, channel_stride);
    default: return put_registers<Adds, 4>(from, ld, rest, channels, to, channel_stride);
  }
}

// The same of pixels `step` apart.
template <bool Adds, class O, class C>
void put_spaced(const C* from, std::int64_t ld, int count, std::int64_t channels, O* to,
                std::int64_t step, std::int64_t channel_stride) noexcept {
  if constexpr (sizeof(O) == sizeof(C)) {
    using V = Vec<C>;
    constexpr int lanes = V::lanes;
    for (; step == 2 && count > 0; count -= lanes, from += lanes, to += 2 * lanes) {
      const int n = count < lanes ? count : lanes;
      for (std::int64_t c = 0; c < channels; ++c) {
        const V sum = V::load_n(from + c * ld, n);
        O* place = to + c * channel_stride;
        (Adds ? add(V::load_even(place, n), sum) : sum).store_even(place, n);
      }
    }
    if (step == 2) return;
  }
  for (std::int64_t c = 0; c < channels; ++c, from += ld, to += channel_stride) {
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
                 if (by_channels(p)) {
                   O* pixels[most_pieces];
                   const std::int64_t width = round_up(n, lanes);
                   point_at<O>(cut, base, width, pixels);
                   for (std::int64_t i = 0; i < width; i += lanes) {
                     put_channels<Adds>(from + i, ld, live, pixels + i);
                   }
                   return;
                 }
                 const auto put = [&](const C* sums, std::int64_t channels, O* to) noexcept {
                   for (int i = 0; i < cut.count; ++i) {
                     const Piece& piece = cut.pieces[i];
                     if (cut.step == 1) {
                       put_rows<Adds>(sums + piece.at, ld, piece.count, channels, to + piece.offset,
                                      p.channel_stride);
                     } else {
                       put_spaced<Adds>(sums + piece.at, ld, piece.count, channels,
                                        to + piece.offset, cut.step, p.channel_stride);
                     }
                   }
                 };
                 put(from, live, base);
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
// Where four rows lie, so that their sums lie in the order of rows: products zip two registers by
// fours (pack_pairs.hpp), and here nothing asks for the order that a transposition leaves.
constexpr std::int64_t place_of_four(std::int64_t row) noexcept {
  constexpr std::int64_t lanes = Pairs::lanes;
  return row / (2 * lanes) * 2 * lanes + row % lanes / 4 * 8 + row / lanes % 2 * 4;
}

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
                   for (std::int64_t i = 0; i < width; i += 4) {
                     __builtin_memcpy(dst + place_of_four(i), line + i, 4 * sizeof(bf16));
                   }
                 }
               });
}
#endif

}  // namespace
}  // namespace gossamer
