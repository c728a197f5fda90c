#include "prox/elements.hpp"

#include <algorithm>

#include "core/parallel.hpp"

namespace gossamer {
namespace {

// Entries a task, and below which waking other threads costs more than it saves.
constexpr std::int64_t chunk = 1 << 14;
constexpr std::int64_t serial = 1 << 15;

template <class F>
void over_chunks(std::int64_t n, F&& body) noexcept {
  const std::int64_t tasks = ceil_div(n, chunk);
  parallel_for(tasks, n < serial ? 1 : max_threads(), [&](std::int64_t task, int) noexcept {
    const std::int64_t first = task * chunk;
    body(first, std::min(chunk, n - first));
  });
}

template <class P>
P* shifted(P* base, std::int64_t entries, DType dtype) noexcept {
  using Byte = std::conditional_t<std::is_const_v<P>, const std::byte, std::byte>;
  return static_cast<Byte*>(base) + static_cast<std::size_t>(entries) * itemsize(dtype);
}

}  // namespace

void prox_elements(Penalty which, DType dtype, void* x, std::int64_t n,
                   const ElementArgs& args) noexcept {
  const ElementKernel run =
      prox_tables.active().elements[static_cast<int>(which)][static_cast<int>(dtype)];
  over_chunks(n, [&](std::int64_t first, std::int64_t count) noexcept {
    ElementArgs own = args;
    if (args.steps != nullptr) own.steps = shifted(args.steps, first, dtype);
    run(shifted(x, first, dtype), own, count);
  });
}

void prox_adamw(const AdamWTensors& t, const AdamWArgs& args, Penalty which,
                const ElementArgs& penalty) noexcept {
  const AdamWKernel step =
      prox_tables.active().adamw[static_cast<int>(which)][static_cast<int>(t.dtype)];
  // Short enough that the parameter and its steps stay in the first-level cache.
  constexpr std::int64_t run = 1024;
  over_chunks(t.n, [&](std::int64_t chunk_first, std::int64_t chunk_count) noexcept {
    alignas(64) double steps[run];
    for (std::int64_t at = 0; at < chunk_count; at += run) {
      const std::int64_t first = chunk_first + at;
      const std::int64_t count = std::min(run, chunk_count - at);
      ElementArgs own = penalty;
      if (own.steps != nullptr) own.steps = shifted(own.steps, first, t.dtype);
      step(shifted(t.param, first, t.dtype), shifted(t.grad, first, t.dtype),
           shifted(t.exp_avg, first, t.dtype), shifted(t.exp_avg_sq, first, t.dtype), args, own,
           steps, count);
    }
  });
}

}  // namespace gossamer
