#include "products/structure.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "core/check.hpp"
#include "core/parallel.hpp"
#include "products/table.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t max_entries = std::numeric_limits<std::int32_t>::max();

std::string str(std::int64_t x) { return std::to_string(x); }

std::string place(const Panels& w, std::int64_t block, std::int64_t panel) {
  return "rows " + str(panel * w.vector) + ".." + str((panel + 1) * w.vector - 1) + ", columns " +
         str(block * w.block_cols) + ".." + str(block * w.block_cols + w.block_width(block) - 1);
}

// f(entry, row of the panel's first value, column) in memory order.
template <class F>
void for_each_entry(const Panels& w, F&& f) {
  for (std::int64_t k = 0; k < w.blocks(); ++k) {
    for (std::int64_t p = 0; p < w.panels(); ++p) {
      const auto [begin, count] = w.entries(k, p);
      for (std::int64_t e = begin; e < begin + count; ++e) {
        f(e, p * w.vector, k * w.block_cols + w.indices[e]);
      }
    }
  }
}

// f(place among the values, place in the dense matrix, itemsize) in memory order, with vector and
// itemsize as constants: a copy of unknown size is a call.
template <class F>
void for_each_place(const Panels& w, std::size_t itemsize, F&& f) {
  const auto sized = [&](auto size) {
    const auto high = [&](auto vector) {
      for_each_entry(w, [&](std::int64_t e, std::int64_t row, std::int64_t col) {
        for (std::int64_t v = 0; v < vector; ++v) f(e * vector + v, (row + v) * w.cols + col, size);
      });
    };
    if (w.vector == 1) return high(std::integral_constant<std::int64_t, 1>{});
    if (w.vector == 4) return high(std::integral_constant<std::int64_t, 4>{});
    high(std::integral_constant<std::int64_t, 8>{});
  };
  if (itemsize == 2) return sized(std::integral_constant<std::int64_t, 2>{});
  if (itemsize == 4) return sized(std::integral_constant<std::int64_t, 4>{});
  sized(std::integral_constant<std::int64_t, 8>{});
}

}  // namespace

void check_layout(const Panels& w) {
  const auto given = [&] {
    return "a layout of " + str(w.rows) + " x " + str(w.cols) + ", vector " + str(w.vector) +
           ", blocks of " + str(w.block_cols) + ", " + str(w.n) + ":" + str(w.m);
  };
  require<ShapeError>(w.rows >= 0 && w.cols >= 0,
                      "got " + given() + "; sizes must not be negative");
  require<ShapeError>(w.rows <= max_entries && w.cols <= max_entries,
                      "got " + given() + "; rows and columns must be below 2^31: split the layer");
  require<ArgumentError>(vector_index(w.vector) >= 0,
                         "got " + given() + "; vector must be 1, 4 or 8");
  require<ShapeError>(w.rows % w.vector == 0, "got " + given() + "; rows must be a multiple of " +
                                                  str(w.vector) + ": pad them or use vector 1");
  require<ArgumentError>((w.n == 0 && w.m == 0) || (1 <= w.n && w.n <= w.m && w.m <= 64),
                         "got " + given() + "; N:M needs 1 <= n <= m <= 64 (or 0:0 for pointers)");
  require<ShapeError>(w.m == 0 || w.cols % w.m == 0,
                      "got " + given() + "; columns must be a multiple of m = " + str(w.m));
  require<ShapeError>(
      w.block_cols == Panels::widest_block(w.m),
      "got " + given() + "; blocks must have " + str(Panels::widest_block(w.m)) + " columns");
}

void require_few_entries(std::int64_t entries, std::int64_t vector) {
  if (entries > max_entries / vector) {
    throw ShapeError("the weight keeps 2^31 entries or more; split the layer");
  }
}

