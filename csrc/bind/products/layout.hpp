// A layout as Python holds it, and the structure of a weight as a verb is given it.
#pragma once

#include <pybind11/pybind11.h>

#include "layouts/panels.hpp"

namespace gossamer {

// Sizes are checked when it is made; pointers are unset.
struct Layout {
  Panels panels;
  Layout(std::int64_t rows, std::int64_t cols, std::int64_t vector, std::int64_t block_cols,
         std::int64_t n, std::int64_t m);
};

// The panels with their pointers and their number of entries, after check_bounds.
Panels read_panels(const Layout& layout, pybind11::handle indices, pybind11::handle indptr);

}  // namespace gossamer
