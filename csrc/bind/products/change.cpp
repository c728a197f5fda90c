// Changing the structure of a weight: reads the arrays, checks every size, releases the GIL, runs.
#include "products/change.hpp"

#include <pybind11/pybind11.h>

#include <cstddef>
#include <string>
#include <vector>

#include "bind/products/layout.hpp"
#include "bind/register.hpp"
#include "bind/tensor.hpp"
#include "core/check.hpp"
#include "products/structure.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

Tensor read_values(py::handle object, const std::string& who, std::int64_t count, bool writable) {
  const Tensor t = read_tensor(object, who.c_str(), writable);
  float_dtype(t, who.c_str());
  require<ShapeError>(t.rank == 1 && t.contiguous() && t.shape[0] == count,
                      who + " must be a contiguous vector of " + std::to_string(count) +
                          " elements, got " + std::to_string(t.numel()));
  return t;
}

// An output is its own input, or memory that no other array has.
void refuse_overlaps(const std::vector<Moved>& tensors, std::int64_t before, std::int64_t after) {
  const auto overlap = [](const void* a, std::int64_t a_count, std::size_t a_size, const void* b,
                          std::int64_t b_count, std::size_t b_size) {
    const auto* x = static_cast<const std::byte*>(a);
    const auto* y = static_cast<const std::byte*>(b);
    return x < y + static_cast<std::size_t>(b_count) * b_size &&
           y < x + static_cast<std::size_t>(a_count) * a_size;
  };
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    for (std::size_t j = 0; j < tensors.size(); ++j) {
      const Moved &a = tensors[i], &b = tensors[j];
      const bool own = i == j && a.before == a.after;
      const bool read = overlap(a.after, after, a.itemsize, b.before, before, b.itemsize);
      const bool written = overlap(a.after, after, a.itemsize, b.after, after, b.itemsize);
      require<ArgumentError>(!(read && !own) && !(written && i != j),
                             "out[" + std::to_string(i) +
                                 "] shares memory with another array; "
                                 "it must be values[" +
                                 std::to_string(i) + "] or memory of its own");
    }
  }
}

void move_values(const Layout& from, py::handle from_indices, py::handle from_indptr,
                 const Layout& to, py::handle to_indices, py::handle to_indptr,
                 const py::sequence& values, const py::sequence& out) {
  const Panels a = read_panels(from, from_indices, from_indptr);
  const Panels b = read_panels(to, to_indices, to_indptr);
  require_few_entries(a.entry_count, a.vector);
  require<ShapeError>(values.size() == out.size(),
                      "got " + std::to_string(values.size()) + " arrays of values and " +
                          std::to_string(out.size()) + " of out; they belong together in pairs");
  std::vector<Moved> tensors;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::string number = "[" + std::to_string(i) + "]";
    const py::object source = values[i], target = out[i];
    const Tensor before = read_values(source, "values" + number, a.nnz(), false);
    const Tensor after = read_values(target, "out" + number, b.nnz(), true);
    require<DTypeError>(before.kind == after.kind, "values" + number + " has dtype " +
                                                       before.dtype() + " and out" + number + " " +
                                                       after.dtype() + "; they must be the same");
    tensors.push_back({itemsize(float_dtype(before, "values")), before.data, after.data});
  }
  refuse_overlaps(tensors, a.nnz(), b.nnz());
  const py::gil_scoped_release release;
  gossamer::move(a, b, tensors);  // std::move has three arguments too
}

}  // namespace

void register_change(py::module_& m) { m.def("move", move_values); }

}  // namespace gossamer
