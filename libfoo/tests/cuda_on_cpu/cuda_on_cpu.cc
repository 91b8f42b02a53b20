// The scheduler of cuda_runtime.h's fibers, and memory between guard pages.
//
// A warp runs until all of its lanes wait for the block or have ended, then the
// next warp runs. A switch saves three registers, because it is made some
// hundred times for each thread of a block. Fibers and their stacks are kept
// for the next block.
#include <link.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <climits>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "cuda_runtime.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

enum class State { kRuns, kWaitsForWarp, kWaitsForBlock, kEnded };
void suspend(State state);  // of the current fiber

namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr std::size_t kPage = 65536;  // of any system
constexpr std::size_t kStack = 4 * kPage;

struct Fiber {
  void* registers[5];  // of __builtin_setjmp
  bool started = false;
  State state;
  dim3 index;
  unsigned exchanges;  // since the block began
};

Fiber fibers[kMaxThreads];
unsigned current;
void* scheduler[5];
void (*thread_body)(const void* context);
const void* thread_context;
bool running = false;

// What lanes exchange. A call uses one half while a slower lane may still read
// the other.
std::uint64_t exchanged[2][kMaxThreads];

void describe(const char* sentence) {
  char text[300];
  const int size = std::snprintf(
      text, sizeof(text),
      "cuda_on_cpu: block (%u, %u, %u), thread (%u, %u, %u): %s\n", blockIdx.x,
      blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z, sentence);
  if (write(STDERR_FILENO, text, static_cast<std::size_t>(size)) < 0) _exit(1);
}

[[noreturn]] void fail(const char* sentence) {
  describe(sentence);
  std::abort();
}

void on_signal(int signal, siginfo_t*, void*) {
  if (running) {
    describe(signal == SIGILL
                 ? "a trap of UBSan: a misaligned access, an index beyond an "
                   "array or an overflow"
                 : "an access outside of all buffers");
  }
  ::signal(signal, SIG_DFL);
  raise(signal);
}

void handle_signals() {
  static char memory[kPage];
  stack_t stack = {};
  stack.ss_sp = memory;
  stack.ss_size = sizeof(memory);
  sigaltstack(&stack, nullptr);
  struct sigaction action = {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_ONSTACK | SA_NODEFER;
  for (const int signal : {SIGSEGV, SIGBUS, SIGILL, SIGTRAP}) {
    sigaction(signal, &action, nullptr);
  }
}

void run_fiber() {
  for (;;) {
    thread_body(thread_context);
    suspend(State::kEnded);
  }
}

[[noreturn]] void start(Fiber& fiber) {
  fiber.started = true;
  void* memory = mmap(nullptr, kPage + kStack, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) fail("there is no memory for its stack");
  mprotect(memory, kPage, PROT_NONE);
  static ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = static_cast<char*>(memory) + kPage;
  // The tops of stacks fall into different sets of the caches.
  context.uc_stack.ss_size = kStack - 192 * (current % 64);
  makecontext(&context, run_fiber, 0);
  setcontext(&context);
  std::abort();
}

}  // namespace

// The compiler must not conclude from these functions which registers and
// variables they change: before they return, other fibers have run. It
// concludes nothing from weak functions.
[[gnu::weak]] void jump(void** registers) { __builtin_longjmp(registers, 1); }

[[gnu::weak]] void suspend(State state) {
  Fiber& fiber = fibers[current];
  fiber.state = state;
  if (__builtin_setjmp(fiber.registers) == 0) jump(scheduler);
}

[[gnu::weak]] void resume(unsigned i) {
  Fiber& fiber = fibers[i];
  current = i;
  threadIdx = fiber.index;
  fiber.state = State::kRuns;
  if (__builtin_setjmp(scheduler) == 0) {
    if (fiber.started) jump(fiber.registers);
    start(fiber);
  }
}

namespace {

// Runs threads [begin, end) to the next barrier of the block, or to the end.
State run_warp(unsigned begin, unsigned end) {
  for (;;) {
    for (unsigned i = begin; i < end; ++i) resume(i);
    const State state = fibers[begin].state;
    for (unsigned i = begin; i < end; ++i) {
      if (fibers[i].state == state) continue;
      threadIdx = fibers[i].index;
      fail("it does not wait where the first lane of its warp does");
    }
    if (state != State::kWaitsForWarp) return state;
  }
}

// Fills the shared memory of all kernels with NaN: the thread-local variables
// of the program.
void fill_shared_memory() {
  static char* data = nullptr;
  static std::size_t size = 0;
  static const bool found = dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void*) {
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          if (info->dlpi_phdr[i].p_type != PT_TLS) continue;
          data = static_cast<char*>(info->dlpi_tls_data);
          size = info->dlpi_phdr[i].p_memsz;
        }
        return 1;  // the program comes first
      },
      nullptr);
  if (found && data != nullptr) std::memset(data, 0xFF, size);
}

