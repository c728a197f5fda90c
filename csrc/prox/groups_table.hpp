// Passes over groups of entries and over group norms, compiled once an instruction set. Every sum
// is taken in a fixed order of its own, with fused multiply-adds that are named: the bits are those
// of any other instruction set.
#pragma once

#include "core/types.hpp"

namespace gossamer {

// Group j keeps the share u_j(eta) = clip(slope_j eta - offset_j, 0, 1) and costs cost_j of the
// budget for it. It leaves 0 at eta = offset / slope and reaches 1 at (1 + offset) / slope; slope 0
// is a group of zeros, which never leaves. `offset` and `cost` are null together: then all offsets
// are `flat_offset`, all costs 1.
struct Ramps {
  const double* slope;
  const double* offset;
  const double* cost;
  double flat_offset;
};

// Ramps from norms a: slope = a sqrt(d / c), offset = lam d / h. A null array stands for ones.
struct RampInputs {
  const double* a;
  const double* d;
  const double* c;
  const double* h;
  double lam;
};

struct RampScan {
  double cost = 0.0;      // of the groups with a slope
  std::int64_t live = 0;  // how many those are
  std::int64_t bad = 0;   // slopes or offsets that are NaN, infinite or negative
};

// What is known of n groups when eta lies in [left, right]: those without a breakpoint strictly
// between are settled, the others are written out.
struct Settled {
  double slope = 0.0;    // sum of cost * slope of those on their ramp
  double offset = 0.0;   // sum of cost * offset of the same
  double full = 0.0;     // cost of those at 1
  double at_left = 0.0;  // what the written ones take at `left`, and at `right`
  double at_right = 0.0;
  std::int64_t rest = 0;  // how many were written
};

inline constexpr int ramp_points = 8;

// Kernels over entries of type T.
template <class T>
struct GroupKernels {
  // sum x^2 of n entries in a row; of each of `count` short runs that follow each other; of entries
  // picked by an index; column by column, added to acc.
  double (*squares)(const T* x, std::int64_t n) noexcept;
  void (*squares_of_runs)(const T* x, std::int64_t count, std::int64_t run, double* sums) noexcept;
  double (*squares_at)(const T* x, const std::int64_t* index, std::int64_t n) noexcept;
  void (*squares_by_column)(const T* x, std::int64_t rows, std::int64_t stride, std::int64_t n,
                            double* acc) noexcept;
  // x *= gain; a zero comes out as +0.0, NaN stays.
  void (*scale)(T* x, std::int64_t n, double gain) noexcept;
  void (*scale_by)(T* x, std::int64_t n, const double* gains) noexcept;
  // sum and number of those y = x - shift that exceed theta; with |x| for x when `absolute`.
  void (*above)(const T* x, std::int64_t n, double shift, double theta, bool absolute, double* sum,
                std::int64_t* count) noexcept;
  // x -> (y - theta)_+ gain, with the sign of x when `absolute`.
  void (*shrink)(T* x, std::int64_t n, double shift, double theta, bool absolute,
                 double gain) noexcept;
};

struct GroupPasses {
  GroupKernels<float> f32;
  GroupKernels<double> f64;
  void (*fill)(const RampInputs&, std::int64_t n, double* slope, double* offset,
               double* cost) noexcept;
  void (*scan)(const Ramps&, std::int64_t n, RampScan& out) noexcept;
  // The groups that are not settled go to slope, offset, cost (the latter two unused when flat).
  void (*settle)(const Ramps&, std::int64_t n, double left, double right, Settled& out,
                 double* slope, double* offset, double* cost) noexcept;
  // sums[p] += sum of cost * u(points[p])
  void (*evaluate)(const Ramps&, std::int64_t n, const double* points, double* sums) noexcept;
  // u(eta), exactly 0 for eta <= offset / slope; as gains: u / (u + offset).
  void (*shares)(const Ramps&, std::int64_t n, double eta, bool gains, double* out) noexcept;
  // sum d a^2 / u over a > 0
  double (*energy)(const double* a, const double* d, const double* u, std::int64_t n) noexcept;
  // sum (v/(rho+q))^2 and sum (v/(rho+q))^2/(rho+q)
  void (*secular)(const double* v, const double* q, std::int64_t n, double rho, double* squares,
                  double* weighted) noexcept;
};

template <class T>
const GroupKernels<T>& kernels_of(const GroupPasses& passes) noexcept {
  if constexpr (sizeof(T) == sizeof(float)) {
    return passes.f32;
  } else {
    return passes.f64;
  }
}

}  // namespace gossamer
