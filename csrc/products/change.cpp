#include "products/change.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "core/check.hpp"
#include "core/parallel.hpp"

namespace gossamer {
namespace {

// Entries of a cell, which is a panel of a block.
constexpr std::int32_t most = Panels::max_block_cols;
// A run of cells moves as one, so that loops are long; its values stay in the first-level cache.
constexpr std::int64_t run_values = 8 * most;
// Parts a thread: the last ones even out what the first ones took.
constexpr std::int64_t parts_per_worker = 4;

// The first entry of each cell, [cells + 1]. A copy, so that what is checked is what is used.
using Begins = std::vector<std::int32_t>;

Begins begins_of(const Panels& w) {
  const auto cells = static_cast<std::size_t>(w.blocks() * w.panels());
  Begins out(cells + 1);
  if (w.fixed_count()) {
    auto begin = out.begin();
    for (std::int64_t k = 0; k < w.blocks(); ++k) {
      for (std::int64_t p = 0; p < w.panels(); ++p) {
        *begin++ = static_cast<std::int32_t>(w.entries(k, p).begin);
      }
    }
    *begin = static_cast<std::int32_t>(w.entry_count);
  } else {
    std::copy_n(w.indptr, cells + 1, out.begin());
  }
  bool fits = out[0] == 0 && out[cells] == w.entry_count;
  for (std::size_t i = 0; i < cells; ++i) {
    fits &= out[i] <= out[i + 1] && out[i + 1] - out[i] <= most;
  }
  require<StructureError>(fits,
                          "a row keeps more entries of a block than it has columns: the structure "
                          "was changed or damaged; load or build the weight again");
  return out;
}

// The entries of a run of cells before the move and after it.
struct Run {
  std::int64_t before, before_count;
  std::int64_t after, after_count;
  // [after_count]: the first value before of each entry after, or `none`.
  std::uint16_t origins[run_values];
  static constexpr std::uint16_t none = run_values;
};

// The values of entries [first, last) of a tensor.
struct Saved {
  std::int64_t first = 0, last = 0;
  std::vector<std::byte> values;
};

// The runs that one task moves, [first, last). In memory it reads entries [begin, end) alone: other
// parts write over those of its runs that lie below and above, which were saved.
struct Part {
  std::int64_t first, last;
  std::int64_t begin, end;
};

template <class T, int V>
void move_run(const Moved& tensor, const Part& part, const Saved& below, const Saved& above,
              const Run& run) noexcept {
  // In place, a run writes over what it has read.
  T values[run_values + V];
  const std::int64_t last = run.before + run.before_count;
  const auto read = [&](const void* source, std::int64_t origin, std::int64_t begin,
                        std::int64_t end) {
    begin = std::max(begin, run.before);
    end = std::min(end, last);
    if (begin >= end) return;
    std::memcpy(values + (begin - run.before) * V,
                static_cast<const T*>(source) + (begin - origin) * V,
                static_cast<std::size_t>((end - begin) * V) * sizeof(T));
  };
  read(tensor.before, 0, part.begin, part.end);
  if (run.before < part.begin) read(below.values.data(), below.first, below.first, below.last);
  if (last > part.end) read(above.values.data(), above.first, above.first, above.last);
  std::fill_n(values + run_values, V, T{0});
  T* const out = static_cast<T*>(tensor.after) + run.after * V;
  for (std::int64_t i = 0; i < run.after_count; ++i) {
    const T* value = values + run.origins[i];
    for (int v = 0; v < V; ++v) out[i * V + v] = value[v];
  }
}

using MoveRun = void (*)(const Moved&, const Part&, const Saved&, const Saved&,
                         const Run&) noexcept;

template <class T>
MoveRun choose(std::int64_t vector) noexcept {
  return vector == 8 ? move_run<T, 8> : vector == 4 ? move_run<T, 4> : move_run<T, 1>;
}

// Whole words, so that values of 2, 4 or 8 bytes are loads and stores of a fixed size.
MoveRun choose(std::size_t itemsize, std::int64_t vector) noexcept {
  return itemsize == 8   ? choose<std::uint64_t>(vector)
         : itemsize == 4 ? choose<std::uint32_t>(vector)
                         : choose<std::uint16_t>(vector);
}

class Mover {
 public:
  Mover(const Panels& from, const Panels& to, std::span<const Moved> tensors)
      : from_(from),
        to_(to),
        tensors_(tensors),
        before_(begins_of(from)),
        after_(begins_of(to)),
        run_cells_(run_values / (most * from.vector)) {
    for (const Moved& tensor : tensors) {
      in_place_ |= tensor.before == tensor.after;
      movers_.push_back(choose(tensor.itemsize, from.vector));
    }
    cut();
    save();
  }

  void run() const noexcept {
    parallel_for(
        static_cast<std::int64_t>(parts_.size()), max_threads(),
        [&](std::int64_t part, int) noexcept { move_part(static_cast<std::size_t>(part)); });
  }

 private:
  std::int64_t cells() const noexcept { return static_cast<std::int64_t>(before_.size()) - 1; }
  std::int64_t runs() const noexcept { return ceil_div(cells(), run_cells_); }

