// Passes over rows of the plan, one source for every instruction set: plain loops that the compiler
// turns into vectors (transport libraries are compiled with -ffp-contract=fast).
#pragma once

#include <cmath>
#include <limits>

#include "simd/math.hpp"
#include "transport/table.hpp"

namespace gossamer {
namespace {

// ---- rows: what a pass sees of a cost ----------------------------------------------------------

// The loops below copy its pointers first: inside a loop that is to become vectors, GCC 12 would
// gather the members of a struct lane by lane.
template <class T>
struct Row {
  const T* costs;
  const double* v;           // in the order of the costs
  const std::int32_t* cols;  // null: all columns in order
  std::int64_t size;
};

// A row of costs between points, feature by feature: every step is a vector over the columns.
GOSSAMER_INLINE void point_row(const Cost& c, std::int64_t i, double* __restrict out) noexcept {
  const std::int64_t m = c.m;
  const double start = c.kind == CostKind::cosine ? 1.0 : 0.0;
  for (std::int64_t j = 0; j < m; ++j) out[j] = start;
  for (std::int64_t f = 0; f < c.d; ++f) {
    const double x = c.x[i * c.d + f];
    const double* y = c.y + f * m;
    if (c.kind == CostKind::l1) {
#pragma omp simd
      for (std::int64_t j = 0; j < m; ++j) out[j] += __builtin_fabs(x - y[j]);
    } else if (c.kind == CostKind::cosine) {
#pragma omp simd
      for (std::int64_t j = 0; j < m; ++j) out[j] -= x * y[j];
    } else {
#pragma omp simd
      for (std::int64_t j = 0; j < m; ++j) out[j] += (x - y[j]) * (x - y[j]);
    }
  }
  if (c.kind == CostKind::euclidean) {
    for (std::int64_t j = 0; j < m; ++j) out[j] = std::sqrt(out[j]);
  }
}

// Calls body(i, row) for each row of the range, with the row type of the cost.
template <class F>
GOSSAMER_INLINE void each_row(const Cost& c, RowRange rows, const double* v, double* buffer,
                              F&& body) {
  if (c.kind == CostKind::dense_f64) {
    const double* data = static_cast<const double*>(c.data);
    for (std::int64_t i = rows.first; i < rows.last; ++i) {
      body(i, Row<double>{data + i * c.stride, v, nullptr, c.m});
    }
  } else if (c.kind == CostKind::dense_f32) {
    const float* data = static_cast<const float*>(c.data);
    for (std::int64_t i = rows.first; i < rows.last; ++i) {
      body(i, Row<float>{data + i * c.stride, v, nullptr, c.m});
    }
  } else {
    for (std::int64_t i = rows.first; i < rows.last; ++i) {
      point_row(c, i, buffer);
      body(i, Row<double>{buffer, v, nullptr, c.m});
    }
  }
}

template <class F>
GOSSAMER_INLINE void each_row(const SparseCost& c, RowRange rows, const double* v, double* buffer,
                              F&& body) {
  for (std::int64_t i = rows.first; i < rows.last; ++i) {
    const std::int64_t begin = c.indptr[i], size = c.indptr[i + 1] - begin;
    const std::int32_t* cols = c.cols + begin;
    for (std::int64_t k = 0; k < size; ++k) buffer[k] = v[cols[k]];
    body(i, Row<double>{c.costs + begin, buffer, cols, size});
  }
}

// An infinite cost forbids a pair. The loops may give it exp_clamped's smallest number, which
// changes no sum; what leaves a pass gives it nothing.
template <class T>
GOSSAMER_INLINE bool allowed(T cost) noexcept {
  return cost < std::numeric_limits<T>::infinity();
}

// ---- the steps of a pass -----------------------------------------------------------------------

template <class T>
GOSSAMER_INLINE double largest(const Row<T>& row, double inv_reg) noexcept {
  const T* costs = row.costs;
  const double* v = row.v;
  const std::int64_t size = row.size;
  double top = -std::numeric_limits<double>::infinity();
#pragma omp simd reduction(max : top)
  for (std::int64_t k = 0; k < size; ++k) {
    const double x = v[k] - static_cast<double>(costs[k]) * inv_reg;
    top = top > x ? top : x;
  }
  return top;
}

// e[k] = exp(u + v - C/reg); returns their sum.
template <class T>
GOSSAMER_INLINE double exp_row(const Row<T>& row, double u, double inv_reg,
                               double* __restrict e) noexcept {
  const T* costs = row.costs;
  const double* v = row.v;
  const std::int64_t size = row.size;
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t k = 0; k < size; ++k) {
    const double p = exp_clamped(u + (v[k] - static_cast<double>(costs[k]) * inv_reg));
    e[k] = p;
    sum += p;
  }
  return sum;
}

template <class T>
GOSSAMER_INLINE double cost_of(const Row<T>& row, const double* e) noexcept {
  const T* costs = row.costs;
  const std::int64_t size = row.size;
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t k = 0; k < size; ++k) {
    sum += allowed(costs[k]) ? static_cast<double>(costs[k]) * e[k] : 0.0;
  }
  return sum;
}

