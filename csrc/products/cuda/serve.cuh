// The products of a device from end to end: picks a kernel, turns x, launches. Memory, scratch too,
// is lent by the caller. What no kernel takes throws Unserved, before anything is written.
#pragma once

#include "gpu/launch.cuh"
#include "products/cuda/copies.cuh"
#include "products/cuda/spmm_gather.cuh"
#include "products/cuda/spmm_rows.cuh"

namespace gossamer::gpu {

inline unsigned grid_of(std::int64_t n, std::int64_t each) {
  const std::int64_t blocks = ceil_div(n, each);
  require<Unserved>(blocks < (std::int64_t{1} << 31), "the sizes are too large for one launch");
  return static_cast<unsigned>(blocks);
}

// Calls f with a value of the unsigned type of an element's size.
template <class F>
void with_element(DType dtype, F&& f) {
  switch (itemsize(dtype)) {
    case 2: return f(std::uint16_t{});
    case 4: return f(std::uint32_t{});
    default: return f(std::uint64_t{});
  }
}

inline void run_scatter(const CopyArgs& args, DType dtype, const Queue& queue) {
  const Panels& w = args.weight;
  const dim3 grid{grid_of(w.panels(), 1), grid_of(w.blocks(), 1), 1};
  require<Unserved>(grid.y < 65536, "scatter: more than 65535 blocks of columns");
  with_element(dtype, [&](auto element) {
    launch<scatter<decltype(element)>>("scatter", grid, copy_threads, Panels::max_block_cols * 2,
                                       queue, args);
  });
}

inline void run_gather(const CopyArgs& args, DType dtype, const Queue& queue) {
  const Panels& w = args.weight;
  const dim3 grid{grid_of(w.panels(), 1), grid_of(w.blocks(), 1), 1};
  require<Unserved>(grid.y < 65536, "gather: more than 65535 blocks of columns");
  with_element(dtype, [&](auto element) {
    launch<gather<decltype(element)>>("gather", grid, copy_threads, 0, queue, args);
  });
}

// x turned into `scratch`, which has cols * round_up(tokens, 8) elements.
inline Matrix turned(const Matrix& x, void* scratch, DType dtype, const Queue& queue) {
  const std::int64_t ld = round_up(x.rows, 8);
  const Matrix out{scratch, x.cols, ld, ld, 1};
  const dim3 grid{grid_of(ld, turn_tile), grid_of(x.cols, turn_tile), 1};
  require<Unserved>(grid.y < 65536, "turn: more than 2 million columns");
  with_element(dtype, [&](auto element) {
    using T = decltype(element);
    launch<turn<T>>("turn", grid, turn_tile * turn_rows, sizeof(T) * turn_tile * (turn_tile + 1),
                    queue, TurnArgs{x, out});
  });
  return {scratch, x.rows, x.cols, 1, ld};
}

inline std::size_t spmm_scratch(const Matrix& x) {
  return static_cast<std::size_t>(x.cols * round_up(x.rows, 8)) * sizeof(bf16);
}

// Which kernel: what the table of measured times says, once there is one. Until then the one that
// the pattern fits; `tensor_cores_90` says that the device has products of warpgroups.
inline void run_spmm(SpmmArgs args, DType dtype, void* scratch, bool tensor_cores_90,
                     const Queue& queue) {
  const Panels& w = args.weight;
  const bool even = reinterpret_cast<std::uintptr_t>(args.y.data) % 4 == 0 &&
                    args.y.col_stride == 1 && args.y.row_stride % 2 == 0;
  require<Unserved>(dtype == DType::bf16 && w.vector == 8 && even && w.panels() % w.run == 0,
                    "spmm: no kernel for this dtype, pattern or output");
  if (args.x.rows == 0 || w.rows == 0) return;
  require<Unserved>(args.x.rows < (std::int64_t{1} << 21), "spmm: more than 2 million tokens");
  args.x = turned(args.x, scratch, dtype, queue);
  const auto gathered = [&]<int tiles, bool half>() {
    using Shape = SpmmGather<tiles, 64, half>;
    const dim3 grid{grid_of(w.panels(), Shape::warps * Shape::panels), grid_of(args.x.rows, 64), 1};
    launch<spmm_gather<tiles, 64, half>>("spmm_gather", grid, Shape::threads, Shape::shared_bytes,
                                         queue, args);
  };
  const auto by_rows = [&]<int groups>() {
    using Shape = SpmmRows<groups>;
    const dim3 grid{grid_of(w.panels(), Shape::panels), grid_of(args.x.rows, Shape::tokens), 1};
    launch<spmm_rows<groups>>("spmm_rows", grid, Shape::threads, Shape::shared_bytes, queue, args);
  };
  const bool rows = tensor_cores_90 && w.fixed_count();
  if (rows && w.run % 16 == 0) return by_rows.template operator()<2>();
  if (rows && w.run % 8 == 0) return by_rows.template operator()<1>();
  if (w.run % 4 == 0) return gathered.template operator()<2, false>();
  if (w.run % 2 == 0) return gathered.template operator()<1, false>();
  gathered.template operator()<1, true>();
}

}  // namespace gossamer::gpu
