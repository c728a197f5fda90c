// A tournament. Maxima of groups of 16 entries form a second level, their maxima a third, down to a
// few hundred. The k-th largest of a level has at least k entries at or above it one level below,
// so it bounds the k-th largest there; only groups at or above the bound are opened. A row is read
// once, and about k groups a level are opened again: O(n + k log k) for a row in random order.
// A row with many ties or with its largest entries in few groups is scanned a second time.
#include "codes/top_k.hpp"

#include <algorithm>
#include <atomic>
#include <limits>

#include "codes/table.hpp"
#include "core/nth_largest.hpp"
#include "core/parallel.hpp"
#include "core/workspace.hpp"

namespace gossamer {
namespace {

constexpr int max_levels = 8;

template <class T>
struct Entry {
  T value;
  std::int32_t id;
};

template <class T>
bool before(const Entry<T>& a, const Entry<T>& b) noexcept {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

// How a row of n is cut: level 0 is the row, entries[l] counts level l with its padding.
struct Levels {
  int count = 0;  // of levels above the row
  std::int64_t entries[max_levels + 1] = {};
  std::int64_t offset[max_levels + 1] = {};  // in the scratch of maxima
  std::int64_t total = 0;

  Levels(std::int64_t n, std::int64_t k) {
    entries[0] = round_up(n, group_block);
    // The bound of a level with fewer than 2 k entries would let too many through.
    while (count < max_levels && n >= group_block && entries[count] / group_fan >= 2 * k &&
           (count == 0 || entries[count] > group_block)) {
      ++count;
      entries[count] = round_up(entries[count - 1] / group_fan, group_block);
      offset[count] = total;
      total += entries[count];
    }
  }
};

template <class T>
struct Scratch {
  T* maxima;
  T* tail;             // the last block of the row, padded
  T* bounds;           // to select among
  Entry<T>* entries;   // [n]
  std::int32_t* ids;   // [n]
  std::int32_t* ties;  // [k]
  std::int32_t* open;  // groups at or above the bound
};

template <class T>
constexpr T lowest = -std::numeric_limits<T>::infinity();

constexpr std::int64_t member(std::int64_t group, std::int64_t j) noexcept {
  return group / group_lanes * group_block + j * group_lanes + group % group_lanes;
}

template <class T>
class RowSelector {
 public:
  RowSelector(const TopK<T>& args, const Levels& levels, const CodesPasses<T>& passes,
              const Scratch<T>& scratch) noexcept
      : args_(args), levels_(levels), passes_(passes), s_(scratch) {}

  // False when the row holds a NaN.
  bool run(std::int64_t row) noexcept {
    const T* x = args_.x + row * args_.row_stride;
    std::int64_t found = -1;
    if (levels_.count > 0) {
      if (!climb(x)) return false;
      found = descend(x);
    } else {
      for (std::int64_t i = 0; i < args_.n; ++i) {
        if (x[i] != x[i]) return false;
      }
      bound_ = lowest<T>;
    }
    if (found < 0) found = scan(x);
    write(row, found);
    return true;
  }

 private:
  bool climb(const T* x) noexcept {
    const std::int64_t n = args_.n, whole = n / group_block, rest = n - whole * group_block;
    T* level = s_.maxima + levels_.offset[1];
    bool bad = passes_.group_max(x, whole, level);
    std::int64_t blocks = whole;
    if (rest > 0) {
      std::copy_n(x + whole * group_block, rest, s_.tail);
      std::fill(s_.tail + rest, s_.tail + group_block, lowest<T>);
      bad |= passes_.group_max(s_.tail, 1, level + whole * group_lanes);
      ++blocks;
    }
    if (bad) return false;
    std::fill(level + blocks * group_lanes, level + levels_.entries[1], lowest<T>);
    for (int l = 2; l <= levels_.count; ++l) {
      T* above = s_.maxima + levels_.offset[l];
      blocks = levels_.entries[l - 1] / group_block;
      passes_.group_max(s_.maxima + levels_.offset[l - 1], blocks, above);
      std::fill(above + blocks * group_lanes, above + levels_.entries[l], lowest<T>);
    }
    return true;
  }

  // Entries of the row at or above the bound, or -1 when they are better found by a scan.
  std::int64_t descend(const T* x) noexcept {
    const std::int64_t k = args_.k;
    int l = levels_.count;
    const T* level = s_.maxima + levels_.offset[l];
    const std::int64_t size = levels_.entries[l - 1] / group_fan;
    std::copy_n(level, size, s_.bounds);
    bound_ = nth_largest(s_.bounds, size, k);
    std::int64_t open = 0;
    for (std::int64_t g = 0; g < size; ++g) {
      s_.open[open] = static_cast<std::int32_t>(g);
      open += level[g] >= bound_;
    }
    for (; l > 1; --l) {
      // With a bound of -infinity the padding would pass for entries.
      if (bound_ == lowest<T> || open * group_fan > levels_.entries[l - 1] / 4) return -1;
      level = s_.maxima + levels_.offset[l - 1];
      std::int64_t count = 0;
      for (std::int64_t o = 0; o < open; ++o) {
        for (std::int64_t j = 0; j < group_fan; ++j) {
          const std::int64_t at = member(s_.open[o], j);
          s_.bounds[count] = level[at];
          s_.ids[count] = static_cast<std::int32_t>(at);
          count += level[at] >= bound_;
        }
      }
      // nth_largest moves the values: kept apart from the ids.
      std::copy_n(s_.bounds, count, s_.bounds + count);
      bound_ = nth_largest(s_.bounds + count, count, k);
      open = 0;
      for (std::int64_t c = 0; c < count; ++c) {
        s_.open[open] = s_.ids[c];
        open += s_.bounds[c] >= bound_;
      }
    }
    if (bound_ == lowest<T> || open * group_fan > args_.n / 4) return -1;
    std::int64_t count = 0;
    for (std::int64_t o = 0; o < open; ++o) {
      for (std::int64_t j = 0; j < group_fan; ++j) {
        const std::int64_t at = member(s_.open[o], j);
        if (at >= args_.n) break;
        const T value = x[at];
        s_.entries[count] = {value, static_cast<std::int32_t>(at)};
        count += value >= bound_;
      }
    }
    return count;
  }

  std::int64_t scan(const T* x) noexcept {
    Picked picked{s_.ids, s_.ties, 0, 0};
    passes_.pick(x, args_.n, bound_, args_.k, picked);
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < picked.above_count; ++i) {
      const T value = x[s_.ids[i]];
      s_.entries[count++] = {value == value ? value : lowest<T>, s_.ids[i]};
    }
    // Ties come in order: no more of them are needed than fill the k places.
    for (std::int64_t i = 0; i < picked.tie_count && count < args_.k; ++i) {
      s_.entries[count++] = {bound_, s_.ties[i]};
    }
    return count;
  }

  void write(std::int64_t row, std::int64_t count) noexcept {
    const std::int64_t k = args_.k;
    const T* x = args_.x + row * args_.row_stride;
    Entry<T>* entries = s_.entries;
    // Fewer than k only when another thread wrote into the row meanwhile.
    for (; count < k; ++count) entries[count] = {lowest<T>, 0};
    if (count > 2 * k) std::nth_element(entries, entries + (k - 1), entries + count, before<T>);
    std::sort(entries, entries + (count > 2 * k ? k : count), before<T>);
    for (std::int64_t j = 0; j < k; ++j) {
      args_.values[row * k + j] = x[entries[j].id];
      if (args_.ids64 != nullptr) args_.ids64[row * k + j] = entries[j].id;
      if (args_.ids32 != nullptr) args_.ids32[row * k + j] = entries[j].id;
    }
  }

  const TopK<T>& args_;
  const Levels& levels_;
  const CodesPasses<T>& passes_;
  Scratch<T> s_;
  T bound_ = 0;
};

// Cuts a worker's share of the scratch memory, or counts its bytes when `base` is null.
template <class T>
std::size_t cut(std::byte* base, const TopK<T>& args, const Levels& levels, Scratch<T>& out) {
  std::size_t used = 0;
  const auto take = [&]<class U>(U*& pointer, std::int64_t count) {
    pointer = base == nullptr ? nullptr : reinterpret_cast<U*>(base + used);
    used += (static_cast<std::size_t>(count) * sizeof(U) + 63) / 64 * 64;
  };
  const std::int64_t room = std::max(levels.entries[1], group_block);
  take(out.maxima, levels.total);
  take(out.tail, group_block);
  take(out.bounds, 2 * room);
  take(out.entries, args.n + 1);
  take(out.ids, std::max(args.n, room) + 1);
  take(out.ties, args.k);
  take(out.open, room + 1);
  return (used + 4095) / 4096 * 4096;
}

}  // namespace

template <class T>
std::int64_t top_k(const TopK<T>& args) {
  const Levels levels(args.n, args.k);
  const CodesPasses<T>& passes = codes_passes<T>();
  const int workers = args.batch * args.n < 65536 ? 1 : max_threads();
  Scratch<T> none;
  std::byte* const nowhere = nullptr;
  const std::size_t share = cut(nowhere, args, levels, none);
  std::byte* base = Workspace::get(share * static_cast<std::size_t>(workers));
  std::atomic<std::int64_t> bad{args.batch};
  const std::int64_t rows = std::clamp<std::int64_t>(65536 / args.n, 1, args.batch);
  parallel_for(ceil_div(args.batch, rows), workers, [&](std::int64_t task, int worker) {
    Scratch<T> scratch;
    cut(base + share * static_cast<std::size_t>(worker), args, levels, scratch);
    RowSelector<T> selector(args, levels, passes, scratch);
    const std::int64_t last = std::min(args.batch, (task + 1) * rows);
    for (std::int64_t row = task * rows; row < last; ++row) {
      if (selector.run(row)) continue;
      std::int64_t seen = bad.load();
      while (row < seen && !bad.compare_exchange_weak(seen, row)) {
      }
      return;
    }
  });
  Workspace::trim();
  return bad == args.batch ? -1 : bad.load();
}

template std::int64_t top_k<float>(const TopK<float>&);
template std::int64_t top_k<double>(const TopK<double>&);

}  // namespace gossamer
