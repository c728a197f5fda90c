// The arguments of the three verbs, one struct each: all that a kernel of any device is given.
//
//   spmm    Y[b, r]  = sum_c X[b, c] W[r, c] + bias[r]
//   spmm_t  dX[b, c] = sum_r dY[b, r] W[r, c]
//   sddmm   dW[r, c] = sum_b dY[b, r] X[b, c]     at the kept (r, c) only
//
// Outputs and operands of one call have one dtype. Whoever fills a struct in has checked sizes and
// pointers (bind/products).
#pragma once

#include "layouts/panels.hpp"

namespace gossamer {

// What a driver lends kernels of runs of panels: read by all tasks.
struct Prepared {
  // [runs + 1]: entries in the lists of the runs before, where the list of a run is that of one of
  // its panels, all blocks together.
  const std::int64_t* starts = nullptr;
  const void* values = nullptr;  // as Kernel::prepare has left them
};

// --8<-- [start:args]
struct SpmmArgs {
  Matrix x;            // [batch, cols]
  const void* values;  // [nnz]
  Panels weight;
  const void* bias;  // [rows], contiguous, or null
  Matrix y;          // [batch, rows], written
  Prepared prepared = {};
};
// --8<-- [end:args]

struct SpmmTArgs {
  Matrix grad_output;  // [batch, rows]
  const void* values;  // [nnz]
  Panels weight;
  Matrix grad_input;  // [batch, cols], written
  Prepared prepared = {};
};

struct SddmmArgs {
  Matrix grad_output;  // [batch, rows]
  Matrix x;            // [batch, cols]
  Panels weight;
  void* grad_values;  // [nnz], written
  // [nnz] in the compute type, where a batch is summed in parts: grad_values itself, or memory that
  // a driver lends, or null where there is one part.
  void* sums = nullptr;
};

}  // namespace gossamer
