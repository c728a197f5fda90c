#include "prox/wgsef_root.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "core/check.hpp"
#include "core/parallel.hpp"
#include "core/workspace.hpp"
#include "prox/table.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t chunk = 1 << 13;  // groups a task; sums are added chunk by chunk
constexpr std::int64_t block = 1 << 10;  // ramps that are made at once, in the first-level cache
constexpr std::int64_t few = 1 << 12;    // so many are solved one by one
constexpr std::int64_t sampled = 1 << 11;
constexpr double margin = 5.0;  // of a guess, in standard deviations of the sample
constexpr double infinity = std::numeric_limits<double>::infinity();

int workers_for(std::int64_t tasks) {
  return static_cast<int>(std::min<std::int64_t>(tasks, max_threads()));
}

[[noreturn]] void refuse(const WgsefProblem& p) {
  for (std::int64_t j = 0; j < p.m; ++j) {
    const double a = p.groups.a[j];
    if (a >= 0.0 && a <= std::numeric_limits<double>::max()) continue;
    const char* what = std::isnan(a) ? "NaN" : a < 0.0 ? "a negative number" : "infinity";
    throw ArgumentError("the norm of group " + std::to_string(j) + " is " + what +
                        "; norms must be finite and not negative: look for NaN or infinity in the "
                        "entries of the group");
  }
  throw ArgumentError(
      "lam * d / h or norm * sqrt(d / c) overflows; choose weights of moderate size");
}

}  // namespace

RampRoot::RampRoot(const WgsefProblem& problem)
    : problem_(problem),
      kernels_(prox_tables.active().groups),
      flat_(problem.groups.d == nullptr && problem.groups.c == nullptr &&
            problem.groups.h == nullptr),
      chunks_(ceil_div(problem.m, chunk)) {
  std::vector<RampScan> parts(static_cast<std::size_t>(chunks_));
  each_block({problem.m, -1}, [&](const Ramps& ramps, std::int64_t n, std::int64_t task) noexcept {
    kernels_.scan(ramps, n, parts[static_cast<std::size_t>(task)]);
  });
  for (const RampScan& part : parts) {
    scan_.cost += part.cost;
    scan_.live += part.live;
    scan_.bad += part.bad;
  }
  if (scan_.bad > 0) refuse(problem);
}

// body(ramps, n, task) for pieces of the live groups, in order within a task.
template <class F>
void RampRoot::each_block(Live live, F&& body) {
  const std::int64_t tasks = ceil_div(live.n, chunk);
  touched_ += static_cast<double>(live.n);
  const RampInputs& in = problem_.groups;
  const std::int64_t m = problem_.m;
  const double* const kept = live.store < 0 ? nullptr : memory_[live.store];
  parallel_for(tasks, workers_for(tasks), [&](std::int64_t task, int) noexcept {
    const std::int64_t begin = task * chunk, end = std::min(live.n, begin + chunk);
    if (flat_) {
      body({(kept == nullptr ? in.a : kept) + begin, nullptr, nullptr, in.lam}, end - begin, task);
    } else if (kept != nullptr) {
      body({kept + begin, kept + m + begin, kept + 2 * m + begin, 0.0}, end - begin, task);
    } else {
      double slope[block], offset[block], cost[block];
      for (std::int64_t at = begin; at < end; at += block) {
        const std::int64_t n = std::min(block, end - at);
        kernels_.fill(
            {in.a + at, in.d == nullptr ? nullptr : in.d + at,
             in.c == nullptr ? nullptr : in.c + at, in.h == nullptr ? nullptr : in.h + at, in.lam},
            n, slope, offset, cost);
        body({slope, offset, cost, 0.0}, n, task);
      }
    }
  });
}

RampRoot::One RampRoot::group(Live live, std::int64_t i) const {
  const RampInputs& in = problem_.groups;
  One one{};
  if (live.store >= 0) {
    const double* const kept = memory_[live.store];
    one.slope = kept[i];
    one.offset = flat_ ? in.lam : kept[problem_.m + i];
    one.cost = flat_ ? 1.0 : kept[2 * problem_.m + i];
  } else if (flat_) {
    one = {in.a[i], in.lam, 1.0, 0.0, 0.0};
  } else {
    kernels_.fill(
        {in.a + i, in.d == nullptr ? nullptr : in.d + i, in.c == nullptr ? nullptr : in.c + i,
         in.h == nullptr ? nullptr : in.h + i, in.lam},
        1, &one.slope, &one.offset, &one.cost);
  }
  one.enters = one.offset / one.slope;
  one.fills = (1.0 + one.offset) / one.slope;
  return one;
}

std::vector<RampRoot::One> RampRoot::all(Live live) {
  std::vector<One> groups;
  for (std::int64_t i = 0; i < live.n; ++i) {
    groups.push_back(group(live, i));
    if (!(groups.back().slope > 0.0)) groups.pop_back();
  }
  touched_ += static_cast<double>(live.n);
  return groups;
}

