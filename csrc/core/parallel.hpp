// The only home of threads: one OpenMP pool, shared with torch through libgomp.so.1 and governed
// by torch.set_num_threads. Serial for one task, so small calls never pay for a parallel region.
#pragma once

#include <cstdint>
#include <type_traits>

namespace gossamer {

int max_threads() noexcept;

// For work on so many entries of a structure: below 2^15 waking other threads costs more than it
// saves.
inline int workers_for_entries(std::int64_t entries) noexcept {
  return entries < (std::int64_t{1} << 15) ? 1 : max_threads();
}

// For so many entries, each multiplied with so many numbers: below 2^18 products one thread is done
// before the others are awake.
inline int workers_for_products(std::int64_t entries, std::int64_t each) noexcept {
  return entries < (std::int64_t{1} << 18) / (each > 1 ? each : 1) ? 1 : max_threads();
}

// The file of the OpenMP runtime in use: torch's own copy, when torch was loaded first.
const char* pool_library() noexcept;

// Lets a forked child start a pool of its own. Without it a child that calls a kernel after its
// parent did would wait for worker threads that fork() did not copy.
void make_fork_safe() noexcept;

namespace detail {
using Body = void (*)(void* context, std::int64_t task, int worker) noexcept;
void run(std::int64_t tasks, int workers, Body body, void* context) noexcept;
}  // namespace detail

// Calls body(task, worker) once for each task in [0, tasks), worker in [0, workers). Which worker
// gets a task is not fixed, so a body must write the same bits whoever runs it.
template <class F>
void parallel_for(std::int64_t tasks, int workers, F&& body) noexcept {
  using Fn = std::remove_reference_t<F>;
  detail::run(
      tasks, workers,
      [](void* context, std::int64_t task, int worker) noexcept {
        (*static_cast<Fn*>(context))(task, worker);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace gossamer
