// Streams of random whole numbers without bias, one per (block, panel) cell, and how entries are
// dealt to cells.
#pragma once

#include <algorithm>
#include <limits>

#include "core/parallel.hpp"
#include "layouts/panels.hpp"
#include "simd/random.hpp"

namespace gossamer {
namespace {

// (block, panel) cells a task.
constexpr std::int64_t cells_per_task = 512;

__extension__ using Wide = unsigned __int128;

class Stream {
 public:
  Stream(std::uint64_t seed, std::uint64_t number) noexcept : key_(random_key(seed, number)) {}

  // Uniform in [0, bound), without bias (Lemire 2019, "Fast random integer generation in an
  // interval", algorithm 5).
  std::uint64_t below(std::uint64_t bound) noexcept {
    Wide product = static_cast<Wide>(random_at(key_, ++drawn_)) * bound;
    if (static_cast<std::uint64_t>(product) < bound) [[unlikely]] {
      const std::uint64_t least = -bound % bound;
      while (static_cast<std::uint64_t>(product) < least) {
        product = static_cast<Wide>(random_at(key_, ++drawn_)) * bound;
      }
    }
    return static_cast<std::uint64_t>(product >> 64);
  }

 private:
  std::uint64_t key_;
  std::uint64_t drawn_ = 0;
};

// The stream that deals entries to cells; those of the cells have the cells' numbers.
constexpr std::uint64_t dealing = std::numeric_limits<std::uint64_t>::max();

// Calls f(block, panel) for each cell, on all threads.
template <class F>
void for_each_cell(const Panels& w, F&& f) noexcept {
  const std::int64_t cells = w.blocks() * w.panels();
  const int workers = workers_for_entries(w.entry_count);
  parallel_for(ceil_div(cells, cells_per_task), workers, [&](std::int64_t task, int) noexcept {
    const std::int64_t last = std::min(cells, (task + 1) * cells_per_task);
    for (std::int64_t cell = task * cells_per_task; cell < last; ++cell) {
      f(cell / w.panels(), cell % w.panels());
    }
  });
}

// The same with the stream of the cell.
template <class F>
void for_each_cell(const Panels& w, std::uint64_t seed, F&& f) noexcept {
  for_each_cell(w, [&](std::int64_t k, std::int64_t p) noexcept {
    f(k, p, Stream(seed, static_cast<std::uint64_t>(k * w.panels() + p)));
  });
}

// Adds to counts [cells] what each cell gets when `entries` of all slots are drawn without
// replacement, those that are counted already excepted: the multivariate hypergeometric law. A
// cell's slots are alike, so those taken already may be called its first.
inline void deal(const Panels& w, std::int64_t entries, std::uint64_t seed,
                 std::int32_t* counts) noexcept {
  const std::int64_t slots = w.panels() * w.cols;
  const std::int64_t full = w.cols / w.block_cols * w.panels(), whole = full * w.block_cols;
  const std::int64_t rest = w.cols % w.block_cols;
  Stream stream(seed, dealing);
  for (std::int64_t left = entries; left > 0;) {
    const auto slot = static_cast<std::int64_t>(stream.below(static_cast<std::uint64_t>(slots)));
    const bool wide = slot < whole;
    const std::int64_t cell = wide ? slot / w.block_cols : full + (slot - whole) / rest;
    const std::int64_t place = wide ? slot % w.block_cols : (slot - whole) % rest;
    if (place < counts[cell]) continue;
    ++counts[cell];
    --left;
  }
}

}  // namespace
}  // namespace gossamer