// One group from each of `size` equal pieces, at a place that a fixed generator picks: no period of
// the data stays in step with it. Groups of zeros stand in it too, since they stand for others.
std::vector<RampRoot::One> RampRoot::sample(Live live, std::int64_t size) {
  std::vector<One> groups(static_cast<std::size_t>(size));
  std::uint64_t state = 0x9E3779B97F4A7C15u;
  for (std::int64_t s = 0; s < size; ++s) {
    const std::int64_t begin = s * live.n / size, end = (s + 1) * live.n / size;
    state = state * 6364136223846793005u + 1442695040888963407u;
    const auto pick =
        static_cast<std::int64_t>((state >> 33) % static_cast<std::uint64_t>(end - begin));
    groups[static_cast<std::size_t>(s)] = group(live, begin + pick);
  }
  touched_ += static_cast<double>(size);
  return groups;
}

namespace {

template <class One>
double share_of(const One& one, double eta) noexcept {
  if (!(eta > one.enters)) return 0.0;
  if (eta >= one.fills) return 1.0;
  return std::clamp(std::fma(one.slope, eta, -one.offset), 0.0, 1.0);
}

}  // namespace

// The two neighbouring breakpoints around the root of weight * g(groups) + slope * eta + fixed = k
// by medians, and the root; eta is `right` where no ramp is left between (a plateau).
RampRoot::Interval RampRoot::narrow(std::vector<One> groups, double weight, double k, Interval at,
                                    double slope, double fixed, double* eta) {
  std::erase_if(groups, [](const One& one) { return !(one.slope > 0.0); });
  std::vector<double> points;
  points.reserve(2 * groups.size());
  for (const One& one : groups) {
    if (one.enters > at.left && one.enters < at.right) points.push_back(one.enters);
    if (one.fills > at.left && one.fills < at.right) points.push_back(one.fills);
  }
  double full = 0.0;
  double offset = 0.0;
  for (;;) {
    std::erase_if(groups, [&](const One& one) {
      if (one.enters >= at.right) return true;
      if (one.fills <= at.left) {
        full += weight * one.cost;
        return true;
      }
      if (one.enters <= at.left && one.fills >= at.right) {
        slope += weight * one.cost * one.slope;
        offset += weight * one.cost * one.offset;
        return true;
      }
      return false;
    });
    if (points.empty()) break;
    const auto middle = points.begin() + static_cast<std::ptrdiff_t>(points.size() / 2);
    std::nth_element(points.begin(), middle, points.end());
    const double pivot = *middle;
    double sum = 0.0;
    for (const One& one : groups) sum += one.cost * share_of(one, pivot);
    touched_ += static_cast<double>(groups.size());
    if (slope * pivot - offset + full + fixed + weight * sum >= k) {
      at.right = pivot;
      std::erase_if(points, [pivot](double p) { return p >= pivot; });
    } else {
      at.left = pivot;
      std::erase_if(points, [pivot](double p) { return p <= pivot; });
    }
  }
  *eta = at.right;
  if (slope > 0.0) *eta = std::clamp((k - full - fixed + offset) / slope, at.left, at.right);
  return at;
}

// Where the root probably lies, between breakpoints of a sample.
RampRoot::Interval RampRoot::guess(Live live) {
  const std::vector<One> groups = sample(live, sampled);
  const double weight = static_cast<double>(live.n) / static_cast<double>(sampled);
  double eta = 0.0;
  const Interval middle = narrow(groups, weight, k_, at_, slope_, fixed(), &eta);
  double sum = 0.0;
  double squares = 0.0;
  for (const One& one : groups) {
    const double taken = one.slope > 0.0 ? one.cost * share_of(one, eta) : 0.0;
    sum += taken;
    squares += taken * taken;
  }
  const double count = static_cast<double>(sampled);
  const double variance = std::max(0.0, squares / count - (sum / count) * (sum / count));
  const double reach = margin * static_cast<double>(live.n) * std::sqrt(variance / count);
  double unused = 0.0;
  return {
      narrow(groups, weight, k_ - reach, {at_.left, middle.right}, slope_, fixed(), &unused).left,
      narrow(groups, weight, k_ + reach, {middle.left, at_.right}, slope_, fixed(), &unused).right};
}

