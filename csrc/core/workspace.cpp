#include "core/workspace.hpp"

#include <cstdint>
#include <memory>
#include <new>

namespace gossamer {
namespace {

constexpr std::align_val_t page{4096};

struct Free {
  void operator()(std::byte* p) const noexcept { ::operator delete[](p, page); }
};

struct Buffer {
  std::unique_ptr<std::byte[], Free> data;
  std::size_t size = 0;
};

thread_local Buffer buffer;

}  // namespace

std::byte* Workspace::get(std::size_t bytes) {
  if (bytes > buffer.size) {
    buffer.data.reset();
    buffer.size = 0;
    buffer.data.reset(static_cast<std::byte*>(::operator new[](bytes, page)));
    buffer.size = bytes;
  }
  return buffer.data.get();
}

void Workspace::trim() noexcept {
  if (buffer.size > kept_bytes) {
    buffer.data.reset();
    buffer.size = 0;
  }
}

}  // namespace gossamer
