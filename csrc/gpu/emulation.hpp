// A GPU in plain C++: runs the blocks of a kernel one after another, for the tests of kernels.
//
// Each thread is a fiber that runs until it meets a barrier or an instruction of its whole warp.
// Who runs next is drawn at random, shared memory starts as NaN, and an asynchronous copy lands
// either at once or only when it is waited for: what a kernel leaves to chance on a GPU goes wrong
// here for some seed. Not shown: speed, weak ordering of memory between barriers, launch limits.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

// The words of CUDA C++ that kernels use.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace gossamer::gpu::emulated {

inline constexpr unsigned warp_size = 32;
inline constexpr std::size_t stack_bytes = std::size_t{64} << 10;
inline constexpr std::size_t slot_bytes = 64;  // what a lane brings to an instruction of its warp

// What memory holds before it is written: NaN in every floating type, and no usual integer.
inline void fill_with_nan(unsigned char* to, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) to[i] = i % 2 == 0 ? 0xC1 : 0x7F;
}

// An asynchronous copy of up to 16 bytes, zeros behind them.
struct Copy {
  void* to = nullptr;
  const void* from = nullptr;
  unsigned bytes = 0;
  void land() const {
    if (to == nullptr) return;
    std::memset(to, 0, 16);
    if (bytes != 0) std::memcpy(to, from, bytes);
  }
};

// Work that was asked for and is not done before it is waited for, in groups, the oldest first.
template <class T>
struct Pending {
  std::vector<T> open;
  std::vector<std::vector<T>> groups;

  void commit() {
    groups.push_back(std::move(open));
    open.clear();
  }
  template <class F>
  void wait(std::size_t allowed, F&& finish) {
    while (groups.size() > allowed) {
      for (const T& one : groups.front()) finish(one);
      groups.erase(groups.begin());
    }
  }
  bool left() const {
    for (const auto& group : groups) {
      if (!group.empty()) return true;
    }
    return !open.empty();
  }
  void clear() {
    open.clear();
    groups.clear();
  }
};

struct Thread {
  jmp_buf at;
  ucontext_t start;
  std::unique_ptr<char[]> stack;
  bool started = false, done = false;
  unsigned number = 0;
  dim3 index;
  Pending<Copy> copies;
  Pending<std::function<void()>> products;  // of a warpgroup
  bool unfenced = false;  // wrote shared memory that the tensor cores may not see yet
  void* fake = nullptr;   // AddressSanitizer's
};

struct Warp {
  alignas(16) unsigned char in[warp_size][slot_bytes];
  alignas(16) unsigned char out[warp_size][slot_bytes];
  const void* instruction = nullptr;
  std::uint32_t arrived = 0, alive = 0, ready = 0;  // masks of lanes
};

struct Block {
  dim3 index, size, grid;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<unsigned> parked;  // at a barrier
  int barrier = 0;               // the line of that barrier
  std::vector<unsigned char> shared;
  unsigned live = 0;
  Thread* self = nullptr;
  jmp_buf scheduler;
  const void* home = nullptr;  // the scheduler's own stack
  std::size_t home_size = 0;
  void* fake = nullptr;
  std::function<void()> body;
  std::string failure;
  bool unfenced = false;  // a thread passed a barrier with such writes
  std::uint64_t random = 1, priority = 1, switches = 0;
};
inline thread_local Block block;

[[noreturn]] inline void fail(const std::string& why) {
  throw std::logic_error(
      "block " + std::to_string(block.index.x) + "," + std::to_string(block.index.y) + ", thread " +
      std::to_string(block.self == nullptr ? 0 : block.self->number) + ": " + why);
}

inline std::uint64_t next_random() {
  std::uint64_t& r = block.random;
  r ^= r << 13;
  r ^= r >> 7;
  r ^= r << 17;
  return r;
}

// AddressSanitizer has to know of each change of stacks.
inline void announce([[maybe_unused]] void** keep, [[maybe_unused]] const void* stack,
                     [[maybe_unused]] std::size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(keep, stack, size);
#endif
}
inline void arrive([[maybe_unused]] void* kept, [[maybe_unused]] const void** stack,
                   [[maybe_unused]] std::size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(kept, stack, size);
#endif
}

// Back to the scheduler; returns when the thread is resumed.
inline void leave() {
  Thread& t = *block.self;
  announce(t.done ? nullptr : &t.fake, block.home, block.home_size);
  if (_setjmp(t.at) == 0) _longjmp(block.scheduler, 1);
  arrive(t.fake, nullptr, nullptr);
}

inline void make_ready(unsigned thread) {
  block.warps[thread / warp_size].ready |= 1u << (thread % warp_size);
}

inline void release_parked() {
  for (const unsigned thread : block.parked) make_ready(thread);
  block.parked.clear();
}

inline void run_thread() {
  arrive(nullptr, &block.home, &block.home_size);
  Thread& t = *block.self;
  try {
    block.body();
    if (t.copies.left()) fail("ended with a copy that nobody waited for");
    if (t.products.left()) fail("ended with a product that nobody waited for");
  } catch (const std::exception& e) {
    if (block.failure.empty()) block.failure = e.what();
  }
  t.done = true;
  block.warps[t.number / warp_size].alive &= ~(1u << (t.number % warp_size));
  if (--block.live == block.parked.size()) release_parked();
  leave();
}

inline void resume(unsigned thread) {
  Thread& t = block.threads[thread];
  block.self = &t;
  ++block.switches;
  announce(&block.fake, t.stack.get(), stack_bytes);
  if (_setjmp(block.scheduler) != 0) {
    arrive(block.fake, nullptr, nullptr);
    return;
  }
  if (t.started) _longjmp(t.at, 1);
  t.started = true;
  getcontext(&t.start);
  t.start.uc_stack.ss_sp = t.stack.get();
  t.start.uc_stack.ss_size = stack_bytes;
  t.start.uc_link = nullptr;
  makecontext(&t.start, run_thread, 0);
  setcontext(&t.start);
}

