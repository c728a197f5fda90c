// The lp path norm of a shallow ReLU network, sum over neurons k and inputs i of |v_k w_ki|^p, is
// majorised by sum c_ki |v_k w_ki|. For each neuron by itself this is the exact joint minimum
//   min over x, y   1/2 (x - v)^2 + 1/2 ||y - w||^2 + |x| sum_i c_i |y_i|,
// which is not convex. c_i is the step times p (|previous v w_i| + eps)^(p - 1), and may be
// infinite; nothing here knows p.
#pragma once

#include <cstdint>

#include "core/types.hpp"

namespace gossamer {

// v [neurons] with its stride, w and c [neurons, inputs]; one dtype, float32 or float64; c >= 0.
struct PathNorm {
  DType dtype = DType::f32;
  void* v = nullptr;
  std::int64_t v_stride = 0;
  Matrix w;
  Matrix c;
};

// The first negative entry of c as row * cols + col, or -1.
std::int64_t first_negative_threshold(const PathNorm& problem) noexcept;

// Replaces v and w by the minimum; of two minima the one with x = 0. O(inputs log inputs) a neuron,
// in double. A NaN anywhere in a neuron makes all of that neuron NaN.
void path_norm_prox(const PathNorm& problem);

}  // namespace gossamer
