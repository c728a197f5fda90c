#include "masks/select.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <type_traits>

#include "core/parallel.hpp"
#include "masks/table.hpp"

namespace gossamer {
namespace {

// Entries a task, and below which waking other threads costs more than it saves.
constexpr std::int64_t chunk = 1 << 16;
constexpr std::int64_t serial = 1 << 15;
// Entries of the longest task of a selection.
constexpr std::int64_t most_entries = 1 << 19;
// Bytes of values that no cache keeps for the product that follows.
constexpr std::int64_t past_caches = 1 << 25;

// Calls body(block, first panel, panels) for every block and run of panels. A task keeps to one run
// of panels and goes along their rows, as they lie in memory.
template <class F>
void over_units(const Panels& w, F&& body) noexcept {
  const std::int64_t blocks = w.blocks(), panels = w.panels();
  const std::int64_t high = SelectUnit::max_panels;
  const std::int64_t wide =
      std::max<std::int64_t>(1, chunk / (high * w.vector * Panels::max_block_cols));
  const std::int64_t runs = ceil_div(blocks, wide);
  const int workers = w.rows * w.cols < serial ? 1 : max_threads();
  parallel_for(ceil_div(panels, high) * runs, workers, [&](std::int64_t task, int) noexcept {
    const std::int64_t panel = task / runs * high, first = task % runs * wide;
    for (std::int64_t k = first; k < std::min(blocks, first + wide); ++k) {
      body(k, panel, std::min(high, panels - panel));
    }
  });
}

template <class P>
P* at(P* base, std::int64_t entries, DType dtype) noexcept {
  using Byte = std::conditional_t<std::is_const_v<P>, const std::byte, std::byte>;
  return reinterpret_cast<Byte*>(base) + entries * static_cast<std::int64_t>(itemsize(dtype));
}

// The entries of a panel in a block, inside the arrays whatever another thread wrote to indptr.
Panels::Entries safe_entries(const Panels& w, std::int64_t total, std::int64_t block,
                             std::int64_t panel) noexcept {
  const auto [begin, count] = w.entries(block, panel);
  const std::int64_t first = std::clamp<std::int64_t>(begin, 0, total);
  return {first, std::clamp<std::int64_t>(count, 0, total - first)};
}

}  // namespace

void select_nm(const Panels& w, std::int64_t shared, DType dtype, const Matrix& weight,
               void* values, std::uint8_t* indices) noexcept {
  if (w.rows == 0 || w.cols == 0) return;
  const SelectKernel kernel = masks_tables.active().select.select[static_cast<int>(dtype)];
  const auto rows_at = [&](std::int64_t row, std::int64_t block) noexcept {
    return at(weight.data, row * weight.row_stride + block * w.block_cols, dtype);
  };
  const bool stream = w.nnz() * static_cast<std::int64_t>(itemsize(dtype)) >= past_caches;
  const auto select = [&](std::int64_t block, std::int64_t panel, std::int64_t count) noexcept {
    const std::int64_t first = w.entries(block, panel).begin;
    kernel({rows_at(panel * w.vector, block), weight.row_stride, w.vector, count, shared > 1,
            w.block_width(block), w.n, w.m, at(values, first * w.vector, dtype), indices + first,
            stream});
  };
  // A run of panels is taken block by block, so that what it writes lies in long pieces.
  const std::int64_t high = shared > 1 ? shared : SelectUnit::max_panels;
  const std::int64_t run = shared > 1 ? shared : w.vector == 1 ? 4 * high : 2 * high;
  const std::int64_t blocks = w.blocks(), panels = w.panels();
  const int workers = w.rows * w.cols < serial ? 1 : max_threads();
  const std::int64_t budget = std::min(most_entries, w.rows * w.cols / (4 * workers));
  const std::int64_t tall = std::max(run, budget / (w.cols * w.vector) / run * run);
  const std::int64_t wide =
      std::max<std::int64_t>(1, budget / (run * w.vector * Panels::max_block_cols));
  const std::int64_t cuts = ceil_div(blocks, wide);
  parallel_for(ceil_div(panels, tall) * cuts, workers, [&](std::int64_t task, int) noexcept {
    const std::int64_t top = task / cuts * tall, bottom = std::min(panels, top + tall);
    const std::int64_t left = task % cuts * wide, right = std::min(blocks, left + wide);
    for (std::int64_t start = top; start < bottom; start += run) {
      const std::int64_t end = std::min(bottom, start + run);
      for (std::int64_t k = left; k < right; ++k) {
        for (std::int64_t panel = start; panel < end; panel += high) {
          select(k, panel, std::min(high, end - panel));
        }
      }
    }
    // Non-temporal stores need a full fence before other threads read them.
    if (stream) std::atomic_thread_fence(std::memory_order_seq_cst);
  });
}

void add_pruned(const Panels& w, DType dtype, const Matrix& out, const Matrix& source,
                double alpha) noexcept {
  const AddPrunedKernel run = masks_tables.active().select.add_pruned[static_cast<int>(dtype)];
  const std::int64_t total = w.total_entries();
  over_units(w, [&](std::int64_t block, std::int64_t panel, std::int64_t panels) noexcept {
    // Fill all panels first: reading fresh byte stores as a vector defeats store forwarding.
    alignas(64) std::uint8_t kept[SelectUnit::max_panels][Panels::max_block_cols] = {};
    for (std::int64_t p = 0; p < panels; ++p) {
      const auto [begin, count] = safe_entries(w, total, block, panel + p);
      for (std::int64_t e = begin; e < begin + count; ++e) kept[p][w.indices[e]] = 1;
    }
    for (std::int64_t row = 0; row < panels * w.vector; ++row) {
      const std::int64_t col = block * w.block_cols;
      run(at(out.data, (panel * w.vector + row) * out.row_stride + col, dtype),
          at(source.data, (panel * w.vector + row) * source.row_stride + col, dtype), alpha,
          kept[row / w.vector], w.block_width(block));
    }
  });
}

std::int64_t mask_difference(const Panels& a, const Panels& b) noexcept {
  const std::int64_t a_total = a.total_entries(), b_total = b.total_entries();
  std::atomic<std::int64_t> differing = 0;
  over_units(a, [&](std::int64_t block, std::int64_t panel, std::int64_t panels) noexcept {
    std::int64_t found = 0;
    for (std::int64_t p = panel; p < panel + panels; ++p) {
      std::uint64_t sets[2][Panels::max_block_cols / 64] = {};
      const auto fill = [&](const Panels& w, std::int64_t total, std::uint64_t* set) {
        const auto [begin, count] = safe_entries(w, total, block, p);
        for (std::int64_t e = begin; e < begin + count; ++e) {
          set[w.indices[e] / 64] |= std::uint64_t{1} << (w.indices[e] % 64);
        }
      };
      fill(a, a_total, sets[0]);
      fill(b, b_total, sets[1]);
      for (int i = 0; i < Panels::max_block_cols / 64; ++i) {
        found += __builtin_popcountll(sets[0][i] ^ sets[1][i]);
      }
    }
    differing.fetch_add(found * a.vector, std::memory_order_relaxed);
  });
  return differing.load();
}

}  // namespace gossamer