inline void barrier(int line) {
  if (!block.parked.empty() && block.barrier != line) {
    fail("meets the barrier of line " + std::to_string(line) + "; others wait at line " +
         std::to_string(block.barrier));
  }
  block.barrier = line;
  if (block.self->unfenced) block.unfenced = true;
  if (block.parked.size() + 1 == block.live) {
    release_parked();
    make_ready(block.self->number);
  } else {
    block.parked.push_back(block.self->number);
  }
  leave();
}

template <class T>
T& in_of(Warp& warp, int lane) {
  return *reinterpret_cast<T*>(warp.in[lane]);
}
template <class T>
T& out_of(Warp& warp, int lane) {
  return *reinterpret_cast<T*>(warp.out[lane]);
}

// An instruction of a whole warp: each lane brings `in`; the last to come runs `op` on all, then
// each takes its `out`. `instruction` is an address of its own for each kind.
template <class Out, class In, class Op>
Out together(const void* instruction, const In& in, Op op) {
  static_assert(sizeof(In) <= slot_bytes && sizeof(Out) <= slot_bytes);
  Warp& warp = block.warps[block.self->number / warp_size];
  const unsigned lane = block.self->number % warp_size;
  if (warp.alive != ~0u) fail("runs an instruction of the whole warp, whose other lanes have left");
  if (warp.arrived != 0 && warp.instruction != instruction) {
    fail("lanes of one warp meet in different instructions");
  }
  warp.instruction = instruction;
  std::memcpy(warp.in[lane], &in, sizeof(In));
  warp.arrived |= 1u << lane;
  if (warp.arrived == ~0u) {
    op(warp);
    warp.arrived = 0;
    warp.ready = ~0u;
  }
  leave();
  Out out;
  std::memcpy(&out, warp.out[lane], sizeof(Out));
  return out;
}

// The next thread, or -1. Even seeds choose among all lanes alike, which misses most barriers that
// are left out: all warps advance together. Odd seeds give warps priorities, drawn anew now and
// then, so that one runs far ahead of the others.
inline int choose(std::uint64_t seed) {
  if (next_random() % 256 == 0) block.priority = next_random() | 1;
  int best = -1;
  std::uint64_t highest = 0;
  for (std::size_t i = 0; i < block.warps.size(); ++i) {
    if (block.warps[i].ready == 0) continue;
    const std::uint64_t drawn =
        seed % 2 == 0 ? next_random() : (i + 1) * 0x9E3779B97F4A7C15u * block.priority;
    if (best < 0 || drawn >> 32 > highest) {
      highest = drawn >> 32;
      best = static_cast<int>(i);
    }
  }
  if (best < 0) return -1;
  std::uint32_t& ready = block.warps[static_cast<std::size_t>(best)].ready;
  unsigned lane = static_cast<unsigned>(next_random() >> 40) % warp_size;
  while ((ready >> lane & 1) == 0) lane = (lane + 1) % warp_size;
  ready &= ~(1u << lane);
  return best * static_cast<int>(warp_size) + static_cast<int>(lane);
}

inline void begin_block(dim3 index, unsigned threads, std::size_t shared_bytes) {
  Block& b = block;
  b.index = index;
  b.shared.resize(shared_bytes + 128);
  fill_with_nan(b.shared.data(), b.shared.size());
  b.warps.assign((threads + warp_size - 1) / warp_size, Warp{});
  b.priority = next_random() | 1;
  b.unfenced = false;
  b.parked.clear();
  b.live = threads;
  for (unsigned i = 0; i < threads; ++i) {
    Thread& t = b.threads[i];
    t.started = t.done = t.unfenced = false;
    t.copies.clear();
    t.products.clear();
    t.number = i;
    t.index = {i % b.size.x, i / b.size.x % b.size.y, i / b.size.x / b.size.y};
    b.warps[i / warp_size].alive |= 1u << (i % warp_size);
    make_ready(i);
  }
}

// Runs `body` as a kernel of whole warps. Throws std::logic_error at the first fault.
inline void launch(dim3 grid, dim3 size, std::size_t shared_bytes, std::uint64_t seed,
                   std::function<void()> body) {
  const unsigned threads = size.x * size.y * size.z;
  block.body = std::move(body);
  block.size = size;
  block.grid = grid;
  block.failure.clear();
  block.random = seed * 0x9E3779B97F4A7C15u + 1;
  while (block.threads.size() < threads) {
    block.threads.emplace_back().stack = std::make_unique<char[]>(stack_bytes);
  }
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        begin_block({x, y, z}, threads, shared_bytes);
        for (int i; block.failure.empty() && (i = choose(seed)) >= 0;) {
          resume(static_cast<unsigned>(i));
        }
        if (block.failure.empty() && block.live != 0) {
          block.failure = "block " + std::to_string(x) + "," + std::to_string(y) + ": " +
                          std::to_string(block.live) + " threads wait for others that never come";
        }
        if (!block.failure.empty()) throw std::logic_error(block.failure);
      }
    }
  }
}

}  // namespace gossamer::gpu::emulated

#define threadIdx (::gossamer::gpu::emulated::block.self->index)
#define blockIdx (::gossamer::gpu::emulated::block.index)
#define blockDim (::gossamer::gpu::emulated::block.size)
#define gridDim (::gossamer::gpu::emulated::block.grid)
#define __syncthreads() ::gossamer::gpu::emulated::barrier(__LINE__)
