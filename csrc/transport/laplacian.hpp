// The linear systems of transport: the bipartite graph whose edges are the plan's entries.
//
//   [ diag(r) + shift_f     P               ] [z_f]   [q_f]        r, c: row and column sums of P
//   [ P'                    diag(c) + shift_g] [z_g] = [q_g]
//
// The columns are eliminated, and conjugate gradients solve the Schur complement of the rows,
//   S = diag(r + shift_f) - P diag(1 / (c + shift_g)) P'
// with Jacobi's preconditioner. S is applied as a weighted graph Laplacian,
//   (S z)_i = sum_j P_ij (z_i - zbar_j) + rest_i z_i,      zbar_j = (P'z)_j / (c_j + shift_g_j),
// and its diagonal is formed the same way: r_i - sum_j P_ij^2 / c_j would cancel to noise where a
// row has one dominant entry.
#pragma once

#include "transport/passes.hpp"

namespace gossamer {

struct LinearReport {
  bool converged = false;
  std::int64_t iterations = 0;
  double residual = 0.0;  // |S z - rhs|_1 / |rhs|_1
};

class Laplacian {
 public:
  // `entries` are the plan's entries that are kept, and must outlive this. `rest` [n] is what
  // belongs on the diagonal besides them: mass of dropped entries, and shift_f. `column` [m] is
  // c + shift_g. `singular`: constant vectors are in the null space, so the answer has mean zero.
  Laplacian(const Entries& entries, std::int64_t m, Vector rest, Vector column, bool singular,
            int workers);

  // z [n] starts at zero. Stops at |residual|_1 <= tol |rhs|_1.
  LinearReport solve(const Vector& rhs, double tol, std::int64_t max_iter, Vector& z) const;

  // (P'z)_j
  void transpose_times(const Vector& z, Vector& out) const;
  // (P z)_i
  void times(const Vector& z, Vector& out) const;

 private:
  void apply(const Vector& z, Vector& out, Vector& zbar) const;

  const Entries& entries_;
  std::int64_t n_, m_;
  Vector rest_, column_, diagonal_;
  bool singular_;
  int workers_;
  Entries columns_;  // the same entries by column: P'z then has no scattered writes
};

}  // namespace gossamer
