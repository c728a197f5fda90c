// The one list of kernels. A table holds, for every verb, one kernel per (dtype, vector); an empty
// slot falls through to the next table, and the reference table has no empty slot.
//
// Kernels are silent: noexcept, no allocation, arguments checked before. Whatever bytes `indices`
// holds, they stay inside their scratch: a packed block always has 256 columns.
#pragma once

#include "core/tables.hpp"
#include "products/args.hpp"

namespace gossamer {

// A piece of work that owns its outputs: batch rows [batch0, batch1) and runs of panels (spmm; a
// run is one panel unless the kernel takes runs) or column blocks (spmm_t) [part0, part1).
struct Task {
  std::int64_t batch0, batch1;
  std::int64_t part0, part1;
};

template <class Args>
struct Kernel {
  void (*run)(const Args&, const Task&, void* scratch) noexcept = nullptr;
  std::size_t (*scratch)(const Args&) noexcept = nullptr;  // bytes for one task
  // Batch rows packed at once; a task starts at a multiple of it.
  std::int64_t (*batch_tile)(const Args&) noexcept = nullptr;
  // A kernel of runs puts the values in an order of its own, once a call: bytes of all, and the
  // work on one run, which args.prepared then holds for `run`.
  std::size_t (*prepared_bytes)(const Args&) noexcept = nullptr;
  void (*prepare)(const Args&, std::int64_t run, void* values) noexcept = nullptr;
};

// sddmm reads both operands many times, so they are packed once, shared by all tasks:
//   packed x [chunk][blocks * 256][chunk_rows], then packed dY [chunk][rows][chunk_rows].
struct SddmmTask {
  std::int64_t first;  // the batch rows packed now: [first, first + batch)
  std::int64_t batch;
  std::int64_t block;           // one column block
  std::int64_t panel0, panel1;  // and a range of panels, of whole runs
  bool accumulate;              // a later part of the batch: adds to sums
  bool last;                    // the last part of the batch: writes grad_values, not sums
};

struct SddmmKernel {
  // Packs batch rows [first, first + count), count <= chunk_rows, as chunk number `chunk`.
  void (*pack)(const SddmmArgs&, std::int64_t first, std::int64_t count, std::int64_t chunk,
               std::int64_t chunks, void* packed) noexcept = nullptr;
  void (*run)(const SddmmArgs&, const SddmmTask&, std::int64_t chunks,
              const void* packed) noexcept = nullptr;
  std::size_t (*chunk_bytes)(const SddmmArgs&) noexcept = nullptr;
  std::int64_t (*chunk_rows)(const SddmmArgs&) noexcept = nullptr;
};

// Rows that share their columns: those of a panel, and 16 or more in runs of panels.
inline constexpr int vector_count = 4;
inline constexpr std::int64_t vectors[vector_count] = {1, 4, 8, 16};
inline constexpr int run_index = vector_count - 1;

// Index of the rows of a panel in `vectors`, or -1.
constexpr int vector_index(std::int64_t vector) noexcept {
  for (int i = 0; i < run_index; ++i) {
    if (vectors[i] == vector) return i;
  }
  return -1;
}

// --8<-- [start:table]
struct ProductsTable {
  const char* name;
  Kernel<SpmmArgs> spmm[dtype_count][vector_count];
  Kernel<SpmmTArgs> spmm_t[dtype_count][vector_count];
  SddmmKernel sddmm[dtype_count][vector_count];
};
// --8<-- [end:table]

extern "C" {
extern const ProductsTable gossamer_products_amx;
extern const ProductsTable gossamer_products_avx512bf16;
extern const ProductsTable gossamer_products_neonbf16;
extern const ProductsTable gossamer_products_neon;
extern const ProductsTable gossamer_products_emulated;
extern const ProductsTable gossamer_products_reference;
}
GOSSAMER_TABLES(ProductsTable, products_tables, gossamer_products,
                .amx = GOSSAMER_IF_AMX(&gossamer_products_amx),
                .avx512bf16 = GOSSAMER_IF_AVX512BF16(&gossamer_products_avx512bf16),
                .neonbf16 = GOSSAMER_IF_NEONBF16(&gossamer_products_neonbf16),
                .neon = GOSSAMER_IF_NEON(&gossamer_products_neon),
                .emulated = &gossamer_products_emulated, .reference = &gossamer_products_reference);

}  // namespace gossamer
