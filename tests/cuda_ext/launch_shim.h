// Runs the CUDA kernels on the host: CUDA's keywords, and a launch that calls a kernel once for each thread.
//
// Kernels that share memory run as real threads under ThreadSanitizer, which sees what a missing __syncthreads lets
// happen, and as fibers of one thread otherwise: threads that wait for each other take minutes on a machine with other
// work. All other kernels run as a loop. Shared memory is allocated for each block at exactly the size asked for, so that
// a sanitizer sees every access beyond it.

#pragma once

#include <cxxabi.h>
#include <dlfcn.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

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
// Small, so that a block of few threads has several.
constexpr int kWarp = 8;

#ifdef __SANITIZE_THREAD__
using Barrier = std::barrier<>;
#else
inline void next_fiber();

// What all of so many fibers reach before one goes on.
class Barrier {
 public:
  explicit Barrier(int fibers) : fibers_(fibers) {}

  void arrive_and_wait() {
    const int round = round_;
    if (++arrived_ == fibers_) {
      arrived_ = 0;
      ++round_;
    }
    while (round_ == round) next_fiber();
  }

 private:
  const int fibers_;
  int arrived_ = 0, round_ = 0;
};
#endif

struct Warp {
  Barrier barrier{kWarp};
  double values[kWarp];
};

inline thread_local Barrier* block_barrier = nullptr;

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

#ifdef __SANITIZE_THREAD__
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
  Barrier outer_, inner_;
  std::vector<Warp> warps_;
  std::vector<std::thread> threads_;
};
#else
// The threads of a block that share memory, as fibers that take turns: each runs until it has to wait.
class Block {
 public:
  static void run(int threads, const std::function<void()>& body) {
    Block block(threads, body);
    while (block.running_ > 0)
      for (Fiber& fiber : block.fibers_)
        if (!fiber.done) block.resume(fiber);
  }

  static Block* current;

  void pause() { change(fiber_->context, main_, main_stack_, main_size_); }

 private:
  static constexpr size_t kStack = 128 << 10;

  struct Fiber {
    ucontext_t context = {};
    char* stack = nullptr;
    bool done = false;
  };

  Block(int threads, const std::function<void()>& body)
      : running_(threads), body_(body), all_(threads), warps_(threads / kWarp), fibers_(threads) {
    current = this;
    block_barrier = &all_;
    static std::vector<std::vector<char>> stacks;  // of all blocks: fresh memory is dear
    while (stacks.size() < fibers_.size()) stacks.emplace_back(kStack);
    for (Fiber& fiber : fibers_) {
      fiber.stack = stacks[&fiber - fibers_.data()].data();
      ASAN_UNPOISON_MEMORY_REGION(fiber.stack, kStack);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack;
      fiber.context.uc_stack.ss_size = kStack;
      makecontext(&fiber.context, start, 0);
    }
  }

  void resume(Fiber& fiber) {
    fiber_ = &fiber;
    const auto thread = static_cast<unsigned>(&fiber - fibers_.data());
    thread_index = {thread};
    warp = &warps_[thread / kWarp];
    change(main_, fiber.context, fiber.stack, kStack);
  }

  static void start() {
    __sanitizer_finish_switch_fiber(nullptr, &current->main_stack_, &current->main_size_);
    current->body_();
    current->fiber_->done = true;
    --current->running_;
    current->pause();
  }

  // AddressSanitizer wants to know on which stack it is.
  static void change(ucontext_t& from, ucontext_t& to, const void* stack, size_t size) {
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack, size);
    swapcontext(&from, &to);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
  }

  int running_;
  const std::function<void()>& body_;
  Barrier all_;
  std::vector<Warp> warps_;
  std::vector<Fiber> fibers_;
  Fiber* fiber_ = nullptr;
  ucontext_t main_ = {};
  const void* main_stack_ = nullptr;
  size_t main_size_ = 0;
};

inline Block* Block::current = nullptr;
inline void next_fiber() { Block::current->pause(); }
#endif

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
