#include "transport/state.hpp"

#include <algorithm>
#include <limits>

namespace gossamer {

State::State(const Problem& p, const SolveOptions& options, int workers)
    : n(p.cost.n),
      m(p.cost.m),
      rho_a(p.rho_a),
      rho_b(p.rho_b),
      a(p.a, p.a + n),
      b(p.b, p.b + m),
      log_a(a.size()),
      log_b(b.size()),
      sqrt_b(b.size()),
      u(a.size(), 0.0),
      v(b.size(), 0.0),
      r(a.size(), 0.0),
      c(b.size(), 0.0),
      runner(p.cost, workers),
      tol_(options.tol) {
  std::transform(a.begin(), a.end(), log_a.begin(), [](double x) { return std::log(x); });
  std::transform(b.begin(), b.end(), log_b.begin(), [](double x) { return std::log(x); });
  std::transform(b.begin(), b.end(), sqrt_b.begin(), [](double x) { return std::sqrt(x); });
  reg = p.reg;
  set_reg(p.reg);
}

void State::set_reg(double to) {
  const double factor = reg / to;
  for (double& x : u) x *= factor;
  for (double& x : v) x *= factor;
  reg = to;
  inv_reg = 1.0 / to;
  kappa_a = std::isinf(rho_a) ? 1.0 : rho_a / (rho_a + to);
  kappa_b = std::isinf(rho_b) ? 1.0 : rho_b / (rho_b + to);
  moved(0.0, 0.0);
}

void State::sweep(double omega) {
  // Column sums of the potentials before: exact after a plain sweep, else as the last one left
  // them.
  double columns_off = 0.0;
  for (std::size_t j = 0; j < b.size(); ++j) columns_off += std::abs(col_target(j) - c[j]);
  Vector targets(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) targets[i] = row_target(i);
  const Vector before = u;
  runner.sweep({inv_reg, v.data(), log_a.data(), kappa_a, omega, u.data(), r.data()}, c);
  error = columns_off;
  double up_u = 0.0, up_v = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    error += std::abs(targets[i] - r[i]);
    up_u = std::max(up_u, u[i] - before[i]);
  }
  for (std::size_t j = 0; j < b.size(); ++j) {
    const double log_sum = c[j] > vanished ? std::log(c[j]) - v[j] : column_log_sum(j);
    const double change = omega * (log_b[j] - kappa_b * log_sum - v[j]);
    c[j] = c[j] > vanished ? c[j] * std::exp(change) : std::exp(log_sum + v[j] + change);
    v[j] += change;
    up_v = std::max(up_v, change);
  }
  ++outcome.sweeps;
  moved(up_u, up_v);
}

// log sum_i exp(u_i - C_ij / reg), shifted by its largest term: for columns whose sum underflowed.
double State::column_log_sum(std::size_t j) {
  unscreen();
  const auto term = [&](std::int64_t i) {
    return u[static_cast<std::size_t>(i)] -
           cost_at(runner.cost(), i, static_cast<std::int64_t>(j)) * inv_reg;
  };
  double top = -std::numeric_limits<double>::infinity(), sum = 0.0;
  for (std::int64_t i = 0; i < n; ++i) top = std::max(top, term(i));
  for (std::int64_t i = 0; i < n; ++i) sum += std::exp(term(i) - top);
  return top + std::log(sum);
}

double State::potential_terms() const noexcept {
  double rows = 0.0, cols = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    rows += kappa_a == 1.0 ? a[i] * u[i] : -(rho_a * inv_reg) * row_target(i);
  }
  for (std::size_t j = 0; j < b.size(); ++j) {
    cols += kappa_b == 1.0 ? b[j] * v[j] : -(rho_b * inv_reg) * col_target(j);
  }
  return rows + cols;
}

double State::residual() const noexcept {
  double total = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) total += std::abs(row_target(i) - r[i]);
  for (std::size_t j = 0; j < b.size(); ++j) total += std::abs(col_target(j) - c[j]);
  return total;
}

double State::reach() const noexcept {
  return std::log(static_cast<double>(n) * static_cast<double>(m)) + std::log(1e3 / tol_);
}

bool State::screen() {
  constexpr double margin = 10.0;  // of movement of u and v, before the list must be made again
  constexpr double worthwhile = 0.25;
  const double cut = std::exp(-(reach() + margin));
  Vector sums_r(a.size()), sums_c;
  runner.restrict_to(nullptr);
  const auto whole = static_cast<double>(n) * static_cast<double>(m);
  const EmitArgs args{inv_reg, u.data(), v.data(),   sqrt_b.data(),
                      0.0,     cut,      Keep::cost, sums_r.data()};
  if (!runner.emit(args, sums_c, screen_entries_, entry_budget) ||
      static_cast<double>(screen_entries_.nnz()) > worthwhile * whole) {
    screen_entries_ = {};
    return false;
  }
  screen_ = {n, m, screen_entries_.indptr.data(), screen_entries_.cols.data(),
             screen_entries_.values.data()};
  screen_bound_ = reg * (reach() + margin);
  runner.restrict_to(&screen_);
  return true;
}

void State::unscreen() noexcept { runner.restrict_to(nullptr); }

void State::moved(double up_u, double up_v) noexcept {
  if (!screened()) return;
  screen_bound_ -= reg * (up_u + up_v);
  if (screen_bound_ < reg * reach()) unscreen();
}

}  // namespace gossamer
