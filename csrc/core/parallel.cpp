#include "core/parallel.hpp"

#include <dlfcn.h>
#include <omp.h>
#include <pthread.h>

#include <algorithm>

namespace gossamer {

int max_threads() noexcept { return omp_in_parallel() ? 1 : std::max(1, omp_get_max_threads()); }

const char* pool_library() noexcept {
  Dl_info found;
  return dladdr(reinterpret_cast<void*>(&omp_get_max_threads), &found) != 0 ? found.dli_fname : "?";
}

namespace {
// Looked up by name: it is OpenMP 5.0, and an older libgomp that another package brought along may
// lack it. Pausing the pool just before the fork means that no thread is lost by it.
void pause_pool() noexcept {
  using Pause = int (*)(int);
  static const auto pause = reinterpret_cast<Pause>(dlsym(RTLD_DEFAULT, "omp_pause_resource_all"));
  constexpr int soft = 1;
  if (pause != nullptr && !omp_in_parallel()) pause(soft);
}
}  // namespace

void make_fork_safe() noexcept { pthread_atfork(pause_pool, nullptr, nullptr); }

namespace detail {
void run(std::int64_t tasks, int workers, Body body, void* context) noexcept {
  if (workers <= 1 || tasks <= 1) {
    for (std::int64_t task = 0; task < tasks; ++task) body(context, task, 0);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(workers)
  for (std::int64_t task = 0; task < tasks; ++task) body(context, task, omp_get_thread_num());
}
}  // namespace detail

}  // namespace gossamer
