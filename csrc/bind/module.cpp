// gossamer._core: a submodule per topic, the choice of an ISA, and what `gossamer info` prints.
#include <pybind11/stl.h>

#include "bind/register.hpp"
#include "bind/tensor.hpp"
#include "core/check.hpp"
#include "core/isa.hpp"
#include "core/parallel.hpp"
#include "products/dispatch.hpp"

namespace py = pybind11;

namespace gossamer {

const char* const module_device = "cpu";

namespace {

py::dict serving() {
  static constexpr const char* dtypes[dtype_count] = {"float32", "float64", "bfloat16"};
  py::dict out;
  for (int d = 0; d < dtype_count; ++d) {
    for (int v = 0; v < vector_count; ++v) {
      const Slot slot{static_cast<DType>(d), v};
      const std::string layout = "v" + std::to_string(vectors[v]);
      const char* table = nullptr;
      find_spmm(slot, &table);
      out[py::make_tuple("spmm", layout, dtypes[d])] = table;
      find_spmm_t(slot, &table);
      out[py::make_tuple("spmm_t", layout, dtypes[d])] = table;
      find_sddmm(slot, &table);
      out[py::make_tuple("sddmm", layout, dtypes[d])] = table;
    }
  }
  return out;
}

void register_topics(py::module_& m) {
  auto products = m.def_submodule("products", "Layouts and the three verbs.");
  register_structure(products);
  register_csr(products);
  register_change(products);
  register_verbs(products);
  register_convolve(products);
  auto masks = m.def_submodule("masks", "Selections of masks.");
  register_select(masks);
  register_draw(masks);
  register_growth(masks);
  register_mvue(masks);
  register_tiles(masks);
  register_double_prune(masks);
  auto prox = m.def_submodule("prox", "Proximal operators.");
  register_elements(prox);
  register_groups(prox);
  register_path_norm(prox);
  auto codes = m.def_submodule("codes", "Sparse codes.");
  register_codes(codes);
  auto activations = m.def_submodule("activations", "Sparse activations.");
  register_activations(activations);
  register_decoding(activations);
  auto transport = m.def_submodule("transport", "Optimal transport.");
  register_transport(transport);
  register_semidual(transport);
  register_small(transport);
}

}  // namespace
}  // namespace gossamer

PYBIND11_MODULE(_core, m) {
  using namespace gossamer;
  m.doc() = "Compiled kernels of Gossamer. Use them through gossamer.backend.";
  register_errors(m);
  register_topics(m);
  m.def("isas", available_isas);
  m.def("isa", [] { return name_of(current_isa()); });
  m.def("use_isa", use_isa, py::arg("name"));
  m.def("serving", serving);
  m.def("threads", [] {
    adopt_torch_threads();
    return max_threads();
  });
  m.def("pool_library", pool_library);
  m.attr("version") = GOSSAMER_VERSION;
  m.attr("cuda_found") = GOSSAMER_CUDA_FOUND != 0;
  make_fork_safe();
  try {
    choose_isa();  // a wrong GOSSAMER_ISA is told at import, not in the middle of a training step
  } catch (const ArgumentError& e) {
    throw py::import_error(e.what());
  }
}