  // The first entry of a run, or the end of the last one.
  std::int64_t before(std::int64_t run) const noexcept { return at(before_, run); }
  std::int64_t after(std::int64_t run) const noexcept { return at(after_, run); }
  std::int64_t at(const Begins& begins, std::int64_t run) const noexcept {
    return begins[static_cast<std::size_t>(std::min(run * run_cells_, cells()))];
  }

  // [low, high) around the begin of a run: entries that are read on one side of it, and written
  // over on the other.
  std::int64_t low(std::int64_t run) const noexcept {
    return in_place_ ? std::min(before(run), after(run)) : before(run);
  }
  std::int64_t high(std::int64_t run) const noexcept {
    return in_place_ ? std::max(before(run), after(run)) : before(run);
  }

  void cut() {
    const int workers = workers_for_entries(from_.entry_count + to_.entry_count);
    const std::int64_t wanted = workers == 1 ? 1 : workers * parts_per_worker;
    const std::int64_t step = std::max<std::int64_t>(1, ceil_div(runs(), wanted));
    for (std::int64_t first = 0, last = 0; last < runs() || parts_.empty();) {
      // What lies around two cuts must not overlap.
      do last = std::min(last + step, runs());
      while (last < runs() && low(last) < high(first));
      parts_.push_back({first, last, high(first), low(last)});
      first = last;
    }
  }

  void save() {
    // Around each cut, and nothing at both ends.
    saved_.resize((parts_.size() + 1) * tensors_.size());
    for (std::size_t i = 1; i < parts_.size(); ++i) {
      for (std::size_t j = 0; j < tensors_.size(); ++j) {
        Saved& saved = saved_[i * tensors_.size() + j];
        saved.first = low(parts_[i].first);
        saved.last = high(parts_[i].first);
        const auto* values = static_cast<const std::byte*>(tensors_[j].before);
        const auto bytes = from_.vector * static_cast<std::int64_t>(tensors_[j].itemsize);
        saved.values.assign(values + saved.first * bytes, values + saved.last * bytes);
      }
    }
  }

  void move_part(std::size_t i) const noexcept {
    const Part& part = parts_[i];
    std::uint32_t slots[most];
    std::fill_n(slots, most, ~std::uint32_t{0});  // no entry
    Run run;
    for (std::int64_t first = part.first; first < part.last;) {
      // A run that ends later than before would overwrite what the next one has not read yet, so
      // the next one moves first.
      std::int64_t last = first + 1;
      while (in_place_ && last < part.last && after(last) > before(last)) ++last;
      for (std::int64_t r = last - 1; r >= first; --r) {
        match(r, slots, run);
        for (std::size_t j = 0; j < tensors_.size(); ++j) {
          movers_[j](tensors_[j], part, saved_[i * tensors_.size() + j],
                     saved_[(i + 1) * tensors_.size() + j], run);
        }
      }
      first = last;
    }
  }

  // Each column id has a slot, so that neither list is searched and no branch depends on the ids.
  void match(std::int64_t r, std::uint32_t* slots, Run& run) const noexcept {
    run.before = before(r);
    run.before_count = before(r + 1) - run.before;
    run.after = after(r);
    run.after_count = after(r + 1) - run.after;
    const auto begin = static_cast<std::uint32_t>(run.before);
    const auto width = static_cast<std::uint32_t>(from_.vector);
    std::uint16_t* origin = run.origins;
    const std::int64_t end = std::min((r + 1) * run_cells_, cells());
    for (std::int64_t cell = r * run_cells_; cell < end; ++cell) {
      const auto c = static_cast<std::size_t>(cell);
      const auto first = static_cast<std::uint32_t>(before_[c]);
      const auto count = static_cast<std::uint32_t>(before_[c + 1]) - first;
      const std::uint8_t* ids = from_.indices + first;
      for (std::uint32_t i = 0; i < count; ++i) slots[ids[i]] = first + i;
      ids = to_.indices + after_[c];
      for (const std::uint8_t* last = to_.indices + after_[c + 1]; ids != last; ++ids) {
        // What another cell left in a slot is none of this one's entries.
        const std::uint32_t e = slots[*ids];
        const std::uint32_t stays = -static_cast<std::uint32_t>(e - first < count);
        const std::uint32_t value = (e - begin) * width;
        *origin++ = static_cast<std::uint16_t>((value & stays) | (Run::none & ~stays));
      }
    }
  }

  const Panels& from_;
  const Panels& to_;
  std::span<const Moved> tensors_;
  Begins before_, after_;
  std::int64_t run_cells_;
  bool in_place_ = false;
  std::vector<MoveRun> movers_;
  std::vector<Part> parts_;
  std::vector<Saved> saved_;
};

}  // namespace

void move(const Panels& from, const Panels& to, std::span<const Moved> tensors) {
  require<ShapeError>(
      from.rows == to.rows && from.cols == to.cols && from.vector == to.vector &&
          from.block_cols == to.block_cols,
      "got structures of " + std::to_string(from.rows) + " x " + std::to_string(from.cols) +
          ", vector " + std::to_string(from.vector) + ", blocks of " +
          std::to_string(from.block_cols) + " and of " + std::to_string(to.rows) + " x " +
          std::to_string(to.cols) + ", vector " + std::to_string(to.vector) + ", blocks of " +
          std::to_string(to.block_cols) + "; entries can only stay where all of them agree");
  Mover(from, to, tensors).run();
}

}  // namespace gossamer
