// Packs the n largest of every m entries of a dense matrix, in the order of the panel layout, and
// works on what they leave out.
#pragma once

#include "layouts/panels.hpp"

namespace gossamer {

// The entries of `weight` that have the largest magnitudes of their groups, NaN above all, of equal
// ones the first; with V > 1 a column of a panel counts the sum over its rows. `shared` consecutive
// panels, which divide those of the layout, keep the same columns: those with the largest sums over
// all their rows. The columns of `weight` lie side by side, and `layout` is N:M with its pointers
// unset.
void select_nm(const Panels& layout, std::int64_t shared, DType dtype, const Matrix& weight,
               void* values, std::uint8_t* indices) noexcept;

// out += alpha * source at the entries of `layout` that are not kept. Columns lie side by side;
// source is out, or does not overlap it.
void add_pruned(const Panels& layout, DType dtype, const Matrix& out, const Matrix& source,
                double alpha) noexcept;

// In how many entries two structures differ whose sizes, vectors and blocks are the same.
std::int64_t mask_difference(const Panels& a, const Panels& b) noexcept;

}  // namespace gossamer
