// A feed-forward network for a few tokens at a time, as in decoding: memory is all that counts. The
// gate's rows are read in int8, and of the exact rows only what may be live: of the gate the
// screened ones, of up and down the live ones.
#pragma once

#include "activations/gate.hpp"
#include "activations/table.hpp"

namespace gossamer {

// Matrices are [neurons, d]. One of `dense_gate` and `screen` says which pairs may be live.
template <class T>
struct DecodeArgs {
  const T* x;  // [tokens, d], tokens <= few_tokens
  std::int64_t tokens, neurons, d;
  const T *gate, *up, *down;                         // up may be null
  const Compute<T>*gate_bias, *up_bias, *down_bias;  // may be null
  bool square;                                       // h = relu(g)^2 u
  const T* dense_gate;                               // [tokens, neurons] with its bias, or null
  QuantizedRows rows;                                // of the gate
  float slack;
};

struct DecodeCounts {
  std::int64_t live, screened;  // pairs
};

// y [tokens, d]. Throws std::bad_alloc.
template <class T>
DecodeCounts decode(const DecodeArgs<T>& args, T* y);

}  // namespace gossamer
