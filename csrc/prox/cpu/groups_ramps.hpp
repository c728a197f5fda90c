// Passes over the ramps of groups: u(eta) = clip(slope eta - offset, 0, 1).
//
// A loop writes what each group adds into small buffers, another one adds those up in 16 lanes:
// both become vectors for any compiler, and no product can be fused with a sum behind our back. Of
// two equal breakpoints the comparisons decide, not the clip: at eta = offset / slope a share is
// exactly 0, where the clip would leave 1e-17.
#pragma once

#include <limits>

#include "prox/groups_table.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t ramp_block = 256;
constexpr int ramp_lanes = 16;

GOSSAMER_INLINE double sum_of_block(const double* x, std::int64_t n) noexcept {
  double acc[ramp_lanes] = {};
  std::int64_t i = 0;
  for (; i + ramp_lanes <= n; i += ramp_lanes) {
    for (int l = 0; l < ramp_lanes; ++l) acc[l] += x[i + l];
  }
  for (int l = 0; i < n; ++i, ++l) acc[l] += x[i];
  for (int half = ramp_lanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) acc[l] += acc[l + half];
  }
  return acc[0];
}

GOSSAMER_INLINE double share(double slope, double offset, double enters, double fills,
                             double eta) noexcept {
  double u = __builtin_fma(slope, eta, -offset);
  u = u > 0.0 ? u : 0.0;
  u = u < 1.0 ? u : 1.0;
  u = eta >= fills ? 1.0 : u;
  return eta > enters ? u : 0.0;
}

void fill(const RampInputs& in, std::int64_t n, double* __restrict slope, double* __restrict offset,
          double* __restrict cost) noexcept {
  const double *a = in.a, *d = in.d, *c = in.c, *h = in.h;
  const double lam = in.lam;
  if (c != nullptr) {
    for (std::int64_t i = 0; i < n; ++i) cost[i] = c[i];
  } else {
    for (std::int64_t i = 0; i < n; ++i) cost[i] = 1.0;
  }
  if (d != nullptr) {
    for (std::int64_t i = 0; i < n; ++i) slope[i] = a[i] * __builtin_sqrt(d[i] / cost[i]);
    for (std::int64_t i = 0; i < n; ++i) offset[i] = lam * d[i];
  } else {
    for (std::int64_t i = 0; i < n; ++i) slope[i] = a[i] * __builtin_sqrt(1.0 / cost[i]);
    for (std::int64_t i = 0; i < n; ++i) offset[i] = lam;
  }
  if (h != nullptr) {
    for (std::int64_t i = 0; i < n; ++i) offset[i] /= h[i];
  }
}

GOSSAMER_INLINE bool ramp_is_bad(double slope, double offset) noexcept {
  constexpr double most = std::numeric_limits<double>::max();
  return !(slope >= 0.0) | !(slope <= most) | !(offset >= 0.0) | !(offset <= most);
}

template <bool Flat>
void scan_as(const Ramps& r, std::int64_t n, RampScan& out) noexcept {
  const double *slope = r.slope, *offset = r.offset, *cost = r.cost;
  const double flat = r.flat_offset;
  std::int64_t live = 0, bad = 0;
  for (std::int64_t from = 0; from < n; from += ramp_block) {
    const std::int64_t b = n - from < ramp_block ? n - from : ramp_block;
    double taken[ramp_block];
    for (std::int64_t i = 0; i < b; ++i) {
      const double s = slope[from + i], e = Flat ? flat : offset[from + i];
      live += s > 0.0 ? 1 : 0;
      bad += ramp_is_bad(s, e) ? 1 : 0;
    }
    if constexpr (!Flat) {
      for (std::int64_t i = 0; i < b; ++i) {
        taken[i] = slope[from + i] > 0.0 ? cost[from + i] : 0.0;
      }
      out.cost += sum_of_block(taken, b);
    }
  }
  out.live += live;
  out.bad += bad;
  if constexpr (Flat) out.cost += static_cast<double>(live);
}

void scan(const Ramps& r, std::int64_t n, RampScan& out) noexcept {
  r.cost == nullptr ? scan_as<true>(r, n, out) : scan_as<false>(r, n, out);
}

