// The lp path norm of shallow ReLU networks: reads the arrays, checks every size, releases the GIL,
// runs.
#include "prox/path_norm.hpp"

#include <string>

#include "bind/register.hpp"
#include "bind/tensor.hpp"
#include "core/check.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

std::string shape_of(const Tensor& t) {
  std::string text = "[";
  for (int i = 0; i < t.rank; ++i) text += (i != 0 ? ", " : "") + std::to_string(t.shape[i]);
  return text + "]";
}

void check_like_w(const Tensor& t, const char* who, const Tensor& w) {
  require<DTypeError>(t.kind == w.kind, std::string(who) + " has dtype " + t.dtype() + " and w " +
                                            w.dtype() + "; the same is needed");
}

void check_distinct(const Tensor& t, const char* who) {
  for (int i = 0; i < t.rank; ++i) {
    require<ShapeError>(t.shape[i] < 2 || t.strides[i] != 0,
                        std::string(who) +
                            " is expanded, many entries share one place: call "
                            ".contiguous() first");
  }
}

void prox(py::handle v_object, py::handle w_object, py::handle c_object) {
  adopt_torch_threads();
  const Tensor w = read_matrix(w_object, "w", true);
  require<DTypeError>(w.kind == Kind::f32 || w.kind == Kind::f64,
                      "w has dtype " + w.dtype() + "; float32 or float64 is needed");
  const Tensor v = read_tensor(v_object, "v", true);
  check_like_w(v, "v", w);
  require<ShapeError>(v.rank == 1 && v.shape[0] == w.shape[0],
                      "v has shape " + shape_of(v) + " and w " + shape_of(w) +
                          "; one v for each row of w is needed");
  const Tensor c = read_tensor(c_object, "thresholds");
  check_like_w(c, "thresholds", w);
  require<ShapeError>(c.rank == 2 && c.shape[0] == w.shape[0] && c.shape[1] == w.shape[1],
                      "thresholds have shape " + shape_of(c) + " and w " + shape_of(w) +
                          "; one for each entry of w is needed");
  check_distinct(v, "v");
  check_distinct(w, "w");
  const PathNorm problem{w.kind == Kind::f64 ? DType::f64 : DType::f32, v.data, v.strides[0],
                         w.matrix(), c.matrix()};
  std::int64_t negative;
  {
    const py::gil_scoped_release release;
    negative = first_negative_threshold(problem);
    if (negative < 0) path_norm_prox(problem);
  }
  if (negative >= 0) {
    throw ArgumentError("thresholds[" + std::to_string(negative / w.shape[1]) + ", " +
                        std::to_string(negative % w.shape[1]) +
                        "] is negative; they must be at least 0");
  }
}

}  // namespace

void register_path_norm(py::module_& m) { m.def("path_norm", prox); }

}  // namespace gossamer
