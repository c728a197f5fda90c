#include "prox/select.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/check.hpp"
#include "core/parallel.hpp"
#include "prox/table.hpp"
#include "simd/bits.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t chunk = 1 << 14;
constexpr double infinity = std::numeric_limits<double>::infinity();

// body(begin, end, task) over fixed chunks.
template <class F>
void each_chunk(std::int64_t n, F&& body) {
  const std::int64_t tasks = ceil_div(n, chunk);
  const int workers = static_cast<int>(std::min<std::int64_t>(tasks, max_threads()));
  parallel_for(tasks, workers, [&](std::int64_t task, int) noexcept {
    body(task * chunk, std::min(n, (task + 1) * chunk), static_cast<std::size_t>(task));
  });
}

std::size_t chunks(std::int64_t n) { return static_cast<std::size_t>(ceil_div(n, chunk)); }

// ---- top-k -------------------------------------------------------------------------------------

// The rank-th largest of the keys, 1-based, digit by digit from the top; `rank` becomes its rank
// among the keys equal to it.
template <class Key>
Key select(std::vector<Key>& keys, int shift, std::int64_t& rank) {
  while (shift > 0 && keys.size() > 1) {
    const int bits = std::min(shift, 11);
    shift -= bits;
    const Key mask = (Key{1} << bits) - 1;
    std::array<std::int64_t, 1 << 11> count{};
    for (const Key key : keys) ++count[static_cast<std::size_t>((key >> shift) & mask)];
    std::size_t digit = static_cast<std::size_t>(mask);
    while (count[digit] < rank) rank -= count[digit--];
    std::erase_if(
        keys, [&](Key key) { return static_cast<std::size_t>((key >> shift) & mask) != digit; });
  }
  return keys.front();
}

}  // namespace

template <class T>
void top_k(T* x, std::int64_t n, std::int64_t k) {
  using Key = Bits<T>;
  constexpr int first_shift = 8 * static_cast<int>(sizeof(T)) - 1 - 11;
  constexpr Key infinite = FloatBits<T>::infinity;
  struct Histogram {
    std::array<std::uint16_t, 1 << 11> count{};
    bool nan = false;
  };
  static_assert(chunk < (1 << 16));
  std::vector<Histogram> parts(chunks(n));
  each_chunk(n, [&](std::int64_t begin, std::int64_t end, std::size_t task) noexcept {
    Histogram& part = parts[task];
    for (std::int64_t i = begin; i < end; ++i) {
      const Key key = magnitude_bits<T>(bits_of(x[i]));
      ++part.count[static_cast<std::size_t>(key >> first_shift)];
      part.nan |= key > infinite;
    }
  });
  std::vector<std::int64_t> count(1 << 11, 0);
  for (const Histogram& part : parts) {
    require<ArgumentError>(!part.nan, "x holds NaN, which has no place among the largest entries");
    for (std::size_t digit = 0; digit < count.size(); ++digit) count[digit] += part.count[digit];
  }
  if (k <= 0) {
    std::fill(x, x + n, T(0));
    return;
  }
  std::int64_t rank = std::min(k, n);
  std::size_t digit = count.size() - 1;
  while (count[digit] < rank) rank -= count[digit--];

  // The keys with that digit, chunk after chunk.
  std::vector<std::int64_t> start(parts.size() + 1, 0);
  for (std::size_t t = 0; t < parts.size(); ++t) start[t + 1] = start[t] + parts[t].count[digit];
  std::vector<Key> keys(static_cast<std::size_t>(start.back()));
  each_chunk(n, [&](std::int64_t begin, std::int64_t end, std::size_t task) noexcept {
    // Another thread may write into x meanwhile: what is found anew must fit what was counted.
    Key* to = keys.data() + start[task];
    const Key* const stop = keys.data() + start[task + 1];
    for (std::int64_t i = begin; i < end; ++i) {
      const Key key = magnitude_bits<T>(bits_of(x[i]));
      if (static_cast<std::size_t>(key >> first_shift) == digit && to != stop) *to++ = key;
    }
  });
  const Key last = select(keys, first_shift, rank);

  // `rank` of the keys equal to the last stay: how many stand before each chunk says which.
  std::vector<std::int64_t> before(parts.size() + 1, 0);
  each_chunk(n, [&](std::int64_t begin, std::int64_t end, std::size_t task) noexcept {
    std::int64_t equal = 0;
    for (std::int64_t i = begin; i < end; ++i)
      equal += magnitude_bits<T>(bits_of(x[i])) == last ? 1 : 0;
    before[task + 1] = equal;
  });
  for (std::size_t t = 0; t < parts.size(); ++t) before[t + 1] += before[t];
  each_chunk(n, [&](std::int64_t begin, std::int64_t end, std::size_t task) noexcept {
    std::int64_t left = std::max<std::int64_t>(0, rank - before[task]);
    if (left == 0 || before[task + 1] <= rank) {  // none of the equal ones, or all of them
      const Key least = std::max<Key>(1, left == 0 ? last + 1 : last);  // 1: no -0.0 stays
      for (std::int64_t i = begin; i < end; ++i)
        x[i] = magnitude_bits<T>(bits_of(x[i])) >= least ? x[i] : T(0);
      return;
    }
    for (std::int64_t i = begin; i < end; ++i) {
      const Key key = magnitude_bits<T>(bits_of(x[i]));
      if (key < last || (key == last && left-- <= 0) || key == 0) x[i] = T(0);
    }
  });
}

