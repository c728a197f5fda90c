// Operators on groups: reads the arrays, checks every size, releases the GIL, runs. Whether the
// indices of irregular groups are a permutation is checked where they are made; here that no read
// leaves the tensor.
#include "prox/groups.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <type_traits>

#include "bind/register.hpp"
#include "bind/tensor.hpp"
#include "core/check.hpp"
#include "prox/chains.hpp"
#include "prox/select.hpp"
#include "prox/wgsef.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

// The vector that an operator changes: float32 or float64, contiguous, not empty.
Tensor read_entries(py::handle object, const char* who, bool writable) {
  adopt_torch_threads();
  const Tensor t = read_tensor(object, who, writable);
  require<DTypeError>(t.kind == Kind::f32 || t.kind == Kind::f64,
                      std::string(who) + " has dtype " + t.dtype() +
                          "; float32 or float64 is needed: convert it first");
  require<ShapeError>(t.rank == 1 && t.contiguous(),
                      std::string(who) + " must be one-dimensional and contiguous here");
  require<ShapeError>(t.numel() > 0, std::string(who) + " is empty; at least one entry is needed");
  return t;
}

double* read_doubles(py::handle object, const char* who, std::int64_t needed,
                     bool writable = false) {
  const Tensor t = read_vector(object, who, Kind::f64, writable);
  require<ShapeError>(t.shape[0] == needed,
                      std::string(who) + " has " + std::to_string(t.shape[0]) + " elements; " +
                          std::to_string(needed) + " are needed, one for each group");
  return static_cast<double*>(t.data);
}

void check_number(double value, const char* who) {
  if (value >= 0.0 && std::isfinite(value)) return;
  throw ArgumentError(std::string(who) + "=" + py::str(py::float_(value)).cast<std::string>() +
                      "; a finite number of at least 0 is needed");
}

// Null for None; otherwise all entries positive and finite.
const double* read_weights(py::handle object, const char* who, std::int64_t needed) {
  if (object.is_none()) return nullptr;
  const double* const data = read_doubles(object, who, needed);
  for (std::int64_t j = 0; j < needed; ++j) {
    if (data[j] > 0.0 && data[j] <= std::numeric_limits<double>::max()) continue;
    throw ArgumentError(std::string(who) + "[" + std::to_string(j) + "] is " +
                        py::str(py::float_(data[j])).cast<std::string>() +
                        "; positive finite numbers are needed");
  }
  return data;
}

struct Irregular {
  py::handle indptr;
  py::handle indices;
};

GroupShape read_groups(std::int64_t outer, std::int64_t count, std::int64_t inner,
                       const Irregular& irregular, std::int64_t numel) {
  require<ShapeError>(outer > 0 && count > 0 && inner > 0,
                      "groups need outer, count and inner of at least 1");
  GroupShape shape{outer, count, inner, nullptr, nullptr, numel};
  if (irregular.indptr.is_none()) {
    std::int64_t product = 0;
    require<ShapeError>(!__builtin_mul_overflow(outer, count, &product) &&
                            !__builtin_mul_overflow(product, inner, &product) && product == numel,
                        "groups [" + std::to_string(outer) + ", " + std::to_string(count) + ", " +
                            std::to_string(inner) + "] do not fit a tensor of " +
                            std::to_string(numel) + " entries; make them for its shape");
    return shape;
  }
  const Tensor indptr = read_vector(irregular.indptr, "indptr", Kind::i64);
  const Tensor indices = read_vector(irregular.indices, "indices", Kind::i64);
  require<ShapeError>(indices.shape[0] == numel,
                      "the partition has " + std::to_string(indices.shape[0]) +
                          " entries, the tensor " + std::to_string(numel) +
                          "; make the partition for this tensor");
  require<StructureError>(indptr.shape[0] >= 2 && count == indptr.shape[0] - 1,
                          "indptr has " + std::to_string(indptr.shape[0]) + " elements; " +
                              std::to_string(count + 1) + " are needed, one more than groups");
  shape.indptr = static_cast<const std::int64_t*>(indptr.data);
  shape.indices = static_cast<const std::int64_t*>(indices.data);
  bool rises = shape.indptr[0] == 0 && shape.indptr[count] == numel;
  for (std::int64_t g = 0; g < count; ++g) rises &= shape.indptr[g] <= shape.indptr[g + 1];
  bool inside = true;
  for (std::int64_t i = 0; i < numel; ++i) {
    inside &= static_cast<std::uint64_t>(shape.indices[i]) < static_cast<std::uint64_t>(numel);
  }
  require<StructureError>(rises, "indptr must rise from 0 to the number of entries");
  require<StructureError>(inside, "indices must lie in [0, " + std::to_string(numel) + ")");
  return shape;
}

