#include "masks/grow.hpp"

#include <algorithm>
#include <bit>
#include <utility>

#include "core/parallel.hpp"
#include "masks/stream.hpp"
#include "simd/bits.hpp"

namespace gossamer {
namespace {

// Slots whose candidates a task collects before the bar is raised.
constexpr std::int64_t slots_per_task = 1 << 16;
// The keys of a NaN and of a bar that every candidate passes.
constexpr std::int64_t nan_key = -1, no_bar = -2;

// The columns of a cell.
class Columns {
 public:
  void add(std::int64_t id) noexcept { words_[id / 64] |= std::uint64_t{1} << id % 64; }
  bool has(std::int64_t id) const noexcept { return (words_[id / 64] >> id % 64 & 1) != 0; }

  // Those of the entries that stay.
  static Columns staying(const Panels& w, const std::uint8_t* stays, std::int64_t block,
                         std::int64_t panel) noexcept {
    Columns out;
    const auto [begin, count] = w.entries(block, panel);
    for (std::int64_t e = begin; e < begin + count; ++e) {
      out.words_[w.indices[e] / 64] |= std::uint64_t{stays[e] != 0} << w.indices[e] % 64;
    }
    return out;
  }

  std::int64_t count() const noexcept {
    std::int64_t sum = 0;
    for (const std::uint64_t word : words_) sum += std::popcount(word);
    return sum;
  }

  // Of first .. first + width - 1; width <= 64.
  std::int64_t count(std::int64_t first, std::int64_t width) const noexcept {
    const std::int64_t at = first % 64;
    std::uint64_t found = words_[first / 64] >> at;
    if (at + width > 64) found |= words_[first / 64 + 1] << (64 - at);
    return std::popcount(found & (~std::uint64_t{0} >> (64 - width)));
  }

  // Writes the columns, ascending, at most `room`.
  void write(std::uint8_t* out, std::int64_t room) const noexcept {
    for (std::int64_t word = 0; word < 4; ++word) {
      for (std::uint64_t left = words_[word]; left != 0 && room > 0; left &= left - 1, --room) {
        *out++ = static_cast<std::uint8_t>(word * 64 + std::countr_zero(left));
      }
    }
  }

  // Adds `count` of the columns 0 .. width - 1 that are not there, uniformly.
  void add_random(Stream& stream, std::int64_t width, std::int64_t count) noexcept {
    if (count <= 0) return;
    std::uint8_t ids[Panels::max_block_cols];
    std::int64_t free = 0;
    for (std::int64_t id = 0; id < width; ++id) {
      ids[free] = static_cast<std::uint8_t>(id);
      free += !has(id);
    }
    for (std::int64_t i = 0; i < std::min(count, free); ++i) {
      const auto j = stream.below(static_cast<std::uint64_t>(free - i));
      std::swap(ids[i], ids[i + static_cast<std::int64_t>(j)]);
      add(ids[i]);
    }
  }

 private:
  std::uint64_t words_[Panels::max_block_cols / 64] = {};
};

// Of the n entries of a group of m <= 64 columns from `first` on, writes those that stay and as
// many others in place of the rest, uniformly. A group is a word of bits, so most of them take no
// loop.
inline void regrow(const std::uint8_t* ids, const std::uint8_t* stays, std::int64_t first,
                   std::int64_t n, std::int64_t m, Stream& stream, std::uint8_t* out) noexcept {
  std::uint64_t kept = 0;
  std::int64_t lost = n;
  for (std::int64_t i = 0; i < n; ++i) {
    kept |= std::uint64_t{stays[i]} << ((ids[i] - first) & 63);
    lost -= stays[i];
  }
  std::uint64_t free = ~kept & (~std::uint64_t{0} >> (64 - m));
  for (std::int64_t left = m - n + lost; lost > 0 && free != 0; --lost, --left) {
    std::uint64_t from = free;
    for (auto skip = stream.below(static_cast<std::uint64_t>(left)); skip > 0; --skip) {
      from &= from - 1;
    }
    const std::uint64_t grown = from & (~from + 1);
    kept |= grown;
    free ^= grown;
  }
  for (std::int64_t i = 0; i < n && kept != 0; ++i, kept &= kept - 1) {
    out[i] = static_cast<std::uint8_t>(first + std::countr_zero(kept));
  }
}

// The keys of a slab's scores: bits of magnitudes in double.
template <class T, bool one>
class SlabKeys {
 public:
  SlabKeys(const Matrix& scores, std::int64_t vector) noexcept
      : data_(static_cast<const T*>(scores.data)), stride_(scores.row_stride), vector_(vector) {}

