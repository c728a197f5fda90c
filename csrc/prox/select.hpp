// Operators on a whole vector that need a threshold, found without sorting: top-k, projections onto
// the l1 ball and the simplex, and l1 - alpha l2.
//
// T is float or double, n >= 1. All throw ArgumentError for NaN (top-k; infinity too in the
// others), since their order or sum would mean nothing, and std::bad_alloc; x is then as it was.
// Bit-equal for any number of threads and any instruction set. Output zeros are +0.0.
#pragma once

#include "core/types.hpp"

namespace gossamer {

// Keeps the k largest |x|, of equal ones those that stand first; exactly min(k, n) stay. A radix
// selection on the bits of |x|, which are ordered as the numbers are.
template <class T>
void top_k(T* x, std::int64_t n, std::int64_t k);

// argmin |z - x| over sum |z| <= radius.
template <class T>
void l1_ball(T* x, std::int64_t n, double radius);

// argmin |z - x| over z >= 0, sum z = radius.
template <class T>
void simplex(T* x, std::int64_t n, double radius);

// argmin_z 1/2 |z - x|^2 + lam (|z|_1 - alpha |z|_2), 0 <= alpha <= 1: Lou and Yan 2018, "Fast
// L1-L2 minimization via a proximal operator". Where one entry alone survives it is the first of
// the largest.
template <class T>
void l1_minus_l2(T* x, std::int64_t n, double lam, double alpha);

}  // namespace gossamer
