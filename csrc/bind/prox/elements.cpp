// Proximal operators on elements: reads the tensors, checks every size, releases the GIL, runs.
#include "prox/elements.hpp"

#include <array>
#include <cmath>
#include <limits>
#include <string>

#include "bind/register.hpp"
#include "bind/tensor.hpp"
#include "core/check.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

Penalty penalty_of(const std::string& name) {
  for (int i = 0; i < penalty_count; ++i) {
    if (name == penalties[i].name) return static_cast<Penalty>(i);
  }
  throw ArgumentError("there is no element operator named " + name);
}

// Parameters outside of their range cannot crash a kernel, but their result would mean nothing.
std::array<double, penalty_params> params_of(Penalty which, const py::tuple& given) {
  const PenaltyTraits& traits = penalties[static_cast<int>(which)];
  const auto needed = static_cast<std::size_t>(traits.params);
  require<ArgumentError>(given.size() == needed, "got " + std::to_string(given.size()) +
                                                     " parameters of a penalty; " +
                                                     std::to_string(needed) + " are needed");
  std::array<double, penalty_params> params{};
  for (std::size_t i = 0; i < needed; ++i) params[i] = given[i].cast<double>();
  const double lam = params[0], b = params[1];
  if (traits.bounds) {
    require<ArgumentError>(lam <= b, std::string(traits.name) + " needs bounds low <= high");
    return params;
  }
  require<ArgumentError>(std::isfinite(lam) && lam >= 0.0,
                         "lam must be a finite number that is not negative");
  const bool fits = traits.closed ? b >= traits.low && b <= traits.high
                                  : std::isfinite(b) && b > traits.low && b < traits.high;
  require<ArgumentError>(needed == 1 || fits, std::string("the second parameter of ") +
                                                  traits.name + " is " + std::to_string(b) +
                                                  ", which is outside of its range");
  return params;
}

Tensor read_entries(py::handle object, const char* who, bool writable) {
  const Tensor t = read_tensor(object, who, writable);
  require<DTypeError>(t.kind == Kind::f32 || t.kind == Kind::f64,
                      std::string(who) + " has dtype " + t.dtype() +
                          "; float32 or float64 is needed: convert it first");
  require<ShapeError>(t.rank == 1 && t.contiguous(),
                      std::string(who) + " must be a contiguous vector here");
  return t;
}

void same(const Tensor& t, const Tensor& as, const char* who) {
  require<DTypeError>(t.kind == as.kind, std::string(who) + " has dtype " + t.dtype() +
                                             ", but the entries have " + as.dtype());
  require<ShapeError>(
      t.shape[0] == as.shape[0],
      std::string(who) + " has " + std::to_string(t.shape[0]) +
          " entries; as many as there are in x are needed: " + std::to_string(as.shape[0]));
}

constexpr double floor_of(bool positive) noexcept {
  return positive ? 0.0 : -std::numeric_limits<double>::infinity();
}

DType dtype_of(const Tensor& t) noexcept { return t.kind == Kind::f32 ? DType::f32 : DType::f64; }

void elements(py::handle x, const std::string& name, const py::tuple& parameters, double step,
              py::handle steps, bool positive) {
  const Penalty which = penalty_of(name);
  const auto params = params_of(which, parameters);
  const Tensor entries = read_entries(x, "x", true);
  ElementArgs args{params.data(), step, nullptr, floor_of(positive)};
  if (!steps.is_none()) {
    const Tensor own = read_entries(steps, "steps", false);
    same(own, entries, "steps");
    args.steps = own.data;
  } else {
    require<ArgumentError>(std::isfinite(step) && step >= 0.0,
                           "step must be a finite number that is not negative");
  }
  adopt_torch_threads();
  const py::gil_scoped_release release;
  prox_elements(which, dtype_of(entries), entries.data, entries.shape[0], args);
}

void adamw(py::handle param, py::handle grad, py::handle exp_avg, py::handle exp_avg_sq,
           double beta1, double beta2, double eps, double lr, double bias1, double root_bias2,
           double shrink, const std::string& name, const py::tuple& parameters, py::handle weights,
           bool positive) {
  const Penalty which = penalty_of(name);
  const auto params = params_of(which, parameters);
  const Tensor p = read_entries(param, "param", true);
  const Tensor g = read_entries(grad, "grad", false);
  const Tensor m = read_entries(exp_avg, "exp_avg", true);
  const Tensor v = read_entries(exp_avg_sq, "exp_avg_sq", true);
  same(g, p, "grad");
  same(m, p, "exp_avg");
  same(v, p, "exp_avg_sq");
  ElementArgs penalty{params.data(), 0.0, nullptr, floor_of(positive)};
  if (!weights.is_none()) {
    const Tensor own = read_entries(weights, "weights", false);
    same(own, p, "weights");
    penalty.steps = own.data;
  }
  const AdamWTensors tensors{dtype_of(p), p.shape[0], p.data, g.data, m.data, v.data};
  const AdamWArgs args{beta1, beta2, eps, lr, bias1, root_bias2, shrink};
  adopt_torch_threads();
  const py::gil_scoped_release release;
  prox_adamw(tensors, args, which, penalty);
}

}  // namespace

void register_elements(py::module_& m) {
  m.def("elements", elements);
  m.def("adamw", adamw);
}

}  // namespace gossamer
