// What the binding sources share. bind/ is the only place that sees Python, and makes every check
// that memory safety needs: a kernel called from here cannot leave its arguments.
#pragma once

#include <pybind11/pybind11.h>

#include "layouts/panels.hpp"

namespace gossamer {

// A layout as Python holds it: sizes checked when it is made, pointers unset.
struct Layout {
  Panels panels;
  Layout(std::int64_t rows, std::int64_t cols, std::int64_t vector, std::int64_t block_cols,
         std::int64_t n, std::int64_t m);
};

// The panels with their pointers, after check_indptr.
Panels read_panels(const Layout& layout, pybind11::handle indices, pybind11::handle indptr);

void register_errors(pybind11::module_& module);
void register_structure(pybind11::module_& module);
void register_verbs(pybind11::module_& module);
void register_transport(pybind11::module_& module);
void register_semidual(pybind11::module_& module);
void register_prox(pybind11::module_& module);
void register_groups(pybind11::module_& module);
void register_path_norm(pybind11::module_& module);
void register_codes(pybind11::module_& module);
void register_mvue(pybind11::module_& module);
void register_tiles(pybind11::module_& module);
void register_double_prune(pybind11::module_& module);
void register_select(pybind11::module_& module);

}  // namespace gossamer
