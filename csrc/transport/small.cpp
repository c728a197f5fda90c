#include "transport/small.hpp"

#include <algorithm>

#include "core/parallel.hpp"
#include "core/workspace.hpp"
#include "transport/table.hpp"

namespace gossamer {
namespace {

// Problems a task: a multiple of the lanes of any ISA.
constexpr std::int64_t chunk = 64;

// Calls body(args, first, last, scratch) for ranges of problems.
template <class T, class F>
void over_problems(const SmallProblems& p, F&& body) {
  const SmallArgs<T> args{static_cast<const T*>(p.scores),
                          static_cast<const T*>(p.a),
                          static_cast<const T*>(p.b),
                          p.n,
                          p.m,
                          p.iterations};
  const std::int64_t tasks = ceil_div(p.count, chunk);
  const int workers = workers_for_products(p.count * p.n * p.m, 4 * p.iterations);
  const std::int64_t each = small_scratch(p.n, p.m, p.iterations);
  const TrimWorkspace trim;
  std::byte* scratch = Workspace::get(static_cast<std::size_t>(each * workers));
  parallel_for(tasks, workers, [&](std::int64_t task, int worker) noexcept {
    body(args, task * chunk, std::min(p.count, (task + 1) * chunk), scratch + each * worker);
  });
}

}  // namespace

void sinkhorn_small(const SmallProblems& p, void* plan) {
  const TransportTable& table = transport_tables.active();
  const auto run = [&]<class T>(const SmallPasses<T>& passes) {
    over_problems<T>(p, [&](const SmallArgs<T>& args, std::int64_t first, std::int64_t last,
                            std::byte* scratch) noexcept {
      passes.forward(args, first, last, scratch, static_cast<T*>(plan));
    });
  };
  p.dtype == DType::f32 ? run(table.small32) : run(table.small64);
}

void sinkhorn_small_backward(const SmallProblems& p, const void* grad, void* grad_scores) {
  const TransportTable& table = transport_tables.active();
  const auto run = [&]<class T>(const SmallPasses<T>& passes) {
    over_problems<T>(p, [&](const SmallArgs<T>& args, std::int64_t first, std::int64_t last,
                            std::byte* scratch) noexcept {
      passes.backward(args, static_cast<const T*>(grad), first, last, scratch,
                      static_cast<T*>(grad_scores));
    });
  };
  p.dtype == DType::f32 ? run(table.small32) : run(table.small64);
}

}  // namespace gossamer
