// quantize_int8_rowwise. The threads of a row keep its elements in registers
// between the maximum and the division; what does not fit there is read again.
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace foo_core::cuda {
namespace {

__device__ std::uint32_t bits_of(float x) { return __float_as_uint(x); }
__device__ std::uint64_t bits_of(double x) {
  return static_cast<std::uint64_t>(__double_as_longlong(x));
}
__device__ float from_bits(std::uint32_t bits) { return __uint_as_float(bits); }
__device__ double from_bits(std::uint64_t bits) {
  return __longlong_as_double(static_cast<long long>(bits));
}

/// x / scale, rounded to an integer, for a finite scale. For float and a scale
/// of at least kMinScale it is the product with the reciprocal and one
/// correction, as in cpu/quantize.cc, whose test shows that no quotient is
/// rounded otherwise.
template <class C, bool kExactly>
struct Divider {
  __device__ std::int8_t operator()(C x) const {
    C y;
    if constexpr (kExactly) {
      // With a subnormal scale the quotient may be far beyond 127.
      y = x / scale;
      y = y < -127 ? -127 : y > 127 ? 127 : y;
    } else {
      y = x * reciprocal;
      y = fma(fma(-y, scale, x), reciprocal, y);
    }
    // The sum is rounded to an integer, ties to even, in its low bits.
    return static_cast<std::int8_t>(bits_of(y + kRounder));
  }

  static constexpr C kRounder =
      static_cast<C>(std::is_same_v<C, double> ? 0x1.8p52 : 0x1.8p23);
  C scale, reciprocal;
};
constexpr float kMinScale = 0x1p-100f;

template <class T>
struct Arguments {
  Nest<3> rows;  // of x, q and scale
  Line<const T> x;
  Line<std::int8_t> q;
  float* scale;
  int64_t count;  // of rows
  int64_t n;
};

constexpr int kThreads = 1024;
constexpr int kVectors = 4;  // of a row, which a thread keeps

template <class T, int kN>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const Arguments<T> arguments) {
  using C = Compute<T>;
  using Bits = decltype(bits_of(C()));
  using V = Vec<T, kN>;
  const int64_t step = int64_t{blockDim.x} * kN;
  const int64_t begin = int64_t{threadIdx.x} * kN;
  for (int64_t first = int64_t{blockIdx.x} * blockDim.y;
       first < arguments.count; first += int64_t{gridDim.x} * blockDim.y) {
    // All threads of the block take part in the maxima.
    const int64_t row = first + threadIdx.y;
    const int64_t n = row < arguments.count ? arguments.n : 0;
    const Offsets<3> at(arguments.rows, row < arguments.count ? row : first);
    const auto x = moved(arguments.x, n > 0 ? at.of[0] : 0);
    const auto q = moved(arguments.q, n > 0 ? at.of[1] : 0);

    V kept[kVectors];
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int64_t i = begin + k * step;
      if (i < n) kept[k] = x.template load<kN>(i);
    }
    // The bits of |x| are ordered like the numbers, with NaN at the end.
    Bits most[] = {0};
    const auto add = [&](const V& v) {
      for (int j = 0; j < kN; ++j) {
        most[0] = Largest()(most[0], bits_of(v[j]) & (~Bits{0} >> 1));
      }
    };
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      if (begin + k * step < n) add(kept[k]);
    }
    for (int64_t i = begin + kVectors * step; i < n; i += step) {
      add(x.template load<kN>(i));
    }
    const auto largest = reduce_row(most, Largest());
    float scale = static_cast<float>(from_bits(largest.of[0]) / C{127});
    if (scale == 0) scale = 1;
    if (threadIdx.x == 0 && row < arguments.count) {
      arguments.scale[at.of[2]] = scale;
    }
    const auto write_all = [&](const auto& quantized) {
      const auto write = [&](int64_t i, const V& v) {
        Vec<std::int8_t, kN> y;
        for (int j = 0; j < kN; ++j) y.at[j] = quantized(v[j]);
        q.store(i, y);
      };
#pragma unroll
      for (int k = 0; k < kVectors; ++k) {
        const int64_t i = begin + k * step;
        if (i < n) write(i, kept[k]);
      }
      for (int64_t i = begin + kVectors * step; i < n; i += step) {
        write(i, x.template load<kN>(i));
      }
    };
    if (!isfinite(scale)) {
      write_all([](C) { return std::int8_t{0}; });
    } else if (std::is_same_v<C, float> && scale >= kMinScale) {
      write_all(Divider<C, false>{scale, 1 / C{scale}});
    } else {
      write_all(Divider<C, true>{scale});
    }
  }
}

}  // namespace

void quantize_int8_rowwise(const ConstTensorView& x, const TensorView& q,
                           const TensorView& scale, void* stream) {
  const int64_t rows = count_rows(x), n = last_size(x);
  if (rows == 0) return;
  for_dtype(x.dtype, [&](auto t) {
    using T = decltype(t);
    const Arguments<T> arguments{
        nest_of_rows(x, x, q, scale),    line_of<T>(x), line_of<std::int8_t>(q),
        static_cast<float*>(scale.data), rows,          n};
    const auto run = [&](auto width) {
      constexpr int kN = decltype(width)::value;
      const dim3 block = row_block(ceil_div(n, kN), kVectors, kThreads);
      launch("quantize_int8_rowwise", quantize_kernel<T, kN>,
             dim3(grid_size(ceil_div(rows, block.y))), block, stream,
             arguments);
    };
    constexpr int kN = kWidth<T>;
    if (is_aligned<kN>(&x, n) && is_aligned<kN>(&q, n)) {
      run(std::integral_constant<int, kN>());
    } else {
      run(std::integral_constant<int, 1>());
    }
  });
}

}  // namespace foo_core::cuda
