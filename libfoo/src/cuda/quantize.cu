// quantize_int8_rowwise. The threads of a row keep its elements in registers
// between the maximum and the division; what does not fit there is read again.
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace foo_core::cuda {
namespace {

/// The bits of |x|, which are ordered like the numbers, with NaN at the end.
__device__ std::uint32_t size_bits(float x) {
  return __float_as_uint(x) & 0x7FFFFFFF;
}
__device__ std::uint64_t size_bits(double x) {
  return static_cast<std::uint64_t>(__double_as_longlong(x)) &
         0x7FFFFFFFFFFFFFFF;
}
__device__ float from_bits(std::uint32_t bits) { return __uint_as_float(bits); }
__device__ double from_bits(std::uint64_t bits) {
  return __longlong_as_double(static_cast<long long>(bits));
}

/// x / scale, rounded to an integer. For float and a scale of at least
/// kMinScale it is the product with the reciprocal and one correction, as in
/// cpu/quantize.cc, whose test shows that no quotient is rounded otherwise.
template <class C>
struct Divider {
  static constexpr float kMinScale = 0x1p-100f;

  __device__ explicit Divider(float s) : scale(s), reciprocal(1 / scale) {}

  __device__ std::int8_t operator()(C x) const {
    C y;
    if (std::is_same_v<C, float> && scale >= kMinScale) {
      y = x * reciprocal;
      y = fma(fma(-y, scale, x), reciprocal, y);
    } else {
      // With a subnormal scale the quotient may be far beyond 127.
      y = x / scale;
      y = y < -127 ? -127 : y > 127 ? 127 : y;
    }
    return static_cast<std::int8_t>(rint(y));
  }

  C scale, reciprocal;
};

template <class T>
struct Arguments {
  Nest<3> rows;  // of x, q and scale
  Line<const T> x;
  Line<std::int8_t> q;
  float* scale;
  int64_t count;  // of rows
  int64_t n;
};

/// The vectors of a row that a thread keeps.
constexpr int kVectors = 4;

template <class T, int kN>
__global__ void __launch_bounds__(kMaxThreads)
    quantize_kernel(const Arguments<T> arguments) {
  using C = Compute<T>;
  using Bits = decltype(size_bits(C()));
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
    Bits most[] = {0};
    const auto add = [&](const V& v) {
      for (int j = 0; j < kN; ++j) {
        const Bits bits = size_bits(v[j]);
        most[0] = bits > most[0] ? bits : most[0];
      }
    };
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      if (begin + k * step < n) add(kept[k]);
    }
    for (int64_t i = begin + kVectors * step; i < n; i += step) {
      add(x.template load<kN>(i));
    }
    reduce_row(most, [](Bits a, Bits b) { return a > b ? a : b; });

    float scale = static_cast<float>(from_bits(most[0]) / C{127});
    if (scale == 0) scale = 1;
    if (threadIdx.x == 0 && row < arguments.count) {
      arguments.scale[at.of[2]] = scale;
    }
    const bool finite = isfinite(scale);
    const Divider<C> divide(scale);
    const auto write = [&](int64_t i, const V& v) {
      Vec<std::int8_t, kN> y;
      for (int j = 0; j < kN; ++j) y.at[j] = finite ? divide(v[j]) : 0;
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
      const dim3 block = row_block(ceil_div(n, kN), kVectors);
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
