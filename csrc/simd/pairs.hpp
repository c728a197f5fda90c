// Registers of bf16 pairs, for instruction sets that multiply and add two bf16 at once:
//
//   Pairs::lanes             pairs in a register: as many as Vec<float> has lanes
//   load, store, and their _n: 2 * lanes consecutive bf16
//   zero                     zero in all lanes
//   spaced(p)                lanes numbers, one in the even half of each pair, zeros in the odd
//   set(p)                   the pair p[0], p[1] in all lanes
//   dot(sum, a, b)           lane i = sum[i] + a[2i] * b[2i] + a[2i + 1] * b[2i + 1], in float32;
//                            each ISA adds in its own order; a denormal may count as zero
//   narrow(low, high)        the sums of two registers, rounded to nearest even; a denormal may
//                            become zero
//   evens(a, b)              a0 b0 a2 b2 ...: the even numbers of both, and odds: a1 b1 a3 b3 ...
//   zip_low(a, b)            a0 b0 a1 b1 a2 b2 a3 b3 of each part of eight numbers, and
//   zip_high(a, b)           a4 b4 a5 b5 a6 b6 a7 b7 of each
//   pair_entries<V>(a)       [entry][V] -> [entry / 2][V][2], where a register holds two entries
//   transpose(rows)          lanes x lanes pairs, in place
//
// Words that shuffle move whole bits: no NaN is changed.
#pragma once

#include "simd/vec.hpp"

#if defined(GOSSAMER_ISA_AVX512BF16) || defined(GOSSAMER_ISA_AMX)
#define GOSSAMER_HAS_PAIRS 1
#include "simd/pairs_avx512.hpp"
#elif defined(GOSSAMER_ISA_NEONBF16)
#define GOSSAMER_HAS_PAIRS 1
#include "simd/pairs_neon.hpp"
#elif defined(GOSSAMER_ISA_EMULATED)
#define GOSSAMER_HAS_PAIRS 1
#include "simd/pairs_array.hpp"
#else
#define GOSSAMER_HAS_PAIRS 0
#endif
