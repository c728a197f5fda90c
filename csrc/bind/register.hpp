// Each binding source adds its functions to the submodule of its topic: gossamer._core.products,
// .masks, .prox, .codes, .activations, .transport.
//
// bind/ is the only place that sees Python, and makes every check that memory safety needs: a
// kernel called from here cannot leave its arguments.
#pragma once

#include <pybind11/pybind11.h>

namespace gossamer {

void register_errors(pybind11::module_& module);

void register_structure(pybind11::module_& products);
void register_csr(pybind11::module_& products);
void register_change(pybind11::module_& products);
void register_verbs(pybind11::module_& products);
void register_convolve(pybind11::module_& products);

void register_select(pybind11::module_& masks);
void register_draw(pybind11::module_& masks);
void register_growth(pybind11::module_& masks);
void register_mvue(pybind11::module_& masks);
void register_tiles(pybind11::module_& masks);
void register_double_prune(pybind11::module_& masks);

void register_elements(pybind11::module_& prox);
void register_groups(pybind11::module_& prox);
void register_path_norm(pybind11::module_& prox);

void register_codes(pybind11::module_& codes);

void register_activations(pybind11::module_& activations);
void register_decoding(pybind11::module_& activations);

void register_transport(pybind11::module_& transport);
void register_semidual(pybind11::module_& transport);
void register_small(pybind11::module_& transport);

}  // namespace gossamer
