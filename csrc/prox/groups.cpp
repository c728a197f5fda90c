#include "prox/groups.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "core/check.hpp"
#include "core/parallel.hpp"
#include "prox/table.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t grain = 1 << 15;  // entries a task: about 10 us
constexpr std::int64_t columns = 512;    // sums that one task holds at once
constexpr std::int64_t short_run = 32;   // runs below it are summed without lanes
constexpr double infinity = std::numeric_limits<double>::infinity();

int workers_for(std::int64_t tasks) {
  return static_cast<int>(std::min<std::int64_t>(tasks, max_threads()));
}

// body(first, last) for ranges of groups with about `grain` entries each.
template <class F>
void each_range(const GroupShape& g, F&& body) {
  std::int64_t tasks = std::clamp<std::int64_t>(ceil_div(g.numel, grain), 1, g.count);
  parallel_for(tasks, workers_for(tasks), [&](std::int64_t task, int) noexcept {
    const auto edge = [&](std::int64_t t) {
      if (t == tasks) return g.count;
      if (g.indptr == nullptr) return t * g.count / tasks;
      const std::int64_t entry = t * g.numel / tasks;
      return static_cast<std::int64_t>(std::lower_bound(g.indptr, g.indptr + g.count, entry) -
                                       g.indptr);
    };
    body(edge(task), edge(task + 1));
  });
}

// Squares that overflowed or lost their digits: once more with the largest entry as the unit.
template <class T>
double careful_norm(const T* x, const GroupShape& g, std::int64_t group) {
  double most = 0.0;
  double nan = 0.0;
  each_entry(g, group, [&](std::int64_t i) {
    const double v = std::abs(static_cast<double>(x[i]));
    most = std::max(most, v);
    if (v != v) nan = v;
  });
  if (nan != 0.0) return nan;
  if (most == 0.0 || most == infinity) return most;
  double sum = 0.0;
  each_entry(g, group, [&](std::int64_t i) {
    const double v = static_cast<double>(x[i]) / most;
    sum += v * v;
  });
  return most * std::sqrt(sum);
}

// sums[count] of the squares. Few groups are cut: along `outer`, or inside one long run; the parts
// are added in order.
template <class T>
void sum_squares(const T* x, const GroupShape& g, double* sums) {
  const GroupKernels<T>& kernels = kernels_of<T>(prox_tables.active().groups);
  if (g.indptr != nullptr) {
    each_range(g, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t j = first; j < last; ++j) {
        sums[j] = kernels.squares_at(x, g.indices + g.indptr[j], g.indptr[j + 1] - g.indptr[j]);
      }
    });
    return;
  }
  const std::int64_t row = g.count * g.inner;
  if (g.outer == 1 && g.inner <= grain) {
    each_range(g, [&](std::int64_t first, std::int64_t last) {
      if (g.inner < short_run) {
        kernels.squares_of_runs(x + first * g.inner, last - first, g.inner, sums + first);
        return;
      }
      for (std::int64_t j = first; j < last; ++j) {
        sums[j] = kernels.squares(x + j * g.inner, g.inner);
      }
    });
    return;
  }
  // Pieces of one row (long runs), or of several rows.
  const std::int64_t rows = std::max<std::int64_t>(g.inner == 1 ? 16 : 1, grain / row);
  const std::int64_t cuts = g.inner > grain ? ceil_div(g.inner, grain) : 1;
  const std::int64_t span = ceil_div(g.inner, cuts);
  const std::int64_t bands = ceil_div(g.count, columns);
  const std::int64_t pieces = ceil_div(g.outer, rows) * cuts;
  std::unique_ptr<double[]> parts(new double[static_cast<std::size_t>(pieces * g.count)]());
  const std::int64_t tasks = pieces * bands;
  parallel_for(tasks, workers_for(tasks), [&](std::int64_t task, int) noexcept {
    const std::int64_t piece = task / bands, first = (task % bands) * columns;
    const std::int64_t last = std::min(g.count, first + columns);
    const std::int64_t begin = piece / cuts * rows, end = std::min(g.outer, begin + rows);
    double* const part = parts.get() + piece * g.count;
    if (g.inner == 1) {
      kernels.squares_by_column(x + begin * row + first, end - begin, row, last - first,
                                part + first);
      return;
    }
    const std::int64_t from = piece % cuts * span, n = std::min(span, g.inner - from);
    for (std::int64_t o = begin; o < end; ++o) {
      for (std::int64_t j = first; j < last; ++j) {
        part[j] += kernels.squares(x + o * row + j * g.inner + from, n);
      }
    }
  });
  std::fill(sums, sums + g.count, 0.0);
  for (std::int64_t piece = 0; piece < pieces; ++piece) {
    for (std::int64_t j = 0; j < g.count; ++j)
      sums[j] += parts[static_cast<std::size_t>(piece * g.count + j)];
  }
}

// One group's problem in units of |x|: v and q = lam / h.
double norm_of_minimiser(const double* v, const double* q, std::int64_t n,
                         const GroupPasses& kernels) noexcept {
  // Each term alone bounds the root from below, and at that bound no term exceeds 1.
  double rho = 0.0;
  double slackest = 0.0;
  for (std::int64_t i = 0; i < n; ++i) {
    rho = std::max(rho, std::abs(v[i]) - q[i]);
    slackest = std::max(slackest, q[i]);
  }
  rho = std::max(rho, 1.0 - slackest);
  double squares = 0.0;
  double weighted = 0.0;
  kernels.secular(v, q, n, rho, &squares, &weighted);
  if (rho == 0.0 && squares <= 1.0) return 0.0;
  // Newton on 1 / sqrt(squares), which is concave and rises: monotone from the left.
  for (int iteration = 0; iteration < 100; ++iteration) {
    const double step = squares * (std::sqrt(squares) - 1.0) / weighted;
    if (!(step > 1e-16 * rho)) break;
    rho += step;
    kernels.secular(v, q, n, rho, &squares, &weighted);
  }
  return std::min(rho, 1.0);
}

}  // namespace

