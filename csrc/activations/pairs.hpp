// Products at the live pairs of a batch, in tasks and threads. Every number is written by one task,
// its sum in the order of the pairs: the same bits for any number of threads.
#pragma once

#include "activations/table.hpp"

namespace gossamer {

// See activations/table.hpp.
struct LivePairs {
  const std::int64_t* indptr;  // [tiles * neurons + 1]
  const std::int32_t* tokens;  // [count]
  std::int64_t count;
  std::int64_t neurons;
  std::int64_t batch;  // tokens in all
  std::int64_t tile;   // tokens of a tile; the last may have fewer

  std::int64_t tiles() const noexcept { return ceil_div(batch, tile); }
};

// Throws StructureError unless indptr rises from 0 to count, and the tokens of a row rise inside
// its tile.
void check_pairs(const LivePairs& pairs);

// out[p] = <x[token of p], w[neuron of p]> + bias[neuron of p]; bias may be null. Throws
// std::bad_alloc, as the next two do.
template <class T>
void sample_products(const LivePairs& pairs, const T* x, const T* w, std::int64_t d,
                     const Compute<T>* bias, Compute<T>* out);

// y[t] = sum over the pairs of token t of a[p] w[neuron of p] (+ b[p] w2[neuron of p]); w2 and b
// may be null.
template <class T>
void scatter_rows(const LivePairs& pairs, std::int64_t d, const T* w, const Compute<T>* a,
                  const T* w2, const Compute<T>* b, T* y);

// out.gate[k] = sum over the pairs of neuron k of a[p] x[token of p]; out.up the same of b, left
// out where it is null; out.down the same of c and dy. Rows without a pair become zero.
template <class T>
void accumulate_rows(const LivePairs& pairs, const T* x, const T* dy, const Compute<T>* a,
                     const Compute<T>* b, const Compute<T>* c, const Gradients<T>& out);

// out[k] = sum over the pairs of neuron k of values[p]
template <class C>
void sum_neurons(const LivePairs& pairs, const C* values, C* out) noexcept;

// The pairs whose gate is live (activations/table.hpp), as a new indptr. Returns their number.
template <class C>
std::int64_t count_live(const LivePairs& pairs, const C* gate, std::int64_t* indptr);

// Copies the tokens and gates of those pairs.
template <class C>
void keep_live(const LivePairs& pairs, const C* gate, const std::int64_t* indptr,
               std::int32_t* tokens, C* kept) noexcept;

}  // namespace gossamer
