// What is compiled once an instruction set: kernels on sparse codes, k active latents a row.
//
// A code is k pairs (value, id) a row of the batch; a dictionary has a row of d numbers a latent,
// contiguous, so that a latent is a stream. Ids were checked before: they are inside the
// dictionary.
#pragma once

#include "core/tables.hpp"
#include "core/types.hpp"

namespace gossamer {

// Maxima are taken over groups of `group_fan` entries that lie `group_lanes` apart, so that a
// vector of maxima is a maximum of vectors: group g of a block holds the entries g, g + 64, ...
inline constexpr std::int64_t group_lanes = 64;
inline constexpr std::int64_t group_fan = 16;
inline constexpr std::int64_t group_block = group_lanes * group_fan;

// Entries above a threshold, in order, and the first `cap` entries equal to it.
struct Picked {
  std::int32_t* above;
  std::int32_t* ties;
  std::int64_t above_count;
  std::int64_t tie_count;
};

template <class T>
struct Codes {
  const std::int32_t* ids;  // [batch, k]
  const T* values;          // [batch, k]
  const T* dictionary;      // [latents, d]
  std::int64_t k;
  std::int64_t d;
};

// Entries sorted by latent: bucket r holds the entries [start[r], start[r + 1]) and is latent[r].
template <class T>
struct Buckets {
  const std::int32_t* latent;
  const std::int32_t* start;
  const std::int32_t* source;  // row of `vectors` of each entry
  const T* values;             // of each entry
  const T* vectors;            // [sources, d]
  std::int64_t d;
  bool add;  // to what `out` holds, which is overwritten otherwise
};

template <class T>
struct CodesPasses {
  // out[block * 64 + g] = maximum of group g of each block. Returns whether x holds a NaN.
  bool (*group_max)(const T* x, std::int64_t blocks, T* out) noexcept;

  void (*pick)(const T* x, std::int64_t n, T threshold, std::int64_t cap, Picked& out) noexcept;

  // out[b] = bias + sum_j values[b, j] dictionary[ids[b, j]], rows [first, last); bias may be null.
  void (*decode)(const Codes<T>& codes, const T* bias, std::int64_t first, std::int64_t last,
                 T* out) noexcept;

  // out[b, j] = <g[b], dictionary[ids[b, j]]>
  void (*dots)(const Codes<T>& codes, const T* g, std::int64_t first, std::int64_t last,
               T* out) noexcept;

  // out[latent[r]] (+)= sum of values * vectors over bucket r, in the order of its entries.
  void (*scatter)(const Buckets<T>& buckets, std::int64_t first, std::int64_t last,
                  T* out) noexcept;

  // residual[b] starts as x - bias; errors[b, j] = ||residual||^2 after j + 1 terms were taken off.
  void (*prefix_errors)(const Codes<T>& codes, std::int64_t first, std::int64_t last, T* residual,
                        T* errors) noexcept;

  // The gradient of sum_j weights[b, j] errors[b, j]: with r_j the residual after j + 1 terms and
  // s_j = -2 sum_{i >= j} weights[b, i] r_i, term j has the gradient s_j. Writes suffixes[b, j] =
  // s_j (rows counted from `first`), grad_values[b, j] = <s_j, dictionary[ids[b, j]]>, and leaves
  // s_0 in residual[b], which held r_{k-1}.
  void (*suffix_sums)(const Codes<T>& codes, const T* weights, std::int64_t first,
                      std::int64_t last, T* residual, T* suffixes, T* grad_values) noexcept;
};

struct CodesTable {
  CodesPasses<float> f32;
  CodesPasses<double> f64;
};

GOSSAMER_TABLES(CodesTable, codes_tables, gossamer_codes);

template <class T>
const CodesPasses<T>& codes_passes() {
  if constexpr (sizeof(T) == sizeof(float)) {
    return codes_tables.active().f32;
  } else {
    return codes_tables.active().f64;
  }
}

}  // namespace gossamer
