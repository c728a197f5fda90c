// Prunes a weight down its columns as well: reads the arrays, checks every size, releases the GIL,
// runs.
#include "masks/double_prune.hpp"

#include <pybind11/numpy.h>

#include <memory>

#include "bind/products/layout.hpp"
#include "bind/register.hpp"
#include "bind/tensor.hpp"
#include "core/check.hpp"
#include "products/structure.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

py::tuple double_prune(const Layout& layout, py::handle indices, py::handle indptr,
                       py::handle values, std::int64_t n, std::int64_t m) {
  const Panels w = read_panels(layout, indices, indptr);
  check_structure(w);
  const Tensor v = read_tensor(values, "values");
  const DType dtype = float_dtype(v, "values");
  require<ShapeError>(v.rank == 1 && v.contiguous() && v.shape[0] == w.nnz(),
                      "values must be a contiguous vector of " + std::to_string(w.nnz()) +
                          " elements (entries * vector), got " + std::to_string(v.numel()));
  std::unique_ptr<DoublePrune> pruned;
  {
    const py::gil_scoped_release release;
    pruned = std::make_unique<DoublePrune>(w, v.data, dtype, n, m);
  }
  const auto nnz = static_cast<py::ssize_t>(pruned->nnz());
  py::array_t<std::uint8_t> ids(nnz);
  py::array_t<std::int32_t> perm(nnz);
  std::uint8_t* ids_data = ids.mutable_data();
  std::int32_t* perm_data = perm.mutable_data();
  {
    const py::gil_scoped_release release;
    pruned->fill(ids_data, perm_data);
  }
  const Panels& t = pruned->layout();
  const auto& pointers = pruned->indptr();
  return py::make_tuple(
      Layout(t.rows, t.cols, t.vector, t.block_cols, t.n, t.m), ids,
      py::array_t<std::int32_t>(static_cast<py::ssize_t>(pointers.size()), pointers.data()), perm);
}

}  // namespace

void register_double_prune(py::module_& m) { m.def("double_prune", double_prune); }

}  // namespace gossamer
