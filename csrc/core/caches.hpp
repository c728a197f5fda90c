// Sizes of this processor's caches.
#pragma once

#include <cstdint>

namespace gossamer {

// Bytes of a core's second-level cache; 512 KiB where the system does not know.
std::int64_t second_level_cache() noexcept;

}  // namespace gossamer
