// The weighted group sparse envelope: which share of each group to keep under a budget.
//
//   GS(x) = 1/2 min_u { sum_j d_j a_j^2 / u_j : 0 <= u_j <= 1, sum_j c_j u_j <= k },  a_j = |x_Gj|
//
// its proximal operator for lam GS, in a metric with one h_j for each group, multiplies group j by
//
//   u_j / (u_j + lam d_j / h_j),   u_j = clip(a_j sqrt(d_j / c_j) eta - lam d_j / h_j, 0, 1),
//
// with eta such that sum c_j u_j = k. After Refael, Arbel, Huleihel 2022 (arXiv 2212.12921); the
// envelope without groups and weights is half the squared k-support norm. Linear in the number of
// groups. Checks of values are here; sizes are the caller's.
#pragma once

#include "prox/groups_table.hpp"

namespace gossamer {

struct WgsefProblem {
  RampInputs groups;
  std::int64_t m = 0;
  double k = 0.0;
};

// gains[m]; returns how often a group was looked at, divided by m. All gains are 1 when lam = 0 and
// 0 when k = 0; groups of zeros get 0. Bit-equal for any number of threads. Throws ArgumentError
// for norms that are not finite, and std::bad_alloc.
double wgsef_gains(const WgsefProblem& problem, double* gains);

// GS and the optimal shares u[m] (lam and h are not read). Infinite for k = 0 unless all is zero.
double wgsef_value(const WgsefProblem& problem, double* u);

}  // namespace gossamer
