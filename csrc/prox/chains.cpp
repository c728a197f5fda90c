#include "prox/chains.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <string>

#include "core/check.hpp"
#include "core/parallel.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t grain = 1 << 14;  // entries per task, in whole groups

template <class T>
void check_finite(const T* x, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    require<ArgumentError>(std::abs(x[i]) <= std::numeric_limits<T>::max(),
                           "x holds NaN or infinity at entry " + std::to_string(i) +
                               "; this operator needs finite numbers");
  }
}

template <class T>
void check_metric(const T* metric, std::int64_t n) {
  for (std::int64_t i = 0; metric != nullptr && i < n; ++i) {
    require<ArgumentError>(metric[i] > T(0) && metric[i] <= std::numeric_limits<T>::max(),
                           "the metric holds a number that is not positive and finite at entry " +
                               std::to_string(i) + "; it must be like 1 / step");
  }
}

// A group's entries in units of a power of two, so that no sum of them overflows; and its metric,
// whose largest is 1.
struct Chain {
  double* y;
  double* h;
  double* scratch;
  std::int64_t n;
  double unit;    // x = y unit
  double weight;  // metric = h weight
};

// Calls solve(chain), which replaces y, for each group. `doubles` is how many numbers of scratch it
// needs per entry.
template <class T, class F>
void each_chain(T* x, const T* metric, const GroupShape& g, std::int64_t doubles, F&& solve) {
  check_finite(x, g.numel);
  check_metric(metric, g.numel);
  const std::int64_t longest = longest_group(g), each = (doubles + 2) * longest;
  const std::int64_t tasks = std::clamp<std::int64_t>(ceil_div(g.numel, grain), 1, g.count);
  const int workers = static_cast<int>(std::min<std::int64_t>(tasks, max_threads()));
  const std::unique_ptr<double[]> memory(
      new double[static_cast<std::size_t>(each) * static_cast<std::size_t>(workers)]);
  parallel_for(tasks, workers, [&](std::int64_t task, int worker) noexcept {
    double* const y = memory.get() + each * worker;
    double* const h = y + longest;
    for (std::int64_t j = task * g.count / tasks; j < (task + 1) * g.count / tasks; ++j) {
      Chain chain{y, h, h + longest, 0, 1.0, 1.0};
      double most = 0.0, heaviest = 0.0;
      each_entry(g, j, [&](std::int64_t i) {
        y[chain.n] = static_cast<double>(x[i]);
        h[chain.n] = metric == nullptr ? 1.0 : static_cast<double>(metric[i]);
        most = std::max(most, std::abs(y[chain.n]));
        heaviest = std::max(heaviest, h[chain.n++]);
      });
      if (chain.n == 0) continue;
      int exponent = 0;
      static_cast<void>(std::frexp(most, &exponent));
      exponent = std::max(exponent, -1000);
      chain.unit = std::ldexp(1.0, std::min(exponent, 1023));
      chain.weight = heaviest;
      for (std::int64_t i = 0; i < chain.n; ++i) {
        y[i] /= chain.unit;
        h[i] = std::max(h[i] / heaviest, 1e-200);
      }
      solve(chain);
      std::int64_t at = 0;
      each_entry(g, j, [&](std::int64_t i) {
        x[i] = static_cast<T>(y[at++] * chain.unit);
        if (x[i] == T(0)) x[i] = T(0);
      });
    }
  });
}

// Pools: their sums of h y and of h, and how many entries they hold.
void pool(const Chain& c, bool falling) noexcept {
  double* const sums = c.scratch;
  double* const weights = sums + c.n;
  double* const counts = weights + c.n;
  const double sign = falling ? -1.0 : 1.0;
  std::int64_t pools = 0;
  for (std::int64_t i = 0; i < c.n; ++i) {
    double sum = c.h[i] * c.y[i], weight = c.h[i], count = 1.0;
    while (pools > 0 && sign * (sums[pools - 1] / weights[pools - 1]) >= sign * (sum / weight)) {
      --pools;
      sum += sums[pools];
      weight += weights[pools];
      count += counts[pools];
    }
    sums[pools] = sum;
    weights[pools] = weight;
    counts[pools++] = count;
  }
  std::int64_t at = 0;
  for (std::int64_t p = 0; p < pools; ++p) {
    const double mean = sums[p] / weights[p];
    for (const std::int64_t end = at + static_cast<std::int64_t>(counts[p]); at < end; ++at) {
      c.y[at] = mean;
    }
  }
}

// The derivative of a message is piecewise linear and rises. At a knot, from left to right, the
// line slope * z + offset changes by these two.
struct Knots {
  double *at, *slope, *offset;

  void set(std::int64_t k, double where, double by, double offset_by) const noexcept {
    at[k] = where;
    slope[k] = by;
    offset[k] = offset_by;
  }
};

struct Line {
  double least, slope, offset;  // the slope is never below `least`, but for rounding

