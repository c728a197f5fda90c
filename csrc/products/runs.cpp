#include "products/runs.hpp"

#include <algorithm>
#include <cstring>

#include "core/parallel.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t most = 16;

// Panels p and p + 1 differ, so that a run may end between them only.
std::int64_t shortened(std::int64_t run, std::int64_t p) noexcept {
  while ((p + 1) % run != 0) run /= 2;
  return run;
}

std::int64_t run_in_block(const Panels& w, std::int64_t block, std::int64_t run) noexcept {
  Panels::Entries last = w.entries(block, 0);
  for (std::int64_t p = 1; p < w.panels(); ++p) {
    const Panels::Entries next = w.entries(block, p);
    const bool equal = next.count == last.count && next.count <= Panels::max_block_cols &&
                       std::memcmp(w.indices + last.begin, w.indices + next.begin,
                                   static_cast<std::size_t>(next.count)) == 0;
    if (!equal) run = shortened(run, p - 1);
    if (run == 1) break;
    last = next;
  }
  return run;
}

}  // namespace

std::int64_t find_run(const Panels& w, std::int64_t* found, int workers) noexcept {
  std::int64_t run = most;
  while (w.panels() % run != 0) run /= 2;
  if (run == 1 || w.panels() == 0) return 1;
  parallel_for(w.blocks(), workers, [&](std::int64_t block, int) noexcept {
    found[block] = run_in_block(w, block, run);
  });
  for (std::int64_t k = 0; k < w.blocks(); ++k) run = std::min(run, found[k]);
  return run;
}

void list_starts(const Panels& w, std::int64_t* starts) noexcept {
  starts[0] = 0;
  for (std::int64_t r = 0; r < w.runs(); ++r) {
    std::int64_t entries = 0;
    for (std::int64_t k = 0; k < w.blocks(); ++k) entries += w.entries(k, r * w.run).count;
    starts[r + 1] = starts[r] + entries;
  }
}

}  // namespace gossamer
