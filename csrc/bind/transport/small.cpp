// Many tiny transport problems: reads the arrays, checks every size, releases the GIL, runs.
#include "transport/small.hpp"

#include <cmath>
#include <string>

#include "bind/register.hpp"
#include "bind/tensor.hpp"
#include "core/check.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

Tensor read_cube(py::handle object, const char* who, const Tensor* like, bool writable = false) {
  const Tensor t = read_tensor(object, who, writable, 3);
  require<ShapeError>(t.rank == 3 && t.contiguous(),
                      std::string(who) + " must be contiguous, of shape [problems, rows, columns]");
  require<DTypeError>(
      t.kind == Kind::f32 || t.kind == Kind::f64,
      std::string(who) + " has dtype " + t.dtype() + "; float32 or float64 is needed");
  require<ShapeError>(
      like == nullptr || (t.kind == like->kind && t.shape[0] == like->shape[0] &&
                          t.shape[1] == like->shape[1] && t.shape[2] == like->shape[2]),
      std::string(who) + " must have the shape and dtype of the scores");
  return t;
}

template <class T>
void check_sums(const Tensor& sums, const char* who) {
  for (std::int64_t i = 0; i < sums.shape[0]; ++i) {
    const T value = static_cast<const T*>(sums.data)[i];
    if (value > T(0) && std::isfinite(value)) continue;
    throw ArgumentError(std::string(who) + "[" + std::to_string(i) + "] is " +
                        py::str(py::float_(static_cast<double>(value))).cast<std::string>() +
                        "; positive finite numbers are needed");
  }
}

const void* read_sums(py::handle object, const char* who, const Tensor& scores, int dim) {
  const Tensor t = read_vector(object, who, scores.kind);
  require<ShapeError>(t.shape[0] == scores.shape[dim],
                      std::string(who) + " has " + std::to_string(t.shape[0]) + " elements; " +
                          std::to_string(scores.shape[dim]) + " are needed");
  scores.kind == Kind::f32 ? check_sums<float>(t, who) : check_sums<double>(t, who);
  return t.data;
}

SmallProblems read_problems(const Tensor& scores, py::handle a, py::handle b,
                            std::int64_t iterations) {
  adopt_torch_threads();
  const std::int64_t n = scores.shape[1], m = scores.shape[2];
  require<ShapeError>(n >= 1 && n <= small_most && m >= 1 && m <= small_most,
                      "scores has problems of " + shape_of(n, m) + "; 1 to " +
                          std::to_string(small_most) + " rows and columns are possible");
  require<ArgumentError>(iterations >= 1 && iterations <= small_rounds,
                         "iterations=" + std::to_string(iterations) + " must be in [1, " +
                             std::to_string(small_rounds) + "]");
  return {scores.kind == Kind::f32 ? DType::f32 : DType::f64,
          scores.shape[0],
          n,
          m,
          iterations,
          scores.data,
          read_sums(a, "a", scores, 1),
          read_sums(b, "b", scores, 2)};
}

void forward(py::handle scores, py::handle a, py::handle b, std::int64_t iterations,
             py::handle plan) {
  const Tensor in = read_cube(scores, "scores", nullptr);
  const SmallProblems problems = read_problems(in, a, b, iterations);
  const Tensor out = read_cube(plan, "plan", &in, true);
  const py::gil_scoped_release release;
  sinkhorn_small(problems, out.data);
}

void backward(py::handle scores, py::handle a, py::handle b, std::int64_t iterations,
              py::handle grad, py::handle grad_scores) {
  const Tensor in = read_cube(scores, "scores", nullptr);
  const SmallProblems problems = read_problems(in, a, b, iterations);
  const Tensor given = read_cube(grad, "grad", &in);
  const Tensor out = read_cube(grad_scores, "grad_scores", &in, true);
  const py::gil_scoped_release release;
  sinkhorn_small_backward(problems, given.data, out.data);
}

}  // namespace

void register_small(py::module_& m) {
  m.def("sinkhorn_small", forward);
  m.def("sinkhorn_small_backward", backward);
}

}  // namespace gossamer
