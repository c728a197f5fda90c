// Picks n of every m: reads the arrays, checks every size, releases the GIL, runs.
#include "masks/select.hpp"

#include <limits>
#include <string>

#include "bind/products/layout.hpp"
#include "bind/register.hpp"
#include "bind/tensor.hpp"
#include "core/check.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

// A floating matrix of the layout's sizes whose columns lie side by side.
Tensor read_rows(py::handle object, const char* who, const Panels& w, bool writable = false) {
  const Tensor t = read_matrix(object, who, writable);
  float_dtype(t, who);
  require<ShapeError>(t.shape[0] == w.rows && t.shape[1] == w.cols,
                      std::string(who) + " has shape [" + std::to_string(t.shape[0]) + ", " +
                          std::to_string(t.shape[1]) + "]; the structure is of [" +
                          std::to_string(w.rows) + ", " + std::to_string(w.cols) + "]");
  require<ShapeError>(t.shape[1] <= 1 || t.strides[1] == 1,
                      std::string(who) + " must have its columns side by side: call .contiguous()");
  return t;
}

void check_length(const Tensor& t, const char* who, std::int64_t needed) {
  require<ShapeError>(
      t.rank == 1 && t.contiguous() && t.shape[0] == needed,
      std::string(who) + " must be a contiguous vector of " + std::to_string(needed) + " elements");
}

void run_select(const Layout& layout, std::int64_t shared, py::handle weight, py::handle values,
                py::handle indices) {
  adopt_torch_threads();
  const Panels& w = layout.panels;
  require<ArgumentError>(w.fixed_count(), "the layout has no n:m; a selection needs one");
  require<ArgumentError>(shared == 1 || (shared > 1 && w.vector == 8 && w.panels() % shared == 0),
                         "shared is " + std::to_string(shared) +
                             "; 1 is needed, or a divisor of the panels of 8 rows");
  require<ShapeError>(w.nnz() <= std::numeric_limits<std::int32_t>::max(),
                      "the pattern keeps 2^31 entries or more; split the layer");
  const Tensor in = read_rows(weight, "weight", w);
  const Tensor out = read_tensor(values, "values", true);
  require<DTypeError>(out.kind == in.kind, "values has dtype " + out.dtype() + " and weight " +
                                               in.dtype() + "; they must be the same");
  check_length(out, "values", w.nnz());
  const Tensor ids = read_vector(indices, "indices", Kind::u8, true);
  check_length(ids, "indices", w.total_entries());
  const DType dtype = float_dtype(in, "weight");
  const py::gil_scoped_release release;
  select_nm(w, shared, dtype, in.matrix(), out.data, static_cast<std::uint8_t*>(ids.data));
}

void run_add_pruned(const Layout& layout, py::handle indices, py::handle indptr, py::handle out,
                    py::handle source, double alpha) {
  const Panels w = read_panels(layout, indices, indptr);
  const Tensor y = read_rows(out, "out", w, true);
  const Tensor x = read_rows(source, "source", w);
  require<DTypeError>(x.kind == y.kind, "source has dtype " + x.dtype() + " and out " + y.dtype() +
                                            "; they must be the same");
  const DType dtype = float_dtype(y, "out");
  const py::gil_scoped_release release;
  add_pruned(w, dtype, y.matrix(), x.matrix(), alpha);
}

std::int64_t run_mask_difference(const Layout& a_layout, py::handle a_indices, py::handle a_indptr,
                                 const Layout& b_layout, py::handle b_indices,
                                 py::handle b_indptr) {
  const Panels a = read_panels(a_layout, a_indices, a_indptr);
  const Panels b = read_panels(b_layout, b_indices, b_indptr);
  require<ShapeError>(
      a.rows == b.rows && a.cols == b.cols && a.vector == b.vector && a.block_cols == b.block_cols,
      "the two structures differ in rows, columns, vector or width of a block; "
      "compare masks of one weight and layout");
  const py::gil_scoped_release release;
  return mask_difference(a, b);
}

}  // namespace

void register_select(py::module_& m) {
  m.def("select", run_select);
  m.def("add_pruned", run_add_pruned);
  m.def("difference", run_mask_difference);
}

}  // namespace gossamer
