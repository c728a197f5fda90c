#include "products/csr.hpp"

#include <algorithm>
#include <limits>

#include "core/check.hpp"

namespace gossamer {
namespace {

std::string str(std::int64_t x) { return std::to_string(x); }

std::string at(std::int64_t row, std::int64_t col) {
  return "[" + str(row) + ", " + str(col) + "]";
}

std::string at(const Csr& csr, std::int64_t row, std::int64_t col) {
  return csr.csc ? at(col, row) : at(row, col);
}

[[noreturn]] void refuse(const std::string& message) { throw StructureError(message); }

// Throws what is wrong with entry `i`, which is in this row.
[[noreturn]] void refuse_entry(const Csr& csr, std::int64_t row, std::int64_t i) {
  const std::int64_t col = csr.columns[i];
  if (col < 0 || col >= csr.cols) {
    refuse("entry " + str(i) + " is at " + at(csr, row, col) + ", outside a matrix of shape " +
           at(csr, csr.rows, csr.cols));
  }
  const std::int64_t previous = csr.columns[i - 1];
  if (col == previous) {
    refuse(at(csr, row, col) + " is given twice, by entries " + str(i - 1) + " and " + str(i) +
           "; add repeated entries up first");
  }
  refuse("entry " + str(i) + " at " + at(csr, row, col) + " follows " + at(csr, row, previous) +
         "; indices must rise inside a " + (csr.csc ? "column" : "row") + ": sort them first");
}

// Throws unless the rows of each panel hold the same columns.
void check_panels(const Csr& csr, std::int64_t vector) {
  for (std::int64_t row = 0; row < csr.rows; ++row) {
    const std::int64_t top = row - row % vector;
    const std::int64_t *a = csr.columns + csr.indptr[top], *b = csr.columns + csr.indptr[row];
    const std::int64_t *a_end = csr.columns + csr.indptr[top + 1],
                       *b_end = csr.columns + csr.indptr[row + 1];
    const auto [x, y] = std::mismatch(a, a_end, b, b_end);
    if (x == a_end && y == b_end) continue;
    const bool missing = y == b_end || (x != a_end && *x < *y);
    const std::int64_t col = missing ? *x : *y;
    refuse("rows " + str(top) + " and " + str(row) + " differ: only " +
           at(missing ? top : row, col) + " is kept; the " + str(vector) +
           " rows of a panel share one list of columns");
  }
}

// Throws unless each row keeps n of every m columns.
void check_groups(const Csr& csr, std::int64_t n, std::int64_t m) {
  for (std::int64_t row = 0; row < csr.rows; ++row) {
    std::int64_t i = csr.indptr[row];
    for (std::int64_t first = 0; first < csr.cols; first += m) {
      const std::int64_t begin = i;
      while (i < csr.indptr[row + 1] && csr.columns[i] < first + m) ++i;
      if (i - begin == n) continue;
      refuse(str(i - begin) + " of columns " + str(first) + ".." + str(first + m - 1) + " of row " +
             str(row) + " are kept; " + str(n) + ":" + str(m) + " keeps " + str(n));
    }
  }
}

}  // namespace

void check_csr(const Csr& csr) {
  if (csr.indptr[0] != 0) refuse("indptr starts with " + str(csr.indptr[0]) + "; it must be 0");
  for (std::int64_t row = 0; row < csr.rows; ++row) {
    const std::int64_t begin = csr.indptr[row], end = csr.indptr[row + 1];
    if (end < begin || end > csr.nnz) {
      refuse((csr.csc ? "column " : "row ") + str(row) + " goes from entry " + str(begin) + " to " +
             str(end) + "; indptr must rise from 0 to the number of entries, " + str(csr.nnz));
    }
    std::int64_t previous = -1;
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t col = csr.columns[i];
      if (col <= previous || col >= csr.cols) refuse_entry(csr, row, i);
      previous = col;
    }
  }
  if (csr.indptr[csr.rows] != csr.nnz) {
    refuse("indptr ends with " + str(csr.indptr[csr.rows]) +
           "; it must be the number of entries, " + str(csr.nnz));
  }
}

