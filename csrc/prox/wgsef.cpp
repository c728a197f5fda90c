#include "prox/wgsef.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/parallel.hpp"
#include "prox/table.hpp"
#include "prox/wgsef_root.hpp"

namespace gossamer {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

}  // namespace

double wgsef_gains(const WgsefProblem& problem, double* gains) {
  RampRoot root(problem);
  if (problem.groups.lam == 0.0) {
    std::fill(gains, gains + problem.m, 1.0);
  } else if (problem.k <= 0.0 || root.live() == 0) {
    std::fill(gains, gains + problem.m, 0.0);
  } else {
    root.shares(root.cost() <= problem.k ? infinity : root.solve(problem.k), true, gains);
  }
  return root.passes();
}

double wgsef_value(const WgsefProblem& problem, double* u) {
  WgsefProblem value = problem;
  value.groups.lam = 0.0;
  value.groups.h = nullptr;
  RampRoot root(value);
  if (problem.k <= 0.0 || root.live() == 0) {
    std::fill(u, u + problem.m, 0.0);
    return root.live() == 0 ? 0.0 : infinity;
  }
  root.shares(root.cost() <= value.k ? infinity : root.solve(value.k), false, u);

  constexpr std::int64_t chunk = 1 << 13;
  const GroupPasses& kernels = prox_tables.active().groups;
  const std::int64_t tasks = ceil_div(problem.m, chunk);
  std::vector<double> parts(static_cast<std::size_t>(tasks));
  const int workers = static_cast<int>(std::min<std::int64_t>(tasks, max_threads()));
  parallel_for(tasks, workers, [&](std::int64_t task, int) noexcept {
    const std::int64_t at = task * chunk, n = std::min(chunk, problem.m - at);
    const double* const d = value.groups.d;
    parts[static_cast<std::size_t>(task)] =
        kernels.energy(value.groups.a + at, d == nullptr ? nullptr : d + at, u + at, n);
  });
  double sum = 0.0;
  for (const double part : parts) sum += part;
  return 0.5 * sum;
}

}  // namespace gossamer
