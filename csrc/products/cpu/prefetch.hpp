// Prefetching: of the weight, which is one forward stream, and of the rows of activations, which
// are more streams side by side than a processor prefetches by itself.
#pragma once

#include "core/types.hpp"

namespace gossamer {
namespace {

// Asks for the bytes that lie `ahead` behind a panel's own: one panel is often too few cycles of
// work to hide memory, and hardware prefetchers stop at page ends. Worth a quarter of the time at
// 4096 x 4096 with V > 1 (bench_kernels); with V = 1 the asking costs more than it saves.
template <class T, int V>
GOSSAMER_INLINE void prefetch_panel(const T* values, const std::uint8_t* indices,
                                    std::int64_t count) noexcept {
  if constexpr (V == 1) return;
  constexpr std::int64_t ahead = 4096;
  constexpr std::int64_t line = 64;
  const char* v = reinterpret_cast<const char*>(values) + ahead;
  const auto bytes = count * V * static_cast<std::int64_t>(sizeof(T));
  for (std::int64_t i = 0; i < bytes; i += line) __builtin_prefetch(v + i);
  const char* ids = reinterpret_cast<const char*>(indices) + ahead / 4;
  for (std::int64_t i = 0; i < count; i += line) __builtin_prefetch(ids + i);
}

// Two lines ahead in a row of activations that is read, or written, from left to right: half of the
// time of packing. To the second-level cache: rows a power of two apart would push each other out
// of the first.
GOSSAMER_INLINE void prefetch_row(const void* at) noexcept {
  constexpr int ahead = 128;
  __builtin_prefetch(static_cast<const char*>(at) + ahead, 0, 2);
}

}  // namespace
}  // namespace gossamer