namespace {

void check_indptr(const Panels& w) {
  const std::int64_t entries = w.entry_count;
  // Texts are made when something is wrong: this runs at every call.
  if (w.fixed_count()) {
    if (entries == w.total_entries()) return;
    throw StructureError("indices has " + str(entries) + " entries; " + str(w.n) + ":" + str(w.m) +
                         " on " + str(w.rows) + " x " + str(w.cols) + " needs " +
                         str(w.total_entries()) + ": build the weight again from a mask");
  }
  const std::int64_t last = w.blocks() * w.panels();
  bool rises = w.indptr[0] == 0 && w.indptr[last] == entries;
  for (std::int64_t i = 0; i < last; ++i) rises &= w.indptr[i] <= w.indptr[i + 1];
  if (rises) return;
  throw StructureError("indptr does not rise from 0 to the number of entries (" + str(entries) +
                       "): it was changed or damaged; load or build the weight again");
}

// Ids of [begin, end) are below `width`. A byte is below 256 anyway.
void check_ids(const Panels& w, std::int64_t begin, std::int64_t end, std::int64_t width) {
  if (width >= Panels::max_block_cols) return;
  std::uint8_t most = 0;
  for (std::int64_t e = begin; e < end; ++e) most = std::max(most, w.indices[e]);
  if (begin >= end || most < width) return;
  throw StructureError("index " + str(most) + " is out of range; column ids of a block of " +
                       str(width) + " columns are below " + str(width) +
                       ": it was changed or damaged; load or build the weight again");
}

}  // namespace

void check_bounds(const Panels& w) {
  check_indptr(w);
  if (w.blocks() == 0 || w.panels() == 0) return;
  const std::int64_t last = w.entries(w.blocks() - 1, 0).begin;
  check_ids(w, 0, last, w.block_cols);
  check_ids(w, last, w.entry_count, w.block_width(w.blocks() - 1));
}

namespace {

// Whether ids are sound, without saying which is not: this guards every call, and plain loops over
// bytes take a fraction of the time of a search.
bool is_sound(const Panels& w) noexcept {
  const std::uint8_t* const ids = w.indices;
  // Ids rise inside a cell if only the first of a cell does not exceed the one before it.
  std::int32_t falls = 0, allowed = 0;
  for (std::int64_t i = 1; i < w.entry_count; ++i) falls += ids[i] <= ids[i - 1];
  // N:M: entry i of a cell is in the group that begins at column low[i].
  std::uint8_t low[Panels::max_block_cols] = {};
  for (std::int64_t i = 0; w.fixed_count() && i < w.block_cols / w.m * w.n; ++i) {
    low[i] = static_cast<std::uint8_t>(i / w.n * w.m);
  }
  const std::uint8_t height = static_cast<std::uint8_t>(w.m);
  std::uint8_t outside = 0;
  for (std::int64_t k = 0; k < w.blocks(); ++k) {
    const std::int64_t width = w.block_width(k);
    for (std::int64_t p = 0; p < w.panels(); ++p) {
      const auto [begin, count] = w.entries(k, p);
      if (count == 0) continue;
      allowed += begin > 0 && ids[begin] <= ids[begin - 1];
      if (w.fixed_count()) {
        for (std::int64_t i = 0; i < count; ++i) {
          outside |= static_cast<std::uint8_t>(ids[begin + i] - low[i]) >= height;
        }
      } else {
        outside |= ids[begin + count - 1] >= width;
      }
    }
  }
  return falls == allowed && outside == 0;
}

// Throws what is wrong with an entry of `check_structure`.
void refuse_entry(const Panels& w, std::int64_t k, std::int64_t p, int id, int previous) {
  const std::int64_t width = w.block_width(k);
  require<StructureError>(id < width, "index " + str(id) + " in " + place(w, k, p) +
                                          " is out of range; column ids there are below " +
                                          str(width));
  require<StructureError>(
      id > previous,
      "indices in " + place(w, k, p) + " do not rise; they must be sorted and without repeats");
  require<StructureError>(false, "a group of " + str(w.m) + " in " + place(w, k, p) +
                                     " does not keep " + str(w.n) + " entries");
}

}  // namespace

void check_structure(const Panels& w) {
  check_bounds(w);
  if (is_sound(w)) return;
  for (std::int64_t k = 0; k < w.blocks(); ++k) {
    for (std::int64_t p = 0; p < w.panels(); ++p) {
      const auto [begin, count] = w.entries(k, p);
      int previous = -1;
      // Of N:M the columns of a group are in [first, last); without groups, all of the block.
      std::int64_t first = 0, last = w.fixed_count() ? 0 : w.block_width(k), left = 0;
      for (std::int64_t i = 0; i < count; ++i) {
        const int id = w.indices[begin + i];
        if (w.fixed_count() && left-- == 0) {
          first = last;
          last += w.m;
          left = w.n - 1;
        }
        if (id <= previous || id < first || id >= last) refuse_entry(w, k, p, id, previous);
        previous = id;
      }
    }
  }
}

