// Prunes a weight that is sparse along its rows down its columns as well, and lays out the
// transpose of what remains. Of each group of m consecutive rows of a column the n entries of
// largest magnitude stay; of equal magnitudes the lower row's; NaN counts as the largest. Where the
// rows are no multiple of m, the last group is shorter and keeps at most n too.
//
// (Mozaffari et al. 2025, "SLoPe: Double-Pruned Sparse Plus Lazy Low-Rank Adapter Pretraining")
#pragma once

#include <memory>
#include <vector>

#include "core/types.hpp"
#include "layouts/panels.hpp"

namespace gossamer {

// In two steps, so that the caller can allocate the outputs: the constructor chooses and counts,
// fill() writes. No dense copy: besides its output it takes a byte a value.
class DoublePrune {
 public:
  // The structure is checked, values has nnz elements, 1 <= n <= m <= 64. Throws ShapeError,
  // ArgumentError.
  DoublePrune(const Panels& weight, const void* values, DType dtype, std::int64_t n,
              std::int64_t m);

  const Panels& layout() const noexcept { return transposed_; }  // of the transpose; pointers unset
  const std::vector<std::int32_t>& indptr() const noexcept { return indptr_; }
  std::int64_t nnz() const noexcept { return indptr_.back(); }

  // indices and perm have nnz() elements: value i of the transpose is value perm[i] of the weight.
  void fill(std::uint8_t* indices, std::int32_t* perm) const noexcept;

 private:
  template <class T>
  void choose(const T* values, std::int64_t n, std::int64_t m);
  void count() noexcept;
  template <class F>
  void for_each_kept(std::int64_t task, F&& f) const noexcept;

  Panels weight_;
  Panels transposed_;
  int workers_;
  std::unique_ptr<std::uint8_t[]> kept_;  // [nnz of the weight]
  std::vector<std::int32_t> indptr_;
};

}  // namespace gossamer
