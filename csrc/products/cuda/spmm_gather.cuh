// Y = X W^T + b in bfloat16 where 8, 16 or 32 rows share their columns: tensor-core products of
// gathered columns, summed in float, rounded once.
//
//   X^T     [cols, ld]: tokens of a column side by side, ld a multiple of 8, aligned to 16 bytes
//   W       panels of 8 rows; `tiles` * 2 panels in a row have equal lists (one where `half`)
//   Y       [tokens, rows], rows side by side; each element is written by one thread
//
// A block has 4 warps; a warp owns tiles * 16 rows (8 where `half`) and `tokens` tokens. It walks
// the blocks of columns. One of them, 256 columns of X^T, lies in shared memory while the next is
// copied. A column id is a row of that memory, and load_matrices_t takes a row from each lane, so
// the gather costs no instruction. Values come from global memory in the order of the layout: the
// 8 rows of an entry are 16 bytes, a row of an 8 x 8 matrix, which is turned in registers.
//
//   lane l of a warp, entry e = l / 4 of 8:     values[e][2 (l % 4)], [2 (l % 4) + 1]
#pragma once

#include "products/args.hpp"
#include "products/cuda/lists.cuh"

namespace gossamer::gpu {

template <int tiles, int tokens, bool half>
struct SpmmGather {
  static constexpr int warps = 4, threads = warps * lanes, stages = 2, eights = tokens / 8;
  static constexpr int panels = half ? 1 : tiles * 2;
  static constexpr int stage_bytes = Panels::max_block_cols * tokens * 2;
  static constexpr std::size_t shared_bytes = std::size_t{stages} * stage_bytes + tokens * 2;
  static_assert(!half || tiles == 1);

  // The 16 bytes of 8 tokens of a column. They are spread so that 8 lanes that read a column, or 8
  // columns side by side, meet different banks.
  GOSSAMER_WORD static unsigned char* place(unsigned char* stage, int col, int eight) {
    return stage + (col * eights + (eight ^ (col & 7))) * 16;
  }

  GOSSAMER_WORD static void fetch(unsigned char* stage, const SpmmArgs& a, std::int64_t block,
                                  std::int64_t token0) {
    const auto* xt = static_cast<const bf16*>(a.x.data);
    const std::int64_t width = a.weight.block_width(block), first = block * a.weight.block_cols;
    for (int i = static_cast<int>(threadIdx.x); i < Panels::max_block_cols * eights; i += threads) {
      const int col = i / eights, eight = i % eights;
      const bool valid = col < width && token0 + eight * 8 < a.x.rows;
      const bf16* from = valid ? xt + (first + col) * a.x.col_stride + token0 + eight * 8 : xt;
      copy16(place(stage, col, eight), from, valid);
    }
  }

  // What 16 entries weigh in 16 rows, or in 8 with zeros below; `list` entries stand between the
  // values of a panel and those of the next.
  GOSSAMER_WORD static void load_values(std::uint32_t (&f)[4], const bf16* top, std::int64_t list,
                                        std::int64_t entry, int lane) {
    GOSSAMER_UNROLL
    for (int k = 0; k < 2; ++k) {
      const std::int64_t e = entry + k * 8 + lane / 4;
      const std::int64_t at = e * 8 + lane % 4 * 2;
      f[k * 2] = f[k * 2 + 1] = 0;
      if (e >= list) continue;
      f[k * 2] = load32(top + at);
      if constexpr (!half) f[k * 2 + 1] = load32(top + list * 8 + at);
    }
  }

  float sum[tiles][eights][4];

