// Many tiny transport problems: `iterations` rounds of Sinkhorn on each, all from the scores alone,
//
//   P = exp(S);  repeat: rows of P scaled to the sums a, then columns to the sums b
//
// and the exact gradient of that. A problem a lane: a block of problems is turned so that entry
// (i, j) of all of them is one vector, and every step is vertical arithmetic:
//
//   S in memory  [problem][entry]          K in scratch  [entry][lane]
//     p0: s00 s01 s10 s11                    k00: p0 p1 p2 p3 ...
//     p1: s00 s01 s10 s11        ->          k01: p0 p1 p2 p3 ...
//     p2: ...                                k10: ...
//
// Exponentials are taken once, of scores less the largest of their row and then of their column, so
// that every row and column of K has a 1; what is below 2^-100 counts as that. The start y0 makes
// up for the columns, so the iterates are those of the scores as they are.
#pragma once

#include <cstdint>

#include "core/types.hpp"

namespace gossamer {

template <class T>
struct SmallArgs {
  const T* scores;  // [count, n, m]
  const T* a;       // [n], positive
  const T* b;       // [m], positive
  std::int64_t n, m, iterations;
};

// Most rows and columns, and rounds: what a worker keeps of them stays small.
inline constexpr std::int64_t small_most = 16;
inline constexpr std::int64_t small_rounds = 1000;

// Bytes of a vector in scratch, whatever the ISA's width, and how many the passes need.
inline constexpr std::int64_t small_vector = 64;
constexpr std::int64_t small_scratch(std::int64_t n, std::int64_t m, std::int64_t rounds) noexcept {
  return (3 * n * m + (rounds + 2) * (n + m)) * small_vector;
}

struct SmallProblems {
  DType dtype;  // f32 or f64
  std::int64_t count, n, m, iterations;
  const void* scores;
  const void* a;
  const void* b;
};

// plan [count, n, m]. A problem with NaN, +inf, or a row or column of -inf gets a plan of NaN.
void sinkhorn_small(const SmallProblems& problems, void* plan);

// The gradient for the scores, of the gradient for the plan; both [count, n, m].
void sinkhorn_small_backward(const SmallProblems& problems, const void* grad, void* grad_scores);

}  // namespace gossamer