// ---- thresholds of a sum -----------------------------------------------------------------------

namespace {

struct Above {
  double sum = 0.0;
  std::int64_t count = 0;
};

// How x is seen: as y = x - shift, or |x| - shift.
struct View {
  bool absolute;
  double shift;
  double operator()(double x) const noexcept { return (absolute ? std::abs(x) : x) - shift; }
};

template <class T>
Above above(const T* x, std::int64_t n, double theta, View view) {
  const GroupKernels<T>& kernels = kernels_of<T>(prox_tables.active().groups);
  std::vector<Above> parts(chunks(n));
  each_chunk(n, [&](std::int64_t begin, std::int64_t end, std::size_t task) noexcept {
    kernels.above(x + begin, end - begin, view.shift, theta, view.absolute, &parts[task].sum,
                  &parts[task].count);
  });
  Above total;
  for (const Above& part : parts) {
    total.sum += part.sum;
    total.count += part.count;
  }
  return total;
}

template <class T>
struct Extremes {
  T most = -std::numeric_limits<T>::infinity();
  std::int64_t at = 0;
  std::int64_t bad = -1;
};

// The largest x (or |x|), where it stands first, and an entry that is not finite.
template <class T>
Extremes<T> extremes(const T* x, std::int64_t n, bool absolute) {
  std::vector<Extremes<T>> parts(chunks(n));
  each_chunk(n, [&](std::int64_t begin, std::int64_t end, std::size_t task) noexcept {
    Extremes<T> part;
    for (std::int64_t i = begin; i < end; ++i) {
      const T v = absolute ? std::abs(x[i]) : x[i];
      if (v > part.most) {
        part.most = v;
        part.at = i;
      }
      if (!(std::abs(v) <= std::numeric_limits<T>::max())) part.bad = i;
    }
    parts[task] = part;
  });
  Extremes<T> total;
  for (const Extremes<T>& part : parts) {
    if (part.bad >= 0) {
      throw ArgumentError("x holds NaN or infinity at entry " + std::to_string(part.bad) +
                          "; this operator needs finite numbers");
    }
    if (part.most > total.most) total = part;
  }
  return total;
}

// theta with sum (y - theta)_+ = radius > 0. Newton's steps on this convex function come from the
// left from the second one on and end after finitely many (Michelot 1986); what lies below a step
// is out for good. Started at the root of a sample, it takes a few.
template <class T>
double threshold(const T* x, std::int64_t n, double most, double radius, View view) {
  constexpr std::int64_t sampled = 1 << 11;
  const double least = most - view.shift - radius;  // one entry takes all
  double theta = least;
  const auto step = [&](const Above& over) {
    return std::max(least, (over.sum - radius) / static_cast<double>(over.count));
  };
  if (n > 4 * sampled) {
    std::vector<double> y(sampled);
    for (std::int64_t s = 0; s < sampled; ++s) {
      const double seen = view(static_cast<double>(x[s * n / sampled]));
      y[static_cast<std::size_t>(s)] = seen == seen ? seen : least;  // NaN since it was looked at
    }
    std::sort(y.begin(), y.end(), [](double a, double b) { return a > b; });
    const double budget = radius * static_cast<double>(sampled) / static_cast<double>(n);
    double sum = 0.0;
    for (std::size_t s = 0; s < y.size(); ++s) {
      sum += y[s];
      const double root = (sum - budget) / static_cast<double>(s + 1);
      if (y[s] <= root) break;
      theta = std::max(theta, root);
    }
    const Above over = above(x, n, theta, view);
    theta = over.count == 0 ? least : step(over);
  }

  // What counts from here on, chunk after chunk.
  std::vector<std::int64_t> start(chunks(n) + 1, 0);
  each_chunk(n, [&](std::int64_t begin, std::int64_t end, std::size_t task) noexcept {
    std::int64_t count = 0;
    for (std::int64_t i = begin; i < end; ++i) {
      count += view(static_cast<double>(x[i])) > theta ? 1 : 0;
    }
    start[task + 1] = count;
  });
  for (std::size_t t = 1; t < start.size(); ++t) start[t] += start[t - 1];
  std::vector<double> live(static_cast<std::size_t>(start.back()));
  each_chunk(n, [&](std::int64_t begin, std::int64_t end, std::size_t task) noexcept {
    double* to = live.data() + start[task];
    const double* const stop = live.data() + start[task + 1];  // as in top_k
    for (std::int64_t i = begin; i < end; ++i) {
      const double y = view(static_cast<double>(x[i]));
      if (y > theta && to != stop) *to++ = y;
    }
  });
  const View plain{false, 0.0};
  Above sure;  // entries above the root, no longer among the live ones
  const auto above_live = [&](double level) {
    Above over = above(live.data(), static_cast<std::int64_t>(live.size()), level, plain);
    over.sum += sure.sum;
    over.count += sure.count;
    return over;
  };
  for (;;) {
    const Above over = above_live(theta);
    if (over.count == 0 || !(step(over) > theta)) return theta;
    theta = step(over);
    const std::size_t before = live.size();
    std::erase_if(live, [theta](double y) { return y <= theta; });
    if (8 * (before - live.size()) >= before || live.size() < 64) continue;
    // Slow progress (numbers like powers of two): the middle one halves what is left.
    const auto middle = live.begin() + static_cast<std::ptrdiff_t>(live.size() / 2);
    std::nth_element(live.begin(), middle, live.end());
    const double pivot = *middle;
    const Above half = above_live(pivot);
    if (half.sum - pivot * static_cast<double>(half.count) >= radius) {
      theta = std::max(theta, pivot);
      std::erase_if(live, [pivot](double y) { return y <= pivot; });
    } else {
      sure = half;
      std::erase_if(live, [pivot](double y) { return y > pivot; });
    }
  }
}

template <class T>
void shrink_all(T* x, std::int64_t n, double theta, View view, double gain) {
  const GroupKernels<T>& kernels = kernels_of<T>(prox_tables.active().groups);
  each_chunk(n, [&](std::int64_t begin, std::int64_t end, std::size_t) noexcept {
    kernels.shrink(x + begin, end - begin, view.shift, theta, view.absolute, gain);
  });
}

// Measured from the largest where that is much larger than the radius: what counts then lies within
// a factor of two of it, and the differences are exact.
View view_for(double most, double radius, bool absolute) {
  return {absolute, 2.0 * radius < std::abs(most) ? most : 0.0};
}

}  // namespace

