#include "masks/draw.hpp"

#include <algorithm>
#include <bit>
#include <limits>
#include <string>

#include "core/check.hpp"
#include "masks/stream.hpp"

namespace gossamer {
namespace {

// Writes `count` of the numbers first .. first + width - 1, ascending; uniform over all choices.
// Width <= 64 * W. Numbers are drawn again while they repeat; the fewer of kept and left out are
// drawn, so that at most half of the draws are in vain.
template <int W>
std::uint8_t* choose(Stream& stream, std::int64_t first, std::int64_t width, std::int64_t count,
                     std::uint8_t* out) noexcept {
  std::uint64_t bits[W] = {};
  const bool inverted = count > width - count;
  for (std::int64_t left = inverted ? width - count : count; left > 0;) {
    const std::uint64_t at = stream.below(static_cast<std::uint64_t>(width));
    const std::uint64_t bit = std::uint64_t{1} << at % 64;
    if ((bits[at / 64] & bit) != 0) continue;
    bits[at / 64] |= bit;
    --left;
  }
  for (std::int64_t word = 0; word < W && word * 64 < width; ++word) {
    const std::int64_t used = std::min<std::int64_t>(width - word * 64, 64);
    std::uint64_t kept = bits[word];
    if (inverted) kept = ~kept & (~std::uint64_t{0} >> (64 - used));
    for (; kept != 0; kept &= kept - 1) {
      *out++ = static_cast<std::uint8_t>(first + word * 64 + std::countr_zero(kept));
    }
  }
  return out;
}

}  // namespace

Encoded draw_groups(std::int64_t rows, std::int64_t cols, std::int64_t vector, std::int64_t n,
                    std::int64_t m, std::uint64_t seed) {
  Encoded out;
  Panels& w = out.layout;
  w = {rows, cols, vector, Panels::widest_block(m), n, m, nullptr, nullptr};
  check_layout(w);
  require<ArgumentError>(w.fixed_count(), "got 0:0; n of m columns are drawn: 1 <= n <= m");
  require_few_entries(w.total_entries(), vector);
  w.entry_count = w.total_entries();
  out.indices.resize(static_cast<std::size_t>(w.entry_count));
  for_each_cell(w, seed, [&](std::int64_t k, std::int64_t p, Stream stream) noexcept {
    std::uint8_t* ids = out.indices.data() + w.entries(k, p).begin;
    for (std::int64_t first = 0; first < w.block_width(k); first += m) {
      ids = choose<1>(stream, first, m, n, ids);
    }
  });
  return out;
}

Encoded draw_entries(std::int64_t rows, std::int64_t cols, std::int64_t vector,
                     std::int64_t entries, std::uint64_t seed) {
  Encoded out;
  Panels& w = out.layout;
  w = {rows, cols, vector, Panels::max_block_cols, 0, 0, nullptr, nullptr};
  check_layout(w);
  const std::int64_t slots = w.panels() * cols;
  require<ArgumentError>(0 <= entries && entries <= slots,
                         "got " + std::to_string(entries) + " entries to draw; 0 to " +
                             std::to_string(slots) + " are possible");
  require_few_entries(entries, vector);
  w.entry_count = entries;
  const std::int64_t cells = w.blocks() * w.panels();
  out.indptr.assign(static_cast<std::size_t>(cells) + 1, 0);
  std::int32_t* counts = out.indptr.data() + 1;
  // The fewer of kept and left out entries are dealt.
  const bool inverted = entries > slots - entries;
  deal(w, inverted ? slots - entries : entries, seed, counts);
  for (std::int64_t cell = 0, before = 0; cell < cells; ++cell) {
    const auto width = static_cast<std::int32_t>(w.block_width(cell / w.panels()));
    before += inverted ? width - counts[cell] : counts[cell];
    counts[cell] = static_cast<std::int32_t>(before);
  }
  out.indices.resize(static_cast<std::size_t>(entries));
  for_each_cell(w, seed, [&](std::int64_t k, std::int64_t p, Stream stream) noexcept {
    const std::int32_t* at = out.indptr.data() + k * w.panels() + p;
    choose<Panels::max_block_cols / 64>(stream, 0, w.block_width(k), at[1] - at[0],
                                        out.indices.data() + at[0]);
  });
  return out;
}

Encoded draw_tiles(std::int64_t rows, std::int64_t cols, std::int64_t vector, std::int64_t high,
                   std::int64_t wide, std::int64_t tiles, std::uint64_t seed) {
  require<ShapeError>(high > 0 && wide > 0 && rows % high == 0 && cols % wide == 0,
                      "tiles of " + std::to_string(high) + " x " + std::to_string(wide) +
                          " do not divide " + std::to_string(rows) + " x " + std::to_string(cols));
  // Tiles are the entries of a smaller matrix.
  const Encoded drawn = draw_entries(rows / high, cols / wide, 1, tiles, seed);
  Panels grid = drawn.layout;
  grid.indices = drawn.indices.data();
  grid.indptr = drawn.indptr.data();
  return spread_tiles(grid, vector, high, wide);
}

Encoded spread_tiles(const Panels& grid, std::int64_t vector, std::int64_t high,
                     std::int64_t wide) {
  require<ArgumentError>(
      grid.vector == 1 && high > 0 && wide > 0,
      "tiles of at least one row and column, and a grid of vector 1, are needed");
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  require<ShapeError>(grid.rows <= most / high && grid.cols <= most / wide,
                      "rows and columns must be below 2^31: split the layer");
  const std::int64_t tiles = grid.total_entries();
  Encoded out;
  Panels& w = out.layout;
  w = {grid.rows * high, grid.cols * wide, vector, Panels::max_block_cols, 0, 0, nullptr, nullptr};
  check_layout(w);
  require<ArgumentError>(high % vector == 0, "vector must divide the height of a tile");
  const std::int64_t panels = high / vector;
  require_few_entries(tiles, high * wide);
  w.entry_count = tiles * panels * wide;

  // f(row of tiles, column) for each column that a row of tiles keeps, ascending.
  const auto for_each_column = [&](auto&& f) {
    for (std::int64_t row = 0; row < grid.rows; ++row) {
      for (std::int64_t k = 0; k < grid.blocks(); ++k) {
        const auto [begin, count] = grid.entries(k, row);
        for (std::int64_t i = begin; i < begin + count; ++i) {
          const std::int64_t first = (k * grid.block_cols + grid.indices[i]) * wide;
          for (std::int64_t col = first; col < first + wide; ++col) f(row, col);
        }
      }
    }
  };
  // The panels of a row of tiles keep the same columns.
  const auto cell = [&](std::int64_t row, std::int64_t col) {
    return static_cast<std::size_t>(col / w.block_cols * w.panels() + row * panels);
  };
  out.indptr.assign(static_cast<std::size_t>(w.blocks() * w.panels()) + 1, 0);
  for_each_column([&](std::int64_t row, std::int64_t col) {
    for (std::int64_t p = 0; p < panels; ++p) {
      ++out.indptr[cell(row, col) + static_cast<std::size_t>(p) + 1];
    }
  });
  for (std::size_t i = 1; i < out.indptr.size(); ++i) out.indptr[i] += out.indptr[i - 1];
  out.indices.resize(static_cast<std::size_t>(w.entry_count));
  std::vector<std::int32_t> next(out.indptr.begin(), out.indptr.end() - 1);
  for_each_column([&](std::int64_t row, std::int64_t col) {
    for (std::int64_t p = 0; p < panels; ++p) {
      const std::int32_t at = next[cell(row, col) + static_cast<std::size_t>(p)]++;
      out.indices[static_cast<std::size_t>(at)] = static_cast<std::uint8_t>(col % w.block_cols);
    }
  });
  return out;
}

}  // namespace gossamer
