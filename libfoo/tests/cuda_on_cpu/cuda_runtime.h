// CUDA for tests without a GPU. With this folder first on the include path, the
// sources of src/cuda compile as C++17, and a launch runs the kernel before it
// returns: one block after the other, each thread of a block as a fiber that
// runs until it waits for others.
//
// It shows wrong indices (each buffer ends at a guard page), misaligned vectors
// (the sources are compiled with UBSan's traps), shared memory that is read
// before it is written (each block finds it full of NaN), missing barriers (a
// warp, and a lane in it, runs as far as it can before the next one, in
// ascending or descending order of warps), barriers that not all threads reach,
// and launches beyond CUDA's limits.
//
// It cannot show what depends on the hardware: the memory model, two blocks or
// streams that race, the errors of approximate intrinsics (here they are
// exact), contraction to FMA, registers, shared memory beyond its limit, and
// speed. Masks of warp functions must name all lanes. Dynamic shared memory is
// refused.
#pragma once

#include <math.h>  // unlike <cmath>, it has overloads in the global namespace

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Thread-local variables lie in one segment, which can be filled at once.
#define __shared__ static thread_local

struct dim3 {
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1)
      : x(x_), y(y_), z(z_) {}
  unsigned x, y, z;
};
using uint3 = dim3;

extern dim3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorUnsupportedPtxVersion = 222,
};
using cudaStream_t = struct CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};

const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

/// Memory that ends where the next page cannot be accessed. It is only as
/// aligned as its size.
cudaError_t cudaMallocHost(void** data, std::size_t bytes);
cudaError_t cudaFreeHost(void* data);

namespace cuda_on_cpu {

constexpr std::size_t kMaxParameterBytes = 4096;

/// Runs thread(context) for each thread of each block.
cudaError_t launch(const cudaLaunchConfig_t& config,
                   void (*thread)(const void* context), const void* context);

/// They return when all threads of the block or the warp have called them.
void wait_for_block();
void wait_for_warp(unsigned mask);

/// The bits that a lane of this warp passes to the same call.
std::uint64_t exchange(unsigned mask, std::uint64_t bits, int lane);

/// This thread's lane in its warp.
int lane();

template <class To, class From>
To bit_cast(From from) {
  static_assert(sizeof(To) >= sizeof(From));
  To to{};
  std::memcpy(&to, &from, sizeof(from));
  return to;
}

template <class T>
T shuffle(unsigned mask, T value, int lane) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4);
  const auto bits = exchange(mask, bit_cast<std::uint64_t>(value), lane);
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

/// Where the parameters of a kernel end, laid out as in a struct.
template <class... T>
constexpr std::size_t parameter_bytes() {
  std::size_t end = 0;
  ((end = (end + alignof(T) - 1) / alignof(T) * alignof(T) + sizeof(T)), ...);
  return end;
}

}  // namespace cuda_on_cpu

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config,
                               void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...));
  static_assert(cuda_on_cpu::parameter_bytes<Parameters...>() <=
                cuda_on_cpu::kMaxParameterBytes);
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> parameters;
  };
  const Call call{kernel, {std::forward<Arguments>(arguments)...}};
  return cuda_on_cpu::launch(
      *config,
      [](const void* context) {
        const auto& [function, parameters] = *static_cast<const Call*>(context);
        std::apply(function, parameters);
      },
      &call);
}

inline void __syncthreads() { cuda_on_cpu::wait_for_block(); }
inline void __syncwarp(unsigned mask = ~0u) {
  cuda_on_cpu::wait_for_warp(mask);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return cuda_on_cpu::shuffle(mask, value, lane);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return cuda_on_cpu::shuffle(mask, value, cuda_on_cpu::lane() ^ lanes);
}

using std::max;
using std::min;
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float rsqrt(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }

inline unsigned __float_as_uint(float x) {
  return cuda_on_cpu::bit_cast<unsigned>(x);
}
inline float __uint_as_float(unsigned x) {
  return cuda_on_cpu::bit_cast<float>(x);
}
inline long long __double_as_longlong(double x) {
  return cuda_on_cpu::bit_cast<long long>(x);
}
inline double __longlong_as_double(long long x) {
  return cuda_on_cpu::bit_cast<double>(x);
}