// Data null for None; of x's dtype and length.
Tensor metric_like(py::handle metric, const Tensor& t) {
  if (metric.is_none()) return Tensor{};
  const Tensor h = read_entries(metric, "metric", false);
  require<DTypeError>(h.kind == t.kind,
                      "metric has dtype " + h.dtype() + ", x " + t.dtype() + "; they must agree");
  require<ShapeError>(h.numel() == t.numel(), "metric has " + std::to_string(h.numel()) +
                                                  " entries, x " + std::to_string(t.numel()) +
                                                  "; they must agree");
  return h;
}

// Calls body(T*) for the dtype of the entries, without the GIL.
template <class F>
void on_entries(const Tensor& t, F&& body) {
  const py::gil_scoped_release release;
  if (t.kind == Kind::f32) {
    body(static_cast<float*>(t.data));
  } else {
    body(static_cast<double*>(t.data));
  }
}

void norms(py::handle x, std::int64_t outer, std::int64_t count, std::int64_t inner,
           py::handle indptr, py::handle indices, py::handle out) {
  const Tensor t = read_entries(x, "x", false);
  const GroupShape shape = read_groups(outer, count, inner, {indptr, indices}, t.numel());
  double* const to = read_doubles(out, "norms", count, true);
  on_entries(t, [&](const auto* data) { group_norms(data, shape, to); });
}

void scale(py::handle x, std::int64_t outer, std::int64_t count, std::int64_t inner,
           py::handle indptr, py::handle indices, py::handle gains) {
  const Tensor t = read_entries(x, "x", true);
  const GroupShape shape = read_groups(outer, count, inner, {indptr, indices}, t.numel());
  const double* const by = read_doubles(gains, "gains", count);
  on_entries(t, [&](auto* data) { scale_groups(data, shape, by); });
}

void metric_l2(py::handle x, py::handle metric, std::int64_t outer, std::int64_t count,
               std::int64_t inner, py::handle indptr, py::handle indices, py::handle lam) {
  const Tensor t = read_entries(x, "x", true);
  const Tensor h = metric_like(metric, t);
  const GroupShape shape = read_groups(outer, count, inner, {indptr, indices}, t.numel());
  const double* const by = read_doubles(lam, "lam", count);
  for (std::int64_t g = 0; g < count; ++g) check_number(by[g], "lam");
  on_entries(t, [&](auto* data) {
    using T = std::remove_pointer_t<decltype(data)>;
    metric_group_l2(data, static_cast<const T*>(h.data), shape, by);
  });
}

std::int64_t read_norms(py::handle object) {
  adopt_torch_threads();
  const Tensor t = read_vector(object, "norms", Kind::f64);
  require<ShapeError>(t.shape[0] > 0, "norms is empty; at least one group is needed");
  return t.shape[0];
}

double gains(py::handle a, double k, double lam, py::handle d, py::handle c, py::handle h,
             py::handle out) {
  const std::int64_t m = read_norms(a);
  check_number(k, "k");
  check_number(lam, "lam");
  const WgsefProblem problem{{read_doubles(a, "norms", m), read_weights(d, "d", m),
                              read_weights(c, "c", m), read_weights(h, "h", m), lam},
                             m,
                             k};
  double* const to = read_doubles(out, "gains", m, true);
  const py::gil_scoped_release release;
  return wgsef_gains(problem, to);
}