template <bool Flat>
void settle_as(const Ramps& r, std::int64_t n, double left, double right, Settled& out,
               double* rest_slope, double* rest_offset, double* rest_cost) noexcept {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const double *slope = r.slope, *offset = r.offset, *cost = r.cost;
  const double flat = r.flat_offset;
  std::int64_t rest = out.rest, ramps = 0, full = 0;
  for (std::int64_t from = 0; from < n; from += ramp_block) {
    const std::int64_t b = n - from < ramp_block ? n - from : ramp_block;
    double enters[ramp_block], fills[ramp_block], on_ramp[ramp_block], at_one[ramp_block];
    std::int64_t keep[ramp_block];
    const double* s_ = slope + from;
    const double* e_ = Flat ? nullptr : offset + from;
    const double* c_ = Flat ? nullptr : cost + from;
    for (std::int64_t i = 0; i < b; ++i) {
      const double s = s_[i], e = Flat ? flat : e_[i];
      enters[i] = s > 0.0 ? e / s : infinity;
      fills[i] = s > 0.0 ? (1.0 + e) / s : infinity;
    }
    std::int64_t kept = 0;
    for (std::int64_t i = 0; i < b; ++i) {
      const std::int64_t ramp = enters[i] <= left ? (fills[i] >= right ? 1 : 0) : 0;
      const std::int64_t none = enters[i] >= right ? 1 : 0;
      const std::int64_t one = fills[i] <= left ? 1 : 0;
      keep[i] = 1 - (ramp | none | one);
      kept += keep[i];
      if constexpr (Flat) {
        ramps += ramp;
        full += one;
      }
    }
    for (std::int64_t i = 0; i < b; ++i) {
      const double taken = Flat ? s_[i] : c_[i] * s_[i];
      on_ramp[i] = enters[i] <= left ? (fills[i] >= right ? taken : 0.0) : 0.0;
    }
    out.slope += sum_of_block(on_ramp, b);
    if constexpr (!Flat) {
      for (std::int64_t i = 0; i < b; ++i) {
        const double taken = c_[i] * e_[i];
        on_ramp[i] = enters[i] <= left ? (fills[i] >= right ? taken : 0.0) : 0.0;
      }
      out.offset += sum_of_block(on_ramp, b);
      for (std::int64_t i = 0; i < b; ++i) at_one[i] = fills[i] <= left ? c_[i] : 0.0;
      out.full += sum_of_block(at_one, b);
    }
    if (kept == 0) continue;

    // What stays is written out, and then looked at again at both ends.
    const std::int64_t first = rest;
    for (std::int64_t i = 0; i < b; ++i) {
      rest_slope[rest] = s_[i];
      if constexpr (!Flat) {
        rest_offset[rest] = e_[i];
        rest_cost[rest] = c_[i];
      }
      rest += keep[i];
    }
    double at_left[ramp_block], at_right[ramp_block];
    const double* ks = rest_slope + first;
    const double* ke = Flat ? nullptr : rest_offset + first;
    const double* kc = Flat ? nullptr : rest_cost + first;
    for (std::int64_t i = 0; i < kept; ++i) {
      const double s = ks[i], e = Flat ? flat : ke[i], c = Flat ? 1.0 : kc[i];
      const double low = e / s, high = (1.0 + e) / s;
      at_left[i] = c * share(s, e, low, high, left);
      at_right[i] = c * share(s, e, low, high, right);
    }
    out.at_left += sum_of_block(at_left, kept);
    out.at_right += sum_of_block(at_right, kept);
  }
  out.rest = rest;
  if constexpr (Flat) {
    out.offset += static_cast<double>(ramps) * flat;
    out.full += static_cast<double>(full);
  }
}

void settle(const Ramps& r, std::int64_t n, double left, double right, Settled& out, double* slope,
            double* offset, double* cost) noexcept {
  r.cost == nullptr ? settle_as<true>(r, n, left, right, out, slope, offset, cost)
                    : settle_as<false>(r, n, left, right, out, slope, offset, cost);
}

template <bool Flat>
void evaluate_as(const Ramps& r, std::int64_t n, const double* points, double* sums) noexcept {
  const double *slope = r.slope, *offset = r.offset, *cost = r.cost;
  const double flat = r.flat_offset;
  for (std::int64_t from = 0; from < n; from += ramp_block) {
    const std::int64_t b = n - from < ramp_block ? n - from : ramp_block;
    double enters[ramp_block], fills[ramp_block], taken[ramp_block];
    const double* s_ = slope + from;
    const double* e_ = Flat ? nullptr : offset + from;
    const double* c_ = Flat ? nullptr : cost + from;
    for (std::int64_t i = 0; i < b; ++i) {
      const double e = Flat ? flat : e_[i];
      enters[i] = e / s_[i];
      fills[i] = (1.0 + e) / s_[i];
    }
    for (int p = 0; p < ramp_points; ++p) {
      const double eta = points[p];
      for (std::int64_t i = 0; i < b; ++i) {
        const double u = share(s_[i], Flat ? flat : e_[i], enters[i], fills[i], eta);
        taken[i] = s_[i] > 0.0 ? (Flat ? 1.0 : c_[i]) * u : 0.0;
      }
      sums[p] += sum_of_block(taken, b);
    }
  }
}

void evaluate(const Ramps& r, std::int64_t n, const double* points, double* sums) noexcept {
  r.cost == nullptr ? evaluate_as<true>(r, n, points, sums)
                    : evaluate_as<false>(r, n, points, sums);
}

template <bool Flat, bool Gains>
void shares_as(const Ramps& r, std::int64_t n, double eta, double* __restrict out) noexcept {
  const double *slope = r.slope, *offset = r.offset;
  const double flat = r.flat_offset;
  for (std::int64_t i = 0; i < n; ++i) {
    const double s = slope[i], e = Flat ? flat : offset[i];
    const double enters = e / s, fills = (1.0 + e) / s;
    const double u = share(s, e, enters, fills, eta);
    const double value = Gains ? u / (u + e) : u;
    out[i] = (s > 0.0) & (u > 0.0) ? value : 0.0;
  }
}

void shares(const Ramps& r, std::int64_t n, double eta, bool gains, double* out) noexcept {
  if (r.cost == nullptr) {
    gains ? shares_as<true, true>(r, n, eta, out) : shares_as<true, false>(r, n, eta, out);
  } else {
    gains ? shares_as<false, true>(r, n, eta, out) : shares_as<false, false>(r, n, eta, out);
  }
}

double energy(const double* a, const double* d, const double* u, std::int64_t n) noexcept {
  double sum = 0.0;
  for (std::int64_t from = 0; from < n; from += ramp_block) {
    const std::int64_t b = n - from < ramp_block ? n - from : ramp_block;
    double part[ramp_block];
    for (std::int64_t i = 0; i < b; ++i) {
      const double x = a[from + i], w = d == nullptr ? 1.0 : d[from + i];
      const double value = w * x * (x / u[from + i]);
      part[i] = x > 0.0 ? value : 0.0;
    }
    sum += sum_of_block(part, b);
  }
  return sum;
}

}  // namespace
}  // namespace gossamer
