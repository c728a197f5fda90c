// Launches a kernel that takes one struct: on a stream of a device, or emulated.
#pragma once

#include <string>

#include "core/check.hpp"
#include "core/queue.hpp"
#include "gpu/words.cuh"

namespace gossamer::gpu {

#if defined(__CUDACC__)

inline void require_success(cudaError_t error, const char* who) {
  require<DeviceError>(error == cudaSuccess, std::string(who) + ": " + cudaGetErrorString(error));
}

// Makes a device current, and the one before it afterwards.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    require_success(cudaGetDevice(&before_), "cudaGetDevice");
    if (device >= 0 && device != before_) require_success(cudaSetDevice(device), "cudaSetDevice");
  }
  ~OnDevice() { cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

template <auto kernel, class Args>
void launch(const char* name, dim3 grid, unsigned threads, std::size_t shared, const Queue& queue,
            const Args& args) {
  if (grid.x == 0 || grid.y == 0) return;
  require_success(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(shared)),
                  name);
  kernel<<<grid, threads, shared, static_cast<cudaStream_t>(queue.stream)>>>(args);
  require_success(cudaGetLastError(), name);
}

#else

class OnDevice {
 public:
  explicit OnDevice(int) {}
};

// The seed of the next launch; tests set it.
inline thread_local std::uint64_t next_seed = 1;

template <auto kernel, class Args>
void launch(const char*, dim3 grid, unsigned threads, std::size_t shared, const Queue&,
            const Args& args) {
  emulated::launch(grid, {threads}, shared, next_seed++, [&] { kernel(args); });
}

#endif

}  // namespace gossamer::gpu
