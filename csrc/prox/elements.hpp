// Operators on whole tensors: chunks, threads.
#pragma once

#include "prox/table.hpp"

namespace gossamer {

// x[0..n) in place; dtype f32 or f64. `args.steps`, where given, is of the same dtype and length.
void prox_elements(Penalty which, DType dtype, void* x, std::int64_t n,
                   const ElementArgs& args) noexcept;

// AdamW, then the operator of `which` in AdamW's own metric, in one pass over memory; the penalty's
// `steps`, where given, are a weight for each entry, of the same dtype and length.
struct AdamWTensors {
  DType dtype;
  std::int64_t n;
  void* param;
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
};
void prox_adamw(const AdamWTensors& tensors, const AdamWArgs& args, Penalty which,
                const ElementArgs& penalty) noexcept;

}  // namespace gossamer
