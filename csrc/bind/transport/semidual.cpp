// The semi-dual of sparsity-constrained transport. Values (finite, non-negative, equal masses) are
// checked in Python; here is what memory safety needs.
#include "transport/semidual.hpp"

#include <pybind11/numpy.h>

#include <algorithm>
#include <limits>
#include <string>

#include "bind/register.hpp"
#include "bind/tensor.hpp"
#include "core/check.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

const double* read_masses(py::handle object, const char* who, std::int64_t needed) {
  const Tensor t = read_vector(object, who, Kind::f64);
  require<ShapeError>(t.shape[0] == needed, std::string(who) + " has " +
                                                std::to_string(t.shape[0]) + " elements; " +
                                                std::to_string(needed) + " are needed");
  return static_cast<const double*>(t.data);
}

SemiDualProblem read_problem(py::handle cost_t, py::handle a, py::handle b, std::int64_t k,
                             double gamma) {
  adopt_torch_threads();
  const Tensor c = read_matrix(cost_t, "C");
  require<DTypeError>(c.kind == Kind::f32 || c.kind == Kind::f64,
                      "C has dtype " + c.dtype() + "; float32 or float64 is needed");
  require<ShapeError>(
      c.contiguous() && c.numel() > 0 && c.shape[1] <= std::numeric_limits<std::int32_t>::max(),
      "C must be contiguous, transposed, and hold at least one entry");
  require<ArgumentError>(k >= 1 && k <= c.shape[1], "k=" + std::to_string(k) + " must be in [1, " +
                                                        std::to_string(c.shape[1]) +
                                                        "], the rows of C");
  require<ArgumentError>(gamma > 0.0, "gamma must be positive");
  return {c.data,
          c.kind == Kind::f32 ? DType::f32 : DType::f64,
          c.shape[1],
          c.shape[0],
          k,
          read_masses(a, "a", c.shape[1]),
          read_masses(b, "b", c.shape[0]),
          gamma};
}

SemiDualPoint read_point(const SemiDualProblem& p, py::handle f) {
  const double* start = read_masses(f, "f", p.rows);
  SemiDualPoint point;
  point.f.assign(start, start + p.rows);
  return point;
}

template <class T>
py::array_t<T> to_numpy(const std::vector<T>& data) {
  return py::array_t<T>(static_cast<py::ssize_t>(data.size()), data.data());
}

// Columns joined: indptr [cols + 1], row and mass of each entry.
py::tuple plan_of(const SemiDual& dual) {
  const ColumnPlan& plan = dual.plan();
  const std::int64_t k = dual.problem().k;
  std::vector<std::int64_t> indptr{0};
  for (const std::int64_t count : plan.count) indptr.push_back(indptr.back() + count);
  py::array_t<std::int32_t> row(indptr.back());
  py::array_t<double> mass(indptr.back());
  for (std::size_t j = 0; j < plan.count.size(); ++j) {
    const std::int64_t from = static_cast<std::int64_t>(j) * k;
    std::copy_n(plan.row.data() + from, plan.count[j], row.mutable_data() + indptr[j]);
    std::copy_n(plan.mass.data() + from, plan.count[j], mass.mutable_data() + indptr[j]);
  }
  return py::make_tuple(to_numpy(indptr), row, mass);
}

py::tuple evaluate(py::handle cost_t, py::handle a, py::handle b, std::int64_t k, double gamma,
                   py::handle f) {
  SemiDual dual(read_problem(cost_t, a, b, k, gamma));
  SemiDualPoint point = read_point(dual.problem(), f);
  {
    const py::gil_scoped_release release;
    dual.evaluate(point);
  }
  return py::make_tuple(point.value, to_numpy(point.gradient), to_numpy(dual.g()), plan_of(dual));
}

py::tuple solve(py::handle cost_t, py::handle a, py::handle b, std::int64_t k, double gamma,
                py::handle f, bool newton, double tol, std::int64_t max_iter) {
  SemiDual dual(read_problem(cost_t, a, b, k, gamma));
  SemiDualPoint point = read_point(dual.problem(), f);
  SemiDualReport report;
  {
    const py::gil_scoped_release release;
    report = maximise(dual, point, newton ? Ascent::newton : Ascent::lbfgs, tol, max_iter);
  }
  static constexpr const char* outcomes[] = {"converged", "max_iter", "stalled"};
  return py::make_tuple(outcomes[static_cast<int>(report.outcome)], report.iterations,
                        report.newton, report.evaluations, point.value, point.error,
                        to_numpy(point.f), to_numpy(dual.g()), plan_of(dual));
}

}  // namespace

void register_semidual(py::module_& m) {
  m.def("semidual_evaluate", evaluate);
  m.def("semidual_solve", solve);
}

}  // namespace gossamer
