// Unbiased N:M samples of a matrix: the part compiled for each instruction set.
#pragma once

#include "core/types.hpp"
#include "layouts/panels.hpp"

namespace gossamer {

struct MvueArgs {
  Matrix x;    // [tokens, cols], any strides
  Panels out;  // sizes of x^T [cols, tokens rounded up to m], vector 1; pointers unset
  bool approximate;
  std::uint64_t key;
  void* values;           // [nnz], the dtype of x
  std::uint8_t* indices;  // [nnz]
};

struct MvuePasses {
  // Samples the columns [first, last) of one block of tokens, and writes them where they belong.
  void (*sample[dtype_count])(const MvueArgs& args, std::int64_t block, std::int64_t first,
                              std::int64_t last) noexcept;
};

}  // namespace gossamer