void check_tiles(const Panels& w, std::int64_t rows, std::int64_t cols) {
  require<ArgumentError>(rows > 0 && cols > 0 && rows % w.vector == 0 && w.rows % rows == 0,
                         "tiles of " + str(rows) + " x " + str(cols) + " do not fit " +
                             str(w.rows) + " rows in panels of " + str(w.vector));
  const auto refuse = [&](std::int64_t panel, std::int64_t col, const std::string& which = "") {
    const std::int64_t top = panel * w.vector / rows * rows;
    throw StructureError("a part of the " + str(rows) + "x" + str(cols) + " tile at [" + str(top) +
                         ", " + str(col / cols * cols) + "] is kept" + which +
                         "; a tile is kept or dropped as one");
  };
  const auto at = [&](std::int64_t panel, std::int64_t col) {
    return "[" + str(panel * w.vector) + ", " + str(col) + "]";
  };
  const std::int64_t high = rows / w.vector;  // panels of a tile
  for (std::int64_t p = 0; p < w.panels(); ++p) {
    std::int64_t kept = 0, last = 0;
    for (std::int64_t k = 0; k < w.blocks(); ++k) {
      const auto [begin, count] = w.entries(k, p);
      const auto [top, same] = w.entries(k, p - p % high);
      for (std::int64_t i = 0; i < count || i < same; ++i) {
        if (i >= count || i >= same || w.indices[begin + i] != w.indices[top + i]) {
          // The lesser of the two columns is in one of the panels only.
          const int mine = i < count ? w.indices[begin + i] : Panels::max_block_cols;
          const int theirs = i < same ? w.indices[top + i] : Panels::max_block_cols;
          const std::int64_t col = k * w.block_cols + (mine < theirs ? mine : theirs);
          const std::string here = at(p, col), there = at(p - p % high, col);
          refuse(p, col,
                 mine < theirs ? ", " + here + " and not " + there
                               : ", " + there + " and not " + here);
        }
        const std::int64_t col = k * w.block_cols + w.indices[begin + i];
        if (kept % cols == 0 ? col % cols != 0 : col != last + 1) {
          refuse(p, kept % cols == 0 ? col : last);
        }
        last = col;
        ++kept;
      }
    }
    if (kept % cols != 0) refuse(p, last);
  }
}

Encoded encode(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols, std::int64_t vector,
               std::int64_t n, std::int64_t m) {
  Encoded out;
  Panels& w = out.layout;
  w = {rows, cols, vector, Panels::widest_block(m), n, m, nullptr, nullptr};
  check_layout(w);
  if (!w.fixed_count()) out.indptr.push_back(0);
  for (std::int64_t k = 0; k < w.blocks(); ++k) {
    const std::int64_t first = k * w.block_cols;
    for (std::int64_t p = 0; p < w.panels(); ++p) {
      const std::uint8_t* top = mask + p * vector * cols + first;
      std::int64_t kept_in_group = 0;
      for (std::int64_t c = 0; c < w.block_width(k); ++c) {
        const bool kept = top[c] != 0;
        for (std::int64_t v = 1; v < vector; ++v) {
          if ((top[v * cols + c] != 0) == kept) continue;
          require<StructureError>(false, "mask differs inside a panel at row " +
                                             str(p * vector + v) + ", column " + str(first + c) +
                                             "; the " + str(vector) +
                                             " rows of a panel share one list of columns");
        }
        if (kept) out.indices.push_back(static_cast<std::uint8_t>(c));
        if (m == 0) continue;
        kept_in_group += kept;
        if ((c + 1) % m == 0) {
          if (kept_in_group != n) {
            require<StructureError>(false, "mask keeps " + str(kept_in_group) + " of columns " +
                                               str(first + c + 1 - m) + ".." + str(first + c) +
                                               " in row " + str(p * vector) + "; " + str(n) + ":" +
                                               str(m) + " keeps " + str(n));
          }
          kept_in_group = 0;
        }
      }
      require_few_entries(static_cast<std::int64_t>(out.indices.size()), vector);
      if (!w.fixed_count()) out.indptr.push_back(static_cast<std::int32_t>(out.indices.size()));
    }
  }
  w.entry_count = static_cast<std::int64_t>(out.indices.size());
  return out;
}

void coordinates(const Panels& w, std::int64_t* out) {
  for_each_entry(w, [&](std::int64_t e, std::int64_t row, std::int64_t col) {
    for (std::int64_t v = 0; v < w.vector; ++v) out[e * w.vector + v] = (row + v) * w.cols + col;
  });
}

void gather(const Panels& w, const void* dense, void* values, std::size_t itemsize) {
  const auto* from = static_cast<const std::byte*>(dense);
  auto* to = static_cast<std::byte*>(values);
  for_each_place(w, itemsize, [=](std::int64_t value, std::int64_t place, auto size) {
    std::memcpy(to + value * size, from + place * size, size);
  });
}

