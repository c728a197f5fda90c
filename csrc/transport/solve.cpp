#include "transport/solve.hpp"

#include <algorithm>

#include "transport/state.hpp"

namespace gossamer {

Outcome solve_transport(const Problem& problem, const SolveOptions& options, double* u, double* v,
                        int workers) {
  State s(problem, options, workers);
  if (options.warm) {
    std::copy_n(u, s.u.size(), s.u.data());
    std::copy_n(v, s.v.size(), s.v.data());
  }
  bool done = false;
  if (options.method == Method::sinkhorn || options.method == Method::automatic) {
    const bool may_give_up = options.method == Method::automatic;
    done = run_sinkhorn(s, options, may_give_up);
    if (done) s.outcome.status = Status::converged;
  }
  if (!done && options.method != Method::sinkhorn && s.outcome.sweeps < options.max_iter) {
    run_newton(s, problem, options);
  }
  if (s.outcome.status != Status::converged) {  // say how far it came, measured
    s.unscreen();
    s.runner.sums({s.inv_reg, s.u.data(), s.v.data(), s.r.data(), nullptr}, s.c);
    s.error = s.residual();
    if (s.error <= options.tol) s.outcome.status = Status::converged;
  }
  s.outcome.error = s.error;
  s.outcome.passes = s.runner.passes();
  std::copy(s.u.begin(), s.u.end(), u);
  std::copy(s.v.begin(), s.v.end(), v);
  return s.outcome;
}

}  // namespace gossamer
