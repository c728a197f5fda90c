// Building, checking and reading the structure of a weight. Cold code: it runs when a mask is
// chosen, a checkpoint loaded or a weight made dense, never inside a training step.
#pragma once

#include <string>
#include <vector>

#include "layouts/panels.hpp"

namespace gossamer {

struct Encoded {
  Panels layout;  // pointers unset
  std::vector<std::uint8_t> indices;
  std::vector<std::int32_t> indptr;  // empty for N:M
};

// Sizes that a layout may have; throws ShapeError, ArgumentError. Also refuses what would overflow
// 63 bits.
void check_layout(const Panels& layout);

// Throws ShapeError if panels of V rows with so many entries have 2^31 values or more.
void require_few_entries(std::int64_t entries, std::int64_t vector);

// indptr: first 0, never falling, last = entry_count; ids are inside their block. Every verb calls
// it, so that whatever the bytes are, no kernel leaves its memory or reads scratch that was never
// written. O(blocks * panels), and a maximum over the ids of blocks of fewer than 256 columns: any
// byte is inside a full one. Throws StructureError.
void check_bounds(const Panels& layout);

// All of it: check_bounds, and column ids that rise inside their block, n in every group of m.
void check_structure(const Panels& layout);

// Every tile of `rows x cols` entries is kept or dropped as one. The structure was checked, its V
// divides `rows`. Throws StructureError that names the first tile of which a part is kept.
void check_tiles(const Panels& layout, std::int64_t rows, std::int64_t cols);

// mask [rows, cols], contiguous bytes, non-zero = kept. The V rows of a panel must agree; for N:M
// every group of m must keep n. Throws StructureError naming the first place that does not.
Encoded encode(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols, std::int64_t vector,
               std::int64_t n, std::int64_t m);

// coordinates[i] = row * cols + col of value i. Structure checked before, as for the two below.
void coordinates(const Panels& layout, std::int64_t* out);

void gather(const Panels& layout, const void* dense, void* values, std::size_t itemsize);
void scatter(const Panels& layout, const void* values, void* dense, std::size_t itemsize);

// The transpose in two steps, so that the caller can allocate: the structure of W^T with one row a
// panel, without its indices; then indices [nnz] and perm [nnz]: value i of W^T is value perm[i] of
// W.
Encoded transposed_pointers(const Panels& layout);
void transpose_into(const Panels& layout, const Encoded& made, std::uint8_t* indices,
                    std::int32_t* perm) noexcept;

}  // namespace gossamer
