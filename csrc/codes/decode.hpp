// Products of sparse codes with a dictionary, and their gradients. Each output row is written by
// one task in a fixed order: the same bits for any number of threads.
#pragma once

#include "codes/table.hpp"

namespace gossamer {

// bias may be null.
template <class T>
void decode(const Codes<T>& codes, std::int64_t batch, const T* bias, T* out);

template <class T>
void code_dots(const Codes<T>& codes, std::int64_t batch, const T* g, T* out);

// out[latents, d], which is all zero, gets sum over (b, j) with ids[b, j] = latent of
// values[b, j] g[b]; rows that no entry names are not touched. Throws std::bad_alloc.
template <class T>
void scatter_codes(const Codes<T>& codes, std::int64_t batch, std::int64_t latents, const T* g,
                   T* out);

template <class T>
void prefix_errors(const Codes<T>& codes, std::int64_t batch, T* residual, T* errors);

// Gradients of sum_bj weights[b, j] errors[b, j]. residual comes as prefix_errors left it and
// leaves as the gradient of the bias, row by row; grad_dictionary comes all zero.
// Throws std::bad_alloc.
template <class T>
void prefix_gradients(const Codes<T>& codes, std::int64_t batch, std::int64_t latents,
                      const T* weights, T* residual, T* grad_values, T* grad_dictionary);

}  // namespace gossamer
