// Structures from and to compressed sparse rows: reads the arrays, checks every size, releases the
// GIL, runs.
#include "products/csr.hpp"

#include <string>

#include "bind/products/encoded.hpp"
#include "bind/register.hpp"
#include "bind/tensor.hpp"
#include "core/check.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

py::tuple encode_arrays(std::int64_t rows, std::int64_t cols, py::handle indptr, py::handle columns,
                        std::int64_t vector, std::int64_t n, std::int64_t m, bool csc) {
  const Layout layout(rows, cols, vector, Panels::widest_block(m), n, m);
  const Tensor pointers = read_vector(indptr, "indptr", Kind::i64);
  const Tensor ids = read_vector(columns, "indices", Kind::i64);
  require<StructureError>(pointers.shape[0] == rows + 1,
                          "indptr has " + std::to_string(pointers.shape[0]) + " elements; " +
                              std::to_string(rows) + " rows need " + std::to_string(rows + 1));
  const Csr csr{rows,
                cols,
                ids.shape[0],
                static_cast<const std::int64_t*>(pointers.data),
                static_cast<const std::int64_t*>(ids.data),
                csc};
  FromCsr made;
  {
    const py::gil_scoped_release release;
    made = encode_csr(csr, vector, n, m);
  }
  return to_python(std::move(made.structure)) + py::make_tuple(to_numpy(std::move(made.perm)));
}

py::tuple decode_arrays(const Layout& layout, py::handle indices, py::handle indptr) {
  const Panels w = read_panels(layout, indices, indptr);
  check_structure(w);
  const auto nnz = static_cast<std::size_t>(w.nnz());
  require_few_entries(w.nnz(), 1);
  std::vector<std::int64_t> pointers(static_cast<std::size_t>(w.rows) + 1), columns(nnz);
  std::vector<std::int32_t> perm(nnz);
  {
    const py::gil_scoped_release release;
    decode_csr(w, pointers.data(), columns.data(), perm.data());
  }
  return py::make_tuple(to_numpy(std::move(pointers)), to_numpy(std::move(columns)),
                        to_numpy(std::move(perm)));
}

}  // namespace

void register_csr(py::module_& m) {
  m.def("encode_csr", encode_arrays);
  m.def("decode_csr", decode_arrays);
}

}  // namespace gossamer
