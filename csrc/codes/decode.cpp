#include "codes/decode.hpp"

#include <algorithm>
#include <vector>

#include "core/parallel.hpp"
#include "core/workspace.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t rows_a_task = 4;

// Below this many products a parallel region costs more than it saves.
int workers_for(std::int64_t products) noexcept { return products < 65536 ? 1 : max_threads(); }

template <class F>
void over_rows(std::int64_t batch, int workers, F&& body) {
  parallel_for(ceil_div(batch, rows_a_task), workers, [&](std::int64_t task, int) {
    body(task * rows_a_task, std::min(batch, (task + 1) * rows_a_task));
  });
}

// Sorts entries by latent without touching latents that none of them names.
class Sorter {
 public:
  Sorter(std::int64_t latents, std::int64_t entries)
      : place_(static_cast<std::size_t>(latents), 0) {
    const auto size = static_cast<std::size_t>(entries);
    latent_.resize(size);
    start_.resize(size + 1);
    source_.resize(size);
  }

  // Entry e stands in row e / k of the vectors. Keeps the order of entries within a latent.
  template <class T>
  std::int64_t sort(const std::int32_t* ids, const T* values, std::int64_t entries, std::int64_t k,
                    T* sorted) noexcept {
    std::int64_t touched = 0;
    for (std::int64_t e = 0; e < entries; ++e) {
      std::int32_t& count = place_[static_cast<std::size_t>(ids[e])];
      if (count++ == 0) latent_[static_cast<std::size_t>(touched++)] = ids[e];
    }
    std::int32_t from = 0;
    for (std::int64_t r = 0; r < touched; ++r) {
      const auto at = static_cast<std::size_t>(r);
      std::int32_t& place = place_[static_cast<std::size_t>(latent_[at])];
      start_[at] = from;
      from += place;
      place = start_[at];
    }
    start_[static_cast<std::size_t>(touched)] = from;
    for (std::int64_t e = 0; e < entries; ++e) {
      const std::int32_t at = place_[static_cast<std::size_t>(ids[e])]++;
      source_[static_cast<std::size_t>(at)] = static_cast<std::int32_t>(e / k);
      sorted[at] = values[e];
    }
    for (std::int64_t r = 0; r < touched; ++r) {
      place_[static_cast<std::size_t>(latent_[static_cast<std::size_t>(r)])] = 0;
    }
    return touched;
  }

  template <class T>
  Buckets<T> buckets(const T* sorted, const T* vectors, std::int64_t d, bool add) const noexcept {
    return {latent_.data(), start_.data(), source_.data(), sorted, vectors, d, add};
  }

 private:
  std::vector<std::int32_t> place_;  // a latent's count, then its next free place; all 0 between
  std::vector<std::int32_t> latent_, start_, source_;
};

template <class T>
void run_scatter(const Buckets<T>& buckets, std::int64_t touched, int workers, T* out) noexcept {
  const CodesPasses<T>& passes = codes_passes<T>();
  constexpr std::int64_t chunk = 16;
  parallel_for(ceil_div(touched, chunk), workers, [&](std::int64_t task, int) {
    passes.scatter(buckets, task * chunk, std::min(touched, (task + 1) * chunk), out);
  });
}

}  // namespace

template <class T>
void decode(const Codes<T>& codes, std::int64_t batch, const T* bias, T* out) {
  const CodesPasses<T>& passes = codes_passes<T>();
  over_rows(
      batch, workers_for(batch * codes.k * codes.d),
      [&](std::int64_t first, std::int64_t last) { passes.decode(codes, bias, first, last, out); });
}

template <class T>
void code_dots(const Codes<T>& codes, std::int64_t batch, const T* g, T* out) {
  const CodesPasses<T>& passes = codes_passes<T>();
  over_rows(
      batch, workers_for(batch * codes.k * codes.d),
      [&](std::int64_t first, std::int64_t last) { passes.dots(codes, g, first, last, out); });
}

template <class T>
void scatter_codes(const Codes<T>& codes, std::int64_t batch, std::int64_t latents, const T* g,
                   T* out) {
  const std::int64_t entries = batch * codes.k;
  Sorter sorter(latents, entries);
  std::vector<T> sorted(static_cast<std::size_t>(entries));
  const std::int64_t touched =
      sorter.sort(codes.ids, codes.values, entries, codes.k, sorted.data());
  run_scatter(sorter.buckets(sorted.data(), g, codes.d, false), touched,
              workers_for(entries * codes.d), out);
}

template <class T>
void prefix_errors(const Codes<T>& codes, std::int64_t batch, T* residual, T* errors) {
  const CodesPasses<T>& passes = codes_passes<T>();
  over_rows(batch, workers_for(batch * codes.k * codes.d),
            [&](std::int64_t first, std::int64_t last) {
              passes.prefix_errors(codes, first, last, residual, errors);
            });
}

template <class T>
void prefix_gradients(const Codes<T>& codes, std::int64_t batch, std::int64_t latents,
                      const T* weights, T* residual, T* grad_values, T* grad_dictionary) {
  // Suffix sums of a chunk of the batch stay in the last-level cache until they are scattered.
  constexpr std::int64_t bytes = std::int64_t{8} << 20;
  const std::int64_t k = codes.k, d = codes.d;
  const std::int64_t row_bytes = k * d * static_cast<std::int64_t>(sizeof(T));
  const std::int64_t chunk = std::clamp<std::int64_t>(bytes / row_bytes, 1, batch);
  Sorter sorter(latents, chunk * k);
  std::vector<T> sorted(static_cast<std::size_t>(chunk * k));
  T* suffixes = reinterpret_cast<T*>(Workspace::get(static_cast<std::size_t>(chunk * row_bytes)));
  const CodesPasses<T>& passes = codes_passes<T>();
  for (std::int64_t from = 0; from < batch; from += chunk) {
    const std::int64_t rows = std::min(chunk, batch - from);
    const int workers = workers_for(rows * k * d);
    over_rows(rows, workers, [&](std::int64_t first, std::int64_t last) {
      passes.suffix_sums(codes, weights, from + first, from + last, residual,
                         suffixes + first * k * d, grad_values);
    });
    const std::int64_t touched =
        sorter.sort(codes.ids + from * k, codes.values + from * k, rows * k, 1, sorted.data());
    run_scatter(sorter.buckets(sorted.data(), suffixes, d, true), touched, workers,
                grad_dictionary);
  }
  Workspace::trim();
}

#define GOSSAMER_INSTANTIATE(T)                                                                    \
  template void decode<T>(const Codes<T>&, std::int64_t, const T*, T*);                            \
  template void code_dots<T>(const Codes<T>&, std::int64_t, const T*, T*);                         \
  template void scatter_codes<T>(const Codes<T>&, std::int64_t, std::int64_t, const T*, T*);       \
  template void prefix_errors<T>(const Codes<T>&, std::int64_t, T*, T*);                           \
  template void prefix_gradients<T>(const Codes<T>&, std::int64_t, std::int64_t, const T*, T*, T*, \
                                    T*);
GOSSAMER_INSTANTIATE(float)
GOSSAMER_INSTANTIATE(double)
#undef GOSSAMER_INSTANTIATE

}  // namespace gossamer