// Between which of eight breakpoints the root lies: quantiles of a sample's.
RampRoot::Interval RampRoot::cut(Live live) {
  std::vector<double> points;
  for (const One& one : sample(live, sampled)) {
    if (one.enters > at_.left && one.enters < at_.right) points.push_back(one.enters);
    if (one.fills > at_.left && one.fills < at_.right) points.push_back(one.fills);
  }
  if (points.empty()) return at_;
  std::sort(points.begin(), points.end());
  double pivots[ramp_points];
  for (std::size_t p = 0; p < ramp_points; ++p) {
    pivots[p] = points[(2 * p + 1) * points.size() / (2 * ramp_points)];
  }
  struct Sums {
    double at[ramp_points] = {};
  };
  std::vector<Sums> parts(static_cast<std::size_t>(ceil_div(live.n, chunk)));
  each_block(live, [&](const Ramps& ramps, std::int64_t n, std::int64_t task) noexcept {
    kernels_.evaluate(ramps, n, pivots, parts[static_cast<std::size_t>(task)].at);
  });
  Interval found = at_;
  for (std::size_t p = 0; p < ramp_points; ++p) {
    double g = slope_ * pivots[p] + fixed();
    double sum = 0.0;
    for (const Sums& part : parts) sum += part.at[p];
    g += sum;
    if (g >= k_) {
      found.right = pivots[p];
      break;
    }
    found.left = pivots[p];
  }
  return found;
}

// Settles the groups without a breakpoint inside the interval, when the root lies in it; says so.
bool RampRoot::settle(Live& live, Interval at) {
  const int next = live.store == 0 ? 1 : 0;
  double* const out = memory_[next];
  const std::int64_t m = problem_.m;
  std::vector<Settled> parts(static_cast<std::size_t>(ceil_div(live.n, chunk)));
  each_block(live, [&](const Ramps& ramps, std::int64_t n, std::int64_t task) noexcept {
    double* const to = out + task * chunk;
    kernels_.settle(ramps, n, at.left, at.right, parts[static_cast<std::size_t>(task)], to,
                    flat_ ? nullptr : to + m, flat_ ? nullptr : to + 2 * m);
  });
  Settled sum;
  for (const Settled& part : parts) {
    sum.slope += part.slope;
    sum.offset += part.offset;
    sum.full += part.full;
    sum.at_left += part.at_left;
    sum.at_right += part.at_right;
  }
  const double slope = slope_ + sum.slope, offset = offset_ + sum.offset, full = full_ + sum.full;
  // The ends of the interval that is known already need no proof, and may be infinite.
  if (at.left > at_.left && slope * at.left - offset + full + sum.at_left > k_) {
    at_.right = at.left;
    return false;
  }
  if (at.right < at_.right && slope * at.right - offset + full + sum.at_right < k_) {
    at_.left = at.right;
    return false;
  }
  slope_ = slope;
  offset_ = offset;
  full_ = full;
  at_ = at;
  live = {0, next};
  for (std::size_t task = 0; task < parts.size(); ++task) {
    const double* const from = out + static_cast<std::int64_t>(task) * chunk;
    const auto rest = static_cast<std::size_t>(parts[task].rest);
    for (int array = 0; array < (flat_ ? 1 : 3); ++array) {
      std::copy_n(from + array * m, rest, out + array * m + live.n);
    }
    live.n += parts[task].rest;
  }
  return true;
}

double RampRoot::solve(double k) {
  k_ = k;
  at_ = {0.0, infinity};
  const std::int64_t store = problem_.m * (flat_ ? 1 : 3);
  if (problem_.m > few) {
    const auto size = static_cast<std::size_t>(2 * store) * sizeof(double);
    memory_[0] = reinterpret_cast<double*>(Workspace::get(size));
    memory_[1] = memory_[0] + store;
  }
  Live live{problem_.m, -1};
  enum class Mode { guess, cut, medians } mode = Mode::guess;
  while (live.n > few && mode != Mode::medians) {
    const std::int64_t before = live.n;
    const bool settled = settle(live, mode == Mode::guess ? guess(live) : cut(live));
    if (settled && 2 * live.n <= before) {
      mode = Mode::guess;
    } else {
      mode = mode == Mode::guess ? Mode::cut : Mode::medians;
    }
  }
  double eta = 0.0;
  narrow(all(live), 1.0, k_, at_, slope_, fixed(), &eta);
  Workspace::trim();
  return eta;
}

void RampRoot::shares(double eta, bool gains, double* out) {
  // A block within a chunk is known by its ramps' place only when they are the inputs themselves.
  if (flat_) {
    each_block({problem_.m, -1}, [&](const Ramps& ramps, std::int64_t n, std::int64_t) noexcept {
      kernels_.shares(ramps, n, eta, gains, out + (ramps.slope - problem_.groups.a));
    });
    return;
  }
  std::vector<std::int64_t> done(static_cast<std::size_t>(chunks_), 0);
  each_block({problem_.m, -1}, [&](const Ramps& ramps, std::int64_t n, std::int64_t task) noexcept {
    std::int64_t& at = done[static_cast<std::size_t>(task)];
    kernels_.shares(ramps, n, eta, gains, out + task * chunk + at);
    at += n;
  });
}

}  // namespace gossamer
