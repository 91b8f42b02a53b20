// x weight^T + bias for few rows of x, where reading weight takes the time. A
// warp computes one column of out for up to kRows rows at once, so that it
// reads its row of weight once for all of them.
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace foo_core::cuda {
namespace {

constexpr int kWarps = 4;  // of a block

template <class T>
struct Arguments {
  Nest<2> rows;  // of x and out
  Line<const T> x, weight, bias;
  Line<T> out;
  int64_t weight_stride;  // between rows
  int64_t count;          // of rows
  int64_t n, k;
};

template <class T, int kN, int kRows>
__global__ void __launch_bounds__(kWarps* kWarp)
    linear_kernel(const Arguments<T> a) {
  using C = Compute<T>;
  const int64_t column_step = int64_t{gridDim.x} * blockDim.y;
  const int64_t row_step = int64_t{gridDim.y} * kRows;
  for (int64_t column = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
       column < a.n; column += column_step) {
    const auto weight = moved(a.weight, column * a.weight_stride);
    for (int64_t first = int64_t{blockIdx.y} * kRows; first < a.count;
         first += row_step) {
      // Beyond the last row, the last is computed again.
      Line<const T> x[kRows];
      int64_t out[kRows];
      for (int r = 0; r < kRows; ++r) {
        const int64_t row = first + r < a.count ? first + r : a.count - 1;
        const Offsets<2> at(a.rows, row);
        x[r] = moved(a.x, at.of[0]);
        out[r] = at.of[1];
      }
      C sums[kRows] = {};
#pragma unroll 4
      for (int64_t i = int64_t{threadIdx.x} * kN; i < a.k; i += kWarp * kN) {
        const auto w = weight.template load<kN>(i);
        for (int r = 0; r < kRows; ++r) {
          const auto v = x[r].template load<kN>(i);
          // Short sums first, whose errors are smaller.
          C products = 0;
          for (int j = 0; j < kN; ++j) products = fma(v[j], w[j], products);
          sums[r] += products;
        }
      }
      for (int mask = kWarp / 2; mask > 0; mask /= 2) {
        for (C& sum : sums) sum += __shfl_xor_sync(0xFFFFFFFF, sum, mask);
      }
      if (threadIdx.x != 0) continue;
      const C bias = a.bias.data == nullptr
                         ? C{0}
                         : widen(a.bias.data[column * a.bias.stride]);
      for (int r = 0; r < kRows; ++r) {
        if (first + r >= a.count) break;
        a.out.data[out[r] + column * a.out.stride] = narrow<T>(sums[r] + bias);
      }
    }
  }
}

}  // namespace

void linear(const ConstTensorView& x, const ConstTensorView& weight,
            const ConstTensorView* bias, const TensorView& out, void* stream) {
  const int64_t rows = count_rows(x), k = last_size(x), n = weight.sizes[0];
  if (rows == 0 || n == 0) return;
  for_dtype(x.dtype, [&](auto t) {
    using T = decltype(t);
    const Arguments<T> arguments{nest_of_rows(x, x, out),
                                 line_of<T>(x),
                                 line_of<T>(weight),
                                 line_of<T>(bias),
                                 line_of<T>(out),
                                 weight.strides[0],
                                 rows,
                                 n,
                                 k};
    const auto run = [&](auto width, auto most) {
      constexpr int kN = decltype(width)::value;
      constexpr int kRows = decltype(most)::value;
      const auto tiles = std::min(ceil_div(rows, kRows), kMostBlocksY);
      launch("linear", linear_kernel<T, kN, kRows>,
             dim3(grid_size(ceil_div(n, kWarps)), static_cast<unsigned>(tiles)),
             dim3(kWarp, kWarps), stream, arguments);
    };
    const auto choose = [&](auto width) {
      if (rows == 1) return run(width, std::integral_constant<int, 1>());
      run(width, std::integral_constant<int, 8>());
    };
    constexpr int kN = kWidth<T>;
    if (is_aligned<kN>(&x, k) && is_aligned<kN>(&weight, k)) {
      choose(std::integral_constant<int, kN>());
    } else {
      choose(std::integral_constant<int, 1>());
    }
  });
}

}  // namespace foo_core::cuda
