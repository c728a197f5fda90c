// Registers of small integers, for instruction sets that multiply and add four of them at once:
//
//   Bytes::load(p)           64 unsigned bytes: four of each lane
//   Bytes::load_signed(p)    64 signed bytes
//   Bytes::set(p)            the four signed bytes p[0] .. p[3] in all lanes
//   Ints::lanes, zero        32-bit sums, as many as Vec<float> has lanes
//   dot(sum, x, w)           lane i = sum[i] + the four products of x[4i ..] and w[4i ..], exact
//   total(sum)               the sum of all lanes
//   floats(sum, offset)      lane i = sum[i] + offset, rounded to float32
#pragma once

#include "simd/vec.hpp"

#if defined(GOSSAMER_ISA_AVX512VNNI)
#define GOSSAMER_HAS_BYTES 1
#include "simd/bytes_avx512.hpp"
#elif defined(GOSSAMER_ISA_EMULATED)
#define GOSSAMER_HAS_BYTES 1
#include "simd/bytes_array.hpp"
#else
#define GOSSAMER_HAS_BYTES 0
#endif
