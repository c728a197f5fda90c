#include <algorithm>
#include <limits>

#include "transport/state.hpp"

namespace gossamer {
namespace {

// The Hessian leaves out entries below this times sqrt(r c).
constexpr double hessian_cut = 1e-5;
// A crowded Hessian uses this cut instead: a step on all entries costs more than it saves.
constexpr double coarse_hessian_cut = 1e-3;
// A Hessian is crowded when it keeps more than this share of all entries,
constexpr double crowded_density = 0.1;
// and more than this many.
constexpr std::int64_t crowded_entries = 100'000;

struct Stage {
  double tol;
  bool published;
};

// The largest lambda * n * m entries, as the published method keeps them.
double global_threshold(State& s) {
  constexpr double per_row = 15.0;
  Vector plan(static_cast<std::size_t>(s.n * s.m));
  s.runner.plan(s.inv_reg, s.u.data(), s.v.data(), plan.data());
  const auto kept = std::min<std::int64_t>(
      s.n * s.m - 1, static_cast<std::int64_t>(per_row * static_cast<double>(s.n)));
  std::nth_element(plan.begin(), plan.begin() + kept, plan.end(), std::greater<>());
  return plan[static_cast<std::size_t>(kept)];
}

class Newton {
 public:
  Newton(State& s, const SolveOptions& options) : s_(s), options_(options) {}

  // Newton steps until the error is below stage.tol. False: it stalled, or the budget is spent.
  bool run(Stage stage) {
    double best = std::numeric_limits<double>::infinity();
    double before = best;
    int since_best = 0;
    tight_ = hessian_cut;
    last_move_ = std::numeric_limits<double>::infinity();
    bool fresh = true;
    for (;;) {
      read_plan(stage);
      s_.outcome.history.add(s_.error);
      if (s_.error <= stage.tol) {
        if (!s_.screened()) return true;
        s_.unscreen();  // what was left out is checked before it is believed
        read_plan(stage);
        if (s_.error <= stage.tol) return true;
      }
      if (!std::isfinite(s_.error)) return stop(Status::stalled);
      // Dropping a small entry that joins two otherwise separate blocks makes steps overshoot: if
      // the error fell by less than half, smaller entries are kept.
      if (s_.error > 0.5 * before && !crowded()) tight_ = std::max(1e-2 * tight_, 1e-15);
      before = s_.error;
      if (s_.outcome.newton + s_.outcome.sweeps >= options_.max_iter) {
        return stop(Status::max_iter);
      }
      // Progress is a smaller error, or, while islands of the plan drift towards each other, a dual
      // objective that still rises. Rounding ends both somewhere above 1e-16.
      if (s_.error < 0.9 * best || last_gain_ > 1e-6) {
        best = std::min(best, s_.error);
        since_best = 0;
      } else if (++since_best >= 25) {
        return stop(Status::stalled);
      }
      // Worth a pass to make and one to check: once a stage, since the next one can use it too, and
      // again when the potentials have come to rest with some steps still to come.
      const bool at_rest = last_move_ < 3.0 && s_.error > 1e3 * stage.tol;
      if (!s_.screened() && density_ < crowded_density && s_.error < 0.5 && (fresh || at_rest))
        s_.screen();
      fresh = false;
      step();
    }
  }

 private:
  bool stop(Status status) {
    s_.outcome.status = status;
    return false;
  }

  // One pass: sums, error, and the Hessian's entries, fewer where they would not fit.
  void read_plan(const Stage& stage) {
    for (;;) {
      EmitArgs args{s_.inv_reg, s_.u.data(), s_.v.data(), s_.sqrt_b.data(),
                    omitted_,   0.0,         Keep::plan,  s_.r.data()};
      if (stage.published) {
        args.relative = 0.0;
        args.absolute = global_threshold(s_);
      }
      const std::int64_t limit =
          stage.published ? std::numeric_limits<std::int64_t>::max() : entry_budget;
      if (s_.runner.emit(args, s_.c, entries_, limit)) break;
      omitted_ = std::max(3.0 * omitted_, coarse_hessian_cut);
    }
    s_.error = s_.residual();
    density_ = static_cast<double>(entries_.nnz()) /
               (static_cast<double>(s_.n) * static_cast<double>(s_.m));
    const double wanted = crowded() ? coarse_hessian_cut : tight_;
    const bool room = entries_.nnz() < entry_budget / 2;
    if (wanted > omitted_ || room) omitted_ = std::max(wanted, omitted_ / 3.0);
  }

