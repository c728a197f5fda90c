// The words of words.cuh as PTX. Sources: NVIDIA's PTX ISA, for each instruction by its name; the
// fields of a descriptor without swizzle as in CUTLASS (cute/arch/mma_sm90_desc.hpp).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#define GOSSAMER_WORD __device__ __forceinline__
#define GOSSAMER_UNROLL _Pragma("unroll")

namespace gossamer::gpu {

GOSSAMER_WORD unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char bytes[];
  return bytes;
}

GOSSAMER_WORD unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// 4 bytes at an address that is a multiple of 4.
GOSSAMER_WORD std::uint32_t load32(const void* p) { return *static_cast<const std::uint32_t*>(p); }
GOSSAMER_WORD void store32(void* p, std::uint32_t x) { *static_cast<std::uint32_t*>(p) = x; }

GOSSAMER_WORD void copy16(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0));
}
GOSSAMER_WORD void copies_commit() { asm volatile("cp.async.commit_group;"); }
template <int open>
GOSSAMER_WORD void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(open));
}

GOSSAMER_WORD void load_matrices_t(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)));
}
GOSSAMER_WORD std::uint32_t turn_matrix(std::uint32_t x) {
  std::uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}
GOSSAMER_WORD void mma_bf16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                            std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
GOSSAMER_WORD std::uint32_t pack_bf16(float low, float high) {
  std::uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

// Products of a warpgroup are there on sm_90a alone. Elsewhere the words are empty and so are their
// kernels: one source compiles for every target, and the host does not launch them.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define GOSSAMER_SM90A(...) asm volatile(__VA_ARGS__)
inline constexpr bool warpgroup_products = true;
#else
#define GOSSAMER_SM90A(...)
inline constexpr bool warpgroup_products = false;
#endif

GOSSAMER_WORD std::uint64_t matrix_descriptor(const void* p, unsigned k_stride,
                                              unsigned mn_stride) {
  return static_cast<std::uint64_t>((shared_address(p) & 0x3ffff) >> 4) |
         static_cast<std::uint64_t>(k_stride >> 4) << 16 |
         static_cast<std::uint64_t>(mn_stride >> 4) << 32;
}
GOSSAMER_WORD void fence_shared_for_tensor_cores() {
  GOSSAMER_SM90A("fence.proxy.async.shared::cta;" :: : "memory");
}
GOSSAMER_WORD void wgmma_fence() { GOSSAMER_SM90A("wgmma.fence.sync.aligned;" :: : "memory"); }
GOSSAMER_WORD void wgmma_commit() {
  GOSSAMER_SM90A("wgmma.commit_group.sync.aligned;" :: : "memory");
}
template <int open>
GOSSAMER_WORD void wgmma_wait() {
  GOSSAMER_SM90A("wgmma.wait_group.sync.aligned %0;" ::"n"(open) : "memory");
}

// clang-format off
#define GOSSAMER_OUT8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), \
                         "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
GOSSAMER_WORD void wgmma_n128(float (&d)[64], std::uint64_t a, std::uint64_t b) {
  GOSSAMER_SM90A(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, 1, 1, 1, 1, 1;"
      : GOSSAMER_OUT8(0), GOSSAMER_OUT8(8), GOSSAMER_OUT8(16), GOSSAMER_OUT8(24),
        GOSSAMER_OUT8(32), GOSSAMER_OUT8(40), GOSSAMER_OUT8(48), GOSSAMER_OUT8(56)
      : "l"(a), "l"(b));
}
#undef GOSSAMER_OUT8
// clang-format on

}  // namespace gossamer::gpu