std::int64_t longest_group(const GroupShape& g) noexcept {
  if (g.indptr == nullptr) return g.outer * g.inner;
  std::int64_t longest = 0;
  for (std::int64_t j = 0; j < g.count; ++j) {
    longest = std::max(longest, g.indptr[j + 1] - g.indptr[j]);
  }
  return longest;
}

template <class T>
void group_norms(const T* x, const GroupShape& g, double* norms) {
  sum_squares(x, g, norms);
  each_range(g, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t j = first; j < last; ++j) {
      const bool plain = sizeof(T) == sizeof(float) || (norms[j] > 1e-280 && norms[j] < infinity);
      norms[j] = plain ? std::sqrt(norms[j]) : careful_norm(x, g, j);
    }
  });
}

template <class T>
void scale_groups(T* x, const GroupShape& g, const double* gains) {
  const GroupKernels<T>& kernels = kernels_of<T>(prox_tables.active().groups);
  if (g.indptr != nullptr) {
    each_range(g, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t j = first; j < last; ++j) {
        for (std::int64_t e = g.indptr[j]; e < g.indptr[j + 1]; ++e) {
          kernels.scale(x + g.indices[e], 1, gains[j]);
        }
      }
    });
    return;
  }
  const std::int64_t tasks = ceil_div(g.numel, grain);
  parallel_for(tasks, workers_for(tasks), [&](std::int64_t task, int) noexcept {
    const std::int64_t end = std::min(g.numel, (task + 1) * grain);
    for (std::int64_t at = task * grain; at < end;) {
      if (g.inner == 1) {
        const std::int64_t j = at % g.count, n = std::min(g.count - j, end - at);
        kernels.scale_by(x + at, n, gains + j);
        at += n;
      } else {
        const std::int64_t run = at / g.inner, n = std::min((run + 1) * g.inner, end) - at;
        kernels.scale(x + at, n, gains[run % g.count]);
        at += n;
      }
    }
  });
}

template <class T>
void metric_group_l2(T* x, const T* metric, const GroupShape& g, const double* lam) {
  const std::int64_t parts = ceil_div(g.numel, grain);
  std::vector<std::int64_t> bad(static_cast<std::size_t>(parts), -1);
  parallel_for(parts, workers_for(parts), [&](std::int64_t task, int) noexcept {
    const std::int64_t end = std::min(g.numel, (task + 1) * grain);
    std::int64_t count = 0;
    for (std::int64_t i = task * grain; i < end; ++i) {
      count += metric[i] > T(0) && metric[i] <= std::numeric_limits<T>::max() ? 0 : 1;
    }
    if (count == 0) return;
    for (std::int64_t i = end - 1; i >= task * grain; --i) {
      if (!(metric[i] > T(0) && metric[i] <= std::numeric_limits<T>::max())) {
        bad[static_cast<std::size_t>(task)] = i;
      }
    }
  });
  for (const std::int64_t i : bad) {
    require<ArgumentError>(i < 0,
                           "the metric holds a number that is not positive and finite at entry " +
                               std::to_string(i) + "; it must be like 1 / step");
  }
  std::vector<double> norms(static_cast<std::size_t>(g.count));
  group_norms(x, g, norms.data());
  const std::int64_t longest = longest_group(g);
  const GroupPasses& kernels = prox_tables.active().groups;
  const std::int64_t tasks = std::clamp<std::int64_t>(ceil_div(g.numel, grain), 1, g.count);
  const auto size = static_cast<std::size_t>(2 * longest);
  const std::unique_ptr<double[]> memory(
      new double[size * static_cast<std::size_t>(workers_for(tasks))]);
  parallel_for(tasks, workers_for(tasks), [&](std::int64_t task, int worker) noexcept {
    double* const v = memory.get() + size * static_cast<std::size_t>(worker);
    double* const q = v + longest;
    for (std::int64_t j = task * g.count / tasks; j < (task + 1) * g.count / tasks; ++j) {
      const double norm = norms[static_cast<std::size_t>(j)];
      if (norm == 0.0 || lam[j] == 0.0) {
        each_entry(g, j, [&](std::int64_t i) { x[i] = x[i] == T(0) ? T(0) : x[i]; });
        continue;
      }
      if (!(norm < infinity)) {
        each_entry(g, j, [&](std::int64_t i) { x[i] = std::numeric_limits<T>::quiet_NaN(); });
        continue;
      }
      std::int64_t n = 0;
      each_entry(g, j, [&](std::int64_t i) {
        v[n] = static_cast<double>(x[i]) / norm;
        q[n++] = lam[j] / norm / static_cast<double>(metric[i]);
      });
      const double rho = norm_of_minimiser(v, q, n, kernels);
      n = 0;
      each_entry(g, j, [&](std::int64_t i) {
        const T z = static_cast<T>(static_cast<double>(x[i]) * (rho / (rho + q[n++])));
        x[i] = rho == 0.0 || z == T(0) ? T(0) : z;
      });
    }
  });
}

template void group_norms<float>(const float*, const GroupShape&, double*);
template void group_norms<double>(const double*, const GroupShape&, double*);
template void scale_groups<float>(float*, const GroupShape&, const double*);
template void scale_groups<double>(double*, const GroupShape&, const double*);
template void metric_group_l2<float>(float*, const float*, const GroupShape&, const double*);
template void metric_group_l2<double>(double*, const double*, const GroupShape&, const double*);

}  // namespace gossamer
