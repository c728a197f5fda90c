// Convolutions: the three verbs on the matrix of patches (layouts/patches.hpp), one call a group.
//
//   convolve         Y[n, r, o]  = sum over taps t and channels c of X[n, c, o s + t d - p] W[r,
//   (t, c)]
//                                  + bias[r]
//   convolve_input   dX, the gradient of X
//   convolve_weight  dW at the kept entries
//
// Group g has the channels [g C, (g + 1) C) of X and an equal part of the rows of W.
// Arguments are checked by the caller. May throw std::bad_alloc, before anything is written.
#pragma once

#include "core/queue.hpp"
#include "layouts/panels.hpp"

namespace gossamer {

// [image, channel, depth, height, width], strides in elements.
struct Images {
  void* data = nullptr;
  std::int64_t shape[5] = {0, 0, 0, 0, 0};
  std::int64_t strides[5] = {0, 0, 0, 0, 0};
};

// Depth, height, width. Padding in front; behind, it is what the output needs.
struct Convolution {
  std::int64_t kernel[3] = {1, 1, 1};
  std::int64_t stride[3] = {1, 1, 1};
  std::int64_t padding[3] = {0, 0, 0};
  std::int64_t dilation[3] = {1, 1, 1};
  std::int64_t groups = 1;
};

// The transpose of a weight, for the gradient of the input: see run_spmm_t_packed.
struct TransposedPanels {
  Panels panels;
  const std::int32_t* perm = nullptr;  // null: there is none
};

void convolve(const Images& x, const void* values, const Panels& weight, const void* bias,
              const Images& y, const Convolution& how, DType dtype, const Queue& queue);

// grad_input is of the type in which products are summed.
void convolve_input(const Images& grad_output, const void* values, const Panels& weight,
                    const TransposedPanels& transposed, const Images& grad_input,
                    const Convolution& how, DType dtype, const Queue& queue);

void convolve_weight(const Images& grad_output, const Images& x, const Panels& weight,
                     void* grad_values, const Convolution& how, DType dtype, const Queue& queue);

}  // namespace gossamer
