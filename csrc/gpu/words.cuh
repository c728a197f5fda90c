// The instructions that kernels of a GPU are written in: by nvcc as PTX, by another compiler as an
// emulation (emulation.hpp). Kernels use these words, threadIdx and its kin, __syncthreads and
// plain C++.
//
//   dynamic_shared                shared memory of the launch, aligned to 128 bytes
//   load32, store32               4 bytes at an aligned address
//   copy16, copies_commit, copies_wait<n>   16 bytes to shared memory, done when all but n groups
//                                 are waited for
//   load_matrices_t, turn_matrix  8x8 matrices of 16-bit elements, one register a lane each
//   mma_bf16                      c[16 x 8] += a[16 x 16] b[16 x 8] of a warp
//   wgmma_*, matrix_descriptor    d[64 x 128] += A B of four warps, from shared memory (sm_90a)
#pragma once

#include <cstdint>
#include <cstring>

#include "core/types.hpp"

#if defined(__CUDACC__)
#include "gpu/words_device.cuh"
#else
#include "gpu/words_emulated.hpp"
#endif

namespace gossamer::gpu {

inline constexpr int lanes = 32;

GOSSAMER_WORD float widen(bf16 x) {
  const std::uint32_t bits = static_cast<std::uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

}  // namespace gossamer::gpu
