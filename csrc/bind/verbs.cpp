// The three verbs: reads the tensors, checks every size, releases the GIL, runs.
#include "bind/bind.hpp"
#include "bind/tensor.hpp"
#include "core/check.hpp"
#include "products/drive.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

std::string text(std::int64_t x) { return std::to_string(x); }

Tensor read_as(py::handle object, const char* who, Kind kind, std::int64_t rows, std::int64_t cols,
               bool writable = false) {
  Tensor t = read_matrix(object, who, writable);
  require<DTypeError>(t.kind == kind, std::string(who) + " has dtype " + t.dtype() +
                                          " and values " + name_of(kind) +
                                          "; one call uses one dtype: convert one of them");
  require<ShapeError>((rows < 0 || t.shape[0] == rows) && (cols < 0 || t.shape[1] == cols),
                      std::string(who) + " is " + text(t.shape[0]) + " x " + text(t.shape[1]) +
                          "; needed is " + (rows < 0 ? "batch" : text(rows)) + " x " + text(cols));
  return t;
}

Tensor read_values(const Panels& w, py::handle object, const char* who, bool writable = false) {
  Tensor t = read_tensor(object, who, writable);
  float_dtype(t, who);
  require<ShapeError>(t.rank == 1 && t.contiguous() && t.shape[0] == w.nnz(),
                      std::string(who) + " must be a contiguous vector of " + text(w.nnz()) +
                          " elements (entries * vector), got " + text(t.numel()));
  return t;
}

// --8<-- [start:binding]
void spmm(const Layout& layout, py::handle indices, py::handle indptr, py::handle values,
          py::handle x, py::handle bias, py::handle y) {
  const Panels w = read_panels(layout, indices, indptr);
  const Tensor v = read_values(w, values, "values");
  const Tensor in = read_as(x, "x", v.kind, -1, w.cols);
  const Tensor out = read_as(y, "y", v.kind, in.shape[0], w.rows, true);
  SpmmArgs args{in.matrix(), v.data, w, nullptr, out.matrix()};
  if (!bias.is_none()) {
    const Tensor b = read_vector(bias, "bias", v.kind);
    require<ShapeError>(
        b.shape[0] == w.rows,
        "bias has " + text(b.shape[0]) + " elements; the weight has " + text(w.rows) + " rows");
    args.bias = b.data;
  }
  const DType dtype = float_dtype(v, "values");
  const py::gil_scoped_release release;
  run_spmm(args, dtype);
}
// --8<-- [end:binding]

void spmm_t(const Layout& layout, py::handle indices, py::handle indptr, py::handle values,
            py::handle g, py::handle dx) {
  const Panels w = read_panels(layout, indices, indptr);
  const Tensor v = read_values(w, values, "values");
  const Tensor in = read_as(g, "grad_output", v.kind, -1, w.rows);
  const Tensor out = read_as(dx, "grad_input", v.kind, in.shape[0], w.cols, true);
  const SpmmTArgs args{in.matrix(), v.data, w, out.matrix()};
  const DType dtype = float_dtype(v, "values");
  const py::gil_scoped_release release;
  run_spmm_t(args, dtype);
}

void spmm_t_packed(const Layout& layout, py::handle indices, py::handle indptr, py::handle values,
                   const Layout& t_layout, py::handle t_indices, py::handle t_indptr,
                   py::handle perm, py::handle g, py::handle dx) {
  const Panels w = read_panels(layout, indices, indptr);
  const Panels t = read_panels(t_layout, t_indices, t_indptr);
  const Tensor v = read_values(w, values, "values");
  const Tensor order = read_vector(perm, "perm", Kind::i32);
  // Fewer where the transpose is pruned once more.
  require<StructureError>(
      t.rows == w.cols && t.cols == w.rows && t.nnz() <= w.nnz() && order.shape[0] == t.nnz(),
      "the transposed structure does not belong to this weight: build it again");
  const Tensor in = read_as(g, "grad_output", v.kind, -1, w.rows);
  const Tensor out = read_as(dx, "grad_input", v.kind, in.shape[0], w.cols, true);
  const SpmmTArgs args{in.matrix(), v.data, w, out.matrix()};
  const DType dtype = float_dtype(v, "values");
  const py::gil_scoped_release release;
  run_spmm_t_packed(args, t, static_cast<const std::int32_t*>(order.data), dtype);
}

void sddmm(const Layout& layout, py::handle indices, py::handle indptr, py::handle g, py::handle x,
           py::handle out) {
  const Panels w = read_panels(layout, indices, indptr);
  const Tensor v = read_values(w, out, "grad_values", true);
  const Tensor in = read_as(x, "x", v.kind, -1, w.cols);
  const Tensor grad = read_as(g, "grad_output", v.kind, in.shape[0], w.rows);
  const SddmmArgs args{grad.matrix(), in.matrix(), w, nullptr};
  const DType dtype = float_dtype(v, "grad_values");
  const py::gil_scoped_release release;
  run_sddmm(args, v.data, dtype);
}

}  // namespace

void register_verbs(py::module_& m) {
  m.def("spmm", spmm);
  m.def("spmm_t", spmm_t);
  m.def("spmm_t_packed", spmm_t_packed);
  m.def("sddmm", sddmm);
}

}  // namespace gossamer
