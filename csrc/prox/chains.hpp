// Operators on the ordered values of each group: isotonic regression, total variation in one
// dimension; and the projection of each group onto a simplex.
//
// The order is that of the entries in memory, or of the indices of an irregular group. One task
// works on whole groups in double, so that results are bit-equal for any number of threads; zeros
// are +0.0. T is float or double. `metric` holds a factor h > 0 of each square, or is null. All
// throw ArgumentError for an entry or a metric that is not finite, and std::bad_alloc; x is then as
// it was.
#pragma once

#include "prox/groups.hpp"

namespace gossamer {

// argmin 1/2 sum h_i (z_i - x_i)^2 over z_1 <= z_2 <= ... (or >=, if `falling`), by pooling
// adjacent violators: linear time.
template <class T>
void isotonic(T* x, const T* metric, const GroupShape& shape, bool falling);

// argmin 1/2 sum h_i (z_i - x_i)^2 + lam sum |z_(i+1) - z_i|, lam >= 0: Johnson 2013, "A dynamic
// programming algorithm for the fused lasso and L0-segmentation"; linear time.
template <class T>
void total_variation(T* x, const T* metric, const GroupShape& shape, double lam);

// argmin |z - x| over z >= 0, sum z = radius > 0, by sorting (Held, Wolfe and Crowder 1974).
template <class T>
void simplices(T* x, const GroupShape& shape, double radius);

}  // namespace gossamer
