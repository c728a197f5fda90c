// Random structures: reads the sizes, releases the GIL, draws.
#include "masks/draw.hpp"

#include "bind/products/encoded.hpp"
#include "bind/register.hpp"
#include "bind/tensor.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

template <class F>
py::tuple drawn(F&& draw) {
  adopt_torch_threads();
  Encoded made;
  {
    const py::gil_scoped_release release;
    made = draw();
  }
  return to_python(std::move(made));
}

py::tuple groups(std::int64_t rows, std::int64_t cols, std::int64_t vector, std::int64_t n,
                 std::int64_t m, std::uint64_t seed) {
  return drawn([&] { return draw_groups(rows, cols, vector, n, m, seed); });
}

py::tuple entries(std::int64_t rows, std::int64_t cols, std::int64_t vector, std::int64_t count,
                  std::uint64_t seed) {
  return drawn([&] { return draw_entries(rows, cols, vector, count, seed); });
}

py::tuple tiles(std::int64_t rows, std::int64_t cols, std::int64_t vector, std::int64_t high,
                std::int64_t wide, std::int64_t count, std::uint64_t seed) {
  return drawn([&] { return draw_tiles(rows, cols, vector, high, wide, count, seed); });
}

}  // namespace

void register_draw(py::module_& m) {
  m.def("draw_groups", groups);
  m.def("draw_entries", entries);
  m.def("draw_tiles", tiles);
}

}  // namespace gossamer
