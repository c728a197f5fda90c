// Value, gradient and plan of the semi-dual: O(rows * cols) comparisons, and a sort of at most k
// numbers a column.
//
// The maximiser of a column is (s - tau)_+ / gamma on the k largest s = f - c_j, where tau makes
// its mass b_j. No entry can carry more than b_j, so tau >= max s - gamma * b_j: only entries above
// that are looked at twice, a handful when gamma is small. Everything is measured from max s, so
// the mass is exact to rounding however large f and c are.
#include "transport/semidual.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

#include "core/nth_largest.hpp"
#include "core/parallel.hpp"
#include "core/workspace.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t entries_a_task = 1 << 14;  // about 15 us, far above what a task costs

struct Scratch {
  double* above;      // candidates, measured from the maximum
  double* sorted;     // the same numbers, to be put in order
  std::int32_t* row;  // where the candidates stand
};

struct Column {
  std::int64_t count;
  double tau;
};

// The entries above max s - reach, in order of rows.
template <class T>
std::int64_t gather(const T* cost, const double* f, std::int64_t rows, double reach,
                    const Scratch& scratch, double& top) noexcept {
  // Eight running maxima: a single one would wait for itself.
  double best[8];
  std::fill(best, best + 8, f[0] - static_cast<double>(cost[0]));
  std::int64_t i = 0;
  for (; i + 8 <= rows; i += 8) {
    for (int lane = 0; lane < 8; ++lane) {
      const double s = f[i + lane] - static_cast<double>(cost[i + lane]);
      best[lane] = s > best[lane] ? s : best[lane];
    }
  }
  for (; i < rows; ++i) best[0] = std::max(best[0], f[i] - static_cast<double>(cost[i]));
  top = *std::max_element(best, best + 8);

  std::int64_t found = 0;
  for (i = 0; i < rows; ++i) {
    const double below = (f[i] - static_cast<double>(cost[i])) - top;
    if (below > -reach) {
      scratch.above[found] = below;
      scratch.row[found++] = static_cast<std::int32_t>(i);
    }
  }
  return found;
}

// Keeps the k largest of `found` candidates, in order of rows; of equal ones the first.
std::int64_t keep_largest(std::int64_t found, std::int64_t k, const Scratch& scratch) noexcept {
  if (found <= k) return found;
  double* const sorted = scratch.sorted;
  std::copy(scratch.above, scratch.above + found, sorted);
  const double last = nth_largest(sorted, found, k);
  std::int64_t equal =
      k - std::count_if(sorted, sorted + (k - 1), [last](double s) { return s > last; });
  std::int64_t kept = 0;
  for (std::int64_t i = 0; i < found; ++i) {
    const double s = scratch.above[i];
    if (s < last || (s == last && equal-- <= 0)) continue;
    scratch.above[kept] = s;
    scratch.row[kept++] = scratch.row[i];
  }
  return kept;
}

template <class T>
Column solve_column(const T* cost, const double* f, double b, const SemiDualProblem& p,
                    const Scratch& scratch, std::int32_t* row, double* mass) noexcept {
  const double reach = p.gamma * b;
  double top = 0.0;
  const std::int64_t kept =
      keep_largest(gather(cost, f, p.rows, reach, scratch, top), p.k, scratch);

  // tau of the r largest is (their sum - reach) / r; the r-th stays in while it lies above that.
  std::copy(scratch.above, scratch.above + kept, scratch.sorted);
  std::sort(scratch.sorted, scratch.sorted + kept, std::greater<>());
  double sum = 0.0;
  double tau = 0.0;  // of an empty column: its largest s, where mass would enter
  for (std::int64_t r = 0; r < kept; ++r) {
    sum += scratch.sorted[r];
    const double next = (sum - reach) / static_cast<double>(r + 1);
    if (scratch.sorted[r] <= next) break;
    tau = next;
  }
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < kept; ++i) {
    const double t = (scratch.above[i] - tau) / p.gamma;
    if (t <= 0.0) continue;
    row[count] = scratch.row[i];
    mass[count++] = t;
  }
  return {count, top + tau};
}

}  // namespace

SemiDual::SemiDual(const SemiDualProblem& problem) : problem_(problem) {
  const auto slots = static_cast<std::size_t>(problem.cols * problem.k);
  plan_.count.resize(static_cast<std::size_t>(problem.cols));
  plan_.row.resize(slots);
  plan_.mass.resize(slots);
  g_.resize(static_cast<std::size_t>(problem.cols));
}

template <class T>
void SemiDual::columns(const double* f) {
  const SemiDualProblem& p = problem_;
  const std::int64_t grain = std::max<std::int64_t>(1, entries_a_task / p.rows);
  const std::int64_t tasks = ceil_div(p.cols, grain);
  const int workers = static_cast<int>(std::min<std::int64_t>(max_threads(), tasks));
  const auto rows = static_cast<std::size_t>(p.rows);
  const std::size_t bytes = rows * (2 * sizeof(double) + sizeof(double));
  std::byte* const memory = Workspace::get(bytes * static_cast<std::size_t>(workers));

  parallel_for(tasks, workers, [&](std::int64_t task, int worker) noexcept {
    auto* const numbers =
        reinterpret_cast<double*>(memory + static_cast<std::size_t>(worker) * bytes);
    const Scratch scratch{numbers, numbers + rows,
                          reinterpret_cast<std::int32_t*>(numbers + 2 * rows)};
    const std::int64_t end = std::min(p.cols, (task + 1) * grain);
    for (std::int64_t j = task * grain; j < end; ++j) {
      const auto at = static_cast<std::size_t>(j);
      const Column column =
          solve_column(static_cast<const T*>(p.cost) + j * p.rows, f, p.b[j], p, scratch,
                       plan_.row.data() + j * p.k, plan_.mass.data() + j * p.k);
      plan_.count[at] = column.count;
      g_[at] = -column.tau;
    }
  });
  Workspace::trim();
}

void SemiDual::evaluate(SemiDualPoint& point) {
  const SemiDualProblem& p = problem_;
  if (p.dtype == DType::f32) {
    columns<float>(point.f.data());
  } else {
    columns<double>(point.f.data());
  }
  // By one thread, column after column: few entries, and the same bits for any number of threads.
  point.gradient.assign(p.a, p.a + p.rows);
  double squares = 0.0;
  double linear = 0.0;
  point.magnitude = 0.0;
  for (std::int64_t j = 0; j < p.cols; ++j) {
    for (std::int64_t e = j * p.k; e < j * p.k + plan_.count[static_cast<std::size_t>(j)]; ++e) {
      const double t = plan_.mass[static_cast<std::size_t>(e)];
      point.gradient[static_cast<std::size_t>(plan_.row[static_cast<std::size_t>(e)])] -= t;
      squares += t * t;
    }
    linear += g_[static_cast<std::size_t>(j)] * p.b[j];
    point.magnitude += std::abs(g_[static_cast<std::size_t>(j)] * p.b[j]);
  }
  point.error = 0.0;
  for (std::int64_t i = 0; i < p.rows; ++i) {
    linear += point.f[static_cast<std::size_t>(i)] * p.a[i];
    point.magnitude += std::abs(point.f[static_cast<std::size_t>(i)] * p.a[i]);
    point.error += std::abs(point.gradient[static_cast<std::size_t>(i)]);
  }
  // With s = tau + gamma * t on its support, a column's maximum is tau * b + gamma/2 |t|^2.
  point.value = linear - 0.5 * p.gamma * squares;
}

}  // namespace gossamer
