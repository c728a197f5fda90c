// Changing the structure of a weight: reads the arrays, checks every size, releases the GIL, runs.
#include "products/change.hpp"

#include <pybind11/numpy.h>

#include <algorithm>
#include <string>

#include "bind/products/layout.hpp"
#include "bind/register.hpp"
#include "bind/tensor.hpp"
#include "core/check.hpp"
#include "products/structure.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

py::array_t<std::int32_t> match_entries(const Layout& from, py::handle from_indices,
                                        py::handle from_indptr, const Layout& to,
                                        py::handle to_indices, py::handle to_indptr) {
  const Panels a = read_panels(from, from_indices, from_indptr);
  const Panels b = read_panels(to, to_indices, to_indptr);
  require_few_entries(a.entry_count, a.vector);
  py::array_t<std::int32_t> origins(static_cast<py::ssize_t>(b.entry_count));
  std::int32_t* out = origins.mutable_data();
  {
    const py::gil_scoped_release release;
    match(a, b, out);
  }
  return origins;
}

Tensor read_values(py::handle object, const char* who, std::int64_t vector, bool writable) {
  const Tensor t = read_tensor(object, who, writable);
  float_dtype(t, who);
  require<ShapeError>(t.rank == 1 && t.contiguous() && t.shape[0] % vector == 0,
                      std::string(who) + " must be a contiguous vector of whole entries of " +
                          std::to_string(vector) + " values, got " + std::to_string(t.numel()));
  return t;
}

void move_values(py::handle origins, std::int64_t vector, py::handle values, py::handle out) {
  adopt_torch_threads();
  require<ArgumentError>(vector == 1 || vector == 4 || vector == 8,
                         "vector is " + std::to_string(vector) + "; it must be 1, 4 or 8");
  const Tensor m = read_vector(origins, "origins", Kind::i32);
  const Tensor from = read_values(values, "values", vector, false);
  const Tensor to = read_values(out, "out", vector, true);
  require<DTypeError>(from.kind == to.kind, "values has dtype " + from.dtype() + " and out " +
                                                to.dtype() + "; they must be the same");
  require<ShapeError>(m.shape[0] * vector == to.shape[0],
                      "origins has " + std::to_string(m.shape[0]) + " entries of " +
                          std::to_string(vector) + " values and out " +
                          std::to_string(to.shape[0]) + " values; they must agree");
  const auto* entries = static_cast<const std::int32_t*>(m.data);
  const std::int64_t count = from.shape[0] / vector;
  std::int64_t outside = 0;
  for (std::int64_t i = 0; i < m.shape[0]; ++i) outside += entries[i] < -1 || entries[i] >= count;
  if (outside != 0) {
    const auto* bad = std::find_if(entries, entries + m.shape[0],
                                   [&](std::int32_t e) { return e < -1 || e >= count; });
    throw ArgumentError("origins[" + std::to_string(bad - entries) + "] is " +
                        std::to_string(*bad) + "; an entry of the " + std::to_string(count) +
                        " of values, or -1, is needed");
  }
  const Move args{entries,   m.shape[0], count, vector, itemsize(float_dtype(from, "values")),
                  from.data, to.data};
  const py::gil_scoped_release release;
  move(args);
}

}  // namespace

void register_change(py::module_& m) {
  m.def("match", match_entries);
  m.def("move", move_values);
}

}  // namespace gossamer
