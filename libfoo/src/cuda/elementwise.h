// The kernel of all operators whose elements do not depend on each other. Each
// thread computes a vector of neighbouring elements, in the order of the first
// output's memory.
#pragma once

#include <cstdint>

#include "cuda/device.h"

namespace foo_core::cuda {

template <class T, int kIn, int kOut>
struct ElementwiseArguments {
  Nest<kIn + kOut> nest;  // the inputs, then the outputs
  const T* in[kIn];
  T* out[kOut];  // null for one that is not wanted
};

/// `f(in, out)` computes the results of one element.
template <int kN, class T, int kIn, int kOut, class F>
__global__ void elementwise_kernel(ElementwiseArguments<T, kIn, kOut> arguments,
                                   int64_t count, F f) {
  using C = Compute<T>;
  const auto& nest = arguments.nest;
  const auto& strides = nest.strides[nest.ndim - 1];
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i * kN < count; i += step) {
    const Offsets<kIn + kOut> offset(nest, i * kN);
    Vec<T, kN> in[kIn];
    for (int k = 0; k < kIn; ++k) {
      const Line<const T> line{arguments.in[k] + offset.of[k], strides[k]};
      in[k] = line.template load<kN>(0);
    }
    C out[kOut][kN];
    for (int j = 0; j < kN; ++j) {
      C x[kIn], y[kOut];
      for (int k = 0; k < kIn; ++k) x[k] = in[k][j];
      f(x, y);
      for (int k = 0; k < kOut; ++k) out[k][j] = y[k];
    }
    for (int k = 0; k < kOut; ++k) {
      if (arguments.out[k] == nullptr) continue;
      const Line<T> line{arguments.out[k] + offset.of[kIn + k],
                         strides[kIn + k]};
      line.store(0, Vec<T, kN>::of(out[k]));
    }
  }
}

/// Whether the arguments can be accessed kN elements at a time.
template <int kN, class T, int kIn, int kOut>
bool is_aligned(const ElementwiseArguments<T, kIn, kOut>& arguments) {
  const auto& nest = arguments.nest;
  if (nest.inner_size() % kN != 0) return false;
  for (int k = 0; k < kIn + kOut; ++k) {
    const bool input = k < kIn;
    const T* data = input ? arguments.in[k] : arguments.out[k - kIn];
    const int64_t stride = nest.inner_strides()[k];
    if (data == nullptr || (input && stride == 0)) continue;
    if (stride != 1) return false;
    if (reinterpret_cast<std::uintptr_t>(data) % (kN * sizeof(T)) != 0) {
      return false;
    }
    for (int d = 0; d < nest.ndim - 1; ++d) {
      if (nest.strides[d][k] % kN != 0) return false;
    }
  }
  return true;
}

template <class T, int kIn, int kOut, class F>
void launch_elementwise(const char* op,
                        const ElementwiseArguments<T, kIn, kOut>& arguments,
                        int64_t count, const F& f, void* stream) {
  constexpr int kThreads = 256;
  if (count == 0) return;
  const auto run = [&](auto width) {
    constexpr int kN = decltype(width)::value;
    launch(op, elementwise_kernel<kN, T, kIn, kOut, F>,
           dim3(grid_size(ceil_div(count, kN * kThreads))), dim3(kThreads),
           stream, arguments, count, f);
  };
  if (is_aligned<kWidth<T>>(arguments)) {
    run(std::integral_constant<int, kWidth<T>>());
  } else {
    run(std::integral_constant<int, 1>());
  }
}

}  // namespace foo_core::cuda
