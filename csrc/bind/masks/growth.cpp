// Dropping and growing entries: reads the arrays, checks every size, releases the GIL, runs.
#include <memory>
#include <string>

#include "bind/products/encoded.hpp"
#include "bind/register.hpp"
#include "bind/tensor.hpp"
#include "core/check.hpp"
#include "masks/draw.hpp"
#include "masks/drop.hpp"
#include "masks/grow.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

Panels read_checked(const Layout& layout, py::handle indices, py::handle indptr) {
  const Panels w = read_panels(layout, indices, indptr);
  check_structure(w);
  return w;
}

Tensor read_stays(py::handle object, const Panels& w, bool writable = false) {
  const Tensor t = read_vector(object, "stays", Kind::boolean, writable);
  require<ShapeError>(t.shape[0] == w.total_entries(),
                      "stays has " + std::to_string(t.shape[0]) + " elements; the structure has " +
                          std::to_string(w.total_entries()) + " entries");
  return t;
}

void run_drop(const Layout& layout, py::handle indices, py::handle indptr, py::handle values,
              std::int64_t count, py::handle stays) {
  const Panels w = read_checked(layout, indices, indptr);
  const Tensor v = read_tensor(values, "values");
  const DType dtype = float_dtype(v, "values");
  require<ShapeError>(v.rank == 1 && v.contiguous() && v.shape[0] == w.nnz(),
                      "values must be a contiguous vector of " + std::to_string(w.nnz()) +
                          " elements, got " + std::to_string(v.numel()));
  require<ArgumentError>(0 <= count && count <= w.total_entries(),
                         "got " + std::to_string(count) + " entries to drop; 0 to " +
                             std::to_string(w.total_entries()) + " are possible");
  auto* out = static_cast<std::uint8_t*>(read_stays(stays, w, true).data);
  const py::gil_scoped_release release;
  drop(w, dtype, v.data, count, out);
}

py::tuple run_grow_random(const Layout& layout, py::handle indices, py::handle indptr,
                          py::handle stays, std::uint64_t seed) {
  const Panels w = read_checked(layout, indices, indptr);
  const auto* kept = static_cast<const std::uint8_t*>(read_stays(stays, w).data);
  Encoded made;
  {
    const py::gil_scoped_release release;
    made = grow_random(w, kept, seed);
  }
  return to_python(std::move(made));
}

py::tuple run_spread_tiles(const Layout& layout, py::handle indices, py::handle indptr,
                           std::int64_t vector, std::int64_t high, std::int64_t wide) {
  const Panels grid = read_checked(layout, indices, indptr);
  Encoded made;
  {
    const py::gil_scoped_release release;
    made = spread_tiles(grid, vector, high, wide);
  }
  return to_python(std::move(made));
}

std::unique_ptr<GrowLargest> make_growth(const Layout& layout, py::handle indices,
                                         py::handle indptr, py::handle stays) {
  const Panels w = read_checked(layout, indices, indptr);
  return std::make_unique<GrowLargest>(w,
                                       static_cast<const std::uint8_t*>(read_stays(stays, w).data));
}

void offer(GrowLargest& self, py::handle scores) {
  adopt_torch_threads();
  const Tensor t = read_matrix(scores, "scores");
  const DType dtype = float_dtype(t, "scores");
  require<DTypeError>(dtype != DType::bf16,
                      "scores has dtype bfloat16; float32 or float64 is needed: call .float()");
  const Panels& w = self.layout();
  const std::int64_t left = w.rows - self.next_row();
  require<ShapeError>(t.shape[1] == w.cols && t.shape[0] % w.vector == 0 && t.shape[0] <= left,
                      "scores has shape [" + std::to_string(t.shape[0]) + ", " +
                          std::to_string(t.shape[1]) + "]; at most " + std::to_string(left) +
                          " rows, a multiple of " + std::to_string(w.vector) + ", of " +
                          std::to_string(w.cols) + " columns are needed");
  require<ShapeError>(t.shape[1] <= 1 || t.strides[1] == 1,
                      "scores must have its columns side by side: call .contiguous()");
  const py::gil_scoped_release release;
  self.offer(t.matrix(), dtype);
}

py::tuple finish(GrowLargest& self) {
  require<ArgumentError>(self.next_row() == self.layout().rows,
                         "scores of " + std::to_string(self.next_row()) + " of " +
                             std::to_string(self.layout().rows) +
                             " rows were offered; offer those of all rows first");
  Encoded made;
  {
    const py::gil_scoped_release release;
    made = self.finish();
  }
  return to_python(std::move(made));
}

}  // namespace

void register_growth(py::module_& m) {
  m.def("drop", run_drop);
  m.def("grow_random", run_grow_random);
  m.def("spread_tiles", run_spread_tiles);
  py::class_<GrowLargest>(m, "GrowLargest", "Growth by score, offered by slabs of rows.")
      .def(py::init(&make_growth))
      .def("offer", &offer)
      .def("finish", &finish);
}

}  // namespace gossamer
