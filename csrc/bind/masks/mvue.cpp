// Unbiased N:M samples: reads the arrays, checks every size, releases the GIL, runs.
#include "masks/mvue.hpp"

#include <string>

#include "bind/products/layout.hpp"
#include "bind/register.hpp"
#include "bind/tensor.hpp"
#include "core/check.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

void mvue_sample(py::handle x, const Layout& layout, bool approximate, std::uint64_t seed,
                 std::uint64_t step, std::uint64_t layer, py::handle values, py::handle indices) {
  const Tensor in = read_matrix(x, "x");
  const DType dtype = float_dtype(in, "x");
  const Panels& out = layout.panels;
  require<ArgumentError>(out.fixed_count() && out.vector == 1,
                         "the layout of a sample must be N:M with vector 1");
  require<ShapeError>(out.rows == in.shape[1] && out.cols == round_up(in.shape[0], out.m),
                      "x has shape [" + std::to_string(in.shape[0]) + ", " +
                          std::to_string(in.shape[1]) + "]; the layout must be of its transpose, " +
                          "with the tokens rounded up to a multiple of m");
  require<ArgumentError>(!approximate || out.n <= 2,
                         "the approximate method is for n = 1 and n = 2");
  const Tensor v = read_vector(values, "values", in.kind, true);
  const Tensor ids = read_vector(indices, "indices", Kind::u8, true);
  require<ShapeError>(v.shape[0] == out.nnz() && ids.shape[0] == out.nnz(),
                      "values and indices must have " + std::to_string(out.nnz()) + " elements");
  // One draw proportional to |a| already has the least variance: both methods are the same.
  const MvueArgs args{in.matrix(),
                      out,
                      approximate && out.n == 2,
                      mvue_key(seed, step, layer),
                      v.data,
                      static_cast<std::uint8_t*>(ids.data)};
  adopt_torch_threads();
  const py::gil_scoped_release release;
  mvue(args, dtype);
}

}  // namespace

void register_mvue(py::module_& m) { m.def("sample", mvue_sample); }

}  // namespace gossamer