template <class T>
void l1_ball(T* x, std::int64_t n, double radius) {
  const double most = static_cast<double>(extremes(x, n, true).most);
  if (radius == 0.0) {
    std::fill(x, x + n, T(0));
  } else {
    const View plain{true, 0.0};
    const bool inside = above(x, n, 0.0, plain).sum <= radius;
    const View view = inside ? plain : view_for(most, radius, true);
    shrink_all(x, n, inside ? 0.0 : threshold(x, n, most, radius, view), view, 1.0);
  }
}

template <class T>
void simplex(T* x, std::int64_t n, double radius) {
  const double most = static_cast<double>(extremes(x, n, false).most);
  if (radius == 0.0) {
    std::fill(x, x + n, T(0));
  } else {
    const View view = view_for(most, radius, false);
    shrink_all(x, n, threshold(x, n, most, radius, view), view, 1.0);
  }
}

template <class T>
void l1_minus_l2(T* x, std::int64_t n, double lam, double alpha) {
  const Extremes<T> largest = extremes(x, n, true);
  const double most = static_cast<double>(largest.most);
  if (most == 0.0) return shrink_all(x, n, 0.0, View{true, 0.0}, 1.0);
  if (most > lam) {
    // |z|^2 of z = soft(x, lam), in units of the largest so that no square overflows.
    std::vector<double> parts(chunks(n));
    const double unit = most - lam;
    each_chunk(n, [&](std::int64_t begin, std::int64_t end, std::size_t task) noexcept {
      double sum = 0.0;
      for (std::int64_t i = begin; i < end; ++i) {
        const double z = std::max(0.0, std::abs(static_cast<double>(x[i])) - lam) / unit;
        sum += z * z;
      }
      parts[task] = sum;
    });
    double sum = 0.0;
    for (const double part : parts) sum += part;
    shrink_all(x, n, lam, View{true, 0.0}, 1.0 + alpha * lam / (unit * std::sqrt(sum)));
    return;
  }
  const double kept = most + (alpha - 1.0) * lam;
  const double sign = std::signbit(x[largest.at]) ? -1.0 : 1.0;
  std::fill(x, x + n, T(0));
  if (kept > 0.0) x[largest.at] = static_cast<T>(sign * kept);
}

template void top_k<float>(float*, std::int64_t, std::int64_t);
template void top_k<double>(double*, std::int64_t, std::int64_t);
template void l1_ball<float>(float*, std::int64_t, double);
template void l1_ball<double>(double*, std::int64_t, double);
template void simplex<float>(float*, std::int64_t, double);
template void simplex<double>(double*, std::int64_t, double);
template void l1_minus_l2<float>(float*, std::int64_t, double, double);
template void l1_minus_l2<double>(double*, std::int64_t, double, double);

}  // namespace gossamer
