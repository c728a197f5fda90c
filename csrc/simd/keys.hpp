// Registers of magnitudes as integer keys (bits.hpp), and what a mask of their lanes picks, for
// instruction sets that have such masks. Keys<float> has 16 lanes, Keys<double> 8; a mask is an
// unsigned number, a bit per lane.
//
//   of(v)                    the bits of a register of numbers
//   magnitudes(k)            keys in the order of magnitude_key
//   zero, load, add, sub, min, max
//   signs(k)                 -1 in lanes below zero, else 0
//   negative(k), greater(k, n), equal(a, b), not_less(a, b)     masks
//   under_two(a, b, c)       negative in lanes where less than two of a, b and ~c are
//   permute(from, k)         lane i is k[from[i]]               swap<by>(k): k[i ^ by]
//   lowered(k, mask)         -1 in the lanes of a mask
//
// and of registers of numbers:
//
//   load_where(p, mask)      zeros in the other lanes           store_where(p, v, mask)
//   compress(v, mask)        the lanes of a mask moved together, zeros behind
//   store_first(p, v, n)     the first n of 16 floats
//   store_ids(p, mask, first, n)     first + i for the n lanes i of a mask, as bytes
//   absolute(v), lower(v), upper(v)  |v|; half of 16 floats as 8 doubles, and narrow_halves back
//   entries_of_four(x), entries_behind(x)    lanes 0 to 3 of four registers, and 4 to 7, as
//   [lane][4] zero_bytes(p, mask)      the lanes of a mask whose byte is zero stream(to, from,
//   bytes)  a copy past the caches, of whole lines of 64 bytes
#pragma once

#include "simd/vec.hpp"

#if defined(GOSSAMER_ISA_AVX512)
#define GOSSAMER_HAS_KEYS 1
#include "simd/keys_avx512.hpp"
#elif defined(GOSSAMER_ISA_EMULATED)
#define GOSSAMER_HAS_KEYS 1
#include "simd/keys_array.hpp"
#else
#define GOSSAMER_HAS_KEYS 0
#endif