  double operator()(double z) const noexcept { return slope * z + offset; }
  double root(double level) const noexcept { return (level - offset) / slope; }
  void cross(const Knots& knots, std::int64_t k, double direction) noexcept {
    slope = std::max(least, slope + direction * knots.slope[k]);
    offset += direction * knots.offset[k];
  }
};

// With f_1(z) = h_1 (z - y_1)^2 / 2 and f_(i+1)(z) = h_(i+1) (z - y_(i+1))^2 / 2
// + min_w f_i(w) + lam |z - w|, the derivative of the minimum over w is f_i' cut off at -lam and
// lam. Where it is cut off, low and high, is what entry i is clipped to on the way back.
void variation(const Chain& c, double lam) noexcept {
  const std::int64_t n = c.n;
  double total = 0.0, weight = 0.0, pull = 0.0;
  for (std::int64_t i = 0; i < n; ++i) {
    total += c.h[i] * c.y[i];
    weight += c.h[i];
  }
  const double mean = total / weight;
  for (std::int64_t i = 0; i < n; ++i) pull += c.h[i] * std::abs(c.y[i] - mean);
  if (lam >= pull) {  // no partial sum of h (y - mean) exceeds lam: one piece
    std::fill(c.y, c.y + n, mean);
    return;
  }
  double* const low = c.scratch;
  double* const high = low + n;
  const Knots knots{high + n, high + 3 * n, high + 5 * n};  // 2 n each: they grow from the middle
  std::int64_t first = n, last = n - 1;
  for (std::int64_t i = 0; i < n; ++i) {
    const double h = c.h[i], offset = -h * c.y[i], edge = i == 0 ? 0.0 : lam;
    // The last entry goes to its minimum, where the derivative is 0.
    const double down = i == n - 1 ? 0.0 : -lam;
    Line left{h, h, offset - edge};
    for (; first <= last && left(knots.at[first]) <= down; ++first) left.cross(knots, first, 1.0);
    low[i] = left.root(down);
    if (i == n - 1) break;
    Line right{h, h, offset + edge};
    for (; last >= first && right(knots.at[last]) >= lam; --last) right.cross(knots, last, -1.0);
    high[i] = right.root(lam);
    knots.set(--first, low[i], left.slope, left.offset + lam);
    knots.set(++last, high[i], -right.slope, lam - right.offset);
  }
  double* const z = low;
  for (std::int64_t i = n - 2; i >= 0; --i) {
    z[i] = std::max(low[i], std::min(z[i + 1], high[i]));
  }
  // Each piece once more from its mean and its two neighbours, without the knots' rounding.
  for (std::int64_t begin = 0, end = 0; begin < n; begin = end) {
    double sum = 0.0, all = 0.0;
    do {
      sum += c.h[end] * c.y[end];
      all += c.h[end++];
    } while (end < n && z[end] == z[begin]);
    const double before = begin == 0 ? 0.0 : z[begin - 1] > z[begin] ? lam : -lam;
    const double after = end == n ? 0.0 : z[end] > z[begin] ? lam : -lam;
    std::fill(c.y + begin, c.y + end, (sum + before + after) / all);
  }
}

// Measured from the largest, so that the radius does not drown in large numbers.
void onto_simplex(const Chain& c, double radius) noexcept {
  double* const sorted = c.scratch;
  std::copy(c.y, c.y + c.n, sorted);
  std::sort(sorted, sorted + c.n, std::greater<>());
  const double most = sorted[0];
  double sum = 0.0, theta = -radius;
  for (std::int64_t k = 0; k < c.n; ++k) {
    sum += sorted[k] - most;
    const double root = (sum - radius) / static_cast<double>(k + 1);
    if (sorted[k] - most <= root) break;
    theta = root;
  }
  for (std::int64_t i = 0; i < c.n; ++i) c.y[i] = std::max(0.0, c.y[i] - most - theta);
}

}  // namespace

template <class T>
void isotonic(T* x, const T* metric, const GroupShape& shape, bool falling) {
  each_chain(x, metric, shape, 3, [&](const Chain& chain) noexcept { pool(chain, falling); });
}

template <class T>
void total_variation(T* x, const T* metric, const GroupShape& shape, double lam) {
  each_chain(x, metric, shape, 8, [&](const Chain& chain) noexcept {
    if (lam > 0.0) variation(chain, lam / chain.weight / chain.unit);
  });
}

template <class T>
void simplices(T* x, const GroupShape& shape, double radius) {
  each_chain(x, static_cast<const T*>(nullptr), shape, 1,
             [&](const Chain& chain) noexcept { onto_simplex(chain, radius / chain.unit); });
}

template void isotonic<float>(float*, const float*, const GroupShape&, bool);
template void isotonic<double>(double*, const double*, const GroupShape&, bool);
template void total_variation<float>(float*, const float*, const GroupShape&, double);
template void total_variation<double>(double*, const double*, const GroupShape&, double);
template void simplices<float>(float*, const GroupShape&, double);
template void simplices<double>(double*, const GroupShape&, double);

}  // namespace gossamer
