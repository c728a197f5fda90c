#include "products/change.hpp"

#include <algorithm>
#include <string>

#include "core/check.hpp"
#include "core/parallel.hpp"

namespace gossamer {
namespace {

// Cells (a panel of a block) and entries a task.
constexpr std::int64_t cell_chunk = 512;
constexpr std::int64_t entry_chunk = 1 << 14;

// Whole words of T, so that V values of 2, 4 or 8 bytes are loads and stores of a fixed size.
template <class T, int V>
void move_entries(const Move& a, std::int64_t begin, std::int64_t end) noexcept {
  const auto* from = static_cast<const T*>(a.values);
  auto* to = static_cast<T*>(a.out);
  const auto count = static_cast<std::uint32_t>(a.from_entries);
  for (std::int64_t e = begin; e < end; ++e) {
    const auto source = static_cast<std::uint32_t>(a.origins[e]);
    // Without a branch: which entries are new is as good as random.
    const bool kept = source < count;
    const T* values = from + (kept ? std::int64_t{source} * V : 0);
    const T mask = kept ? static_cast<T>(~T{0}) : T{0};
    for (int v = 0; v < V; ++v) to[e * V + v] = static_cast<T>(values[v] & mask);
  }
}

template <class T>
void move_words(const Move& a, std::int64_t begin, std::int64_t end) noexcept {
  if (a.vector == 8) return move_entries<T, 8>(a, begin, end);
  if (a.vector == 4) return move_entries<T, 4>(a, begin, end);
  move_entries<T, 1>(a, begin, end);
}

}  // namespace

void match(const Panels& from, const Panels& to, std::int32_t* origins) {
  require<ShapeError>(
      from.rows == to.rows && from.cols == to.cols && from.vector == to.vector &&
          from.block_cols == to.block_cols,
      "got structures of " + std::to_string(from.rows) + " x " + std::to_string(from.cols) +
          ", vector " + std::to_string(from.vector) + ", blocks of " +
          std::to_string(from.block_cols) + " and of " + std::to_string(to.rows) + " x " +
          std::to_string(to.cols) + ", vector " + std::to_string(to.vector) + ", blocks of " +
          std::to_string(to.block_cols) + "; entries can only stay where all of them agree");
  const std::int64_t cells = to.blocks() * to.panels();
  const int workers = workers_for_entries(from.entry_count + to.entry_count);
  parallel_for(ceil_div(cells, cell_chunk), workers, [&](std::int64_t task, int) noexcept {
    // One slot per column id, so that neither list is searched and no branch depends on the ids.
    std::int32_t at[Panels::max_block_cols];
    std::fill_n(at, Panels::max_block_cols, -1);
    const std::int64_t last = std::min(cells, (task + 1) * cell_chunk);
    for (std::int64_t cell = task * cell_chunk; cell < last; ++cell) {
      const auto [old, olds] = from.entries(cell / to.panels(), cell % to.panels());
      const auto [fresh, count] = to.entries(cell / to.panels(), cell % to.panels());
      for (std::int64_t e = old; e < old + olds; ++e) {
        at[from.indices[e]] = static_cast<std::int32_t>(e);
      }
      for (std::int64_t e = fresh; e < fresh + count; ++e) origins[e] = at[to.indices[e]];
      for (std::int64_t e = old; e < old + olds; ++e) at[from.indices[e]] = -1;
    }
  });
}

void move(const Move& a) noexcept {
  // Without an entry there is no value whose address a new entry could take.
  if (a.from_entries == 0) {
    const std::size_t bytes = static_cast<std::size_t>(a.to_entries * a.vector) * a.itemsize;
    std::fill_n(static_cast<unsigned char*>(a.out), bytes, static_cast<unsigned char>(0));
    return;
  }
  const int workers = workers_for_entries(a.to_entries);
  parallel_for(ceil_div(a.to_entries, entry_chunk), workers, [&](std::int64_t task, int) noexcept {
    const std::int64_t begin = task * entry_chunk;
    const std::int64_t end = std::min(a.to_entries, begin + entry_chunk);
    if (a.itemsize == 8) return move_words<std::uint64_t>(a, begin, end);
    if (a.itemsize == 4) return move_words<std::uint32_t>(a, begin, end);
    move_words<std::uint16_t>(a, begin, end);
  });
}

}  // namespace gossamer
