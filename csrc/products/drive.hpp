// A verb from end to end: picks the kernel, cuts the work into tasks, lends them scratch memory.
// Arguments are checked by the caller. May throw std::bad_alloc, before anything is written.
#pragma once

#include "core/queue.hpp"
#include "products/args.hpp"

namespace gossamer {

// What a driver lends to kernels is filled in here: Prepared, Panels::run, SddmmArgs::sums.
//
// The queue says where a device runs the call; the CPU ignores it. A device that has no kernel for
// the arguments throws Unserved.
void run_spmm(SpmmArgs args, DType dtype, const Queue& queue);
void run_spmm_t(SpmmTArgs args, DType dtype, const Queue& queue);

// spmm_t by way of W^T: `transposed` is its structure, and perm[i] says which of args.values is
// its i-th. Its values are gathered into scratch, so no second copy of them lives between calls.
void run_spmm_t_packed(const SpmmTArgs& args, const Panels& transposed, const std::int32_t* perm,
                       DType dtype, const Queue& queue);

void run_sddmm(SddmmArgs args, DType dtype, const Queue& queue);

}  // namespace gossamer
