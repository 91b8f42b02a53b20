// What cuda_runtime.h of this folder promises: kernels compute what they would
// on a GPU, and each of their mistakes ends the program with its name.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace {

template <class... Parameters, class... Arguments>
cudaError_t run(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

/// Runs a kernel that ends the program with these words.
#define EXPECT_ENDS(call, words) \
  EXPECT_EXIT(call, ::testing::ExitedWithCode(1), words)

__global__ void write_indices(int* out) {
  const int block =
      blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int thread =
      threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int size = blockDim.x * blockDim.y * blockDim.z;
  out[block * size + thread] = block * size + thread;
}

TEST(Emulation, RunsAllThreadsOfAllBlocks) {
  std::vector<int> out(2 * 3 * 4 * 5 * 6 * 7, -1);
  EXPECT_EQ(run(write_indices, dim3(2, 3, 4), dim3(5, 6, 7), out.data()),
            cudaSuccess);
  for (std::size_t i = 0; i < out.size(); ++i) {
    ASSERT_EQ(out[i], static_cast<int>(i));
  }
}

/// Sums over the threads of a block, by warps and then by shared memory.
template <bool kBarrier>
__global__ void sum_block(const double* x, double* sums) {
  __shared__ double parts[32];
  double sum = x[blockIdx.x * blockDim.x + threadIdx.x];
  for (int mask = 16; mask > 0; mask /= 2) {
    sum += __shfl_xor_sync(~0u, sum, mask);
  }
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  if (kBarrier) __syncthreads();
  sum = 0;
  for (unsigned i = 0; i < blockDim.x / 32; ++i) sum += parts[i];
  if (threadIdx.x % 32 == 0) sums[blockIdx.x * 32 + threadIdx.x / 32] = sum;
}

TEST(Emulation, BarriersAndShuffles) {
  std::vector<double> x(3 * 1024), sums(3 * 32);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<double>(i);
  run(sum_block<true>, 3, 1024, x.data(), sums.data());
  for (int i = 0; i < 96; ++i) {
    ASSERT_EQ(sums[i], 1024 * (1024.0 * (i / 32) + 511.5)) << i;
  }
  run(sum_block<false>, 3, 1024, x.data(), sums.data());
  for (const int block : {0, 1, 2}) {  // shared memory was full of NaN
    EXPECT_TRUE(std::isnan(sums[block * 32]) ||
                std::isnan(sums[block * 32 + 31]));
  }
}

__global__ void write(char* p, int i) { p[i] = 1; }

TEST(Emulation, BuffersEndAtGuardPages) {
  void* data = nullptr;
  ASSERT_EQ(cudaMallocHost(&data, 3000), cudaSuccess);
  auto* p = static_cast<char*>(data);
  EXPECT_EQ(run(write, 1, 1, p, 2999), cudaSuccess);
  EXPECT_ENDS(run(write, 1, 1, p, 3000), "block \\(0, 0, 0\\).*outside of all");
  EXPECT_ENDS(run(write, 1, 1, p, -65536), "outside of all buffers");
  cudaFreeHost(data);
}

struct alignas(16) Vector {
  float x[4];
};
__global__ void load(const float* x, float* y, int shift) {
  y[0] = reinterpret_cast<const Vector*>(x)->x[0];
  y[1] = static_cast<float>(1 << shift);
}

TEST(Emulation, KernelsTrap) {
  alignas(16) float x[8] = {};
  float y[2];
  EXPECT_EQ(run(load, 1, 1, x, y, 3), cudaSuccess);
  EXPECT_ENDS(run(load, 1, 1, x + 1, y, 3), "misaligns");
  EXPECT_ENDS(run(load, 1, 1, x, y, 32), "overflows");
}

__global__ void leave_before_barrier(unsigned thread) {
  if (threadIdx.x == thread) return;
  __syncthreads();
}
__global__ void leave_warp_before_barrier(unsigned warp) {
  if (threadIdx.x / 32 == warp) return;
  __syncthreads();
}
__global__ void shuffle_or_barrier(unsigned thread) {
  if (threadIdx.x == thread) {
    __syncthreads();
  } else {
    __shfl_sync(~0u, 1, 0);
  }
}
__global__ void shuffle(unsigned mask) { __shfl_xor_sync(mask, 1.0f, 16); }

TEST(Emulation, BarriersThatNotAllThreadsReach) {
  EXPECT_ENDS(run(leave_before_barrier, 2, 64, 35u), "thread \\(35, 0, 0\\)");
  EXPECT_ENDS(run(leave_warp_before_barrier, 2, 64, 1u), "do not meet");
  EXPECT_ENDS(run(shuffle_or_barrier, 1, 32, 5u), "thread \\(5, 0, 0\\)");
  EXPECT_ENDS(run(shuffle, 1, 32, 0xFFFFu), "mask");
  EXPECT_ENDS(run(shuffle, 1, 16, ~0u), "lane that does not exist");
}

TEST(Emulation, LimitsOfALaunch) {
  const auto refused = [](dim3 grid, dim3 block) {
    const cudaError_t error = run(leave_before_barrier, grid, block, 0u);
    EXPECT_EQ(cudaGetLastError(), error);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    return error == cudaErrorInvalidConfiguration;
  };
  EXPECT_TRUE(refused(1, 1025));
  EXPECT_TRUE(refused(1, dim3(512, 3)));
  EXPECT_TRUE(refused(1, dim3(1, 1, 65)));
  EXPECT_TRUE(refused(0, 1));
  EXPECT_TRUE(refused(1, 0));
  EXPECT_TRUE(refused(1u << 31, 1));
  EXPECT_TRUE(refused(dim3(1, 65536), 1));
  EXPECT_FALSE(refused(dim3(1, 65535), 1));
}

TEST(Emulation, SixteenBitTypes) {
  for (unsigned i = 0; i < 0x10000; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const float half = __half2float({bits}), wide = __bfloat162float({bits});
    EXPECT_TRUE(std::isnan(half) || __float2half_rn(half).bits == bits) << i;
    EXPECT_TRUE(std::isnan(wide) || __float2bfloat16_rn(wide).bits == bits)
        << i;
  }
  EXPECT_EQ(__half2float({0x3C01}), 1 + 0x1p-10f);
  EXPECT_EQ(__bfloat162float({0x3F81}), 1 + 0x1p-7f);
  EXPECT_TRUE(std::isnan(__half2float(__float2half_rn(NAN))));
  EXPECT_TRUE(std::isnan(__bfloat162float(__float2bfloat16_rn(NAN))));
}

}  // namespace
