// Runs the CUDA kernels on the host: CUDA's keywords, and a launch that calls a kernel once for each thread.
//
// Kernels that share memory run as real threads, with a barrier for __syncthreads; the others as a loop. Shared memory
// is allocated for each block at exactly the size asked for, so that a sanitizer sees every access beyond it.

#pragma once

#include <cxxabi.h>
#include <dlfcn.h>
#include <sanitizer/asan_interface.h>

#include <atomic>
#include <barrier>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace shim {

struct Index {
  unsigned x;
};

inline thread_local Index block_index, thread_index, block_dim;
inline thread_local unsigned char* shared_memory = nullptr;
inline thread_local std::barrier<>* block_barrier = nullptr;

// Small, so that a block of few threads has several.
constexpr int kWarp = 8;

struct Warp {
  std::barrier<> barrier{kWarp};
  double values[kWarp];
};

inline thread_local Warp* warp = nullptr;
inline std::atomic<int> block_or = 0;  // one block runs at a time

inline std::map<std::string, int64_t>& launches() {
  static std::map<std::string, int64_t> counts;
  return counts;
}

// Counts a launch under the kernel's name; needs -rdynamic.
inline void count(void* kernel) {
  Dl_info info;
  if (dladdr(kernel, &info) == 0 || info.dli_sname == nullptr) abort();
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> name(abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status),
                                                    free);
  ++launches()[status == 0 ? name.get() : info.dli_sname];
}

// The threads of a block that share memory. They live as long as the program: starting them for each launch would cost
// more than the kernels.
class Block {
 public:
  static void run(int threads, const std::function<void()>& body) {
    static Block block(threads);
    block.body_ = &body;
    block.outer_.arrive_and_wait();  // start
    block.outer_.arrive_and_wait();  // end
  }

 private:
  explicit Block(int threads) : outer_(threads + 1), inner_(threads), warps_(threads / kWarp) {
    for (int thread = 0; thread < threads; ++thread)
      threads_.emplace_back([this, thread] {
        thread_index = {static_cast<unsigned>(thread)};
        block_barrier = &inner_;
        warp = &warps_[thread / kWarp];
        while (true) {
          outer_.arrive_and_wait();
          if (body_ == nullptr) return;
          (*body_)();
          outer_.arrive_and_wait();
        }
      });
  }

  ~Block() {
    body_ = nullptr;
    outer_.arrive_and_wait();
    for (std::thread& thread : threads_) thread.join();
  }

  const std::function<void()>* body_ = nullptr;
  std::barrier<> outer_, inner_;
  std::vector<Warp> warps_;
  std::vector<std::thread> threads_;
};

inline void run(int64_t blocks, int threads, int64_t shared, const std::function<void()>& kernel) {
  for (int64_t block = 0; block < blocks; ++block) {
    const auto in_thread = [&](unsigned char* memory) {
      block_dim = {static_cast<unsigned>(threads)};
      block_index = {static_cast<unsigned>(block)};
      shared_memory = memory;
      kernel();
    };
    if (shared > 0) {
      const std::unique_ptr<unsigned char, void (*)(void*)> memory(
          static_cast<unsigned char*>(aligned_alloc(32, (shared + 31) / 32 * 32)), free);
      ASAN_POISON_MEMORY_REGION(memory.get() + shared, (shared + 31) / 32 * 32 - shared);
      // No kernel returns before its last __syncthreads, so the barrier always counts all threads.
      Block::run(threads, [&] { in_thread(memory.get()); });
      ASAN_UNPOISON_MEMORY_REGION(memory.get(), (shared + 31) / 32 * 32);
    } else {
      for (int thread = 0; thread < threads; ++thread) {
        thread_index = {static_cast<unsigned>(thread)};
        in_thread(nullptr);
      }
    }
  }
}

}  // namespace shim

#define blockIdx shim::block_index
#define threadIdx shim::thread_index
#define blockDim shim::block_dim
#define SOFTPOOL_SHARED(name) unsigned char* const name = shim::shared_memory

inline void __syncthreads() { shim::block_barrier->arrive_and_wait(); }

inline int __syncthreads_or(int predicate) {
  if (predicate) shim::block_or = 1;
  __syncthreads();
  const int any = shim::block_or;
  __syncthreads();
  shim::block_or = 0;
  __syncthreads();
  return any;
}

// All threads of a warp call it, on CUDA too.
template <class Number>
Number __shfl_xor_sync(unsigned, Number value, int mask) {
  const int lane = shim::thread_index.x % shim::kWarp;
  shim::warp->values[lane] = value;
  shim::warp->barrier.arrive_and_wait();
  const double other = shim::warp->values[lane ^ mask];
  shim::warp->barrier.arrive_and_wait();
  return static_cast<Number>(other);
}

namespace softpool3d::cuda {

// Small blocks and boxes: the tests' tensors then take several, and they cost fewer threads.
constexpr int kThreads = 16, kWarp = shim::kWarp, kMostLanes = 8, kBoxElements = 96, kOverlapThreads = 16;
constexpr int64_t kTileBytes = 6 << 10;

struct Stream {};

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared, Stream, Arguments... arguments) {
  shim::count(reinterpret_cast<void*>(kernel));
  if (blocks < 1 || blocks > INT32_MAX || shared > 48 << 10) {
    std::fprintf(stderr, "no GPU launches %lld blocks with %lld bytes of shared memory\n",
                 static_cast<long long>(blocks), static_cast<long long>(shared));
    abort();
  }
  shim::run(blocks, threads, shared, [=] { kernel(arguments...); });
}

}  // namespace softpool3d::cuda
