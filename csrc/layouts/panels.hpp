// The panel layout: how the kept entries of W [rows, cols] lie in memory.
//
// --8<-- [start:drawing]
//   A panel is `vector` = V consecutive rows that share one list of kept columns.
//   Columns are cut into blocks of `block_cols` <= 256, so that a column id is one byte and a block
//   of activations stays in the first-level cache.
//
//   W, V = 2, two blocks            entry = one kept column of a panel, V values
//         block 0 | block 1
//   p0    a . b . | . . c d         indices  0 2 | 1 | 2 3 | 0
//         e . f . | . . g h         values   a e b f | i j | c g d h | k l
//   p1    . i . . | k . . .                  block 0       block 1
//         . j . . | l . . .                  p0      p1    p0      p1
//
//   Order: block, panel, entry (column ascending), row in the panel. It is the order in which the
//   kernels stream the weight.
//
//   A pattern of more than 8 rows is a run of panels with equal lists: nothing in memory says so.
//
//   N:M keeps n of every m columns, so each (block, panel) has a count known without looking it up.
//   Otherwise (n = m = 0) indptr [blocks * panels + 1] holds the first entry of each.
// --8<-- [end:drawing]
#pragma once

#include "core/types.hpp"

namespace gossamer {

struct Panels {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t vector = 1;
  std::int64_t block_cols = 256;
  std::int64_t n = 0;
  std::int64_t m = 0;
  const std::uint8_t* indices = nullptr;  // [entries]: column inside its block
  const std::int32_t* indptr = nullptr;   // [blocks * panels + 1], or null for N:M
  // The size of `indices`, set when they are read: `indptr` may lie in the memory of a device.
  std::int64_t entry_count = 0;
  // Consecutive panels that have equal lists, where a driver has looked (products/runs.hpp).
  std::int64_t run = 1;
  // Of a view of some consecutive panels of a weight (a group of a convolution): the first of them,
  // and how many the weight has. `rows` counts the rows of the view.
  std::int64_t first_panel = 0;
  std::int64_t all_panels = 0;

  static constexpr std::int64_t max_block_cols = 256;

  struct Entries {
    std::int64_t begin;
    std::int64_t count;
  };

  constexpr std::int64_t panels() const noexcept { return rows / vector; }
  constexpr std::int64_t stored_panels() const noexcept {
    return all_panels == 0 ? panels() : all_panels;
  }
  constexpr std::int64_t runs() const noexcept { return panels() / run; }
  constexpr std::int64_t blocks() const noexcept { return ceil_div(cols, block_cols); }
  constexpr std::int64_t block_width(std::int64_t block) const noexcept {
    const std::int64_t left = cols - block * block_cols;
    return left < block_cols ? left : block_cols;
  }
  constexpr bool fixed_count() const noexcept { return m != 0; }

  // Where each list of columns lies. Kernels take it before their loops: finding a list is then
  // free of divisions, each of which costs as much as ten entries or more.
  struct Lists {
    const std::int32_t* indptr;
    std::int64_t panels, first_panel;
    std::int64_t full, full_blocks;  // of a fixed count: entries in a whole block, and such blocks
    std::int64_t rest;               // entries in the block behind them

    GOSSAMER_INLINE constexpr Entries of(std::int64_t block, std::int64_t panel) const noexcept {
      if (indptr == nullptr) {
        const std::int64_t count = block < full_blocks ? full : rest;
        return {block * full * panels + (first_panel + panel) * count, count};
      }
      const std::int64_t at = block * panels + first_panel + panel;
      return {indptr[at], indptr[at + 1] - indptr[at]};
    }
  };

  GOSSAMER_INLINE constexpr Lists lists() const noexcept {
    Lists found{fixed_count() ? nullptr : indptr, stored_panels(), first_panel, 0, 0, 0};
    if (fixed_count()) {
      found.full = block_cols / m * n;
      found.full_blocks = cols / block_cols;
      found.rest = cols % block_cols / m * n;
    }
    return found;
  }

  GOSSAMER_INLINE constexpr Entries entries(std::int64_t block, std::int64_t panel) const noexcept {
    return lists().of(block, panel);
  }

  // Of a view without a fixed count: the share of its panels, rounded up.
  constexpr std::int64_t total_entries() const noexcept {
    if (fixed_count()) return cols / m * n * panels();
    return all_panels == 0 ? entry_count : ceil_div(entry_count * panels(), all_panels);
  }
  constexpr std::int64_t nnz() const noexcept { return total_entries() * vector; }
  // Of the whole weight, in whose values the entries of a view lie.
  constexpr std::int64_t stored_nnz() const noexcept {
    return (fixed_count() ? cols / m * n * stored_panels() : entry_count) * vector;
  }

  // The widest block that a byte can index and that holds whole groups of m.
  static constexpr std::int64_t widest_block(std::int64_t m) noexcept {
    return m == 0 ? max_block_cols : max_block_cols / m * m;
  }
};

}  // namespace gossamer
