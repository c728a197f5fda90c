// Memory of a device, or of the emulated one, with guard zones around what a kernel may touch.
#pragma once

#include <cstring>
#include <stdexcept>
#include <vector>

#include "gpu/launch.cuh"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size)
#define ASAN_UNPOISON_MEMORY_REGION(address, size)
#endif

namespace check {

inline constexpr std::size_t guard = 4096;  // bytes in front and behind
inline constexpr unsigned char mark = 0xA5;

template <class T>
class Array {
 public:
  explicit Array(const std::vector<T>& from) : count_(from.size()) {
    bytes_.assign(count_ * sizeof(T) + 2 * guard, mark);
    if (count_ != 0) std::memcpy(bytes_.data() + guard, from.data(), count_ * sizeof(T));
#if defined(__CUDACC__)
    gossamer::gpu::require_success(cudaMalloc(&device_, bytes_.size()), "cudaMalloc");
    gossamer::gpu::require_success(
        cudaMemcpy(device_, bytes_.data(), bytes_.size(), cudaMemcpyHostToDevice), "cudaMemcpy");
#endif
    poison(true);
  }
  ~Array() {
    poison(false);
#if defined(__CUDACC__)
    cudaFree(device_);
#endif
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  T* data() {
#if defined(__CUDACC__)
    return reinterpret_cast<T*>(static_cast<unsigned char*>(device_) + guard);
#else
    return reinterpret_cast<T*>(bytes_.data() + guard);
#endif
  }

  // What a kernel has left there. Throws if it wrote outside.
  std::vector<T> read() {
#if defined(__CUDACC__)
    gossamer::gpu::require_success(cudaDeviceSynchronize(), "kernel");
    gossamer::gpu::require_success(
        cudaMemcpy(bytes_.data(), device_, bytes_.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
#endif
    poison(false);
    for (std::size_t i = 0; i < guard; ++i) {
      if (bytes_[i] != mark || bytes_[bytes_.size() - 1 - i] != mark) {
        throw std::logic_error("wrote outside of an array");
      }
    }
    poison(true);
    std::vector<T> out(count_);
    if (count_ != 0) std::memcpy(out.data(), bytes_.data() + guard, count_ * sizeof(T));
    return out;
  }

 private:
  // AddressSanitizer tells who reads there too.
  void poison([[maybe_unused]] bool on) {
    [[maybe_unused]] unsigned char* const end = bytes_.data() + bytes_.size() - guard;
    if (on) {
      ASAN_POISON_MEMORY_REGION(bytes_.data(), guard);
      ASAN_POISON_MEMORY_REGION(end, guard);
    } else {
      ASAN_UNPOISON_MEMORY_REGION(bytes_.data(), bytes_.size());
    }
  }

  std::size_t count_;
  std::vector<unsigned char> bytes_;
#if defined(__CUDACC__)
  void* device_ = nullptr;
#endif
};

}  // namespace check
