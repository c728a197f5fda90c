// The vector vocabulary, one width for each ISA. Every kernel is written in these words alone:
//
//   Vec<C>::lanes            elements in a register        load, store, load_n, store_n
//   zero, set                a constant in all lanes       load_bf16, store_bf16 (and their _n)
//   add, fma                 a + b, a * b + c              widen: one value of storage, as C
//   sums(acc)                lane i = sum of acc[i]        transpose(rows): lanes x lanes, in place
//   spread<V>(x, ids)        lane i = x[ids[i / V]]
//
// Everything lives in an unnamed namespace: each ISA compiles its own copy, and none of them can
// be picked by the linker for another.
#pragma once

#include <cstring>

#include "core/types.hpp"

// --8<-- [start:choice]
#if defined(GOSSAMER_ISA_AVX512)
#include "products/cpu/vec_avx512.hpp"
#elif defined(GOSSAMER_ISA_AVX2)
#include "products/cpu/vec_avx2.hpp"
#elif defined(GOSSAMER_ISA_EMULATED)
#define GOSSAMER_VECTOR_BYTES 64
#include "products/cpu/vec_array.hpp"
#elif defined(GOSSAMER_ISA_PORTABLE)
#define GOSSAMER_VECTOR_BYTES 16
#include "products/cpu/vec_array.hpp"
#else
#error "compile with -DGOSSAMER_ISA_<NAME>=1"
#endif
// --8<-- [end:choice]

namespace gossamer {
namespace {

GOSSAMER_INLINE float widen(float x) noexcept { return x; }
GOSSAMER_INLINE double widen(double x) noexcept { return x; }
GOSSAMER_INLINE float widen(bf16 x) noexcept {
  const std::uint32_t bits = static_cast<std::uint32_t>(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

// Round to nearest, ties to even; a NaN stays a NaN.
GOSSAMER_INLINE bf16 round_bf16(float x) noexcept {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return {static_cast<std::uint16_t>(0x7fc0u)};
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return {static_cast<std::uint16_t>(bits >> 16)};
}
GOSSAMER_INLINE void narrow(float x, float& out) noexcept { out = x; }
GOSSAMER_INLINE void narrow(double x, double& out) noexcept { out = x; }
GOSSAMER_INLINE void narrow(float x, bf16& out) noexcept { out = round_bf16(x); }

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
