// Transposable masks: reads the arrays, checks every size, releases the GIL, runs.
#include "masks/tiles.hpp"

#include <cmath>
#include <string>

#include "bind/register.hpp"
#include "bind/tensor.hpp"
#include "core/check.hpp"
#include "masks/tiles_table.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

void tiles_mask(py::handle weight, std::int64_t n, std::int64_t m, int method, double sharpness,
                std::int64_t iterations, py::handle mask) {
  const Tensor w = read_matrix(weight, "weight");
  const DType dtype = float_dtype(w, "weight");
  const Tensor out = read_matrix(mask, "mask", true);
  require<ArgumentError>(m >= 2 && m <= max_tile && n >= 1 && n < m,
                         "n=" + std::to_string(n) + ", m=" + std::to_string(m) +
                             "; 1 <= n < m <= " + std::to_string(max_tile) + " must hold");
  require<ShapeError>(w.shape[0] % m == 0 && w.shape[1] % m == 0,
                      "weight has shape [" + std::to_string(w.shape[0]) + ", " +
                          std::to_string(w.shape[1]) +
                          "]; both must be multiples of m=" + std::to_string(m));
  require<DTypeError>(out.kind == Kind::boolean,
                      "mask has dtype " + out.dtype() + "; bool is needed");
  require<ShapeError>(out.shape[0] == w.shape[0] && out.shape[1] == w.shape[1] && out.contiguous(),
                      "mask must be contiguous, of the shape of weight");
  require<ArgumentError>(method >= 0 && method <= static_cast<int>(TileMethod::entropy),
                         "method=" + std::to_string(method) + " is unknown");
  require<ArgumentError>(method != static_cast<int>(TileMethod::exact) || m == 4,
                         "the exact method needs m=4");
  require<ArgumentError>(std::isfinite(sharpness) && sharpness > 0 && sharpness <= 1e6 &&
                             iterations >= 0 && iterations <= 1'000'000,
                         "sharpness must be in (0, 1e6] and iterations in [0, 1e6]");
  adopt_torch_threads();
  const py::gil_scoped_release release;
  transposable_mask({w.matrix(), dtype, n, m, static_cast<TileMethod>(method),
                     static_cast<float>(sharpness), iterations,
                     static_cast<std::uint8_t*>(out.data)});
}

}  // namespace

void register_tiles(py::module_& m) { m.def("transposable", tiles_mask); }

}  // namespace gossamer