  bool crowded() const noexcept {
    return density_ > crowded_density && entries_.nnz() > crowded_entries;
  }

  void damp_more() noexcept { damping_ = std::clamp(4.0 * damping_, 1e-3, 1.0); }

  // Solves for the direction, then goes along it as far as the dual objective rises.
  void step() {
    const std::size_t n = s_.a.size(), m = s_.b.size();
    Vector rest(n), column(m), rhs(n), gap(m), du, dv;
    double dropped = 0.0, mass = 0.0;
    const bool exact_rows = s_.kappa_a == 1.0, exact_cols = s_.kappa_b == 1.0;
    for (std::size_t j = 0; j < m; ++j) {
      const double target = s_.col_target(j);
      gap[j] = target - s_.c[j];
      column[j] = s_.c[j] + (exact_cols ? 0.0 : target * (s_.reg / s_.rho_b));
    }
    for (std::size_t i = 0; i < n; ++i) {
      double kept = 0.0, moved = 0.0;
      for (std::int64_t e = entries_.indptr[i]; e < entries_.indptr[i + 1]; ++e) {
        const auto k = static_cast<std::size_t>(e);
        const auto j = static_cast<std::size_t>(entries_.cols[k]);
        kept += entries_.values[k];
        moved += entries_.values[k] * (gap[j] / column[j]);
      }
      const double target = s_.row_target(i);
      rest[i] = std::max(s_.r[i] - kept, 0.0);
      dropped += rest[i];
      mass += s_.r[i];
      if (!exact_rows) rest[i] += target * (s_.reg / s_.rho_a);
      rest[i] += damping_ * s_.r[i];
      rhs[i] = target - s_.r[i] - moved;
    }
    const bool singular = exact_rows && exact_cols && damping_ == 0.0 && dropped <= 1e-13 * mass;
    const Laplacian system(entries_, s_.m, std::move(rest), column, singular, s_.runner.workers());
    const double cg_tol = std::clamp(s_.error, 1e-10, 0.1);
    const LinearReport report = system.solve(rhs, cg_tol, 2 * s_.n + 100, du);
    s_.outcome.cg += report.iterations;
    // Islands of the plan whose links are below rounding: mass must move between them, and the
    // undamped system cannot say where.
    constexpr double useless = 0.5;
    if (report.residual > useless && damping_ < 1.0) {
      damp_more();
      return step();
    }
    system.transpose_times(du, dv);
    for (std::size_t j = 0; j < m; ++j) dv[j] = (gap[j] - dv[j]) / column[j];
    ++s_.outcome.newton;
    const double t = search(du, dv);
    // Where parts of the plan hang together by a thread, or a row lost its mass as reg came down,
    // the direction is long and right only in its first percent. A sweep gives such rows their mass
    // at once, and damping (Levenberg) bounds the rest, as long as it helps.
    if (t < 0.125) {
      s_.sweep(1.0);
      damp_more();
    } else if (t == 1.0) {
      damping_ = damping_ > 1e-4 ? 0.125 * damping_ : 0.0;
    }
  }

