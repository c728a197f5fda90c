// Copies between values and a dense matrix, and a matrix turned so that tokens lie side by side.
//
//   scatter   dense[r, c] = value where kept, and 0 elsewhere: one pass, zeros included
//   gather    values[i] = dense[r, c]
//   turn      out[c, t] = x[t, c], with zeros behind the tokens
//
// scatter and gather: a block owns one panel and one block of columns, whose list says which entry
// a column is, if any. T has the size of an element; nothing is computed.
#pragma once

#include "products/cuda/lists.cuh"

namespace gossamer::gpu {

struct CopyArgs {
  Panels weight;
  void* values;
  Matrix dense;  // [rows, cols], columns side by side
};

inline constexpr int copy_threads = 128;

// Where the entries of a list stand in `entry_of`, by column; -1 where none is kept.
GOSSAMER_WORD void index_list(const Panels& w, const Panels::Entries& list,
                              std::int16_t* entry_of) {
  for (int c = static_cast<int>(threadIdx.x); c < Panels::max_block_cols; c += copy_threads) {
    entry_of[c] = -1;
  }
  __syncthreads();  // the marks are written over
  for (int e = static_cast<int>(threadIdx.x); e < list.count; e += copy_threads) {
    entry_of[w.indices[list.begin + e]] = static_cast<std::int16_t>(e);
  }
  __syncthreads();  // all entries have their place
}

template <class T>
__global__ void __launch_bounds__(copy_threads) scatter(const __grid_constant__ CopyArgs a) {
  auto* entry_of = reinterpret_cast<std::int16_t*>(dynamic_shared());
  const Panels& w = a.weight;
  const std::int64_t panel = blockIdx.x, block = blockIdx.y;
  const Panels::Entries list = list_of(w, block, panel, 1);
  index_list(w, list, entry_of);
  const auto* values = static_cast<const T*>(a.values) + list.begin * w.vector;
  const int width = static_cast<int>(w.block_width(block));
  for (int i = static_cast<int>(threadIdx.x); i < w.vector * width; i += copy_threads) {
    const int row = i / width, col = i % width, e = entry_of[col];
    static_cast<T*>(
        a.dense.data)[(panel * w.vector + row) * a.dense.row_stride + block * w.block_cols + col] =
        e < 0 ? T{} : values[e * w.vector + row];
  }
}

template <class T>
__global__ void __launch_bounds__(copy_threads) gather(const __grid_constant__ CopyArgs a) {
  const Panels& w = a.weight;
  const std::int64_t panel = blockIdx.x, block = blockIdx.y;
  const Panels::Entries list = list_of(w, block, panel, 1);
  auto* values = static_cast<T*>(a.values) + list.begin * w.vector;
  const int width = static_cast<int>(w.block_width(block));
  for (int i = static_cast<int>(threadIdx.x); i < w.vector * list.count; i += copy_threads) {
    const int e = i / static_cast<int>(w.vector), row = i % static_cast<int>(w.vector);
    const int id = w.indices[list.begin + e], col = id < width ? id : width - 1;
    values[i] = static_cast<const T*>(
        a.dense.data)[(panel * w.vector + row) * a.dense.row_stride + block * w.block_cols + col];
  }
}

struct TurnArgs {
  Matrix x;    // [tokens, cols], any strides
  Matrix out;  // [cols, ld]: ld tokens, a multiple of 8, side by side
};

inline constexpr int turn_tile = 32, turn_rows = 8;

// A block turns 32 x 32 elements in shared memory; a thread reads and writes 4 of them.
template <class T>
__global__ void __launch_bounds__(turn_tile* turn_rows) turn(const __grid_constant__ TurnArgs a) {
  constexpr int stride = turn_tile + 1;  // columns fall into different banks
  T* tile = reinterpret_cast<T*>(dynamic_shared());
  const int x = static_cast<int>(threadIdx.x) % turn_tile;
  const int y = static_cast<int>(threadIdx.x) / turn_tile;
  const std::int64_t token0 = static_cast<std::int64_t>(blockIdx.x) * turn_tile;
  const std::int64_t col0 = static_cast<std::int64_t>(blockIdx.y) * turn_tile;
  for (int i = y; i < turn_tile; i += turn_rows) {
    const std::int64_t token = token0 + i, col = col0 + x;
    tile[i * stride + x] =
        token < a.x.rows && col < a.x.cols
            ? static_cast<const T*>(a.x.data)[token * a.x.row_stride + col * a.x.col_stride]
            : T{};
  }
  __syncthreads();  // the tile is whole
  for (int i = y; i < turn_tile; i += turn_rows) {
    const std::int64_t col = col0 + i, token = token0 + x;
    if (col < a.out.rows && token < a.out.cols) {
      static_cast<T*>(a.out.data)[col * a.out.row_stride + token] = tile[x * stride + i];
    }
  }
}

}  // namespace gossamer::gpu