  std::int64_t operator()(std::int64_t panel, std::int64_t col) const noexcept {
    const T* at = data_ + panel * vector_ * stride_ + col;
    if constexpr (one) {
      const Bits<T> bits = magnitude_bits<T>(bits_of(*at));
      return bits > FloatBits<T>::infinity ? nan_key : std::int64_t{bits};
    } else {
      double sum = 0.0;
      for (std::int64_t v = 0; v < vector_; ++v) {
        const double x = at[v * stride_];
        sum += x < 0.0 ? -x : x;
      }
      return sum != sum ? nan_key : bits_of(sum);
    }
  }

 private:
  const T* data_;
  std::int64_t stride_;
  std::int64_t vector_;
};

}  // namespace

Encoded grow_random(const Panels& w, const std::uint8_t* stays, std::uint64_t seed) {
  Encoded out;
  out.layout = w;
  out.layout.indices = nullptr;
  out.layout.indptr = nullptr;
  const std::int64_t entries = w.total_entries();
  out.indices.resize(static_cast<std::size_t>(entries));
  if (w.fixed_count()) {
    std::uint8_t* const ids = out.indices.data();
    for_each_cell(w, seed, [&](std::int64_t k, std::int64_t p, Stream stream) noexcept {
      const std::int64_t n = w.n, m = w.m, width = w.block_width(k);
      std::int64_t e = w.entries(k, p).begin;
      for (std::int64_t first = 0; first < width; first += m, e += n) {
        regrow(w.indices + e, stays + e, first, n, m, stream, ids + e);
      }
    });
    return out;
  }
  const std::int64_t cells = w.blocks() * w.panels();
  out.indptr.assign(static_cast<std::size_t>(cells) + 1, 0);
  std::int32_t* counts = out.indptr.data() + 1;
  for_each_cell(w, [&](std::int64_t k, std::int64_t p) noexcept {
    const auto staying = Columns::staying(w, stays, k, p).count();
    counts[k * w.panels() + p] = static_cast<std::int32_t>(staying);
  });
  std::int64_t stay = 0;
  for (std::int64_t cell = 0; cell < cells; ++cell) stay += counts[cell];
  const std::int64_t grown = entries - stay, free = w.panels() * w.cols - stay;
  // The fewer of grown and left out places are dealt, so that half of the free ones stay free.
  const bool inverted = grown > free - grown;
  const std::vector<std::int32_t> before(counts, counts + cells);
  deal(w, inverted ? free - grown : grown, seed, counts);
  std::int64_t sum = 0;
  for (std::int64_t cell = 0; cell < cells; ++cell) {
    const std::int64_t width = w.block_width(cell / w.panels());
    const std::int64_t stayed = before[static_cast<std::size_t>(cell)];
    sum += inverted ? width - (counts[cell] - stayed) : counts[cell];
    counts[cell] = static_cast<std::int32_t>(sum);
  }
  for_each_cell(w, seed, [&](std::int64_t k, std::int64_t p, Stream stream) noexcept {
    const std::int32_t* at = out.indptr.data() + k * w.panels() + p;
    Columns kept = Columns::staying(w, stays, k, p);
    kept.add_random(stream, w.block_width(k), at[1] - at[0] - kept.count());
    kept.write(out.indices.data() + at[0], at[1] - at[0]);
  });
  return out;
}

GrowLargest::GrowLargest(const Panels& w, const std::uint8_t* stays)
    : indices_(w.indices, w.indices + w.total_entries()),
      stays_(stays, stays + w.total_entries()),
      w_(w),
      bar_(no_bar) {
  if (w.fixed_count()) {
    grown_.resize(indices_.size());
  } else {
    indptr_.assign(w.indptr, w.indptr + w.blocks() * w.panels() + 1);
    w_.indptr = indptr_.data();
  }
  w_.indices = indices_.data();
  for (const std::uint8_t stay : stays_) lost_ += stay == 0;
}

bool GrowLargest::better(const Candidate& a, const Candidate& b) noexcept {
  return a.key != b.key ? a.key > b.key : a.slot < b.slot;
}

// Leaves the `count` best of a list, and returns the key that a later slot must exceed.
std::int64_t GrowLargest::keep_best(std::vector<Candidate>& list, std::int64_t count) noexcept {
  const auto size = static_cast<std::int64_t>(list.size());
  if (size < count) return no_bar;
  const auto last = list.begin() + (count - 1);
  std::nth_element(list.begin(), last, list.end(), better);
  const std::int64_t bar = last->key;
  list.erase(last + 1, list.end());
  return bar;
}

template <class Key>
void GrowLargest::offer_groups(const Key& key, std::int64_t panels) noexcept {
  const int workers = panels * w_.cols < slots_per_task ? 1 : max_threads();
  const std::int64_t m = w_.m;
  parallel_for(panels, workers, [&](std::int64_t panel, int) noexcept {
    const std::int64_t p = panel_ + panel;
    for (std::int64_t k = 0; k < w_.blocks(); ++k) {
      Columns kept = Columns::staying(w_, stays_.data(), k, p);
      for (std::int64_t first = 0; first < w_.block_width(k); first += m) {
        std::int64_t left = w_.n - kept.count(first, m);
        for (; left > 0; --left) {
          std::int64_t best = -1, most = no_bar;
          for (std::int64_t id = first; id < first + m; ++id) {
            if (kept.has(id)) continue;
            const std::int64_t found = key(panel, k * w_.block_cols + id);
            if (found > most) {
              best = id;
              most = found;
            }
          }
          if (best < 0) break;
          kept.add(best);
        }
      }
      const auto [begin, count] = w_.entries(k, p);
      kept.write(grown_.data() + begin, count);
    }
  });
}

template <class Key>
void GrowLargest::offer_anywhere(const Key& key, std::int64_t panels) {
  if (lost_ == 0) return;
  const std::int64_t per_task = std::max<std::int64_t>(1, slots_per_task / w_.cols);
  const std::int64_t tasks = ceil_div(panels, per_task);
  const int workers = tasks == 1 ? 1 : max_threads();
  std::vector<std::vector<Candidate>> found(static_cast<std::size_t>(workers));
  for (auto& list : found) list.reserve(static_cast<std::size_t>(per_task * w_.cols));
  // A wave has one task per thread; then the bar rises. The best do not depend on when it does.
  for (std::int64_t wave = 0; wave < tasks; wave += workers) {
    const std::int64_t width = std::min<std::int64_t>(workers, tasks - wave);
    parallel_for(width, workers, [&](std::int64_t task, int) noexcept {
      std::vector<Candidate>& list = found[static_cast<std::size_t>(task)];
      list.clear();
      const std::int64_t begin = (wave + task) * per_task;
      const std::int64_t bar = bar_;
      for (std::int64_t panel = begin; panel < std::min(panels, begin + per_task); ++panel) {
        for (std::int64_t k = 0; k < w_.blocks(); ++k) {
          const Columns kept = Columns::staying(w_, stays_.data(), k, panel_ + panel);
          const std::int64_t first = k * w_.block_cols;
          for (std::int64_t id = 0; id < w_.block_width(k); ++id) {
            const std::int64_t score = key(panel, first + id);
            if (score <= bar || kept.has(id)) continue;
            list.push_back({score, (panel_ + panel) * w_.cols + first + id});
          }
        }
      }
    });
    for (std::int64_t task = 0; task < width; ++task) {
      const auto& list = found[static_cast<std::size_t>(task)];
      best_.insert(best_.end(), list.begin(), list.end());
    }
    if (static_cast<std::int64_t>(best_.size()) >= 2 * lost_) bar_ = keep_best(best_, lost_);
  }
}

template <class Key>
void GrowLargest::offer_keys(const Key& key, std::int64_t panels) {
  if (w_.fixed_count()) {
    offer_groups(key, panels);
  } else {
    offer_anywhere(key, panels);
  }
}

void GrowLargest::offer(const Matrix& scores, DType dtype) {
  const std::int64_t panels = scores.rows / w_.vector;
  if (w_.cols == 0) {
    panel_ += panels;
    return;
  }
  if (dtype == DType::f32) {
    if (w_.vector == 1) {
      offer_keys(SlabKeys<float, true>(scores, 1), panels);
    } else {
      offer_keys(SlabKeys<float, false>(scores, w_.vector), panels);
    }
  } else if (w_.vector == 1) {
    offer_keys(SlabKeys<double, true>(scores, 1), panels);
  } else {
    offer_keys(SlabKeys<double, false>(scores, w_.vector), panels);
  }
  panel_ += panels;
}

Encoded GrowLargest::finish() {
  Encoded out;
  out.layout = w_;
  out.layout.indices = nullptr;
  out.layout.indptr = nullptr;
  if (w_.fixed_count()) {
    out.indices = grown_;
    return out;
  }
  if (lost_ > 0) keep_best(best_, lost_);
  const std::int64_t cells = w_.blocks() * w_.panels();
  // The grown columns of each cell, by a counting sort.
  std::vector<std::int32_t> first(static_cast<std::size_t>(cells) + 1, 0);
  const auto cell_of = [&](const Candidate& c) {
    return static_cast<std::size_t>(c.slot % w_.cols / w_.block_cols * w_.panels() +
                                    c.slot / w_.cols);
  };
  for (const Candidate& c : best_) ++first[cell_of(c) + 1];
  for (std::size_t i = 1; i < first.size(); ++i) first[i] += first[i - 1];
  std::vector<std::int32_t> next(first.begin(), first.end() - 1);
  std::vector<std::uint8_t> ids(best_.size());
  for (const Candidate& c : best_) {
    ids[static_cast<std::size_t>(next[cell_of(c)]++)] =
        static_cast<std::uint8_t>(c.slot % w_.cols % w_.block_cols);
  }
  out.indptr.assign(static_cast<std::size_t>(cells) + 1, 0);
  const auto grown = [&](std::int64_t k, std::int64_t p) {
    Columns kept = Columns::staying(w_, stays_.data(), k, p);
    const auto cell = static_cast<std::size_t>(k * w_.panels() + p);
    for (std::int32_t i = first[cell]; i < first[cell + 1]; ++i) {
      kept.add(ids[static_cast<std::size_t>(i)]);
    }
    return kept;
  };
  for_each_cell(w_, [&](std::int64_t k, std::int64_t p) noexcept {
    out.indptr[static_cast<std::size_t>(k * w_.panels() + p) + 1] =
        static_cast<std::int32_t>(grown(k, p).count());
  });
  for (std::size_t i = 1; i < out.indptr.size(); ++i) out.indptr[i] += out.indptr[i - 1];
  out.indices.resize(static_cast<std::size_t>(out.indptr.back()));
  for_each_cell(w_, [&](std::int64_t k, std::int64_t p) noexcept {
    const std::int32_t* at = out.indptr.data() + k * w_.panels() + p;
    grown(k, p).write(out.indices.data() + at[0], at[1] - at[0]);
  });
  return out;
}

}  // namespace gossamer
