// Three passes over the weight. The first deals (column block, some groups of rows) to each task
// and keeps, for each column, a list of its n best so far, which a cache holds. The second and the
// third deal (block of 256 rows, column block): a task owns the counts of its cells, then their
// entries, so the result is the same for any number of threads.
#include "masks/double_prune.hpp"

#include <algorithm>
#include <limits>

#include "core/check.hpp"
#include "core/parallel.hpp"
#include "core/workspace.hpp"
#include "products/structure.hpp"
#include "simd/bits.hpp"

namespace gossamer {
namespace {

template <class T>
struct Candidate {
  Bits<T> magnitude;
  std::int32_t at;  // its place among the values
};

constexpr std::int64_t serial_work = 1 << 16;
constexpr std::int64_t rows_per_task = 256;

}  // namespace

DoublePrune::DoublePrune(const Panels& weight, const void* values, DType dtype, std::int64_t n,
                         std::int64_t m)
    : weight_(weight),
      transposed_{weight.cols, weight.rows, 1, Panels::max_block_cols, 0, 0, nullptr, nullptr},
      workers_(weight.nnz() < serial_work ? 1 : max_threads()) {
  require<ArgumentError>(1 <= n && n <= m && m <= 64,
                         "got n=" + std::to_string(n) + " and m=" + std::to_string(m) +
                             "; 1 <= n <= m <= 64 is needed: the n largest of each m rows stay");
  require<ShapeError>(weight.nnz() <= std::numeric_limits<std::int32_t>::max(),
                      "the weight has 2^31 values or more; split the layer");
  check_layout(transposed_);
  kept_ = std::make_unique_for_overwrite<std::uint8_t[]>(static_cast<std::size_t>(weight.nnz()));
  indptr_.assign(static_cast<std::size_t>(transposed_.blocks() * transposed_.rows) + 1, 0);
  switch (dtype) {
    case DType::bf16: choose(static_cast<const bf16*>(values), n, m); break;
    case DType::f32: choose(static_cast<const float*>(values), n, m); break;
    case DType::f64: choose(static_cast<const double*>(values), n, m); break;
  }
  count();
}

template <class T>
void DoublePrune::choose(const T* values, std::int64_t n, std::int64_t m) {
  using Best = Candidate<T>;
  const Panels w = weight_;
  const std::int64_t groups = ceil_div(w.rows, m);
  const std::int64_t per_task = std::max<std::int64_t>(rows_per_task / m, 1);
  const std::int64_t chunks = ceil_div(groups, per_task);
  const std::size_t share = static_cast<std::size_t>(
      round_up(n * Panels::max_block_cols * static_cast<std::int64_t>(sizeof(Best)), 4096));
  std::byte* scratch = Workspace::get(share * static_cast<std::size_t>(workers_));
  std::uint8_t* kept = kept_.get();
  parallel_for(w.blocks() * chunks, workers_, [&](std::int64_t task, int worker) noexcept {
    auto* lists = reinterpret_cast<Best*>(scratch + share * static_cast<std::size_t>(worker));
    const std::int64_t block = task / chunks;
    const std::int64_t first = task % chunks * per_task;
    std::int64_t lengths[Panels::max_block_cols];
    for (std::int64_t group = first; group < std::min(groups, first + per_task); ++group) {
      std::fill_n(lengths, Panels::max_block_cols, 0);
      for (std::int64_t row = group * m; row < std::min(w.rows, (group + 1) * m); ++row) {
        const auto [begin, entries] = w.entries(block, row / w.vector);
        for (std::int64_t e = begin; e < begin + entries; ++e) {
          const std::int64_t at = e * w.vector + row % w.vector;
          const Bits<T> size = magnitude_key<T>(bits_of(values[at]));
          Best* list = lists + w.indices[e] * n;  // best first
          std::int64_t length = lengths[w.indices[e]];
          // Rows come in order: of equal entries the one that is there already stays.
          if (length == n && size <= list[n - 1].magnitude) {
            kept[at] = 0;
            continue;
          }
          kept[at] = 1;
          if (length == n) {
            kept[list[--length].at] = 0;
          } else {
            lengths[w.indices[e]] = length + 1;
          }
          for (; length > 0 && list[length - 1].magnitude < size; --length) {
            list[length] = list[length - 1];
          }
          list[length] = {size, static_cast<std::int32_t>(at)};
        }
      }
    }
  });
  Workspace::trim();
}

// f(column inside the block, row inside the row block, place of the value), rows ascending.
template <class F>
void DoublePrune::for_each_kept(std::int64_t task, F&& f) const noexcept {
  const Panels& w = weight_;
  const std::int64_t block = task % w.blocks();
  const std::int64_t first = task / w.blocks() * transposed_.block_cols;
  const std::int64_t width = w.block_width(block);
  for (std::int64_t row = first; row < std::min(w.rows, first + transposed_.block_cols); ++row) {
    const auto [begin, entries] = w.entries(block, row / w.vector);
    for (std::int64_t e = begin; e < begin + entries; ++e) {
      const std::int64_t at = e * w.vector + row % w.vector;
      // Another thread may have written into the indices after they were checked.
      if (kept_[static_cast<std::size_t>(at)] != 0 && w.indices[e] < width) {
        f(w.indices[e], row - first, at);
      }
    }
  }
}

void DoublePrune::count() noexcept {
  const Panels& w = weight_;
  std::int32_t* counts = indptr_.data() + 1;
  parallel_for(transposed_.blocks() * w.blocks(), workers_, [&](std::int64_t task, int) noexcept {
    std::int32_t* cells = counts + task / w.blocks() * w.cols + task % w.blocks() * w.block_cols;
    for_each_kept(task, [&](std::int64_t c, std::int64_t, std::int64_t) { ++cells[c]; });
  });
  for (std::size_t i = 1; i < indptr_.size(); ++i) indptr_[i] += indptr_[i - 1];
  transposed_.entry_count = nnz();
}

void DoublePrune::fill(std::uint8_t* indices, std::int32_t* perm) const noexcept {
  const Panels& w = weight_;
  parallel_for(transposed_.blocks() * w.blocks(), workers_, [&](std::int64_t task, int) noexcept {
    const std::int64_t block = task % w.blocks();
    const std::int32_t* cells = indptr_.data() + task / w.blocks() * w.cols + block * w.block_cols;
    std::int32_t next[Panels::max_block_cols];
    std::copy_n(cells, w.block_width(block), next);
    for_each_kept(task, [&](std::int64_t c, std::int64_t row, std::int64_t at) {
      if (next[c] == cells[c + 1]) return;
      indices[next[c]] = static_cast<std::uint8_t>(row);
      perm[next[c]++] = static_cast<std::int32_t>(at);
    });
  });
}

}  // namespace gossamer
