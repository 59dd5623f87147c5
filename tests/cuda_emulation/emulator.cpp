// CUDA threads as fibers: each runs until it waits or returns, then the next one runs. A barrier and a shuffle let those
// that wait go on once all that must be there are. What no GPU would run, or only by luck, ends the process.
//
// Under ThreadSanitizer every CUDA thread is a fiber of its own to it: what two of them do is ordered by barriers alone,
// and by the launch, not by the order in which they happen to run here.
#include <dlfcn.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime.h"

#if defined(MSF_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(MSF_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

// Where shared_memory.ld puts __shared__ variables.
extern "C" char msf_shared_begin[] __attribute__((visibility("hidden")));
extern "C" char msf_shared_end[] __attribute__((visibility("hidden")));

namespace emulation {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr unsigned kWarp = 32;
constexpr unsigned kMostThreads = 1024;
constexpr unsigned kMostBlocks = 0x7fffffff;

enum class State { kReady, kAtBarrier, kAtShuffle, kReturned };

struct Place {
  const char* file;
  int line;

  bool operator==(const Place& other) const { return line == other.line && std::string(file) == other.file; }
};

struct Fiber {
  ucontext_t context;
  char* stack = nullptr;
  unsigned index = 0;
  State state = State::kReady;
  Place place{"", 0};    // where it waits
  unsigned mask = 0;     // of the shuffle
  unsigned source = 0;   // the lane that it reads from
  uint64_t given = 0, received = 0;
  void* asan = nullptr;  // what AddressSanitizer keeps of a stack that is left
  void* tsan = nullptr;
};

cudaError_t last_launch = cudaSuccess;
uint64_t n_launches = 0;

struct Emulator {
  std::mutex mutex;  // one launch at a time, in the thread that asks for it
  // Under ThreadSanitizer those of every block of the launch, since it takes a stack that two fibers use for shared data.
  std::vector<std::unique_ptr<Fiber>> fibers;
  size_t first_fiber = 0;  // of the block that runs
  unsigned n_threads = 0;
  ucontext_t scheduler;
  void* scheduler_asan = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  void* scheduler_tsan = nullptr;
  Fiber* running = nullptr;
  const std::function<void()>* body = nullptr;
  std::mt19937 random{0};
  // To ThreadSanitizer; only the addresses are used. Two of a block's barriers: a thread may be at the next one already
  // when another one leaves this one.
  char begin_of_block = 0, end_of_launch = 0;
  std::vector<char> barriers;
  char* barrier_of_block = nullptr;
  unsigned n_barriers = 0;
} emulator;

Fiber& thread(unsigned index) { return *emulator.fibers[emulator.first_fiber + index]; }

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "CUDA emulation: %s (block %u, thread %u)\n", what.c_str(), blockIdx.x, threadIdx.x);
  std::_Exit(70);
}

std::string text(const Place& place) { return std::string(place.file) + ":" + std::to_string(place.line); }

// The C library's, not AddressSanitizer's, which would take the guards off the stack that is left.
void switch_context(ucontext_t* from, ucontext_t* to) {
  using Swap = int (*)(ucontext_t*, const ucontext_t*);
  static const auto swap = reinterpret_cast<Swap>(dlsym(dlopen("libc.so.6", RTLD_LAZY), "swapcontext"));
  if (swap(from, to) != 0) fail("swapcontext failed");
}

void back_to_scheduler(Fiber& fiber, bool is_last) {
#if defined(MSF_ASAN)
  __sanitizer_start_switch_fiber(is_last ? nullptr : &fiber.asan, emulator.scheduler_stack,
                                 emulator.scheduler_stack_bytes);
#endif
#if defined(MSF_TSAN)
  __tsan_switch_to_fiber(emulator.scheduler_tsan, __tsan_switch_to_fiber_no_sync);
#endif
  static_cast<void>(is_last);
  switch_context(&fiber.context, &emulator.scheduler);
#if defined(MSF_ASAN)
  __sanitizer_finish_switch_fiber(fiber.asan, nullptr, nullptr);
#endif
}

