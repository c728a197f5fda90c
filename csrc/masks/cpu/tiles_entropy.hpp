// The entropic transport of sixteen tiles at a time.
#pragma once

#include "masks/tiles_table.hpp"
#include "simd/math.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t lanes = tile_lanes;

// Maximises <S, W> + H(S) / sharpness over S in [0, 1] with row and column sums n by Bregman
// projections (row sums, column sums, Dykstra's for S <= 1) of exp(sharpness W). The correction Q
// of Dykstra's is max(S Q, 1) and the projection min(S Q, 1), so that S Q = exp(sharpness W) times
// a factor a row and a factor a column: their logarithms u and v are all that is kept.
void entropy_tiles(const float* w, const EntropyPlan& plan, float* scratch,
                   std::int32_t* keys) noexcept {
  const std::int64_t m = plan.m;
  const float n = static_cast<float>(plan.n);
  float* __restrict a = scratch;
  float* __restrict u = a + m * m * lanes;
  float* __restrict v = u + m * lanes;
  float* __restrict sums = v + m * lanes;
  float* __restrict plan_row = sums + m * lanes;
  float scale[lanes], error[lanes];
  std::int32_t active[lanes];
  for (std::int64_t l = 0; l < lanes; ++l) scale[l] = 0;
  // The typical magnitude is a mean of roots, squared: a few large entries hardly move it.
  for (std::int64_t e = 0; e < m * m; ++e) {
#pragma omp simd
    for (std::int64_t l = 0; l < lanes; ++l) scale[l] += __builtin_sqrtf(w[e * lanes + l]);
  }
  for (std::int64_t l = 0; l < lanes; ++l) {
    const float root = scale[l] / static_cast<float>(m * m);
    scale[l] = root > 0 ? plan.sharpness * 1.4426950f / (root * root) : 0.0f;
    active[l] = 1;
  }
  // A row starts near the level at which it will be cut: any start leads to the same plan, this one
  // sooner. Entries far above the typical one must not lift it.
  const float most = 3.0f * plan.sharpness * 1.4426950f;
  for (std::int64_t i = 0; i < m; ++i) {
    float* level = u + i * lanes;
    for (std::int64_t l = 0; l < lanes; ++l) level[l] = 0;
    for (std::int64_t j = 0; j < m; ++j) {
#pragma omp simd
      for (std::int64_t l = 0; l < lanes; ++l) {
        const float x = w[(i * m + j) * lanes + l] * scale[l];
        a[(i * m + j) * lanes + l] = x;
        level[l] -= (x < most ? x : most) / static_cast<float>(m);
      }
    }
  }
  for (std::int64_t e = 0; e < m * lanes; ++e) v[e] = 0;

  for (std::int64_t step = 0; step < plan.iterations; ++step) {
    for (std::int64_t l = 0; l < lanes; ++l) error[l] = 0;
    for (std::int64_t e = 0; e < m * lanes; ++e) sums[e] = 0;
    for (std::int64_t i = 0; i < m; ++i) {
      const float* row = a + i * m * lanes;
      float* ui = u + i * lanes;
      float total[lanes];
      for (std::int64_t l = 0; l < lanes; ++l) total[l] = 0;
      for (std::int64_t j = 0; j < m; ++j) {
#pragma omp simd
        for (std::int64_t l = 0; l < lanes; ++l) {
          const float t = row[j * lanes + l] + (ui[l] + v[j * lanes + l]);
          const float s = coarse_exp2(t < 0.0f ? t : 0.0f);
          plan_row[j * lanes + l] = s;
          total[l] += s;
        }
      }
#pragma omp simd
      for (std::int64_t l = 0; l < lanes; ++l) {
        const float gain = active[l] ? n / (total[l] > 1e-30f ? total[l] : 1e-30f) : 1.0f;
        const float off = gain > 1.0f ? gain - 1.0f : 1.0f - gain;
        error[l] = off > error[l] ? off : error[l];
        ui[l] += coarse_log2(gain);
        total[l] = gain;
      }
      for (std::int64_t j = 0; j < m; ++j) {
#pragma omp simd
        for (std::int64_t l = 0; l < lanes; ++l) {
          sums[j * lanes + l] += plan_row[j * lanes + l] * total[l];
        }
      }
    }
    for (std::int64_t j = 0; j < m; ++j) {
#pragma omp simd
      for (std::int64_t l = 0; l < lanes; ++l) {
        const float sum = sums[j * lanes + l];
        const float gain = active[l] ? n / (sum > 1e-30f ? sum : 1e-30f) : 1.0f;
        const float off = gain > 1.0f ? gain - 1.0f : 1.0f - gain;
        error[l] = off > error[l] ? off : error[l];
        v[j * lanes + l] += coarse_log2(gain);
      }
    }
    // A tile that is done rests: what it becomes does not depend on the tiles beside it.
    std::int32_t left = 0;
    for (std::int64_t l = 0; l < lanes; ++l) {
      active[l] &= error[l] > plan.tolerance;
      left |= active[l];
    }
    if (left == 0) break;
  }
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < m; ++j) {
#pragma omp simd
      for (std::int64_t l = 0; l < lanes; ++l) {
        // The logarithm of S Q orders S and, where S is 1, how firmly it is.
        const float t = a[(i * m + j) * lanes + l] + (u[i * lanes + l] + v[j * lanes + l]);
        const std::int32_t bits = __builtin_bit_cast(std::int32_t, t);
        keys[(i * m + j) * lanes + l] = bits ^ ((bits >> 31) & 0x7fffffff);
      }
    }
  }
}

}  // namespace
}  // namespace gossamer