GOSSAMER_INLINE void add_scaled(const std::int32_t* at, std::int64_t size, double s,
                                const double* e, double* __restrict cols) noexcept {
  if (at != nullptr) {
    for (std::int64_t k = 0; k < size; ++k) cols[at[k]] += s * e[k];
  } else {
#pragma omp simd
    for (std::int64_t k = 0; k < size; ++k) cols[k] += s * e[k];
  }
}

// Four sums side by side: one alone would wait for each addition.
GOSSAMER_INLINE double dot(const double* x, const double* y, std::int64_t size) noexcept {
  const std::int64_t q = size / 4;
  double s0 = 0.0, s1 = 0.0, s2 = 0.0, s3 = 0.0, rest = 0.0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (std::int64_t k = 0; k < q; ++k) {
    s0 += x[k] * y[k];
    s1 += x[k + q] * y[k + q];
    s2 += x[k + 2 * q] * y[k + 2 * q];
    s3 += x[k + 3 * q] * y[k + 3 * q];
  }
  for (std::int64_t k = 4 * q; k < size; ++k) rest += x[k] * y[k];
  return ((s0 + s1) + (s2 + s3)) + rest;
}

// ---- the passes --------------------------------------------------------------------------------

template <class C>
void sweep(const C& c, const SweepArgs& a, RowRange rows, double* cols, double* scratch) noexcept {
  double* e = scratch + c.m;
  each_row(c, rows, a.v, scratch, [&](std::int64_t i, const auto& row) {
    // Shifted by the largest term, so that no sum over a row under- or overflows.
    const double top = largest(row, a.inv_reg);
    const double log_sum = std::log(exp_row(row, -top, a.inv_reg, e)) + top;
    const double before = a.u[i];
    const double target = a.log_a[i] - a.kappa * log_sum;
    a.row_sums[i] = std::exp(before + log_sum);
    a.u[i] = a.omega == 1.0 ? target : before + a.omega * (target - before);
    add_scaled(row.cols, row.size, std::exp(a.u[i] + top), e, cols);
  });
}

template <class C>
void sums(const C& c, const SumsArgs& a, RowRange rows, double* cols, double* scratch) noexcept {
  double* e = scratch + c.m;
  each_row(c, rows, a.v, scratch, [&](std::int64_t i, const auto& row) {
    const double sum = exp_row(row, a.u[i], a.inv_reg, e);
    if (a.row_sums != nullptr) a.row_sums[i] = sum;
    if (a.row_cost != nullptr) a.row_cost[i] = cost_of(row, e);
    add_scaled(row.cols, row.size, 1.0, e, cols);
  });
}

template <class C>
std::int64_t emit(const C& c, const EmitArgs& a, std::int64_t which, double* cols, double* scratch,
                  std::int32_t* kept, double* values) noexcept {
  double* e = scratch + c.m;
  std::int64_t count = 0;
  each_row(c, {which, which + 1}, a.v, scratch, [&](std::int64_t i, const auto& row) {
    const double sum = exp_row(row, a.u[i], a.inv_reg, e);
    a.row_sums[i] = sum;
    add_scaled(row.cols, row.size, 1.0, e, cols);
    const double scale = a.relative * std::sqrt(sum);
    // Every entry is written and only kept ones are counted: no branch.
    for (std::int64_t k = 0; k < row.size; ++k) {
      const std::int64_t j = row.cols != nullptr ? row.cols[k] : k;
      kept[count] = static_cast<std::int32_t>(j);
      values[count] = a.keep == Keep::plan ? e[k] : static_cast<double>(row.costs[k]);
      count += e[k] >= scale * a.sqrt_b[j] && e[k] >= a.absolute && allowed(row.costs[k]);
    }
  });
  return count;
}

void kernel_sweep(const KernelArgs& a, std::int64_t m, RowRange rows, double* cols) noexcept {
  for (std::int64_t i = rows.first; i < rows.last; ++i) {
    const double* row = a.kernel + i * m;
    const double sum = dot(row, a.w, m);
    a.row_sums[i] = a.scale[i] * sum;
    a.scale[i] = a.a[i] / sum;
    add_scaled(nullptr, m, a.scale[i], row, cols);
  }
}

void write_plan(const Cost& c, double inv_reg, const double* u, const double* v, RowRange rows,
                double* scratch, double* plan) noexcept {
  each_row(c, rows, v, scratch, [&](std::int64_t i, const auto& row) {
    double* e = plan + i * c.m;
    exp_row(row, u[i], inv_reg, e);
    for (std::int64_t k = 0; k < row.size; ++k) e[k] = allowed(row.costs[k]) ? e[k] : 0.0;
  });
}

}  // namespace
}  // namespace gossamer
