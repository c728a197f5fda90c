// Layout and the functions on structure: encode, check, gather, scatter, coordinates, transpose.
#include "products/structure.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <tuple>

#include "bind/products/encoded.hpp"
#include "bind/products/layout.hpp"
#include "bind/register.hpp"
#include "bind/tensor.hpp"
#include "core/check.hpp"

namespace py = pybind11;

namespace gossamer {

Layout::Layout(std::int64_t rows, std::int64_t cols, std::int64_t vector, std::int64_t block_cols,
               std::int64_t n, std::int64_t m)
    : panels{rows, cols, vector, block_cols, n, m, nullptr, nullptr} {
  check_layout(panels);
}

Panels read_panels(const Layout& layout, py::handle indices, py::handle indptr) {
  adopt_torch_threads();
  Panels w = layout.panels;
  const Tensor ids = read_vector(indices, "indices", Kind::u8);
  w.indices = static_cast<const std::uint8_t*>(ids.data);
  if (w.fixed_count()) {
    require<StructureError>(indptr.is_none(), "indptr was given for an N:M layout; pass None");
  } else {
    const Tensor pointers = read_vector(indptr, "indptr", Kind::i32);
    const std::int64_t needed = w.blocks() * w.panels() + 1;
    require<StructureError>(pointers.shape[0] == needed,
                            "indptr has " + std::to_string(pointers.shape[0]) +
                                " elements; blocks * panels + 1 = " + std::to_string(needed) +
                                " are needed: build the weight again from a mask");
    w.indptr = static_cast<const std::int32_t*>(pointers.data);
  }
  w.entry_count = ids.shape[0];
  check_bounds(w);
  return w;
}

namespace {

auto as_tuple(const Layout& self) {
  const Panels& w = self.panels;
  return std::make_tuple(w.rows, w.cols, w.vector, w.block_cols, w.n, w.m);
}

py::tuple encode_mask(py::handle mask, std::int64_t vector, std::int64_t n, std::int64_t m) {
  const Tensor t = read_matrix(mask, "mask");
  require<DTypeError>(t.kind == Kind::boolean,
                      std::string("mask has dtype ") + t.dtype() + "; bool is needed");
  require<ShapeError>(t.contiguous(), "mask must be contiguous: call .contiguous()");
  const auto* bytes = static_cast<const std::uint8_t*>(t.data);
  Encoded e;
  {
    const py::gil_scoped_release release;
    e = encode(bytes, t.shape[0], t.shape[1], vector, n, m);
  }
  return to_python(std::move(e));
}

Panels read_checked(const Layout& layout, py::handle indices, py::handle indptr) {
  const Panels w = read_panels(layout, indices, indptr);
  check_structure(w);
  return w;
}

std::size_t bytes_of(const Tensor& t, const char* who) { return itemsize(float_dtype(t, who)); }

// The dense matrix and the values of a copy between them: same dtype, sizes of the layout.
std::pair<Tensor, Tensor> read_pair(const Panels& w, py::handle dense, py::handle values,
                                    bool dense_is_output) {
  const Tensor d = read_matrix(dense, "dense", dense_is_output);
  const Tensor v = read_tensor(values, "values", !dense_is_output);
  require<DTypeError>(d.kind == v.kind, std::string("dense has dtype ") + d.dtype() +
                                            " and values " + v.dtype() + "; they must be the same");
  require<ShapeError>(d.shape[0] == w.rows && d.shape[1] == w.cols && d.contiguous(),
                      "dense must be a contiguous matrix of " + std::to_string(w.rows) + " x " +
                          std::to_string(w.cols));
  require<ShapeError>(v.rank == 1 && v.contiguous() && v.shape[0] == w.nnz(),
                      "values must be a contiguous vector of " + std::to_string(w.nnz()) +
                          " elements, got " + std::to_string(v.numel()));
  return {d, v};
}

void gather_dense(py::handle dense, const Layout& layout, py::handle indices, py::handle indptr,
                  py::handle values) {
  const Panels w = read_checked(layout, indices, indptr);
  const auto [d, v] = read_pair(w, dense, values, false);
  gather(w, d.data, v.data, bytes_of(d, "dense"));
}

void scatter_dense(py::handle values, const Layout& layout, py::handle indices, py::handle indptr,
                   py::handle dense) {
  const Panels w = read_checked(layout, indices, indptr);
  const auto [d, v] = read_pair(w, dense, values, true);
  scatter(w, v.data, d.data, bytes_of(d, "dense"));
}

py::array_t<std::int64_t> coordinates_of(const Layout& layout, py::handle indices,
                                         py::handle indptr) {
  const Panels w = read_checked(layout, indices, indptr);
  py::array_t<std::int64_t> out(static_cast<py::ssize_t>(w.nnz()));
  coordinates(w, out.mutable_data());
  return out;
}

// `indices` and `perm` of the transpose: arrays to overwrite, or None for new
// ones.
py::tuple transpose_structure(const Layout& layout, py::handle indices, py::handle indptr,
                              py::object t_indices, py::object t_perm) {
  const Panels w = read_checked(layout, indices, indptr);
  if (t_indices.is_none()) t_indices = py::array_t<std::uint8_t>(static_cast<py::ssize_t>(w.nnz()));
  if (t_perm.is_none()) t_perm = py::array_t<std::int32_t>(static_cast<py::ssize_t>(w.nnz()));
  const Tensor ids = read_vector(t_indices, "indices of the transpose", Kind::u8, true);
  const Tensor perm = read_vector(t_perm, "perm", Kind::i32, true);
  require<ShapeError>(ids.shape[0] == w.nnz() && perm.shape[0] == w.nnz(),
                      "indices of the transpose and perm must have " + std::to_string(w.nnz()) +
                          " elements, got " + std::to_string(ids.shape[0]) + " and " +
                          std::to_string(perm.shape[0]));
  Encoded made;
  {
    const py::gil_scoped_release release;
    made = transposed_pointers(w);
    transpose_into(w, made, static_cast<std::uint8_t*>(ids.data),
                   static_cast<std::int32_t*>(perm.data));
  }
  const Panels& t = made.layout;
  return py::make_tuple(Layout(t.rows, t.cols, t.vector, t.block_cols, t.n, t.m), t_indices,
                        to_numpy(std::move(made.indptr)), t_perm);
}

}  // namespace

void register_structure(py::module_& m) {
  py::class_<Layout>(m, "Layout", "Sizes of a panel layout: rows, cols, vector, block_cols, n, m.")
      .def(py::init<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                    std::int64_t>(),
           py::arg("rows"), py::arg("cols"), py::arg("vector"), py::arg("block_cols"),
           py::arg("n") = 0, py::arg("m") = 0)
      .def_property_readonly("rows", [](const Layout& l) { return l.panels.rows; })
      .def_property_readonly("cols", [](const Layout& l) { return l.panels.cols; })
      .def_property_readonly("vector", [](const Layout& l) { return l.panels.vector; })
      .def_property_readonly("block_cols", [](const Layout& l) { return l.panels.block_cols; })
      .def_property_readonly("n", [](const Layout& l) { return l.panels.n; })
      .def_property_readonly("m", [](const Layout& l) { return l.panels.m; })
      .def_property_readonly("blocks", [](const Layout& l) { return l.panels.blocks(); })
      .def_property_readonly("panels", [](const Layout& l) { return l.panels.panels(); })
      .def("as_ints", [](const Layout& l) { return py::list(py::cast(as_tuple(l))); })
      .def("__eq__", [](const Layout& a, const Layout& b) { return as_tuple(a) == as_tuple(b); })
      .def("__hash__", [](const Layout& l) { return py::hash(py::cast(as_tuple(l))); })
      .def("__repr__",
           [](const Layout& l) {
             const Panels& w = l.panels;
             return py::str("Layout(rows={}, cols={}, vector={}, block_cols={}, n={}, m={})")
                 .format(w.rows, w.cols, w.vector, w.block_cols, w.n, w.m);
           })
      .def(py::pickle([](const Layout& l) { return py::cast(as_tuple(l)); },
                      [](const py::tuple& t) {
                        require<ArgumentError>(t.size() == 6,
                                               "a pickled Layout holds six integers");
                        const auto get = [&](std::size_t i) { return t[i].cast<std::int64_t>(); };
                        return Layout(get(0), get(1), get(2), get(3), get(4), get(5));
                      }));
  m.def("encode", encode_mask);
  m.def("check_structure", [](const Layout& layout, py::handle indices, py::handle indptr) {
    read_checked(layout, indices, indptr);
  });
  m.def("check_tiles",
        [](const Layout& layout, py::handle indices, py::handle indptr, std::int64_t rows,
           std::int64_t cols) { check_tiles(read_checked(layout, indices, indptr), rows, cols); });
  m.def("gather", gather_dense);
  m.def("scatter", scatter_dense);
  m.def("coordinates", coordinates_of);
  m.def("transpose", transpose_structure);
}

}  // namespace gossamer
