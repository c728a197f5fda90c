// One step of AdamW on a run of entries that fits the first-level cache (prox/table.hpp).
#pragma once

#include "prox/cpu/elements.hpp"

namespace gossamer {
namespace {

template <class T>
void run_adamw(void* param, const void* grad, void* first, void* second, const AdamWArgs& args,
               void* lengths, std::int64_t n) noexcept {
  T* __restrict__ x = static_cast<T*>(param);
  const T* __restrict__ g = static_cast<const T*>(grad);
  T* __restrict__ m = static_cast<T*>(first);
  T* __restrict__ v = static_cast<T*>(second);
  T* __restrict__ steps = static_cast<T*>(lengths);
  const T keep1 = T(args.beta1), take1 = T(1.0 - args.beta1);
  const T keep2 = T(args.beta2), take2 = T(1.0 - args.beta2);
  const T lr = T(args.lr), per_bias1 = T(1.0 / args.bias1), per_root = T(1.0 / args.root_bias2),
          eps = T(args.eps);
  const T shrink = T(args.shrink);
  for (std::int64_t i = 0; i < n; ++i) {
    const T gi = g[i];
    const T mi = keep1 * m[i] + take1 * gi;
    const T vi = keep2 * v[i] + take2 * gi * gi;
    const T step = lr / (root_of(vi) * per_root + eps);
    m[i] = mi;
    v[i] = vi;
    steps[i] = step;
    x[i] = shrink * x[i] - step * (mi * per_bias1);
  }
}

}  // namespace
}  // namespace gossamer
