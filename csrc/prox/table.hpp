// What is compiled once an instruction set: proximal operators on elements, and passes over groups.
#pragma once

#include "core/tables.hpp"
#include "prox/groups_table.hpp"

namespace gossamer {

// Penalties g that act entry by entry, with what params[] holds. Each operator is the global
// minimiser of 1/2 (z - x)^2 + step g(z), for steps beyond the convex range too; of two equal
// minimisers the smaller. All but `box` are functions of |z| that never fall: with z >= 0 as well,
// the minimiser is that of max(x, 0).
// --8<-- [start:names]
enum class Penalty : int {
  l1,              // lam |z|                                        {lam}
  elastic_net,     // lam (rho |z| + (1 - rho) z^2 / 2)               {lam, rho}
  l0,              // lam [z != 0]                                   {lam}
  lp,              // lam |z|^p, 0 < p < 1                           {lam, p}
  mcp,             // minimax concave: slope lam - |z| / gamma        {lam, gamma}
  scad,            // slope lam, then falling to 0 at gamma lam       {lam, gamma}
  capped_l1,       // lam min(|z|, t)                                {lam, t}
  transformed_l1,  // lam (a + 1) |z| / (a + |z|)                     {lam, a}
  log_sum,         // lam log(1 + |z| / eps)                         {lam, eps}
  huber,           // lam z^2 / 2 up to delta, then slope lam delta   {lam, delta}
  box              // 0 in [low, high], else infinite                {low, high}
};

// The same list for the binding: name, number of parameters, range of the second one. The range is
// open unless `closed`; of `bounds` the two parameters are a range themselves.
struct PenaltyTraits {
  const char* name;
  int params;
  double low = 0.0, high = __builtin_huge_val();
  bool closed = false, bounds = false;
};
inline constexpr PenaltyTraits penalties[] = {
    {"l1", 1},
    {"elastic_net", 2, 0.0, 1.0, true},
    {"l0", 1},
    {"lp", 2, 0.0, 1.0},
    {"mcp", 2},
    {"scad", 2, 2.0},
    {"capped_l1", 2},
    {"transformed_l1", 2},
    {"log_sum", 2},
    {"huber", 2},
    {"box", 2, 0.0, 0.0, true, true},
};
// --8<-- [end:names]
inline constexpr int penalty_count = sizeof(penalties) / sizeof(penalties[0]);
inline constexpr int penalty_params = 2;

// x[0..n) in place. `steps` has a step for each entry, or is null and all take `step`. Entries
// below `floor`, which is 0 under the constraint z >= 0, are first raised to it.
struct ElementArgs {
  const double* params;
  double step;
  const void* steps;
  double floor = -__builtin_huge_val();
};
using ElementKernel = void (*)(void* x, const ElementArgs&, std::int64_t n) noexcept;

// One step of AdamW (Loshchilov and Hutter 2019) on [0, n), then the penalty's operator in the same
// metric. `penalty.steps` has a weight of the penalty for each entry, or is null. `steps` is
// scratch for n entries.
//   m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   steps = lr / (sqrt(v) / root_bias2 + eps);  param = shrink param - steps m / bias1
// m / bias1 estimates the gradient, so `steps` is the step of the gradient and of the threshold.
struct AdamWArgs {
  double beta1, beta2, eps;
  double lr;
  double bias1;       // 1 - beta1^t
  double root_bias2;  // sqrt(1 - beta2^t)
  double shrink;      // 1 - lr weight_decay
};
using AdamWKernel = void (*)(void* param, const void* grad, void* m, void* v, const AdamWArgs&,
                             const ElementArgs& penalty, void* steps, std::int64_t n) noexcept;

struct ProxTable {
  ElementKernel elements[penalty_count][2];  // float32, float64
  AdamWKernel adamw[penalty_count][2];
  GroupPasses groups;
};

GOSSAMER_TABLES(ProxTable, prox_tables, gossamer_prox);

}  // namespace gossamer
