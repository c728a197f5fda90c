#include "transport/passes.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>

#include "core/parallel.hpp"

namespace gossamer {

PassRunner::PassRunner(const Cost& cost, int workers)
    : cost_(cost),
      table_(transport_tables.active()),
      workers_(workers),
      scratch_(static_cast<std::size_t>(2 * cost.m * workers)),
      chunk_cols_(static_cast<std::size_t>(chunk_count(cost.n) * cost.m)) {}

template <class F>
void PassRunner::run(Vector* cols, F&& body) {
  const std::int64_t rows = chunk_rows(cost_.n);
  const std::int64_t chunks = chunk_count(cost_.n);
  const std::int64_t m = cost_.m;
  parallel_for(chunks, workers_, [&](std::int64_t chunk, int worker) noexcept {
    double* own = chunk_cols_.data() + chunk * m;
    std::memset(own, 0, static_cast<std::size_t>(m) * sizeof(double));
    body(chunk, RowRange{chunk * rows, std::min(cost_.n, (chunk + 1) * rows)}, own,
         scratch(worker));
  });
  if (cols == nullptr) return;
  cols->assign(static_cast<std::size_t>(m), 0.0);
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    const double* own = chunk_cols_.data() + chunk * m;
    for (std::int64_t j = 0; j < m; ++j) (*cols)[static_cast<std::size_t>(j)] += own[j];
  }
}

template <class F>
auto PassRunner::visit(F&& body) const noexcept {
  return sparse_ != nullptr ? body(*sparse_, table_.sparse) : body(cost_, table_.dense);
}

void PassRunner::sweep(const SweepArgs& args, Vector& cols) {
  run(&cols, [&](std::int64_t, RowRange rows, double* own, double* work) noexcept {
    visit([&](const auto& cost, const auto& passes) noexcept {
      passes.sweep(cost, args, rows, own, work);
    });
  });
  count_pass();
}

void PassRunner::sums(const SumsArgs& args, Vector& cols) {
  run(&cols, [&](std::int64_t, RowRange rows, double* own, double* work) noexcept {
    visit([&](const auto& cost, const auto& passes) noexcept {
      passes.sums(cost, args, rows, own, work);
    });
  });
  count_pass();
}

bool PassRunner::ChunkEntries::reserve(std::int64_t more) noexcept {
  const auto needed = static_cast<std::size_t>(used + more);
  if (cols.size() >= needed) return true;
  try {
    cols.resize(needed + needed / 2);
    values.resize(needed + needed / 2);
  } catch (const std::bad_alloc&) {
    return false;
  }
  return true;
}

bool PassRunner::emit(const EmitArgs& args, Vector& cols, Entries& out, std::int64_t limit) {
  const std::int64_t n = cost_.n;
  const std::int64_t chunks = chunk_count(n);
  chunk_entries_.resize(static_cast<std::size_t>(chunks));
  out.indptr.assign(static_cast<std::size_t>(n) + 1, 0);
  const std::int64_t chunk_limit = limit / chunks;
  bool exhausted = false;  // memory ran out inside a thread, where no exception may pass
  bool crowded = false;
  run(&cols, [&](std::int64_t chunk, RowRange rows, double* own, double* work) noexcept {
    ChunkEntries& kept = chunk_entries_[static_cast<std::size_t>(chunk)];
    kept.used = 0;
    for (std::int64_t i = rows.first; i < rows.last; ++i) {
      const std::int64_t width =
          sparse_ != nullptr ? sparse_->indptr[i + 1] - sparse_->indptr[i] : cost_.m;
      if (!kept.reserve(width)) {
        std::atomic_ref<bool>(exhausted).store(true);
        return;
      }
      std::int32_t* cols_out = kept.cols.data() + kept.used;
      double* values_out = kept.values.data() + kept.used;
      const std::int64_t count = visit([&](const auto& cost, const auto& passes) noexcept {
        return passes.emit(cost, args, i, own, work, cols_out, values_out);
      });
      out.indptr[static_cast<std::size_t>(i) + 1] = count;
      kept.used += count;
      if (kept.used > chunk_limit) {  // the sums go on, into the room of this row
        std::atomic_ref<bool>(crowded).store(true);
        kept.used = 0;
      }
    }
  });
  count_pass();
  if (exhausted) throw std::bad_alloc();
  if (crowded) {
    out = {};
    chunk_entries_ = {};
    return false;
  }
  for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) out.indptr[i + 1] += out.indptr[i];
  out.cols.resize(static_cast<std::size_t>(out.nnz()));
  out.values.resize(static_cast<std::size_t>(out.nnz()));
  parallel_for(chunks, workers_, [&](std::int64_t chunk, int) noexcept {
    const ChunkEntries& kept = chunk_entries_[static_cast<std::size_t>(chunk)];
    const std::int64_t begin = out.indptr[static_cast<std::size_t>(chunk * chunk_rows(n))];
    std::copy_n(kept.cols.data(), kept.used, out.cols.data() + begin);
    std::copy_n(kept.values.data(), kept.used, out.values.data() + begin);
  });
  // Buffers are kept for the next pass, unless they are large.
  if (out.nnz() > entry_budget / 16) chunk_entries_ = {};
  return true;
}

void PassRunner::kernel_sweep(const KernelArgs& args, Vector& cols) {
  run(&cols, [&](std::int64_t, RowRange rows, double* own, double*) noexcept {
    table_.kernel_sweep(args, cost_.m, rows, own);
  });
}

void PassRunner::plan(double inv_reg, const double* u, const double* v, double* out) {
  run(nullptr, [&](std::int64_t, RowRange rows, double*, double* work) noexcept {
    table_.plan(cost_, inv_reg, u, v, rows, work, out);
  });
  passes_ += 1.0;
}

void PassRunner::count_pass() noexcept {
  passes_ += sparse_ == nullptr ? 1.0
                                : static_cast<double>(sparse_->indptr[cost_.n]) /
                                      (static_cast<double>(cost_.n) * static_cast<double>(cost_.m));
}

}  // namespace gossamer
