// Norms of groups, scaling by group, and the group l2 operator in an elementwise metric.
//
// Regular groups: the entries are seen as [outer, count, inner] in row-major order, and the middle
// index names the group. Irregular ones: group g holds the entries indices[indptr[g]..indptr[g+1]);
// an index must occur once only (else two threads may scale an entry), which is the caller's part.
// Results are bit-equal for any number of threads and any instruction set.
#pragma once

#include "core/types.hpp"

namespace gossamer {

struct GroupShape {
  std::int64_t outer = 1;
  std::int64_t count = 0;
  std::int64_t inner = 1;
  const std::int64_t* indptr = nullptr;  // [count + 1], or null: regular
  const std::int64_t* indices = nullptr;
  std::int64_t numel = 0;
};

// Entries of the largest group.
std::int64_t longest_group(const GroupShape& shape) noexcept;

// body(index of x) for each entry of a group, in the order of the entries.
template <class F>
void each_entry(const GroupShape& g, std::int64_t group, F&& body) {
  if (g.indptr != nullptr) {
    for (std::int64_t e = g.indptr[group]; e < g.indptr[group + 1]; ++e) body(g.indices[e]);
    return;
  }
  for (std::int64_t o = 0; o < g.outer; ++o) {
    const std::int64_t at = (o * g.count + group) * g.inner;
    for (std::int64_t i = 0; i < g.inner; ++i) body(at + i);
  }
}

// T is float or double. All throw std::bad_alloc.

// norms[count] = |x_g|_2, also where the squares of float64 entries would overflow or vanish.
template <class T>
void group_norms(const T* x, const GroupShape& shape, double* norms);

// x_g *= gains[g]; a product that is zero is +0.0, NaN and infinity times 0 are NaN.
template <class T>
void scale_groups(T* x, const GroupShape& shape, const double* gains);

// x_g = argmin_z 1/2 sum h_i (z_i - x_i)^2 + lam[g] |z|: with rho = |z| the root of
// sum (h_i x_i / (h_i rho + lam))^2 = 1, z_i = h_i rho x_i / (h_i rho + lam); 0 when |h x| <= lam.
// Deleu and Bengio 2021, "Structured sparsity inducing adaptive optimizers". One task a group.
// Throws ArgumentError for a metric that is not positive and finite.
template <class T>
void metric_group_l2(T* x, const T* metric, const GroupShape& shape, const double* lam);

}  // namespace gossamer
