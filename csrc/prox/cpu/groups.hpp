// Sums and scalings over the entries of groups: plain loops that the compiler turns into vectors.
// Arithmetic is double for float32 too. A sum runs in 16 lanes that are added pair by pair, so its
// order does not depend on the width of a vector.
#pragma once

#include "prox/cpu/groups_ramps.hpp"
#include "prox/groups_table.hpp"

namespace gossamer {
namespace {

constexpr int sum_lanes = 16;

GOSSAMER_INLINE double sum_of_lanes(double* acc) noexcept {
  for (int half = sum_lanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) acc[l] += acc[l + half];
  }
  return acc[0];
}

template <class T>
double squares(const T* x, std::int64_t n) noexcept {
  double acc[sum_lanes] = {};
  std::int64_t i = 0;
  for (; i + sum_lanes <= n; i += sum_lanes) {
    for (int l = 0; l < sum_lanes; ++l) {
      const double v = static_cast<double>(x[i + l]);
      acc[l] = __builtin_fma(v, v, acc[l]);
    }
  }
  for (int l = 0; i < n; ++i, ++l) {
    const double v = static_cast<double>(x[i]);
    acc[l] = __builtin_fma(v, v, acc[l]);
  }
  return sum_of_lanes(acc);
}

// Many short runs: the call and the lanes would cost more than the sums.
template <class T>
void squares_of_runs(const T* __restrict x, std::int64_t count, std::int64_t run,
                     double* __restrict sums) noexcept {
  if (run == 1) {
    for (std::int64_t j = 0; j < count; ++j) {
      const double v = static_cast<double>(x[j]);
      sums[j] = v * v;
    }
    return;
  }
  for (std::int64_t j = 0; j < count; ++j) {
    double sum = 0.0;
    for (std::int64_t i = j * run; i < (j + 1) * run; ++i) {
      const double v = static_cast<double>(x[i]);
      sum = __builtin_fma(v, v, sum);
    }
    sums[j] = sum;
  }
}

template <class T>
double squares_at(const T* x, const std::int64_t* index, std::int64_t n) noexcept {
  double acc[4] = {};
  for (std::int64_t i = 0; i < n; ++i) {
    const double v = static_cast<double>(x[index[i]]);
    acc[i % 4] = __builtin_fma(v, v, acc[i % 4]);
  }
  return (acc[0] + acc[2]) + (acc[1] + acc[3]);
}

template <class T>
void squares_by_column(const T* x, std::int64_t rows, std::int64_t stride, std::int64_t n,
                       double* __restrict acc) noexcept {
  for (std::int64_t r = 0; r < rows; ++r) {
    const T* row = x + r * stride;
    for (std::int64_t j = 0; j < n; ++j) {
      const double v = static_cast<double>(row[j]);
      acc[j] = __builtin_fma(v, v, acc[j]);
    }
  }
}

// A comparison, not an addition of +0.0: that would be fused, and a product that underflows from
// below would stay -0.0.
template <class T>
GOSSAMER_INLINE T scaled(T x, double gain) noexcept {
  const T y = static_cast<T>(static_cast<double>(x) * gain);
  return y == T(0) ? T(0) : y;
}

template <class T>
void scale(T* x, std::int64_t n, double gain) noexcept {
  for (std::int64_t i = 0; i < n; ++i) x[i] = scaled(x[i], gain);
}

template <class T>
void scale_by(T* __restrict x, std::int64_t n, const double* __restrict gains) noexcept {
  for (std::int64_t i = 0; i < n; ++i) x[i] = scaled(x[i], gains[i]);
}

template <class T>
void above(const T* x, std::int64_t n, double shift, double theta, bool absolute, double* sum,
           std::int64_t* count) noexcept {
  double acc[sum_lanes] = {};
  std::int64_t over[sum_lanes] = {};
  std::int64_t i = 0;
  for (; i + sum_lanes <= n; i += sum_lanes) {
    for (int l = 0; l < sum_lanes; ++l) {
      double v = static_cast<double>(x[i + l]);
      v = (absolute ? __builtin_fabs(v) : v) - shift;
      acc[l] += v > theta ? v : 0.0;
      over[l] += v > theta ? 1 : 0;
    }
  }
  for (int l = 0; i < n; ++i, ++l) {
    double v = static_cast<double>(x[i]);
    v = (absolute ? __builtin_fabs(v) : v) - shift;
    acc[l] += v > theta ? v : 0.0;
    over[l] += v > theta ? 1 : 0;
  }
  *sum = sum_of_lanes(acc);
  *count = 0;
  for (int l = 0; l < sum_lanes; ++l) *count += over[l];
}

template <class T>
void shrink(T* x, std::int64_t n, double shift, double theta, bool absolute, double gain) noexcept {
  for (std::int64_t i = 0; i < n; ++i) {
    const double v = static_cast<double>(x[i]);
    const double size = ((absolute ? __builtin_fabs(v) : v) - shift) - theta;
    const double kept = size <= 0.0 ? 0.0 : size * gain;
    const T y = static_cast<T>(absolute && v < 0.0 ? -kept : kept);
    x[i] = y == T(0) ? T(0) : y;
  }
}

void secular(const double* v, const double* q, std::int64_t n, double rho, double* squares_out,
             double* weighted_out) noexcept {
  double acc[sum_lanes] = {}, weighted[sum_lanes] = {};
  std::int64_t i = 0;
  for (; i + sum_lanes <= n; i += sum_lanes) {
    for (int l = 0; l < sum_lanes; ++l) {
      const double t = 1.0 / (rho + q[i + l]);
      const double s = v[i + l] * t;
      acc[l] = __builtin_fma(s, s, acc[l]);
      weighted[l] = __builtin_fma(s * s, t, weighted[l]);
    }
  }
  for (int l = 0; i < n; ++i, ++l) {
    const double t = 1.0 / (rho + q[i]);
    const double s = v[i] * t;
    acc[l] = __builtin_fma(s, s, acc[l]);
    weighted[l] = __builtin_fma(s * s, t, weighted[l]);
  }
  *squares_out = sum_of_lanes(acc);
  *weighted_out = sum_of_lanes(weighted);
}

template <class T>
constexpr GroupKernels<T> group_kernels = {
    squares<T>, squares_of_runs<T>, squares_at<T>, squares_by_column<T>,
    scale<T>,   scale_by<T>,        above<T>,      shrink<T>,
};

constexpr GroupPasses group_passes = {
    group_kernels<float>,
    group_kernels<double>,
    fill,
    scan,
    settle,
    evaluate,
    shares,
    energy,
    secular,
};

}  // namespace
}  // namespace gossamer