void run_block(bool descending) {
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  for (unsigned i = 0; i < threads; ++i) {
    fibers[i].exchanges = 0;
    fibers[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y,
                       i / (blockDim.x * blockDim.y)};
  }
  fill_shared_memory();
  const unsigned warps = (threads + warpSize - 1) / warpSize;
  State state;
  do {
    state = State::kRuns;
    for (unsigned i = 0; i < warps; ++i) {
      const unsigned begin = (descending ? warps - 1 - i : i) * warpSize;
      const State reached =
          run_warp(begin, std::min(threads, begin + warpSize));
      if (i > 0 && reached != state) {
        fail("its warp and another one do not meet in __syncthreads");
      }
      state = reached;
    }
  } while (state == State::kWaitsForBlock);
}

cudaError_t last_error = cudaSuccess;

struct Mapping {
  void* begin;
  std::size_t bytes;
};

std::map<void*, Mapping>& mappings() {
  static std::map<void*, Mapping> result;
  return result;
}

void check_mask(unsigned mask) {
  if (mask != ~0u) fail("its mask does not name all lanes");
}

}  // namespace

int lane() { return static_cast<int>(current % warpSize); }

void wait_for_block() { suspend(State::kWaitsForBlock); }

void wait_for_warp(unsigned mask) {
  check_mask(mask);
  suspend(State::kWaitsForWarp);
}

std::uint64_t exchange(unsigned mask, std::uint64_t bits, int lane) {
  check_mask(mask);
  auto& lanes = exchanged[fibers[current].exchanges++ % 2];
  lanes[current] = bits;
  suspend(State::kWaitsForWarp);
  const unsigned source = current / warpSize * warpSize +
                          static_cast<unsigned>(lane) % warpSize;
  if (source >= blockDim.x * blockDim.y * blockDim.z) {
    fail("it reads from a lane that does not exist");
  }
  return lanes[source];
}

cudaError_t launch(const cudaLaunchConfig_t& config,
                   void (*thread)(const void* context), const void* context) {
  const auto within = [](const dim3& size, unsigned x, unsigned y, unsigned z) {
    return 0 < size.x && size.x <= x && 0 < size.y && size.y <= y &&
           0 < size.z && size.z <= z;
  };
  const dim3 &grid = config.gridDim, &block = config.blockDim;
  if (!within(grid, INT_MAX, 65535, 65535) ||
      !within(block, kMaxThreads, kMaxThreads, 64) ||
      block.x * block.y * block.z > kMaxThreads ||
      config.dynamicSmemBytes != 0) {
    return last_error = cudaErrorInvalidConfiguration;
  }
  static const bool handled = (handle_signals(), true);
  running = handled;
  thread_body = thread;
  thread_context = context;
  gridDim = grid;
  blockDim = block;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        run_block((x + y + z) % 2 != 0);
      }
    }
  }
  running = false;
  return cudaSuccess;
}

}  // namespace cuda_on_cpu

// Only these occur here.
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation"
                                            : "cudaErrorInvalidConfiguration";
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory"
                                            : "invalid configuration argument";
}

cudaError_t cudaGetLastError() {
  return std::exchange(cuda_on_cpu::last_error, cudaSuccess);
}

cudaError_t cudaMallocHost(void** data, std::size_t bytes) {
  using cuda_on_cpu::kPage;
  const std::size_t rounded = (bytes + kPage - 1) / kPage * kPage;
  void* begin = mmap(nullptr, rounded + 2 * kPage, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (begin == MAP_FAILED) return cudaErrorMemoryAllocation;
  char* first = static_cast<char*>(begin) + kPage;
  if (rounded > 0 && mprotect(first, rounded, PROT_READ | PROT_WRITE) != 0) {
    return cudaErrorMemoryAllocation;
  }
  *data = first + (rounded - bytes);
  cuda_on_cpu::mappings()[*data] = {begin, rounded + 2 * kPage};
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* data) {
  const auto found = cuda_on_cpu::mappings().find(data);
  munmap(found->second.begin, found->second.bytes);
  cuda_on_cpu::mappings().erase(found);
  return cudaSuccess;
}
