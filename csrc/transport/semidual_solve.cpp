// Climbing the semi-dual: L-BFGS (Liu & Nocedal 1989) and a semismooth Newton method (Lorenz,
// Manns, Meyer 2021, "Quadratically regularized optimal transport"), under one line search.
//
// D is concave and piecewise quadratic, and has kinks where the k-th and the next entry of a column
// tie. So the line search is Lewis & Overton's (2013), which needs no smoothness, and both methods
// stop where no step leads up any more: at a kink the rows stay off, whatever the method.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <deque>

#include "transport/semidual.hpp"

namespace gossamer {
namespace {

using Vector = std::vector<double>;

constexpr std::size_t memory = 10;   // pairs that L-BFGS keeps
constexpr double sufficient = 1e-4;  // share of the predicted gain that a step must bring
constexpr double flat = 0.9;         // share of the slope below which a step is long enough
constexpr int max_trials = 30;       // of a line search
constexpr double epsilon = 1e-15;    // rounding of D, as a part of its magnitude
constexpr int patience = 20;         // iterations in a row that may gain nothing but rounding

double dot(const Vector& x, const Vector& y) noexcept {
  double sum = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

void add(Vector& x, double scale, const Vector& y) noexcept {
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += scale * y[i];
}

// H = -D'' wherever D has one: (1/gamma) sum_j (I - 11'/|S_j|) on the support S_j of each column.
class Hessian {
 public:
  // `shift` times the mean of H's diagonal is added to that: H is singular (constants, and rows
  // that no column uses).
  Hessian(const SemiDual& dual, double shift) : dual_(dual), diagonal_(rows(), 0.0) {
    each_column([&](const std::int32_t* row, std::int64_t count) {
      const double share = 1.0 - 1.0 / static_cast<double>(count);
      for (std::int64_t e = 0; e < count; ++e) diagonal_[at(row[e])] += share;
    });
    double mean = 0.0;
    for (const double d : diagonal_) mean += d;
    mean = std::max(mean, 1.0) / static_cast<double>(rows());
    shift_ = shift * mean;
    for (double& d : diagonal_) d += shift_;
  }

  void apply(const Vector& x, Vector& y) const {
    for (std::size_t i = 0; i < x.size(); ++i) y[i] = shift_ * x[i];
    each_column([&](const std::int32_t* row, std::int64_t count) {
      double mean = 0.0;
      for (std::int64_t e = 0; e < count; ++e) mean += x[at(row[e])];
      mean /= static_cast<double>(count);
      for (std::int64_t e = 0; e < count; ++e) y[at(row[e])] += x[at(row[e])] - mean;
    });
  }

  // H x = r by conjugate gradients with the diagonal as preconditioner, to `tol` of |r|.
  Vector solve(const Vector& r, double tol) const {
    Vector x(r.size(), 0.0), residual = r, z(r.size()), p(r.size()), q(r.size());
    double rho = 0.0;
    const double target = tol * tol * dot(r, r);
    for (std::size_t iteration = 0; iteration < 2 * r.size() + 10; ++iteration) {
      for (std::size_t i = 0; i < r.size(); ++i) z[i] = residual[i] / diagonal_[i];
      const double next = dot(residual, z);
      for (std::size_t i = 0; i < r.size(); ++i) {
        p[i] = z[i] + (iteration == 0 ? 0.0 : next / rho) * p[i];
      }
      rho = next;
      apply(p, q);
      const double curvature = dot(p, q);
      if (!(curvature > 0.0)) break;
      add(x, rho / curvature, p);
      add(residual, -rho / curvature, q);
      if (dot(residual, residual) <= target) break;
    }
    for (double& value : x) value *= dual_.problem().gamma;  // apply() leaves 1/gamma out
    return x;
  }

 private:
  static std::size_t at(std::int64_t i) noexcept { return static_cast<std::size_t>(i); }
  std::size_t rows() const noexcept { return at(dual_.problem().rows); }

  template <class F>
  void each_column(F&& body) const {
    const ColumnPlan& plan = dual_.plan();
    for (std::int64_t j = 0; j < dual_.problem().cols; ++j) {
      const std::int64_t count = plan.count[at(j)];
      if (count > 0) body(plan.row.data() + j * dual_.problem().k, count);
    }
  }

  const SemiDual& dual_;
  Vector diagonal_;
  double shift_ = 0.0;
};

class Lbfgs {
 public:
  explicit Lbfgs(double first_scale) : scale_(first_scale) {}

  void learn(const SemiDualPoint& from, const SemiDualPoint& to) {
    Pair pair{to.f, from.gradient, 0.0};
    add(pair.step, -1.0, from.f);
    add(pair.change, -1.0, to.gradient);
    pair.curvature = dot(pair.step, pair.change);
    const double squares = dot(pair.change, pair.change);
    if (!(pair.curvature > 1e-14 * squares * scale_)) return;
    scale_ = pair.curvature / squares;
    pairs_.push_back(std::move(pair));
    if (pairs_.size() > memory) pairs_.pop_front();
  }

  Vector direction(const Vector& gradient) const {
    Vector d = gradient;
    Vector alpha(pairs_.size());
    for (std::size_t i = pairs_.size(); i-- > 0;) {
      alpha[i] = dot(pairs_[i].step, d) / pairs_[i].curvature;
      add(d, -alpha[i], pairs_[i].change);
    }
    for (double& x : d) x *= scale_;
    for (std::size_t i = 0; i < pairs_.size(); ++i) {
      add(d, alpha[i] - dot(pairs_[i].change, d) / pairs_[i].curvature, pairs_[i].step);
    }
    return d;
  }

  bool empty() const noexcept { return pairs_.empty(); }
  void forget() noexcept { pairs_.clear(); }

 private:
  struct Pair {
    Vector step, change;
    double curvature;
  };
  std::deque<Pair> pairs_;
  double scale_;
};

// A step that gains enough and leaves a flatter slope, by bisection; 0 when there is none. `to`
// holds the last point tried.
double line_search(SemiDual& dual, const SemiDualPoint& from, const Vector& direction,
                   SemiDualPoint& to, SemiDualReport& report) {
  const double slope = dot(from.gradient, direction);
  if (!(slope > 0.0)) return 0.0;
  // Near the top a gain drowns in the rounding of D: then the gradient alone must tell.
  const double rounding = epsilon * from.magnitude;
  double low = 0.0;
  double high = INFINITY;
  double t = 1.0;
  for (int trial = 0; trial < max_trials; ++trial) {
    to.f = from.f;
    add(to.f, t, direction);
    dual.evaluate(to);
    ++report.evaluations;
    const double rest = dot(to.gradient, direction);
    if (!(to.value >= from.value + sufficient * t * slope - rounding) || (rest < -flat * slope)) {
      high = t;
    } else if (rest > flat * slope) {
      low = t;
    } else {
      return t;
    }
    t = std::isinf(high) ? 2.0 * low : 0.5 * (low + high);
  }
  if (low == 0.0) return 0.0;
  // A gain was found, a flatter slope was not: a kink lies ahead.
  to.f = from.f;
  add(to.f, low, direction);
  dual.evaluate(to);
  ++report.evaluations;
  return low;
}

}  // namespace

SemiDualReport maximise(SemiDual& dual, SemiDualPoint& point, Ascent ascent, double tol,
                        std::int64_t max_iter) {
  SemiDualReport report;
  dual.evaluate(point);
  report.evaluations = 1;
  double mass = 0.0;
  for (std::int64_t i = 0; i < dual.problem().rows; ++i) mass += dual.problem().a[i];

  Lbfgs quasi(dual.problem().gamma);
  SemiDualPoint next;
  double shift =
      1e-3;  // of Newton's system: up when a step disappoints, down when one is taken whole
  int idle = 0;
  bool newton = ascent == Ascent::newton;
  while (point.error > tol) {
    if (report.iterations == max_iter) {
      report.outcome = Outcome::max_iter;
      return report;
    }
    ++report.iterations;
    const Vector direction =
        newton ? Hessian(dual, shift).solve(point.gradient, std::min(0.1, point.error / mass))
               : quasi.direction(point.gradient);
    const double t = line_search(dual, point, direction, next, report);
    report.newton += newton ? 1 : 0;
    if (newton) shift = t == 1.0 ? std::max(shift / 10, 1e-12) : std::min(shift * 4, 1.0);
    const double gain = next.value - point.value;
    idle = t > 0.0 && (gain > epsilon * point.magnitude || next.error < 0.9 * point.error)
               ? 0
               : idle + 1;
    if (t > 0.0) {
      quasi.learn(point, next);
      std::swap(point, next);
    } else {
      dual.evaluate(point);  // its plan was overwritten by the trials
      ++report.evaluations;
      quasi.forget();
    }
    // Where a Newton step leads nowhere there is a kink: its model of D ends there, and the
    // quasi-Newton one climbs on.
    newton = newton && t > 0.0;
    if (idle >= patience) {
      report.outcome = Outcome::stalled;
      return report;
    }
  }
  report.outcome = Outcome::converged;
  return report;
}

}  // namespace gossamer
