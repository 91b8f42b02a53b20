// The device of device.h: CUDA if this is compiled with FOO_CORE_CUDA, by nvcc
// or with the headers of tests/cuda_on_cpu, else the CPU.
#include "device.h"

#include <cstdio>
#include <cstdlib>

#ifdef FOO_CORE_CUDA
#include <cuda_runtime.h>

#include <map>
#endif

namespace foo_core::testing {

#ifdef FOO_CORE_CUDA

namespace {

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA failed with %s\n", cudaGetErrorName(error));
  std::abort();
}

// Memory that has been released, by its size. Pinned memory takes longer to
// allocate than most tests take to run.
std::vector<void*>& released(std::size_t bytes) {
  static std::map<std::size_t, std::vector<void*>> pool;
  return pool[bytes];
}

std::size_t rounded(std::size_t bytes) {
  std::size_t size = 4096;
  while (size < bytes) size *= 2;
  return size;
}

}  // namespace

bool on_cuda() { return true; }

bool has_device() {
  static const bool result = [] {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
  }();
  return result;
}

bool has_lazy_memory() {
#ifdef CUDART_VERSION
  return false;
#else
  return true;  // tests/cuda_on_cpu
#endif
}

void synchronize() { check(cudaDeviceSynchronize()); }

void* allocate(std::size_t bytes) {
  const std::size_t size = rounded(bytes);
  auto& pool = released(size);
  void* data = nullptr;
  if (!pool.empty()) {
    data = pool.back();
    pool.pop_back();
  } else if (has_device()) {
    check(cudaMallocHost(&data, size));
  } else {
    data = std::aligned_alloc(64, size);  // of a test that is skipped
  }
  return static_cast<char*>(data) + (size - bytes);
}

void release(void* data, std::size_t bytes) {
  const std::size_t size = rounded(bytes);
  released(size).push_back(static_cast<char*>(data) - (size - bytes));
}

Executor device_executor() { return Executor::cuda(nullptr); }

#else

bool on_cuda() { return false; }
bool has_device() { return true; }
bool has_lazy_memory() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return false;  // their shadow memory is written
#else
  return true;
#endif
}
void synchronize() {}

void* allocate(std::size_t bytes) {
  return std::aligned_alloc(64, (bytes + 63) / 64 * 64);
}

void release(void* data, std::size_t) { std::free(data); }

Executor device_executor() { return {}; }

#endif

}  // namespace foo_core::testing
