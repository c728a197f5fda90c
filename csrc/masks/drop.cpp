#include "masks/drop.hpp"

#include <algorithm>
#include <vector>

#include "core/parallel.hpp"
#include "simd/bits.hpp"

namespace gossamer {
namespace {

// Entries a task.
constexpr std::int64_t chunk = 1 << 14;

// The key of a magnitude: its bits as a double. The upper 16 of 64 bits hold the sign, which is 0,
// the exponent and 4 bits of the mantissa: bins fine enough that one holds few entries.
constexpr int shift = 48;
constexpr std::size_t bins = std::size_t{1} << 15;

template <class T, int V>
class Keys {
 public:
  explicit Keys(const void* values) noexcept : values_(static_cast<const T*>(values)) {}

  std::int64_t operator()(std::int64_t entry) const noexcept {
    const T* at = values_ + entry * V;
    double sum = 0.0;
    for (int v = 0; v < V; ++v) {
      sum += from_bits<double>(magnitude_bits<double>(bits_of<double>(widen(at[v]))));
    }
    return magnitude_key<double>(bits_of(sum));
  }

 private:
  const T* values_;
};

struct Bar {
  std::int64_t key = 0;   // of the last entry that is dropped
  std::int64_t ties = 0;  // entries of this key that are dropped
  bool all = false;       // whether these are all of this key
};

template <class K>
Bar find_bar(const K& key, std::int64_t entries, std::int64_t count, int workers) {
  const std::int64_t tasks = ceil_div(entries, chunk);
  std::vector<std::int32_t> counts(static_cast<std::size_t>(workers) * bins);
  parallel_for(tasks, workers, [&](std::int64_t task, int worker) noexcept {
    std::int32_t* own = counts.data() + static_cast<std::size_t>(worker) * bins;
    const std::int64_t last = std::min(entries, (task + 1) * chunk);
    for (std::int64_t e = task * chunk; e < last; ++e) ++own[key(e) >> shift];
  });
  std::int64_t left = count, here = 0;
  std::size_t bin = 0;
  for (;; ++bin) {
    here = 0;
    for (std::size_t w = 0; w < static_cast<std::size_t>(workers); ++w) {
      here += counts[w * bins + bin];
    }
    if (here >= left) break;
    left -= here;
  }
  std::vector<std::int64_t> keys;
  keys.reserve(static_cast<std::size_t>(here));
  for (std::int64_t e = 0; e < entries; ++e) {
    const std::int64_t k = key(e);
    if (static_cast<std::size_t>(k >> shift) == bin) keys.push_back(k);
  }
  // Another thread may have written into the values after they were counted.
  left = std::min(left, static_cast<std::int64_t>(keys.size()));
  if (left == 0) return {};
  const auto at = keys.begin() + (left - 1);
  std::nth_element(keys.begin(), at, keys.end());
  const std::int64_t bar = *at;
  const auto below = std::count_if(keys.begin(), at, [&](std::int64_t k) { return k < bar; });
  const auto equal = std::count(keys.begin(), keys.end(), bar);
  return {bar, left - below, left - below == equal};
}

template <class T, int V>
void drop_smallest(const Panels& w, const void* values, std::int64_t count, std::uint8_t* stays) {
  const Keys<T, V> key(values);
  const std::int64_t entries = w.total_entries();
  const int workers = workers_for_entries(entries);
  const Bar bar = find_bar(key, entries, count, workers);
  parallel_for(ceil_div(entries, chunk), workers, [&](std::int64_t task, int) noexcept {
    const std::int64_t last = std::min(entries, (task + 1) * chunk);
    for (std::int64_t e = task * chunk; e < last; ++e) {
      const std::int64_t k = key(e);
      stays[e] = static_cast<std::uint8_t>(bar.all ? k > bar.key : k >= bar.key);
    }
  });
  if (bar.all) return;
  std::int64_t left = bar.ties;
  for (std::int64_t p = w.panels() - 1; left > 0 && p >= 0; --p) {
    for (std::int64_t k = w.blocks() - 1; left > 0 && k >= 0; --k) {
      const auto [begin, size] = w.entries(k, p);
      for (std::int64_t e = begin + size - 1; left > 0 && e >= begin; --e) {
        if (key(e) != bar.key) continue;
        stays[e] = 0;
        --left;
      }
    }
  }
}

template <class T>
void drop_of(const Panels& w, const void* values, std::int64_t count, std::uint8_t* stays) {
  if (w.vector == 8) return drop_smallest<T, 8>(w, values, count, stays);
  if (w.vector == 4) return drop_smallest<T, 4>(w, values, count, stays);
  drop_smallest<T, 1>(w, values, count, stays);
}

}  // namespace

void drop(const Panels& w, DType dtype, const void* values, std::int64_t count,
          std::uint8_t* stays) {
  const std::int64_t entries = w.total_entries();
  if (count == 0 || count == entries) {
    std::fill_n(stays, entries, static_cast<std::uint8_t>(count == 0));
    return;
  }
  if (dtype == DType::f64) return drop_of<double>(w, values, count, stays);
  if (dtype == DType::f32) return drop_of<float>(w, values, count, stays);
  drop_of<bf16>(w, values, count, stays);
}

}  // namespace gossamer
