#include "masks/drop.hpp"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "core/parallel.hpp"
#include "simd/bits.hpp"

namespace gossamer {
namespace {

// Entries a task.
constexpr std::int64_t chunk = 1 << 14;

// The key of an entry is the bits of its magnitude, as an integer: of one value in its own width,
// of several as the sum in double. Its upper bits, without the sign, name a bin: enough of them
// that one bin holds few entries.
constexpr int bin_bits = 15;
constexpr std::size_t bins = std::size_t{1} << bin_bits;

template <class T, int V>
class Keys {
 public:
  using Sum = std::conditional_t<V == 1, Compute<T>, double>;
  using Key = Bits<Sum>;
  static constexpr int shift = 8 * sizeof(Key) - 1 - bin_bits;

  explicit Keys(const void* values) noexcept : values_(static_cast<const T*>(values)) {}

  Key operator()(std::int64_t entry) const noexcept {
    const T* at = values_ + entry * V;
    if constexpr (V == 1) {
      return magnitude_key<Sum>(bits_of<Sum>(widen(at[0])));
    } else {
      double sum = 0.0;
      for (int v = 0; v < V; ++v) {
        sum += from_bits<double>(magnitude_bits<double>(bits_of<double>(widen(at[v]))));
      }
      return magnitude_key<double>(bits_of(sum));
    }
  }

 private:
  const T* values_;
};

template <class Key>
struct Bar {
  Key key = 0;            // of the last entry that is dropped
  std::int64_t ties = 0;  // entries of this key that are dropped
  bool all = false;       // whether these are all of this key
};

template <class K>
Bar<typename K::Key> find_bar(const K& key, std::int64_t entries, std::int64_t count, int workers) {
  const std::int64_t tasks = ceil_div(entries, chunk);
  std::vector<std::int32_t> counts(static_cast<std::size_t>(workers) * bins);
  parallel_for(tasks, workers, [&](std::int64_t task, int worker) noexcept {
    std::int32_t* own = counts.data() + static_cast<std::size_t>(worker) * bins;
    const std::int64_t last = std::min(entries, (task + 1) * chunk);
    for (std::int64_t e = task * chunk; e < last; ++e) ++own[key(e) >> K::shift];
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
  using Key = typename K::Key;
  std::vector<Key> keys;
  keys.reserve(static_cast<std::size_t>(here));
  for (std::int64_t e = 0; e < entries; ++e) {
    const Key k = key(e);
    if (static_cast<std::size_t>(k >> K::shift) == bin) keys.push_back(k);
  }
  // Another thread may have written into the values after they were counted.
  left = std::min(left, static_cast<std::int64_t>(keys.size()));
  if (left == 0) return {};
  const auto at = keys.begin() + (left - 1);
  std::nth_element(keys.begin(), at, keys.end());
  const Key bar = *at;
  const auto below = std::count_if(keys.begin(), at, [&](Key k) { return k < bar; });
  const auto equal = std::count(keys.begin(), keys.end(), bar);
  return {bar, left - below, left - below == equal};
}

template <class T, int V>
void drop_smallest(const Panels& w, const void* values, std::int64_t count, std::uint8_t* stays) {
  const Keys<T, V> key(values);
  const std::int64_t entries = w.total_entries();
  const int workers = workers_for_entries(entries);
  const auto bar = find_bar(key, entries, count, workers);
  parallel_for(ceil_div(entries, chunk), workers, [&](std::int64_t task, int) noexcept {
    const std::int64_t last = std::min(entries, (task + 1) * chunk);
    // The keys are not negative, and the largest, a NaN's, is below that of its integer.
    const auto least = static_cast<decltype(bar.key)>(bar.key + (bar.all ? 1 : 0));
    // A copy: a byte that is written might be of what a reference names.
    const Keys<T, V> own = key;
    std::uint8_t* const out = stays;
    for (std::int64_t e = task * chunk; e < last; ++e) out[e] = own(e) >= least;
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
