// The vector vocabulary, one width for each ISA. The verbs are written in these words alone:
//
//   Vec<C>::lanes            elements in a register        load, store, load_n, store_n
//   zero, set                a constant in all lanes       load_bf16, store_bf16 (and their _n)
//   add, mul, fma            a + b, a * b, a * b + c       widen, narrow: one value (bits.hpp)
//   outside(v, low, high)    bit i: v[i] is below low, above high, or NaN
//   load_even, store_even     n values that lie two apart: p[0], p[2], ...; nothing between them is
//                            touched
//   sums(acc)                lane i = sum of acc[i]        transpose(rows): lanes x lanes, in place
//   spread<V>(x, ids)        lane i = x[ids[i / V]]
//
// Everything lives in an unnamed namespace: each ISA compiles its own copy, and none of them can
// be picked by the linker for another.
#pragma once

#include "simd/bits.hpp"

// --8<-- [start:choice]
#if defined(GOSSAMER_ISA_AVX512) || defined(GOSSAMER_ISA_AVX512VNNI) || \
    defined(GOSSAMER_ISA_AVX512BF16) || defined(GOSSAMER_ISA_AMX)
#include "simd/vec_avx512.hpp"
#elif defined(GOSSAMER_ISA_AVX2)
#include "simd/vec_avx2.hpp"
#elif defined(GOSSAMER_ISA_NEON) || defined(GOSSAMER_ISA_NEONBF16)
#include "simd/vec_neon.hpp"
#elif defined(GOSSAMER_ISA_EMULATED)
#define GOSSAMER_VECTOR_BYTES 64
#include "simd/vec_array.hpp"
#elif defined(GOSSAMER_ISA_PORTABLE)
#define GOSSAMER_VECTOR_BYTES 16
#include "simd/vec_array.hpp"
#else
#error "compile with -DGOSSAMER_ISA_<NAME>=1"
#endif
// --8<-- [end:choice]

namespace gossamer {
namespace {

// A register of products added to a register of sums; simd/pairs.hpp has it for bf16.
template <class C>
GOSSAMER_INLINE Vec<C> dot(Vec<C> sum, Vec<C> a, Vec<C> b) noexcept {
  return fma(a, b, sum);
}

// The overloads by storage type, so that packing is written once.
template <class C>
GOSSAMER_INLINE Vec<C> load_as(const C* p) noexcept {
  return Vec<C>::load(p);
}
template <class C>
GOSSAMER_INLINE Vec<C> load_as_n(const C* p, int n) noexcept {
  return Vec<C>::load_n(p, n);
}
template <class C>
GOSSAMER_INLINE void store_as(C* p, Vec<C> v) noexcept {
  v.store(p);
}
template <class C>
GOSSAMER_INLINE void store_as_n(C* p, Vec<C> v, int n) noexcept {
  v.store_n(p, n);
}
GOSSAMER_INLINE Vec<float> load_as(const bf16* p) noexcept { return Vec<float>::load_bf16(p); }
GOSSAMER_INLINE Vec<float> load_as_n(const bf16* p, int n) noexcept {
  bf16 full[Vec<float>::lanes] = {};
  for (int i = 0; i < n; ++i) full[i] = p[i];
  return Vec<float>::load_bf16(full);
}
GOSSAMER_INLINE void store_as(bf16* p, Vec<float> v) noexcept { v.store_bf16(p); }
GOSSAMER_INLINE void store_as_n(bf16* p, Vec<float> v, int n) noexcept {
  bf16 full[Vec<float>::lanes];
  v.store_bf16(full);
  for (int i = 0; i < n; ++i) p[i] = full[i];
}

}  // namespace
}  // namespace gossamer
