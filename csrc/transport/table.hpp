// What is compiled once an instruction set: passes over rows of P[i, j] = exp(u[i] + v[j] - C/reg).
//
// Below them: many tiny problems at once, see transport/small.hpp.
//
// A pass takes rows [first, last), adds to its own column sums, and computes one exponential an
// entry. Scratch is 2 * m doubles a worker. Nothing is allocated, nothing is checked here.
#pragma once

#include "core/tables.hpp"
#include "transport/cost.hpp"
#include "transport/small.hpp"

namespace gossamer {

struct RowRange {
  std::int64_t first, last;
};

// One half of Sinkhorn's iteration, and the column sums that the other half needs:
//   u[i] = (1 - omega) u[i] + omega (log_a[i] - kappa L_i),  L_i = log sum_j exp(v[j] - C/reg)
//   row_sums[i] = exp(u_before[i] + L_i);   cols[j] += P[i, j] with the new u.
struct SweepArgs {
  double inv_reg;
  const double* v;
  const double* log_a;
  double kappa, omega;
  double* u;         // [n], updated
  double* row_sums;  // [n], written
};

// Sums of the plan at (u, v); any of the outputs may be null.
struct SumsArgs {
  double inv_reg;
  const double* u;
  const double* v;
  double* row_sums;  // [n]
  double* row_cost;  // [n], sum_j C P
};

// The entries of one row with P[i, j] >= relative * sqrt(row sum) * sqrt_b[j] and >= absolute:
// their columns and their P, or their costs. The outputs have room for the whole row.
enum class Keep { plan, cost };
struct EmitArgs {
  double inv_reg;
  const double* u;
  const double* v;
  const double* sqrt_b;
  double relative, absolute;
  Keep keep;
  double* row_sums;  // [n]
};

// Sinkhorn on a stored kernel K[i, j] = exp(-C/reg - shift_i): no exponential at all.
//   scale[i] = a[i] / (K w)_i;  row_sums[i] = scale_before[i] (K w)_i;  cols[j] += scale[i] K[i, j]
struct KernelArgs {
  const double* kernel;  // [n, m]
  const double* w;       // [m]
  const double* a;       // [n]
  double* scale;         // [n], updated
  double* row_sums;      // [n], written
};

template <class C>
struct Passes {
  void (*sweep)(const C&, const SweepArgs&, RowRange, double* cols, double* scratch) noexcept;
  void (*sums)(const C&, const SumsArgs&, RowRange, double* cols, double* scratch) noexcept;
  // Returns the number of entries kept.
  std::int64_t (*emit)(const C&, const EmitArgs&, std::int64_t row, double* cols, double* scratch,
                       std::int32_t* kept, double* values) noexcept;
};

// Tiny problems [first, last); scratch of small_scratch bytes, aligned to a vector.
template <class T>
struct SmallPasses {
  void (*forward)(const SmallArgs<T>&, std::int64_t first, std::int64_t last, std::byte* scratch,
                  T* plan) noexcept;
  void (*backward)(const SmallArgs<T>&, const T* grad, std::int64_t first, std::int64_t last,
                   std::byte* scratch, T* grad_scores) noexcept;
};

struct TransportTable {
  Passes<Cost> dense;
  Passes<SparseCost> sparse;
  void (*kernel_sweep)(const KernelArgs&, std::int64_t m, RowRange, double* cols) noexcept;
  // plan[i * m + j] for the rows of the range.
  void (*plan)(const Cost&, double inv_reg, const double* u, const double* v, RowRange,
               double* scratch, double* plan) noexcept;
  SmallPasses<float> small32;
  SmallPasses<double> small64;
};

GOSSAMER_TABLES(TransportTable, transport_tables, gossamer_transport);

}  // namespace gossamer