  // Adds the entries of one list; `zero` is a row of zeros, for lanes behind its end.
  GOSSAMER_WORD void add(const SpmmArgs& a, const Panels::Entries& list, unsigned char* stage,
                         const unsigned char* zero, int lane) {
    const std::uint8_t* ids = a.weight.indices + list.begin;
    const auto* values = static_cast<const bf16*>(a.values) + list.begin * 8;
    std::uint32_t next[tiles][4];
    int next_id = lane % 16 < list.count ? ids[lane % 16] : -1;
    GOSSAMER_UNROLL
    for (int t = 0; t < tiles; ++t) {
      load_values(next[t], values + t * 2 * list.count * 8, list.count, 0, lane);
    }
    for (std::int64_t entry = 0; entry < list.count; entry += 16) {
      std::uint32_t w[tiles][4];
      GOSSAMER_UNROLL
      for (int t = 0; t < tiles; ++t) {
        GOSSAMER_UNROLL
        for (int i = 0; i < 4; ++i) w[t][i] = turn_matrix(next[t][i]);
      }
      const int id = next_id;
      if (entry + 16 < list.count) {  // asked for before the products, which hide the wait
        const std::int64_t e = entry + 16 + lane % 16;
        next_id = e < list.count ? ids[e] : -1;
        GOSSAMER_UNROLL
        for (int t = 0; t < tiles; ++t) {
          load_values(next[t], values + t * 2 * list.count * 8, list.count, entry + 16, lane);
        }
      }
      GOSSAMER_UNROLL
      for (int eight = 0; eight < eights; eight += 2) {
        std::uint32_t x[4];
        const int mine = eight + lane / 16;
        load_matrices_t(x, id < 0 ? zero + mine * 16 : place(stage, id, mine));
        GOSSAMER_UNROLL
        for (int t = 0; t < tiles; ++t) {
          mma_bf16(sum[t][eight], w[t], x[0], x[1]);
          mma_bf16(sum[t][eight + 1], w[t], x[2], x[3]);
        }
      }
    }
  }

  GOSSAMER_WORD void write(const SpmmArgs& a, std::int64_t panel0, std::int64_t token0, int lane) {
    auto* y = static_cast<bf16*>(a.y.data);
    GOSSAMER_UNROLL
    for (int i = 0; i < panels; ++i) {
      const std::int64_t row0 = (panel0 + i) * 8, row = row0 + lane / 4;
      const float bias = a.bias == nullptr ? 0.0f : widen(static_cast<const bf16*>(a.bias)[row]);
      GOSSAMER_UNROLL
      for (int eight = 0; eight < eights; ++eight) {
        const float* s = sum[i / 2][eight] + i % 2 * 2;
        const std::uint32_t turned = turn_matrix(pack_bf16(s[0] + bias, s[1] + bias));
        const std::int64_t token = token0 + eight * 8 + lane / 4;
        if (token >= a.y.rows) continue;
        store32(y + token * a.y.row_stride + row0 + lane % 4 * 2, turned);
      }
    }
  }
};

template <int tiles, int tokens, bool half>
__global__ void __launch_bounds__(SpmmGather<tiles, tokens, half>::threads)
    spmm_gather(const __grid_constant__ SpmmArgs a) {
  using Shape = SpmmGather<tiles, tokens, half>;
  unsigned char* shared = dynamic_shared();
  unsigned char* zero = shared + Shape::stages * Shape::stage_bytes;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % lanes;
  const std::int64_t token0 = static_cast<std::int64_t>(blockIdx.y) * tokens;
  const std::int64_t panel0 =
      (static_cast<std::int64_t>(blockIdx.x) * Shape::warps + thread / lanes) * Shape::panels;
  const bool active = panel0 < a.weight.panels();
  const std::int64_t blocks = a.weight.blocks();

  Shape warp = {};
  if (thread < Shape::eights) std::memset(zero + thread * 16, 0, 16);
  Shape::fetch(shared, a, 0, token0);
  copies_commit();
  for (std::int64_t block = 0; block < blocks; ++block) {
    unsigned char* stage = shared + block % Shape::stages * Shape::stage_bytes;
    if (block + 1 < blocks) {
      Shape::fetch(shared + (block + 1) % Shape::stages * Shape::stage_bytes, a, block + 1, token0);
    }
    copies_commit();
    copies_wait<1>();
    __syncthreads();  // all copies of the stage have landed
    if (active) warp.add(a, list_of(a.weight, block, panel0, Shape::panels), stage, zero, lane);
    __syncthreads();  // nobody reads the stage that the next copies overwrite
  }
  if (active) warp.write(a, panel0, token0, lane);
}

}  // namespace gossamer::gpu