void fiber_main() {
  Fiber& fiber = *emulator.running;
#if defined(MSF_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &emulator.scheduler_stack, &emulator.scheduler_stack_bytes);
#endif
#if defined(MSF_TSAN)
  __tsan_acquire(&emulator.begin_of_block);
#endif
  (*emulator.body)();
#if defined(MSF_TSAN)
  __tsan_release(&emulator.end_of_launch);
#endif
  fiber.state = State::kReturned;
  back_to_scheduler(fiber, true);
}

void start(Fiber& fiber, unsigned index) {
  if (fiber.stack == nullptr) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) fail("no memory for the stack of a thread");
    fiber.stack = static_cast<char*>(memory) + page;
  }
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
  fiber.index = index;
  fiber.state = State::kReady;
#if defined(MSF_TSAN)
  if (fiber.tsan == nullptr) fiber.tsan = __tsan_create_fiber(0);
#endif
}

void resume(Fiber& fiber) {
  emulator.running = &fiber;
  threadIdx.x = fiber.index;
#if defined(MSF_ASAN)
  __sanitizer_start_switch_fiber(&emulator.scheduler_asan, fiber.stack, kStackBytes);
#endif
#if defined(MSF_TSAN)
  __tsan_switch_to_fiber(fiber.tsan, __tsan_switch_to_fiber_no_sync);
#endif
  switch_context(&emulator.scheduler, &fiber.context);
#if defined(MSF_ASAN)
  __sanitizer_finish_switch_fiber(emulator.scheduler_asan, nullptr, nullptr);
#endif
}

void wait(State state, Place place) {
  Fiber& fiber = *emulator.running;
  fiber.state = state;
  fiber.place = place;
  back_to_scheduler(fiber, false);
}

// Lets the lanes of a shuffle go on if all of them are there.
void release_shuffle(const Fiber& first) {
  const unsigned warp = first.index / kWarp * kWarp;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((first.mask >> lane & 1u) == 0) continue;
    if (warp + lane >= emulator.n_threads) fail("a shuffle at " + text(first.place) + " names lanes that do not exist");
    const Fiber& other = thread(warp + lane);
    if (other.state == State::kReturned) {
      fail("a shuffle at " + text(first.place) + " waits for a thread that has returned");
    }
    if (other.state != State::kAtShuffle) return;
    if (other.mask != first.mask || !(other.place == first.place)) {
      fail("lanes of one shuffle are at " + text(first.place) + " and at " + text(other.place));
    }
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((first.mask >> lane & 1u) == 0) continue;
    Fiber& fiber = thread(warp + lane);
    fiber.received = thread(warp + fiber.source).given;
    fiber.state = State::kReady;
  }
}

// Lets a block whose threads all wait go on; they must be at one barrier.
void release_barrier() {
  Place place{"", 0};
  for (unsigned i = 0; i < emulator.n_threads; ++i) {
    if (thread(i).state != State::kReturned) place = thread(i).place;
  }
  for (unsigned i = 0; i < emulator.n_threads; ++i) {
    Fiber& fiber = thread(i);
    if (fiber.state == State::kReturned) fail("a barrier at " + text(place) + " waits for threads that have returned");
    if (fiber.state == State::kAtShuffle || !(fiber.place == place)) {
      fail("threads of one block wait at " + text(place) + " and at " + text(fiber.place));
    }
    fiber.state = State::kReady;
  }
  ++emulator.n_barriers;
}

std::vector<unsigned> in_order(unsigned n) {
  std::vector<unsigned> order(n);
  std::iota(order.begin(), order.end(), 0u);
  const char* name = std::getenv("MSF_EMULATED_ORDER");
  const std::string wanted = name == nullptr ? "forward" : name;
  if (wanted == "reverse") {
    std::reverse(order.begin(), order.end());
  } else if (wanted == "random") {
    std::shuffle(order.begin(), order.end(), emulator.random);
  } else if (wanted != "forward") {
    fail("MSF_EMULATED_ORDER must be forward, reverse or random; got " + wanted);
  }
  return order;
}

