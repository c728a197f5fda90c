// Eight registers of 16 x 64 bytes and the product of two, for instruction sets that have them:
//
//   Tiles tiles(pairs)       the registers of this thread, until the end of the scope; `pairs` is
//                            the number of pairs that a product sums, at most 16
//   zero<T>()                zeros in register T
//   load<T>(p, stride)       a register from lines of memory, `stride` bytes apart, and
//   store<T>(p, stride)      back
//   dot<C, A, B>()           C[i][j] += sum over k of <A[i][k], B[k][j]>, k < pairs: A holds pairs
//                            of bf16, 16 lines of `pairs`; B holds `pairs` lines of 16 pairs; C
//                            holds 16 x 16 float32. Denormals count as zero
//
// Registers 0 to 3 hold sums, 4 and 5 left operands, 6 and 7 right ones.
#pragma once

#include "simd/pairs.hpp"

#if defined(GOSSAMER_ISA_AMX)
#define GOSSAMER_HAS_TILES 1
#include "simd/tiles_amx.hpp"
#elif defined(GOSSAMER_ISA_EMULATED)
#define GOSSAMER_HAS_TILES 1
#include "simd/tiles_array.hpp"
#else
#define GOSSAMER_HAS_TILES 0
#endif
