// Scratch memory for packed operands. One buffer a calling thread, kept between calls: asking the
// system for it each time would cost a page fault every 4 KiB, more than the packing itself.
#pragma once

#include <cstddef>

namespace gossamer {

class Workspace {
 public:
  // At least `bytes` bytes, aligned to a page, contents arbitrary; valid until the next call on
  // this thread. Throws std::bad_alloc.
  static std::byte* get(std::size_t bytes);

  // Frees this thread's buffer when it is larger than what is worth keeping.
  static void trim() noexcept;

  static constexpr std::size_t kept_bytes = std::size_t{64} << 20;
};

// Trims at the end of its scope.
struct TrimWorkspace {
  ~TrimWorkspace() { Workspace::trim(); }
};

}  // namespace gossamer
