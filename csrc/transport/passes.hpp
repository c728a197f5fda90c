// Passes over all rows, dealt to threads in chunks that do not depend on their number: each chunk
// has its own column sums, and they are added up in order, so every result has the same bits for
// any number of threads.
#pragma once

#include <limits>
#include <new>
#include <vector>

#include "core/types.hpp"
#include "transport/table.hpp"

namespace gossamer {

// Starts on a cache line: a 64-byte vector that straddles two costs twice.
template <class T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t line{64};
  LineAllocator() = default;
  template <class U>
  constexpr LineAllocator(const LineAllocator<U>&) noexcept {}
  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), line)); }
  void deallocate(T* p, std::size_t) noexcept { ::operator delete(p, line); }
  friend bool operator==(LineAllocator, LineAllocator) noexcept { return true; }
};
using Vector = std::vector<double, LineAllocator<double>>;

// Kept entries by row (CSR).
struct Entries {
  std::vector<std::int64_t> indptr;  // [n + 1]
  std::vector<std::int32_t> cols;
  Vector values;
  std::int64_t nnz() const noexcept { return indptr.empty() ? 0 : indptr.back(); }
};

// Entries that a solver keeps at most: 12 bytes each, and at the worst moment two and a half
// copies.
inline constexpr std::int64_t entry_budget = 20'000'000;

// Rows a chunk: enough work for a task, at most 32 chunks.
constexpr std::int64_t chunk_rows(std::int64_t n) noexcept {
  const std::int64_t rows = ceil_div(n, 32);
  return rows < 16 ? 16 : rows;
}
constexpr std::int64_t chunk_count(std::int64_t n) noexcept { return ceil_div(n, chunk_rows(n)); }

class PassRunner {
 public:
  PassRunner(const Cost& cost, int workers);

  // From here on passes visit these entries alone; null goes back to the whole cost.
  void restrict_to(const SparseCost* entries) noexcept { sparse_ = entries; }
  bool restricted() const noexcept { return sparse_ != nullptr; }

  // Each sets cols[j] to the column sums.
  void sweep(const SweepArgs& args, Vector& cols);
  void sums(const SumsArgs& args, Vector& cols);
  // False: more entries than `limit` would be kept; the sums are right, `out` is empty.
  bool emit(const EmitArgs& args, Vector& cols, Entries& out,
            std::int64_t limit = std::numeric_limits<std::int64_t>::max());
  void kernel_sweep(const KernelArgs& args, Vector& cols);
  void plan(double inv_reg, const double* u, const double* v, double* out);

  // Exponentials computed, in units of n * m.
  double passes() const noexcept { return passes_; }
  const Cost& cost() const noexcept { return cost_; }
  int workers() const noexcept { return workers_; }

 private:
  template <class F>
  void run(Vector* cols, F&& body);
  // Returns body(cost, passes) for the entries in use: all of them, or those of `restrict_to`.
  template <class F>
  auto visit(F&& body) const noexcept;
  void count_pass() noexcept;
  double* scratch(int worker) noexcept { return scratch_.data() + worker * 2 * cost_.m; }

  const Cost& cost_;
  const SparseCost* sparse_ = nullptr;
  const TransportTable& table_;
  int workers_;
  Vector scratch_;
  Vector chunk_cols_;
  struct ChunkEntries {
    std::vector<std::int32_t> cols;
    Vector values;
    std::int64_t used = 0;
    bool reserve(std::int64_t more) noexcept;  // false: no memory
  };
  std::vector<ChunkEntries> chunk_entries_;
  double passes_ = 0.0;
};

}  // namespace gossamer
