// What all methods share: the potentials at the present reg, the marginals they should give, and
// how far they are from it.
#pragma once

#include <cmath>
#include <limits>

#include "transport/solve.hpp"

namespace gossamer {

// Column sums below this are made of entries that exp_clamped clamped.
inline constexpr double vanished = 1e-280;

class State {
 public:
  State(const Problem& problem, const SolveOptions& options, int workers);

  // Goes to another reg; f and g stay, u and v are rescaled.
  void set_reg(double reg);

  // One Sinkhorn iteration. `error` becomes that of the potentials before it.
  void sweep(double omega);

  // What the marginals should be: a and b, or, relaxed, a exp(-(u - log a) reg / rho).
  double row_target(std::size_t i) const noexcept {
    return kappa_a == 1.0 ? a[i] : a[i] * std::exp((log_a[i] - u[i]) * (reg / rho_a));
  }
  double col_target(std::size_t j) const noexcept {
    return kappa_b == 1.0 ? b[j] : b[j] * std::exp((log_b[j] - v[j]) * (reg / rho_b));
  }
  // The dual objective over reg, but for the plan's mass.
  double potential_terms() const noexcept;
  double residual() const noexcept;  // L1, of r and c

  // Keeps only entries that can matter until the potentials have moved far; false if too many can.
  bool screen();
  void unscreen() noexcept;
  bool screened() const noexcept { return runner.restricted(); }
  // Call it when u and v changed by at most these amounts. Discards the screening when its bound no
  // longer holds.
  void moved(double up_u, double up_v) noexcept;

  std::int64_t n, m;
  double reg, inv_reg, rho_a, rho_b, kappa_a, kappa_b;
  Vector a, b, log_a, log_b, sqrt_b;
  Vector u, v;
  Vector r, c;  // sums at the last pass that computed them
  double error = std::numeric_limits<double>::infinity();
  PassRunner runner;
  Outcome outcome;

 private:
  double column_log_sum(std::size_t j);

  double tol_;
  Entries screen_entries_;
  SparseCost screen_;
  double screen_bound_ = 0.0;     // entries left out have C - f - g above it
  double reach() const noexcept;  // entries with log P below -reach cannot matter together
};

// The two methods; solve.cpp chooses between them.
bool run_sinkhorn(State& s, const SolveOptions& options, bool may_give_up);
void run_newton(State& s, const Problem& problem, const SolveOptions& options);

}  // namespace gossamer