// Every block has shared memory of its own and knows nothing of what is in it: all bits are set, so that floats are NaN.
void renew_shared_memory() {
  const size_t bytes = msf_shared_end - msf_shared_begin;
#if defined(MSF_TSAN)  // takes the block before for one that shares this memory, unless it is mapped anew
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
  if (mmap(msf_shared_begin, bytes, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED) fail("no shared memory");
#endif
  // No memset: AddressSanitizer would look at it, and finds its own guards here.
  volatile uint64_t* words = reinterpret_cast<uint64_t*>(msf_shared_begin);
  for (size_t i = 0; i < bytes / sizeof(uint64_t); ++i) words[i] = ~uint64_t{0};
}

// The threads of the block that is number `ordinal` in the order of running.
void run_block(size_t ordinal) {
#if defined(MSF_TSAN)
  emulator.first_fiber = ordinal * emulator.n_threads;
  emulator.barrier_of_block = &emulator.barriers[2 * ordinal];
#endif
  static_cast<void>(ordinal);
  emulator.n_barriers = 0;
  while (emulator.fibers.size() < emulator.first_fiber + emulator.n_threads) {
    emulator.fibers.push_back(std::make_unique<Fiber>());
  }
  renew_shared_memory();
#if defined(MSF_TSAN)
  __tsan_release(&emulator.begin_of_block);
#endif
  for (unsigned i = 0; i < emulator.n_threads; ++i) start(thread(i), i);
  const std::vector<unsigned> order = in_order(emulator.n_threads);
  unsigned n_returned = 0;
  while (n_returned < emulator.n_threads) {
    bool has_run = false;
    for (const unsigned i : order) {
      Fiber& fiber = thread(i);
      if (fiber.state == State::kAtShuffle) release_shuffle(fiber);
      if (fiber.state != State::kReady) continue;
      resume(fiber);
      has_run = true;
      n_returned += fiber.state == State::kReturned;
    }
    if (!has_run && n_returned < emulator.n_threads) release_barrier();
  }
}

unsigned capped(unsigned n_blocks) {
  const char* cap = std::getenv("MSF_EMULATED_BLOCKS");
  return cap == nullptr ? n_blocks : std::min(n_blocks, static_cast<unsigned>(std::atoi(cap)));
}

}  // namespace

void launch(unsigned n_blocks, unsigned block_threads, const std::function<void()>& body) {
  const std::lock_guard<std::mutex> lock(emulator.mutex);
  if (n_blocks < 1 || n_blocks > kMostBlocks || block_threads < 1 || block_threads > kMostThreads) {
    last_launch = cudaErrorInvalidConfiguration;
    return;
  }
  ++n_launches;
  emulator.body = &body;
  emulator.n_threads = block_threads;
  blockDim = {block_threads, 1, 1};
  gridDim = {capped(n_blocks), 1, 1};
#if defined(MSF_TSAN)
  emulator.barriers.assign(2 * gridDim.x, 0);
  emulator.scheduler_tsan = __tsan_get_current_fiber();
#endif
  size_t ordinal = 0;
  for (const unsigned block : in_order(gridDim.x)) {
    blockIdx = {block, 0, 0};
    run_block(ordinal++);
  }
#if defined(MSF_TSAN)
  __tsan_acquire(&emulator.end_of_launch);
#endif
}

void barrier(const char* file, int line) {
#if defined(MSF_TSAN)
  char* own = emulator.barrier_of_block + emulator.n_barriers % 2;
  __tsan_release(own);
#endif
  wait(State::kAtBarrier, {file, line});
#if defined(MSF_TSAN)
  __tsan_acquire(own);
#endif
}

uint64_t exchange(unsigned mask, uint64_t bits, unsigned source, const char* file, int line) {
  Fiber& fiber = *emulator.running;
  if ((mask >> fiber.index % kWarp & 1u) == 0) fail("a lane calls a shuffle that does not name it");
  if ((mask >> source & 1u) == 0) fail("a shuffle reads from a lane that it does not name");
  fiber.mask = mask;
  fiber.source = source;
  fiber.given = bits;
  wait(State::kAtShuffle, {file, line});
  return fiber.received;
}

}  // namespace emulation

cudaError_t cudaGetLastError() { return std::exchange(emulation::last_launch, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}

// How often kernels were launched.
extern "C" __attribute__((visibility("default"))) uint64_t msf_emulated_launches() { return emulation::n_launches; }
