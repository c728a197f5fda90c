// Y = X W^T + b in bfloat16 for N:M weights in which 64 or 128 rows share their columns: products
// of warpgroups (sm_90a) on gathered columns alone, summed in float, rounded once.
//
//   X^T     [cols, ld]: tokens of a column side by side, ld a multiple of 8, aligned to 16 bytes
//   W       panels of 8 rows; groups * 8 panels in a row have equal lists of one length
//   Y       [tokens, rows], rows side by side; each element is written by one thread
//
// A block has `groups` warpgroups and owns groups * 64 rows and 128 tokens. A step multiplies
// `depth` entries of the list, wherever their columns lie, so its sums are as long as the list. No
// byte of the layout is moved: the 8 rows of an entry are 16 bytes, and 8 entries of a panel are
// the 8 x 8 piece that the tensor cores read without a swizzle. Columns of X^T are copied in the
// same form, 8 tokens of a column as 16 bytes.
//
//   shared memory of a step     A  [panel][entry]          16 bytes: 8 rows of an entry
//                               B  [8 tokens][entry]       16 bytes: 8 tokens of a column
#pragma once

#include "products/args.hpp"
#include "products/cuda/lists.cuh"

namespace gossamer::gpu {

template <int groups>
struct SpmmRows {
  static constexpr int depth = 64, tokens = 128, stages = 3, threads = 128 * groups;
  static constexpr int panels = 8 * groups, eights = tokens / 8;
  static constexpr int a_bytes = panels * depth * 16, stage_bytes = a_bytes + eights * depth * 16;
  static constexpr std::size_t shared_bytes = std::size_t{stages} * stage_bytes;

  // Where the entries of a list over all blocks lie.
  struct List {
    int total, full;  // entries in all, and in a whole block
    std::int64_t panels;

    GOSSAMER_WORD explicit List(const Panels& w)
        : total(static_cast<int>(w.cols / w.m * w.n)),
          full(static_cast<int>(w.block_cols / w.m * w.n)),
          panels(w.panels()) {}

    GOSSAMER_WORD std::int64_t place(int entry, std::int64_t panel) const {
      const int block = entry / full, behind = total - block * full;
      const int width = behind < full ? behind : full;
      return block * full * panels + panel * width + (entry - block * full);
    }
  };

  GOSSAMER_WORD static void fetch(unsigned char* to, const SpmmArgs& args, const List& list,
                                  std::int64_t panel0, std::int64_t token0, int first) {
    const Panels& w = args.weight;
    const auto* values = static_cast<const bf16*>(args.values);
    const auto* xt = static_cast<const bf16*>(args.x.data);
    const int thread = static_cast<int>(threadIdx.x);
    for (int i = thread; i < panels * depth; i += threads) {
      const int entry = first + i % depth;
      const bool valid = entry < list.total;
      copy16(to + i * 16, valid ? values + list.place(entry, panel0 + i / depth) * 8 : values,
             valid);
    }
    for (int i = thread; i < eights * depth; i += threads) {
      const int k = i % 8 + i / tokens * 8, eight = i / 8 % eights, entry = first + k;
      const std::int64_t token = token0 + eight * 8;
      std::int64_t col = 0;
      if (entry < list.total) {
        col = entry / list.full * w.block_cols + w.indices[list.place(entry, panel0)];
      }
      const bool valid = entry < list.total && token < args.x.rows && col < w.cols;
      copy16(to + a_bytes + (eight * depth + k) * 16,
             valid ? xt + col * args.x.col_stride + token : xt, valid);
    }
  }
};

template <int groups>
__global__ void __launch_bounds__(SpmmRows<groups>::threads)
    spmm_rows(const __grid_constant__ SpmmArgs a) {
  if constexpr (!warpgroup_products) return;
  using Shape = SpmmRows<groups>;
  unsigned char* shared = dynamic_shared();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % lanes, group = thread / 128;
  const std::int64_t panel0 = static_cast<std::int64_t>(blockIdx.x) * Shape::panels;
  const std::int64_t token0 = static_cast<std::int64_t>(blockIdx.y) * Shape::tokens;
  const typename Shape::List list(a.weight);
  const int steps = (list.total + Shape::depth - 1) / Shape::depth;

  float sum[64] = {};
  GOSSAMER_UNROLL
  for (int s = 0; s < Shape::stages - 1; ++s) {
    if (s < steps) {
      Shape::fetch(shared + s * Shape::stage_bytes, a, list, panel0, token0, s * Shape::depth);
    }
    copies_commit();
  }
  for (int step = 0; step < steps; ++step) {
    copies_wait<Shape::stages - 2>();
    fence_shared_for_tensor_cores();
    __syncthreads();  // all copies of the stage have landed, and the stage before was read
    const unsigned char* stage = shared + step % Shape::stages * Shape::stage_bytes;
    wgmma_fence();
    GOSSAMER_UNROLL
    for (int k = 0; k < Shape::depth / 16; ++k) {
      wgmma_n128(sum,
                 matrix_descriptor(stage + group * (8 * Shape::depth * 16) + k * 256, 128,
                                   Shape::depth * 16),
                 matrix_descriptor(stage + Shape::a_bytes + k * 256, 128, Shape::depth * 16));
    }
    wgmma_commit();
    wgmma_wait<0>();
    const int next = step + Shape::stages - 1;
    if (next < steps) {
      Shape::fetch(shared + next % Shape::stages * Shape::stage_bytes, a, list, panel0, token0,
                   next * Shape::depth);
    }
    copies_commit();
  }
  copies_wait<0>();

  auto* y = static_cast<bf16*>(a.y.data);
  const std::int64_t first = panel0 * 8 + group * 64 + thread % 128 / lanes * 16;
  GOSSAMER_UNROLL
  for (int half = 0; half < 2; ++half) {
    const std::int64_t row0 = first + half * 8, row = row0 + lane / 4;
    const float bias = a.bias == nullptr ? 0.0f : widen(static_cast<const bf16*>(a.bias)[row]);
    GOSSAMER_UNROLL
    for (int eight = 0; eight < Shape::eights; ++eight) {
      const float* s = sum + eight * 4 + half * 2;
      const std::uint32_t turned = turn_matrix(pack_bf16(s[0] + bias, s[1] + bias));
      const std::int64_t token = token0 + eight * 8 + lane / 4;
      if (token >= a.y.rows) continue;
      store32(y + token * a.y.row_stride + row0 + lane % 4 * 2, turned);
    }
  }
}

}  // namespace gossamer::gpu