void scatter(const Panels& w, const void* values, void* dense, std::size_t itemsize) {
  const auto* from = static_cast<const std::byte*>(values);
  auto* to = static_cast<std::byte*>(dense);
  for_each_place(w, itemsize, [=](std::int64_t value, std::int64_t place, auto size) {
    std::memcpy(to + place * size, from + value * size, size);
  });
}

namespace {

// The transpose by a counting sort of (row block, column). A task is a row block of one block of
// columns, whose cells of the result lie side by side: f(task's first pointer, block, first panel,
// panel after the last).
template <class Pointer, class F>
void for_each_part(const Panels& w, const Panels& t, Pointer* indptr, F&& f) noexcept {
  const std::int64_t panels = t.block_cols / w.vector;
  const int workers = workers_for_entries(w.entry_count);
  parallel_for(t.blocks() * w.blocks(), workers, [&](std::int64_t task, int) noexcept {
    const std::int64_t rows = task / w.blocks(), block = task % w.blocks();
    f(indptr + rows * t.rows + block * w.block_cols, block, rows * panels,
      std::min(w.panels(), (rows + 1) * panels));
  });
}

}  // namespace

Encoded transposed_pointers(const Panels& w) {
  Encoded out;
  Panels& t = out.layout;
  t = {w.cols, w.rows, 1, Panels::max_block_cols, 0, 0, nullptr, nullptr};
  check_layout(t);
  require_few_entries(w.nnz(), 1);
  t.entry_count = w.nnz();
  std::vector<std::int32_t>& indptr = out.indptr;
  indptr.assign(static_cast<std::size_t>(t.blocks() * t.rows) + 1, 0);
  for_each_part(
      w, t, indptr.data(),
      [&](std::int32_t* cells, std::int64_t block, std::int64_t first, std::int64_t last) noexcept {
        std::int32_t counts[Panels::max_block_cols] = {};
        // The entries of panels of a block lie side by side.
        const auto [begin, count] = w.entries(block, last - 1);
        for (std::int64_t e = w.entries(block, first).begin; e < begin + count; ++e) {
          ++counts[w.indices[e]];
        }
        const auto height = static_cast<std::int32_t>(w.vector);
        for (std::int64_t c = 0; c < w.block_width(block); ++c) {
          cells[c + 1] = counts[c] * height;
        }
      });
  for (std::size_t i = 1; i < indptr.size(); ++i) indptr[i] += indptr[i - 1];
  return out;
}

namespace {

// The entries of one part. Panels come in ascending order, so the ids are sorted.
template <int V>
void scatter_part(const Panels w, const std::int32_t* cells, std::int64_t block, std::int64_t first,
                  std::int64_t last, std::uint8_t* ids, std::int32_t* perm) noexcept {
  const std::int64_t width = w.block_width(block);
  const std::int32_t end = cells[width];
  std::int32_t next[Panels::max_block_cols];
  std::fill_n(std::copy_n(cells, width, next), Panels::max_block_cols - width, end);
  const std::uint8_t* const indices = w.indices;
  std::fill(ids + cells[0], ids + end, std::uint8_t{0});
  std::fill(perm + cells[0], perm + end, 0);
  for (std::int64_t p = first; p < last; ++p) {
    const auto [begin, count] = w.entries(block, p);
    const auto row = static_cast<std::int32_t>((p - first) * V);
    for (std::int64_t e = begin; e < begin + count; ++e) {
      std::int32_t& place = next[indices[e]];
      const std::int32_t at = place;
      // Another thread may have written into the indices after they were counted.
      if (at >= end) continue;
      place = at + V;
      for (int v = 0; v < V; ++v) {
        ids[at + v] = static_cast<std::uint8_t>(row + v);
        perm[at + v] = static_cast<std::int32_t>(e * V + v);
      }
    }
  }
}

}  // namespace

void transpose_into(const Panels& w, const Encoded& made, std::uint8_t* ids,
                    std::int32_t* perm) noexcept {
  const auto scatter = w.vector == 8   ? scatter_part<8>
                       : w.vector == 4 ? scatter_part<4>
                                       : scatter_part<1>;
  for_each_part(
      w, made.layout, made.indptr.data(),
      [&](const std::int32_t* cells, std::int64_t block, std::int64_t first,
          std::int64_t last) noexcept { scatter(w, cells, block, first, last, ids, perm); });
}

}  // namespace gossamer
