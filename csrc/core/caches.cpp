#include "core/caches.hpp"

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

namespace gossamer {

std::int64_t second_level_cache() noexcept {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
  static const long found = 0;
#endif
  return found > 0 ? found : std::int64_t{512} << 10;
}

}  // namespace gossamer
