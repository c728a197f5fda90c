// The cost of a transport problem: a matrix in memory, or two clouds of points from which its rows
// are computed when they are needed, so that n x m numbers are never stored.
//
//   dense    C[i, j] = data[i * stride + j]                     float32 or float64; infinite: a
//                                                               forbidden pair, without mass
//   points   C[i, j] = metric(x[i, :], y[:, j])                 x [n, d], y transposed [d, m]
//
// All arithmetic is in float64; a float32 cost is widened as it is read.
#pragma once

#include <cmath>
#include <cstdint>

namespace gossamer {

enum class CostKind { dense_f64, dense_f32, sqeuclidean, euclidean, l1, cosine };

struct Cost {
  CostKind kind;
  std::int64_t n, m;
  const void* data = nullptr;  // dense
  std::int64_t stride = 0;     // elements from a row to the next
  const double* x = nullptr;   // points; for cosine both clouds have unit length
  const double* y = nullptr;
  std::int64_t d = 0;
};

// One entry; for the few places that do not go row by row.
inline double cost_at(const Cost& c, std::int64_t i, std::int64_t j) noexcept {
  if (c.kind == CostKind::dense_f64) return static_cast<const double*>(c.data)[i * c.stride + j];
  if (c.kind == CostKind::dense_f32) {
    return static_cast<double>(static_cast<const float*>(c.data)[i * c.stride + j]);
  }
  double sum = c.kind == CostKind::cosine ? 1.0 : 0.0;
  for (std::int64_t f = 0; f < c.d; ++f) {
    const double x = c.x[i * c.d + f], y = c.y[f * c.m + j];
    sum += c.kind == CostKind::l1       ? (x > y ? x - y : y - x)
           : c.kind == CostKind::cosine ? -x * y
                                        : (x - y) * (x - y);
  }
  return c.kind == CostKind::euclidean ? std::sqrt(sum) : sum;
}

// Rows of costs at kept entries only: the entries that screening left (State::screen).
struct SparseCost {
  std::int64_t n = 0, m = 0;
  const std::int64_t* indptr = nullptr;  // [n + 1]
  const std::int32_t* cols = nullptr;    // [indptr[n]]
  const double* costs = nullptr;         // [indptr[n]]
};

}  // namespace gossamer
