// Unbiased N:M samples of least variance: of each m consecutive entries of a column of x exactly n
// stay, each divided by the probability with which it was chosen. Same bits for any number of
// threads and any instruction set: a group's randomness depends on the key and its place alone.
#pragma once

#include "masks/mvue_table.hpp"

namespace gossamer {

// One key of the three numbers that name a matrix of gradients.
std::uint64_t mvue_key(std::uint64_t seed, std::uint64_t step, std::uint64_t layer) noexcept;

// Sizes were checked: out.rows = x.cols, out.cols = x.rows rounded up to m (missing rows are zero).
void mvue(const MvueArgs& args, DType dtype) noexcept;

}  // namespace gossamer