double value(py::handle a, double k, py::handle d, py::handle c, py::handle u) {
  const std::int64_t m = read_norms(a);
  check_number(k, "k");
  const WgsefProblem problem{
      {read_doubles(a, "norms", m), read_weights(d, "d", m), read_weights(c, "c", m), nullptr, 0.0},
      m,
      k};
  double* const to = read_doubles(u, "u", m, true);
  const py::gil_scoped_release release;
  return wgsef_value(problem, to);
}

void keep_largest(py::handle x, std::int64_t k) {
  const Tensor t = read_entries(x, "x", true);
  require<ArgumentError>(k >= 0, "k=" + std::to_string(k) + "; a count of at least 0 is needed");
  on_entries(t, [&](auto* data) { top_k(data, t.numel(), k); });
}

void onto_l1_ball(py::handle x, double radius) {
  const Tensor t = read_entries(x, "x", true);
  check_number(radius, "radius");
  on_entries(t, [&](auto* data) { l1_ball(data, t.numel(), radius); });
}

void onto_simplex(py::handle x, double radius) {
  const Tensor t = read_entries(x, "x", true);
  check_number(radius, "radius");
  on_entries(t, [&](auto* data) { simplex(data, t.numel(), radius); });
}

void regress(py::handle x, py::handle metric, std::int64_t outer, std::int64_t count,
             std::int64_t inner, py::handle indptr, py::handle indices, bool falling) {
  const Tensor t = read_entries(x, "x", true);
  const Tensor h = metric_like(metric, t);
  const GroupShape shape = read_groups(outer, count, inner, {indptr, indices}, t.numel());
  on_entries(
      t, [&](auto* data) { isotonic(data, static_cast<decltype(data)>(h.data), shape, falling); });
}

void fuse(py::handle x, py::handle metric, std::int64_t outer, std::int64_t count,
          std::int64_t inner, py::handle indptr, py::handle indices, double lam) {
  const Tensor t = read_entries(x, "x", true);
  const Tensor h = metric_like(metric, t);
  const GroupShape shape = read_groups(outer, count, inner, {indptr, indices}, t.numel());
  check_number(lam, "lam");
  on_entries(t, [&](auto* data) {
    total_variation(data, static_cast<decltype(data)>(h.data), shape, lam);
  });
}

void onto_simplices(py::handle x, std::int64_t outer, std::int64_t count, std::int64_t inner,
                    py::handle indptr, py::handle indices, double radius) {
  const Tensor t = read_entries(x, "x", true);
  const GroupShape shape = read_groups(outer, count, inner, {indptr, indices}, t.numel());
  check_number(radius, "radius");
  on_entries(t, [&](auto* data) { simplices(data, shape, radius); });
}

void shrink_l1_minus_l2(py::handle x, double lam, double alpha) {
  const Tensor t = read_entries(x, "x", true);
  check_number(lam, "lam");
  check_number(alpha, "alpha");
  require<ArgumentError>(alpha <= 1.0, "alpha must be in [0, 1]: beyond 1 the penalty is negative");
  on_entries(t, [&](auto* data) { l1_minus_l2(data, t.numel(), lam, alpha); });
}

}  // namespace

void register_groups(py::module_& m) {
  m.def("group_norms", norms);
  m.def("scale_groups", scale);
  m.def("metric_group_l2", metric_l2);
  m.def("wgsef_gains", gains);
  m.def("wgsef_value", value);
  m.def("top_k", keep_largest);
  m.def("l1_ball", onto_l1_ball);
  m.def("simplex", onto_simplex);
  m.def("l1_minus_l2", shrink_l1_minus_l2);
  m.def("isotonic", regress);
  m.def("total_variation", fuse);
  m.def("simplices", onto_simplices);
}

}  // namespace gossamer