  // Returns the accepted step, or 0.
  double search(const Vector& du, const Vector& dv) {
    const std::size_t n = s_.a.size(), m = s_.b.size();
    double slope = 0.0, magnitude = 0.0, mass = 0.0;
    for (std::size_t i = 0; i < n; ++i) {
      slope += (s_.row_target(i) - s_.r[i]) * du[i];
      magnitude += std::abs(s_.a[i] * s_.u[i]);
    }
    for (std::size_t j = 0; j < m; ++j) {
      slope += (s_.col_target(j) - s_.c[j]) * dv[j];
      magnitude += std::abs(s_.b[j] * s_.v[j]);
      mass += s_.c[j];
    }
    if (!std::isfinite(slope)) return 0.0;
    const double before = s_.potential_terms() - mass;
    const double rounding = 1e-14 * (magnitude + 1.0);
    const Vector u = s_.u, v = s_.v;
    double up_u = 0.0, up_v = 0.0;
    for (const double x : du) up_u = std::max(up_u, std::abs(x));
    for (const double x : dv) up_v = std::max(up_v, std::abs(x));
    const double longest = std::min(1.0, leap_ / std::max(up_u + up_v, 1e-300));
    for (double t = longest; t >= 1e-8 * longest; t *= 0.5) {
      for (std::size_t i = 0; i < n; ++i) s_.u[i] = u[i] + t * du[i];
      for (std::size_t j = 0; j < m; ++j) s_.v[j] = v[j] + t * dv[j];
      s_.runner.sums({s_.inv_reg, s_.u.data(), s_.v.data(), nullptr, nullptr}, s_.c);
      mass = 0.0;
      bool lost = false;                     // a column of clamped entries: its sum says nothing
      for (std::size_t j = 0; j < m; ++j) {  // exact columns
        lost = lost || !(s_.c[j] > vanished && s_.c[j] < 1.0 / vanished);
        const double change = s_.log_b[j] - s_.kappa_b * (std::log(s_.c[j]) - s_.v[j]) - s_.v[j];
        s_.v[j] += change;
        mass += s_.c[j] * std::exp(change);
      }
      const double gain = s_.potential_terms() - mass - before;
      if (!lost && std::isfinite(gain) && gain >= 1e-4 * t * slope - rounding) {
        up_u = up_v = 0.0;
        for (std::size_t i = 0; i < n; ++i) up_u = std::max(up_u, s_.u[i] - u[i]);
        for (std::size_t j = 0; j < m; ++j) up_v = std::max(up_v, s_.v[j] - v[j]);
        s_.moved(up_u, up_v);
        last_move_ = up_u + up_v;
        last_gain_ = gain;
        // A gain in proportion to the step says that islands drift freely: leap further.
        leap_ = t == longest && t < 1.0 && gain > 0.8 * t * slope ? std::min(2.0 * leap_, 500.0)
                                                                  : shortest_leap;
        return t;
      }
    }
    s_.u = u;
    s_.v = v;
    last_gain_ = 0.0;
    leap_ = shortest_leap;
    return 0.0;
  }

  State& s_;
  const SolveOptions& options_;
  Entries entries_;
  double tight_ = hessian_cut;
  double omitted_ = hessian_cut;
  double density_ = 1.0;
  double damping_ = 0.0;
  double last_move_ = 0.0;  // of log P, at most, in the last step
  double last_gain_ = 0.0;  // of the dual objective
  // exp is the objective's own unit: how much an entry may grow in one step.
  static constexpr double shortest_leap = 30.0;
  double leap_ = shortest_leap;
};

}  // namespace

void run_newton(State& s, const Problem& problem, const SolveOptions& options) {
  Newton newton(s, options);
  s.outcome.method = Method::newton;
  const bool published = options.method == Method::published;
  // From the spread of the costs down: at a large reg every start is good, and each stage starts
  // where the last one ended. A start that is good already needs no stages.
  constexpr double first = 0.05, good = 0.1, middle = 1e-2;
  const double factor = problem.reg > 5e-5 * problem.scale ? 4.0 : 2.0;
  double reg = problem.reg;
  if (!published && !options.warm && !(s.error < good)) {
    std::fill(s.u.begin(), s.u.end(), 0.0);
    std::fill(s.v.begin(), s.v.end(), 0.0);
    while (reg * factor <= first * problem.scale) reg *= factor;
  }
  for (;;) {
    s.set_reg(reg);
    const bool last = reg <= problem.reg;
    const int sweeps = published ? 20 : 4;
    for (int i = 0; i < sweeps; ++i) s.sweep(1.0);
    if (!newton.run({last ? options.tol : std::max(middle, options.tol), published})) {
      if (!last) {  // leave the answer at the reg that was asked for
        s.set_reg(problem.reg);
        s.sweep(1.0);
      }
      return;
    }
    if (last) break;
    reg = std::max(problem.reg, reg / factor);
  }
  s.outcome.status = Status::converged;
}

}  // namespace gossamer
