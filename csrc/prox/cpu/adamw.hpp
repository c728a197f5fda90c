// One step of AdamW and a penalty on a run of entries that fits the first-level cache
// (prox/table.hpp).
#pragma once

#include "prox/cpu/elements.hpp"

namespace gossamer {
namespace {

// after(x, step) makes of the entry that AdamW moved what is stored.
template <class T, class After>
GOSSAMER_INLINE void adamw_loop(void* param, const void* grad, void* first, void* second,
                                const AdamWArgs& args, std::int64_t n, After after) noexcept {
  T* __restrict__ x = static_cast<T*>(param);
  const T* __restrict__ g = static_cast<const T*>(grad);
  T* __restrict__ m = static_cast<T*>(first);
  T* __restrict__ v = static_cast<T*>(second);
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
    x[i] = after(shrink * x[i] - step * (mi * per_bias1), step, i);
  }
}

// Straight lines: in the same loop.
template <class T, ElementKernel operate>
void run_adamw(void* param, const void* grad, void* first, void* second, const AdamWArgs& args,
               const ElementArgs& penalty, void* scratch, std::int64_t n) noexcept;

template <Penalty which, class T>
void run_adamw_pieces(void* param, const void* grad, void* first, void* second,
                      const AdamWArgs& args, const ElementArgs& penalty, void* scratch,
                      std::int64_t n) noexcept {
  if (penalty.steps != nullptr) {
    return run_adamw<T, run_pieces<which, T>>(param, grad, first, second, args, penalty, scratch,
                                              n);
  }
  const double params[penalty_params] = {penalty.params[0], penalty.params[1]};
  const T floor = T(penalty.floor);
  adamw_loop<T>(param, grad, first, second, args, n, [=](T x, T step, std::int64_t) {
    return pieces<which, T>(params, step)(raised(x, floor));
  });
}

// Others, and weighted ones: more loops while all is in the first-level cache.
template <class T, ElementKernel operate>
void run_adamw(void* param, const void* grad, void* first, void* second, const AdamWArgs& args,
               const ElementArgs& penalty, void* scratch, std::int64_t n) noexcept {
  T* __restrict__ steps = static_cast<T*>(scratch);
  adamw_loop<T>(param, grad, first, second, args, n, [=](T x, T step, std::int64_t i) {
    steps[i] = step;
    return x;
  });
  if (penalty.steps != nullptr) {
    const T* __restrict__ weights = static_cast<const T*>(penalty.steps);
    for (std::int64_t i = 0; i < n; ++i) steps[i] *= weights[i];
  }
  operate(param, {penalty.params, 0.0, scratch, penalty.floor}, n);
}

template <Penalty which, class T>
constexpr AdamWKernel adamw_kernel() noexcept {
  if constexpr (!has_own_loop<which, T>) {
    return run_adamw_pieces<which, T>;
  } else {
    return run_adamw<T, own_loop<which, T>()>;
  }
}

}  // namespace
}  // namespace gossamer
