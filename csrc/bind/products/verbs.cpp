// The three verbs: reads the tensors, checks every size, releases the GIL, runs. Arguments stand in
// the order of gossamer.backend: operands, structure, the rest, the output, where it runs.
#include "bind/products/layout.hpp"
#include "bind/register.hpp"
#include "bind/tensor.hpp"
#include "core/check.hpp"
#include "products/drive.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

std::string text(std::int64_t x) { return std::to_string(x); }

// A matrix of the values' dtype and device.
Tensor read_like(const Tensor& values, py::handle object, const char* who, std::int64_t rows,
                 std::int64_t cols, bool writable = false) {
  Tensor t = read_matrix(object, who, writable);
  require<DTypeError>(t.kind == values.kind, std::string(who) + " has dtype " + t.dtype() +
                                                 " and values " + name_of(values.kind) +
                                                 "; one call uses one dtype: convert one of them");
  require<ShapeError>((rows < 0 || t.shape[0] == rows) && (cols < 0 || t.shape[1] == cols),
                      std::string(who) + " is " + text(t.shape[0]) + " x " + text(t.shape[1]) +
                          "; needed is " + (rows < 0 ? "batch" : text(rows)) + " x " + text(cols));
  require<DeviceError>(t.device == values.device,
                       std::string(who) + " is on " + device_name(t.device) + " and values on " +
                           device_name(values.device) + "; one call runs on one device");
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

Queue queue_of(int device, std::uintptr_t stream) noexcept {
  return {device, reinterpret_cast<void*>(stream)};
}

// --8<-- [start:binding]
void spmm(py::handle x, py::handle values, const Layout& layout, py::handle indices,
          py::handle indptr, py::handle bias, py::handle y, int device, std::uintptr_t stream) {
  const Panels w = read_panels(layout, indices, indptr);
  const Tensor v = read_values(w, values, "values");
  const Tensor in = read_like(v, x, "x", -1, w.cols);
  const Tensor out = read_like(v, y, "y", in.shape[0], w.rows, true);
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
  run_spmm(args, dtype, queue_of(device, stream));
}
// --8<-- [end:binding]

void spmm_t(py::handle grad_output, py::handle values, const Layout& layout, py::handle indices,
            py::handle indptr, py::handle grad_input, int device, std::uintptr_t stream) {
  const Panels w = read_panels(layout, indices, indptr);
  const Tensor v = read_values(w, values, "values");
  const Tensor in = read_like(v, grad_output, "grad_output", -1, w.rows);
  const Tensor out = read_like(v, grad_input, "grad_input", in.shape[0], w.cols, true);
  const SpmmTArgs args{in.matrix(), v.data, w, out.matrix()};
  const DType dtype = float_dtype(v, "values");
  const py::gil_scoped_release release;
  run_spmm_t(args, dtype, queue_of(device, stream));
}

void spmm_t_packed(py::handle grad_output, py::handle values, const Layout& layout,
                   py::handle indices, py::handle indptr, const Layout& t_layout,
                   py::handle t_indices, py::handle t_indptr, py::handle perm,
                   py::handle grad_input, int device, std::uintptr_t stream) {
  const Panels w = read_panels(layout, indices, indptr);
  const Panels t = read_panels(t_layout, t_indices, t_indptr);
  const Tensor v = read_values(w, values, "values");
  const Tensor order = read_vector(perm, "perm", Kind::i32);
  // Fewer where the transpose is pruned once more.
  require<StructureError>(
      t.rows == w.cols && t.cols == w.rows && t.nnz() <= w.nnz() && order.shape[0] == t.nnz(),
      "the transposed structure does not belong to this weight: build it again");
  const Tensor in = read_like(v, grad_output, "grad_output", -1, w.rows);
  const Tensor out = read_like(v, grad_input, "grad_input", in.shape[0], w.cols, true);
  const SpmmTArgs args{in.matrix(), v.data, w, out.matrix()};
  const DType dtype = float_dtype(v, "values");
  const py::gil_scoped_release release;
  run_spmm_t_packed(args, t, static_cast<const std::int32_t*>(order.data), dtype,
                    queue_of(device, stream));
}

void sddmm(py::handle grad_output, py::handle x, const Layout& layout, py::handle indices,
           py::handle indptr, py::handle grad_values, int device, std::uintptr_t stream) {
  const Panels w = read_panels(layout, indices, indptr);
  const Tensor v = read_values(w, grad_values, "grad_values", true);
  const Tensor in = read_like(v, x, "x", -1, w.cols);
  const Tensor grad = read_like(v, grad_output, "grad_output", in.shape[0], w.rows);
  const SddmmArgs args{grad.matrix(), in.matrix(), w, v.data};
  const DType dtype = float_dtype(v, "grad_values");
  const py::gil_scoped_release release;
  run_sddmm(args, dtype, queue_of(device, stream));
}

}  // namespace

void register_verbs(py::module_& m) {
  using py::arg;
  const auto device = arg("device") = -1;
  const auto stream = arg("stream") = 0;
  m.def("spmm", spmm, arg("x"), arg("values"), arg("layout"), arg("indices"), arg("indptr"),
        arg("bias"), arg("y"), device, stream, py::pos_only());
  m.def("spmm_t", spmm_t, arg("grad_output"), arg("values"), arg("layout"), arg("indices"),
        arg("indptr"), arg("grad_input"), device, stream, py::pos_only());
  m.def("spmm_t_packed", spmm_t_packed, arg("grad_output"), arg("values"), arg("layout"),
        arg("indices"), arg("indptr"), arg("t_layout"), arg("t_indices"), arg("t_indptr"),
        arg("perm"), arg("grad_input"), device, stream, py::pos_only());
  m.def("sddmm", sddmm, arg("grad_output"), arg("x"), arg("layout"), arg("indices"), arg("indptr"),
        arg("grad_values"), device, stream, py::pos_only());
}

}  // namespace gossamer
