// quantize, dequantize and linear_quantized. The kernels are plain: a thread has
// a block, and a warp a product, for which it unpacks and rounds each block anew.
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "cuda/scalar.h"
//
#include "blocks-inl.h"

namespace foo_core::cuda {
namespace {

namespace formats = foo_core::HWY_NAMESPACE;

/// Calls f(Format()) for a valid format.
template <class F>
void for_format(BlockFormat format, const F& f) {
  switch (format) {
    case BlockFormat::kQ8_0:
      return f(formats::Q8_0());
    case BlockFormat::kQ4_0:
      return f(formats::Q4_0());
    case BlockFormat::kQ4_1:
      return f(formats::Q4_1());
    case BlockFormat::kQ4_K:
      return f(formats::Q4_K());
    case BlockFormat::kQ6_K:
      return f(formats::Q6_K());
  }
}

constexpr int kThreads = 128;
constexpr int kWarps = 4;
constexpr int kGroup = 32;  // elements of x with one scale

/// Rows of numbers, or of sums, and those of blocks.
template <class T>
struct Arguments {
  Nest<2> rows;
  Line<T> x;
  std::uint8_t* blocks;
  int64_t count;  // of blocks, or of rows
  int64_t each;   // blocks per row
};

template <class T, class Format>
__global__ void quantize_kernel(const Arguments<const T> a) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < a.count;
       i += step) {
    const Division at = divide(i, a.each);
    const Offsets<2> row(a.rows, at.quotient);
    const auto x = moved(a.x, row.of[0]);
    float numbers[Format::kElements];
    for (int j = 0; j < Format::kElements; ++j) {
      const int64_t column = at.remainder * Format::kElements + j;
      numbers[j] = static_cast<float>(widen(x.data[column * x.stride]));
    }
    Format::Pack(numbers,
                 a.blocks + row.of[1] + at.remainder * Format::kBytes);
  }
}

template <class Format>
__global__ void dequantize_kernel(const Arguments<float> a) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < a.count;
       i += step) {
    const Division at = divide(i, a.each);
    const Offsets<2> row(a.rows, at.quotient);
    const auto x = moved(a.x, row.of[0]);
    float numbers[Format::kElements];
    Format::Unpack(a.blocks + row.of[1] + at.remainder * Format::kBytes,
                   numbers);
    for (int j = 0; j < Format::kElements; ++j) {
      x.data[(at.remainder * Format::kElements + j) * x.stride] = numbers[j];
    }
  }
}

template <class T>
struct ProductArguments {
  Nest<2> rows;  // of x and out
  Line<const T> x, bias;
  Line<T> out;
  const std::uint8_t* weight;
  int64_t weight_stride;  // between rows
  int64_t count;          // of products
  int64_t n, blocks;      // of a row of weight
};

/// The product of x, rounded to 8 bits unless it is double, and of kGroup
/// numbers of weight.
template <class T>
__device__ Compute<T> multiply_group(const T* x, int64_t stride,
                                     const float* weight) {
  Compute<T> sum = 0;
  if constexpr (std::is_same_v<T, double>) {
    for (int j = 0; j < kGroup; ++j) sum += weight[j] * x[j * stride];
    return sum;
  } else {
    float numbers[kGroup];
    for (int j = 0; j < kGroup; ++j) numbers[j] = widen(x[j * stride]);
    const float furthest = formats::Furthest(numbers, kGroup);
    const float most = furthest < 0 ? -furthest : furthest;
    const float inverse = 127 / most;
    // An infinite or a tiny x, or NaN, has no other numbers.
    const bool finite = inverse > 0 && isfinite(inverse);
    for (int j = 0; j < kGroup; ++j) {
      const float q =
          finite ? formats::RoundToEven(numbers[j] * inverse) : 0.0f;
      sum += weight[j] * q;
    }
    return sum * (most / 127);
  }
}

template <class T, class Format>
__global__ void product_kernel(const ProductArguments<T> a) {
  using C = Compute<T>;
  const int64_t step = int64_t{gridDim.x} * blockDim.y;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.y + threadIdx.y; i < a.count;
       i += step) {
    const Division at = divide(i, a.n);
    const int64_t column = at.remainder;
    const Offsets<2> row(a.rows, at.quotient);
    const auto x = moved(a.x, row.of[0]);
    C sum = 0;
    for (int64_t b = threadIdx.x; b < a.blocks; b += kWarp) {
      float numbers[Format::kElements];
      Format::Unpack(
          a.weight + column * a.weight_stride + b * Format::kBytes, numbers);
      for (int g = 0; g < Format::kElements; g += kGroup) {
        sum += multiply_group(
            x.data + (b * Format::kElements + g) * x.stride, x.stride,
            numbers + g);
      }
    }
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
      sum += __shfl_xor_sync(0xFFFFFFFF, sum, mask);
    }
    if (threadIdx.x != 0) continue;
    if (a.bias.data != nullptr) {
      sum += widen(a.bias.data[column * a.bias.stride]);
    }
    a.out.data[row.of[1] + column * a.out.stride] = narrow<T>(sum);
  }
}

}  // namespace

void quantize(const ConstTensorView& x, BlockFormat format,
              const TensorView& blocks, void* stream) {
  for_dtype(x.dtype, [&](auto t) {
    for_format(format, [&](auto f) {
      using T = decltype(t);
      using Format = decltype(f);
      const int64_t each = last_size(x) / Format::kElements;
      const int64_t count = count_rows(x) * each;
      if (count == 0) return;
      const Arguments<const T> arguments{
          nest_of_rows(x, x, blocks), line_of<T>(x),
          static_cast<std::uint8_t*>(blocks.data), count, each};
      launch("quantize", quantize_kernel<T, Format>,
             dim3(grid_size(ceil_div(count, kThreads))), dim3(kThreads), stream,
             arguments);
    });
  });
}

void dequantize(const ConstTensorView& blocks, BlockFormat format,
                const TensorView& out, void* stream) {
  for_format(format, [&](auto f) {
    using Format = decltype(f);
    const int64_t each = last_size(out) / Format::kElements;
    const int64_t count = count_rows(out) * each;
    if (count == 0) return;
    const Arguments<float> arguments{
        nest_of_rows(out, out, blocks), line_of<float>(out),
        static_cast<std::uint8_t*>(const_cast<void*>(blocks.data)), count,
        each};
    launch("dequantize", dequantize_kernel<Format>,
           dim3(grid_size(ceil_div(count, kThreads))), dim3(kThreads), stream,
           arguments);
  });
}

void linear_quantized(const ConstTensorView& x, const ConstTensorView& weight,
                      BlockFormat format, const ConstTensorView* bias,
                      const TensorView& out, void* stream) {
  const int64_t n = weight.sizes[0];
  const int64_t count = count_rows(x) * n;
  if (count == 0) return;
  for_dtype(x.dtype, [&](auto t) {
    for_format(format, [&](auto f) {
      using T = decltype(t);
      using Format = decltype(f);
      const ProductArguments<T> arguments{
          nest_of_rows(x, x, out),
          line_of<T>(x),
          line_of<T>(bias),
          line_of<T>(out),
          static_cast<const std::uint8_t*>(weight.data),
          weight.strides[0],
          count,
          n,
          last_size(x) / Format::kElements};
      launch("linear_quantized", product_kernel<T, Format>,
             dim3(grid_size(ceil_div(count, kWarps))), dim3(kWarp, kWarps),
             stream, arguments);
    });
  });
}

}  // namespace foo_core::cuda
