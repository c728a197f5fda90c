// Optimal transport: reads the arrays, checks every size, releases the GIL, runs.
//
// A cost is a tuple: ("dense", C [n, m]) or (metric, x [n, d], y transposed [d, m]).
#include "transport/solve.hpp"
#include "bind/register.hpp"
#include "bind/tensor.hpp"
#include "core/check.hpp"
#include "core/parallel.hpp"
#include "transport/laplacian.hpp"
#include "transport/passes.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <new>

namespace py = pybind11;

namespace gossamer {
namespace {

// Entries below which one thread is faster than waking the others.
constexpr std::int64_t serial_entries = 1 << 15;

int workers_for(const Cost& c) noexcept { return c.n * c.m < serial_entries ? 1 : max_threads(); }

Cost read_cost(const py::tuple& spec) {
  const auto kind = spec[0].cast<std::string>();
  Cost cost{};
  if (kind == "dense") {
    const Tensor c = read_matrix(spec[1], "C");
    require<DTypeError>(c.kind == Kind::f64 || c.kind == Kind::f32,
                        "C has dtype " + c.dtype() + "; float32 or float64 is needed");
    require<ShapeError>(c.shape[1] <= 1 || c.strides[1] == 1,
                        "the rows of C must be contiguous: call .contiguous()");
    cost.kind = c.kind == Kind::f64 ? CostKind::dense_f64 : CostKind::dense_f32;
    cost.n = c.shape[0];
    cost.m = c.shape[1];
    cost.data = c.data;
    cost.stride = c.strides[0];
  } else {
    const Tensor x = read_matrix(spec[1], "x");
    const Tensor y = read_matrix(spec[2], "y");
    require<DTypeError>(x.kind == Kind::f64 && y.kind == Kind::f64, "points must be float64");
    require<ShapeError>(x.contiguous() && y.contiguous() && x.shape[1] == y.shape[0],
                        "points must be contiguous, x [n, d] and y transposed [d, m]");
    cost.kind = kind == "sqeuclidean" ? CostKind::sqeuclidean
                : kind == "euclidean" ? CostKind::euclidean
                : kind == "l1"        ? CostKind::l1
                                      : CostKind::cosine;
    cost.n = x.shape[0];
    cost.m = y.shape[1];
    cost.x = static_cast<const double*>(x.data);
    cost.y = static_cast<const double*>(y.data);
    cost.d = x.shape[1];
  }
  require<ShapeError>(cost.n > 0 && cost.m > 0 && cost.m < std::numeric_limits<std::int32_t>::max(),
                      "C must have rows and columns, fewer than 2^31 of each");
  return cost;
}

double* doubles(py::handle object, const char* who, std::int64_t size, bool writable = false) {
  const Tensor t = read_vector(object, who, Kind::f64, writable);
  require<ShapeError>(t.shape[0] == size, std::string(who) + " has " + std::to_string(t.shape[0]) +
                                              " elements; needed are " + std::to_string(size));
  return static_cast<double*>(t.data);
}

Method read_method(const std::string& name) {
  return name == "sinkhorn"    ? Method::sinkhorn
         : name == "newton"    ? Method::newton
         : name == "published" ? Method::published
                               : Method::automatic;
}

py::tuple report(const Outcome& o) {
  static constexpr const char* statuses[] = {"converged", "max_iter", "stalled"};
  static constexpr const char* methods[] = {"auto", "sinkhorn", "newton", "published"};
  return py::make_tuple(statuses[static_cast<int>(o.status)], methods[static_cast<int>(o.method)],
                        o.sweeps, o.newton, o.cg, o.passes, o.error, o.history.errors());
}

// `items` problems of one size: C is [items * n, m], a and u [items * n], b and v [items * m].
py::list solve(const py::tuple& spec, std::int64_t items, py::handle a, py::handle b,
               py::handle regs, py::handle scales, double rho_a, double rho_b,
               const std::string& method, double tol, std::int64_t max_iter, double omega,
               bool warm, py::handle u, py::handle v) {
  Cost all = read_cost(spec);
  require<ShapeError>(items >= 1 && all.n % items == 0, "items must divide the rows of C");
  require<ArgumentError>(items == 1 || all.data != nullptr, "several items need dense costs");
  all.n /= items;
  const double* pa = doubles(a, "a", items * all.n);
  const double* pb = doubles(b, "b", items * all.m);
  const double* reg = doubles(regs, "reg", items);
  const double* scale = doubles(scales, "scale", items);
  double* pu = doubles(u, "u", items * all.n, true);
  double* pv = doubles(v, "v", items * all.m, true);
  const SolveOptions options{read_method(method), tol, max_iter, omega, warm};
  std::vector<Outcome> outcomes(static_cast<std::size_t>(items));
  {
    const py::gil_scoped_release release;
    bool exhausted = false;  // an exception may not pass a thread's border
    // One problem has all threads; several have one each.
    parallel_for(items, items == 1 ? 1 : max_threads(), [&](std::int64_t k, int) noexcept {
      Problem p{all, pa + k * all.n, pb + k * all.m, reg[k], rho_a, rho_b, scale[k]};
      if (all.data != nullptr) {
        const std::int64_t size = all.kind == CostKind::dense_f64 ? 8 : 4;
        p.cost.data = static_cast<const char*>(all.data) + k * all.n * all.stride * size;
      }
      try {
        outcomes[static_cast<std::size_t>(k)] = solve_transport(
            p, options, pu + k * all.n, pv + k * all.m, items == 1 ? workers_for(all) : 1);
      } catch (const std::bad_alloc&) {
        std::atomic_ref<bool>(exhausted).store(true);
      }
    });
    if (exhausted) throw std::bad_alloc();
  }
  py::list out;
  for (const Outcome& o : outcomes) out.append(report(o));
  return out;
}

void plan(const py::tuple& spec, double reg, py::handle u, py::handle v, py::handle out) {
  const Cost cost = read_cost(spec);
  const double* pu = doubles(u, "u", cost.n);
  const double* pv = doubles(v, "v", cost.m);
  const Tensor p = read_matrix(out, "plan", true);
  require<DTypeError>(p.kind == Kind::f64, "plan has dtype " + p.dtype() + "; float64 is needed");
  require<ShapeError>(p.contiguous() && p.shape[0] == cost.n && p.shape[1] == cost.m,
                      "plan must be a contiguous matrix of the size of C");
  const py::gil_scoped_release release;
  PassRunner(cost, workers_for(cost)).plan(1.0 / reg, pu, pv, static_cast<double*>(p.data));
}

void sums(const py::tuple& spec, double reg, py::handle u, py::handle v, py::handle rows,
          py::handle cols, py::handle row_cost) {
  const Cost cost = read_cost(spec);
  const SumsArgs args{1.0 / reg, doubles(u, "u", cost.n), doubles(v, "v", cost.m),
                      doubles(rows, "rows", cost.n, true),
                      doubles(row_cost, "row_cost", cost.n, true)};
  double* out = doubles(cols, "cols", cost.m, true);
  const py::gil_scoped_release release;
  Vector c;
  PassRunner(cost, workers_for(cost)).sums(args, c);
  std::copy(c.begin(), c.end(), out);
}

template <class List>
auto array_of(const List& values) {
  return py::array_t<typename List::value_type>(static_cast<py::ssize_t>(values.size()),
                                                values.data());
}

py::tuple entries(const py::tuple& spec, double reg, py::handle u, py::handle v, py::handle sqrt_b,
                  double relative) {
  const Cost cost = read_cost(spec);
  Vector rows(static_cast<std::size_t>(cost.n)), cols;
  const EmitArgs args{1.0 / reg,
                      doubles(u, "u", cost.n),
                      doubles(v, "v", cost.m),
                      doubles(sqrt_b, "sqrt_b", cost.m),
                      relative,
                      0.0,
                      Keep::plan,
                      rows.data()};
  Entries out;
  {
    const py::gil_scoped_release release;
    PassRunner(cost, workers_for(cost)).emit(args, cols, out);
  }
  return py::make_tuple(array_of(out.indptr), array_of(out.cols), array_of(out.values));
}

Entries read_entries(py::handle indptr, py::handle cols, py::handle values, std::int64_t m) {
  const Tensor p = read_vector(indptr, "indptr", Kind::i64);
  const Tensor c = read_vector(cols, "cols", Kind::i32);
  const Tensor x = read_vector(values, "values", Kind::f64);
  const auto* pp = static_cast<const std::int64_t*>(p.data);
  const auto* pc = static_cast<const std::int32_t*>(c.data);
  const auto* px = static_cast<const double*>(x.data);
  bool good =
      p.shape[0] >= 2 && pp[0] == 0 && pp[p.shape[0] - 1] == c.shape[0] && c.shape[0] == x.shape[0];
  for (std::int64_t i = 0; good && i + 1 < p.shape[0]; ++i) good = pp[i] <= pp[i + 1];
  for (std::int64_t e = 0; good && e < c.shape[0]; ++e) good = pc[e] >= 0 && pc[e] < m;
  require<StructureError>(
      good, "the plan's entries are not a CSR matrix with " + std::to_string(m) + " columns");
  return {{pp, pp + p.shape[0]}, {pc, pc + c.shape[0]}, {px, px + x.shape[0]}};
}

py::tuple schur_solve(py::handle indptr, py::handle cols, py::handle values, py::handle rest,
                      py::handle column, bool singular, py::handle rhs, double tol,
                      std::int64_t max_iter, py::handle out) {
  const std::int64_t m = read_vector(column, "column", Kind::f64).shape[0];
  const Entries plan_entries = read_entries(indptr, cols, values, m);
  const auto n = static_cast<std::int64_t>(plan_entries.indptr.size()) - 1;
  const double* d = doubles(rest, "rest", n);
  const double* c = doubles(column, "column", m);
  const double* q = doubles(rhs, "rhs", n);
  double* z = doubles(out, "z", n, true);
  LinearReport r;
  {
    const py::gil_scoped_release release;
    const Laplacian system(plan_entries, m, Vector(d, d + n), Vector(c, c + m), singular,
                           max_threads());
    Vector answer;
    r = system.solve(Vector(q, q + n), tol, max_iter, answer);
    std::copy(answer.begin(), answer.end(), z);
  }
  return py::make_tuple(r.converged, r.iterations, r.residual);
}

}  // namespace

void register_transport(py::module_& m) {
  m.def("solve", solve);
  m.def("plan", plan);
  m.def("sums", sums);
  m.def("entries", entries);
  m.def("schur_solve", schur_solve);
}

}  // namespace gossamer
