// gossamer._core: registration, the choice of an ISA, and what `gossamer info` prints.
#include <pybind11/stl.h>

#include <cstring>

#include "bind/bind.hpp"
#include "bind/tensor.hpp"
#include "core/check.hpp"
#include "core/isa.hpp"
#include "core/parallel.hpp"
#include "products/dispatch.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

// Raises the class of this name from gossamer.errors, which is written in Python.
void raise_as(const char* name, const char* message) {
  const py::object type = py::module_::import("gossamer.errors").attr(name);
  PyErr_SetString(type.ptr(), message);
}

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

}  // namespace

void register_errors(py::module_&) {
  py::register_local_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const ShapeError& e) {
      raise_as("ShapeError", e.what());
    } catch (const DTypeError& e) {
      raise_as("DTypeError", e.what());
    } catch (const DeviceError& e) {
      raise_as("DeviceError", e.what());
    } catch (const StructureError& e) {
      raise_as("StructureError", e.what());
    }
  });
}

}  // namespace gossamer

PYBIND11_MODULE(_core, m) {
  using namespace gossamer;
  m.doc() = "Compiled kernels of Gossamer. Use them through gossamer.kernels.";
  register_errors(m);
  register_structure(m);
  register_verbs(m);
  register_transport(m);
  register_semidual(m);
  register_prox(m);
  register_groups(m);
  register_path_norm(m);
  register_codes(m);
  register_mvue(m);
  register_tiles(m);
  register_double_prune(m);
  register_select(m);
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
  } catch (const ShapeError& e) {
    throw py::import_error(e.what());
  }
}