FromCsr encode_csr(const Csr& csr, std::int64_t vector, std::int64_t n, std::int64_t m) {
  FromCsr out;
  Panels& w = out.structure.layout;
  w = {csr.rows, csr.cols, vector, Panels::widest_block(m), n, m, nullptr, nullptr};
  check_layout(w);
  check_csr(csr);
  if (vector > 1) check_panels(csr, vector);
  if (m > 0) check_groups(csr, n, m);
  w.entry_count = csr.nnz / vector;
  require_few_entries(w.entry_count, vector);

  std::vector<std::int32_t>& indptr = out.structure.indptr;
  if (!w.fixed_count()) {
    indptr.assign(static_cast<std::size_t>(w.blocks() * w.panels()) + 1, 0);
    for (std::int64_t p = 0; p < w.panels(); ++p) {
      for (std::int64_t i = csr.indptr[p * vector]; i < csr.indptr[p * vector + 1]; ++i) {
        ++indptr[static_cast<std::size_t>(csr.columns[i] / w.block_cols * w.panels() + p) + 1];
      }
    }
    for (std::size_t i = 1; i < indptr.size(); ++i) indptr[i] += indptr[i - 1];
    w.indptr = indptr.data();
  }
  out.structure.indices.resize(static_cast<std::size_t>(w.entry_count));
  out.perm.resize(static_cast<std::size_t>(csr.nnz));
  for (std::int64_t p = 0; p < w.panels(); ++p) {
    std::int64_t i = csr.indptr[p * vector];
    const std::int64_t top = i, end = csr.indptr[p * vector + 1];
    while (i < end) {
      // A run of columns of one block.
      const std::int64_t block = csr.columns[i] / w.block_cols, first = block * w.block_cols;
      std::int64_t e = w.entries(block, p).begin;
      for (; i < end && csr.columns[i] < first + w.block_cols; ++i, ++e) {
        out.structure.indices[static_cast<std::size_t>(e)] =
            static_cast<std::uint8_t>(csr.columns[i] - first);
        for (std::int64_t v = 0; v < vector; ++v) {
          out.perm[static_cast<std::size_t>(e * vector + v)] =
              static_cast<std::int32_t>(csr.indptr[p * vector + v] + i - top);
        }
      }
    }
  }
  w.indptr = nullptr;
  return out;
}

void decode_csr(const Panels& w, std::int64_t* indptr, std::int64_t* columns, std::int32_t* perm) {
  std::fill_n(indptr, w.rows + 1, 0);
  const auto for_each_cell = [&](auto&& f) {
    for (std::int64_t k = 0; k < w.blocks(); ++k) {
      for (std::int64_t p = 0; p < w.panels(); ++p) f(k, p, w.entries(k, p));
    }
  };
  for_each_cell([&](std::int64_t, std::int64_t p, Panels::Entries run) {
    for (std::int64_t v = 0; v < w.vector; ++v) indptr[p * w.vector + v + 1] += run.count;
  });
  for (std::int64_t row = 0; row < w.rows; ++row) indptr[row + 1] += indptr[row];
  // Blocks come in ascending order, so the columns of a row come out sorted.
  std::vector<std::int64_t> next(indptr, indptr + w.rows);
  for_each_cell([&](std::int64_t k, std::int64_t p, Panels::Entries run) {
    for (std::int64_t v = 0; v < w.vector; ++v) {
      std::int64_t& to = next[static_cast<std::size_t>(p * w.vector + v)];
      for (std::int64_t e = run.begin; e < run.begin + run.count; ++e, ++to) {
        columns[to] = k * w.block_cols + w.indices[e];
        perm[to] = static_cast<std::int32_t>(e * w.vector + v);
      }
    }
  });
}

}  // namespace gossamer
