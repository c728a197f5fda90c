// Entropic optimal transport: max over (f, g) of <a, f> + <b, g> - reg sum_ij P_ij,
//   P_ij = exp((f_i + g_j - C_ij) / reg),      and its relaxation of the marginals by rho KL(.|a).
//
//   sinkhorn   rows and columns are scaled in turn; one pass does both (table.hpp). On a stored
//              kernel exp(-C/reg), with the potentials absorbed in it, a pass has no exponential.
//   newton     sparse Newton on the rows' potentials, columns always exact: entries below
//              1e-5 sqrt(r_i c_j) are left out of the Hessian, conjugate gradients solve its Schur
//              complement, and reg comes down by factors of 4, each stage from the last potentials.
//   published  Newton as in Tang et al., ICLR 2024 (arXiv 2401.12253): no annealing, 20 sweeps, the
//              15 n largest entries kept.
//   automatic  sinkhorn while its contraction promises to end soon, else newton.
//
// Once few entries matter, passes visit those alone; the rest is bounded by how far the potentials
// have moved since, and one full pass checks the result before it is called converged.
#pragma once

#include "transport/laplacian.hpp"
#include "transport/passes.hpp"

namespace gossamer {

enum class Method { automatic, sinkhorn, newton, published };
enum class Status { converged, max_iter, stalled };

struct Problem {
  Cost cost;
  const double* a;  // [n], positive
  const double* b;  // [m], positive
  double reg;
  double rho_a, rho_b;  // infinite: that marginal is met exactly
  double scale;         // the spread of the costs, where annealing starts
};

struct SolveOptions {
  Method method = Method::automatic;
  double tol = 1e-9;  // L1 error of both marginals; 0 for sinkhorn: exactly max_iter sweeps
  std::int64_t max_iter = 10000;
  double omega = 1.0;  // over-relaxation of sinkhorn, in (0, 2)
  bool warm = false;   // u and v hold a start
};

// The error after every `stride` iterations: whenever the room is full, every second one goes.
class History {
 public:
  void add(double error) {
    if (count_++ % stride_ != 0) return;
    if (errors_.size() == room) {
      for (std::size_t k = 0; 2 * k < room; ++k) errors_[k] = errors_[2 * k];
      errors_.resize(room / 2);
      stride_ *= 2;
    }
    errors_.push_back(error);
  }
  const std::vector<double>& errors() const noexcept { return errors_; }

 private:
  static constexpr std::size_t room = 64;
  std::vector<double> errors_;
  std::int64_t count_ = 0, stride_ = 1;
};

struct Outcome {
  Status status = Status::max_iter;
  Method method = Method::sinkhorn;  // which one ended
  std::int64_t sweeps = 0, newton = 0, cg = 0;
  double passes = 0.0;
  double error = 0.0;
  History history;  // of the errors
};

// u [n] and v [m], the potentials over reg, are read when warm and written. Throws std::bad_alloc.
Outcome solve_transport(const Problem& problem, const SolveOptions& options, double* u, double* v,
                        int workers);

}  // namespace gossamer
