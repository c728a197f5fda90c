#include "masks/mvue.hpp"

#include <algorithm>

#include "core/parallel.hpp"
#include "masks/table.hpp"
#include "simd/random.hpp"

namespace gossamer {
namespace {

// Columns a task, and entries of x below which waking other threads costs more than it saves.
constexpr std::int64_t chunk = 128;
constexpr std::int64_t serial = 1 << 15;

}  // namespace

std::uint64_t mvue_key(std::uint64_t seed, std::uint64_t step, std::uint64_t layer) noexcept {
  // One number after the other, so that swapping two of them gives another key.
  std::uint64_t key = 0;
  for (const std::uint64_t number : {seed, step, layer}) key = random_key(key, number);
  return key;
}

void mvue(const MvueArgs& args, DType dtype) noexcept {
  const auto sample = masks_tables.active().mvue.sample[static_cast<int>(dtype)];
  const std::int64_t cols = args.x.cols, chunks = ceil_div(cols, chunk);
  const int workers = args.x.rows * cols < serial ? 1 : max_threads();
  parallel_for(args.out.blocks() * chunks, workers, [&](std::int64_t task, int) noexcept {
    const std::int64_t first = task % chunks * chunk;
    sample(args, task / chunks, first, std::min(cols, first + chunk));
  });
}

}  // namespace gossamer
