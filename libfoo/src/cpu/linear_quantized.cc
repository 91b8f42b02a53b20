// x weight^T + bias, where weight holds blocks of a few bits per number.
// Threads divide the rows of weight.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "blocks.h"
#include "checks.h"
#include "cpu/simd.h"
#include "foo_core/blocks.h"
#include "loop.h"
#include "nest.h"
#include "view.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/linear_quantized.cc"
// These read HWY_TARGET_INCLUDE, so they come after it.
#include "hwy/foreach_target.h"
//
#include "blocks-inl.h"

#ifndef FOO_CORE_LINEAR_QUANTIZED_
#define FOO_CORE_LINEAR_QUANTIZED_
namespace foo_core {
namespace {

constexpr std::int64_t kGroup = 32;  // numbers of x with one scale

/// A row of x in 8 bits, and the scales of its groups.
struct QuantizedRow {
  const std::int8_t* q;
  const float* scale;
};

struct QuantizedKernels {
  void (*round)(Row x, std::int64_t k, std::int8_t* q, float* scale);
  float (*dot)(const QuantizedRow& x, const std::uint8_t* weight,
               std::int64_t k);
  double (*exact_dot)(const double* x, std::int64_t stride,
                      const std::uint8_t* weight, std::int64_t k);
  void (*store)(double y, const void* bias, void* out);
};

}  // namespace
}  // namespace foo_core
#endif

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {
namespace {

template <class T>
HWY_INLINE float AsFloat(const T* p) {
  if constexpr (hwy::IsSame<T, hwy::float16_t>()) {
    return LoadHalf(reinterpret_cast<const uint8_t*>(p));
  } else if constexpr (hwy::IsSame<T, hwy::bfloat16_t>()) {
    return hwy::F32FromBF16(*p);
  } else {
    return static_cast<float>(*p);
  }
}

template <class T>
void RoundRow(Row x, int64_t k, int8_t* q, float* scale) {
  const auto* p = static_cast<const T*>(x.data);
  for (int64_t i = 0; i < k; i += kGroup) {
    float numbers[kGroup], most = 0;
    for (int64_t j = 0; j < kGroup; ++j) {
      numbers[j] = AsFloat(p + (i + j) * x.stride);
      const float a = std::fabs(numbers[j]);
      if (!(a <= most)) most = a;
      if (a != a) break;
    }
    const float inverse = 127 / most;
    const bool finite = inverse > 0 && std::isfinite(inverse);
    scale[i / kGroup] = most / 127;
    for (int64_t j = 0; j < kGroup; ++j) {
      q[i + j] = finite ? static_cast<int8_t>(RoundToEven(numbers[j] * inverse))
                        : int8_t{0};
    }
  }
}

template <class Format>
float Dot(const QuantizedRow& x, const uint8_t* weight, int64_t k) {
  float sum = 0, numbers[Format::kElements];
  for (int64_t i = 0; i < k; i += Format::kElements) {
    Format::Unpack(weight, numbers);
    weight += Format::kBytes;
    for (int64_t g = 0; g < Format::kElements; g += kGroup) {
      float part = 0;
      for (int64_t j = g; j < g + kGroup; ++j) {
        part += numbers[j] * static_cast<float>(x.q[i + j]);
      }
      sum += part * x.scale[(i + g) / kGroup];
    }
  }
  return sum;
}

template <class Format>
double ExactDot(const double* x, int64_t stride, const uint8_t* weight,
                int64_t k) {
  double sum = 0;
  float numbers[Format::kElements];
  for (int64_t i = 0; i < k; i += Format::kElements) {
    Format::Unpack(weight, numbers);
    weight += Format::kBytes;
    for (int64_t j = 0; j < Format::kElements; ++j) {
      sum += static_cast<double>(numbers[j]) * x[(i + j) * stride];
    }
  }
  return sum;
}

template <class T>
void StoreOne(double y, const void* bias, void* out) {
  using C = Compute<T>;
  if (bias != nullptr) {
    const auto b = LoadN(static_cast<const T*>(bias), 1);
    y += static_cast<double>(hn::GetLane(b.a));
  }
  StoreN(Pair<C>::Set(static_cast<C>(y)), static_cast<T*>(out), 1);
}

struct DotsOf {
  template <class Format>
  HWY_INLINE QuantizedKernels operator()(Format) const {
    return {nullptr, Dot<Format>, ExactDot<Format>, nullptr};
  }
};

struct RowsOf {
  template <class T>
  HWY_INLINE QuantizedKernels operator()(T) const {
    return {RoundRow<T>, nullptr, nullptr, StoreOne<T>};
  }
};

QuantizedKernels LinearQuantized(DType dtype, BlockFormat format) {
  auto kernels = ForFormat(format, DotsOf());
  const auto rows = ForDType(dtype, RowsOf());
  kernels.round = rows.round;
  kernels.store = rows.store;
  return kernels;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foo_core {

std::int64_t linear_quantized_scratch_size(const ConstTensorView& x,
                                           const Executor&) noexcept {
  if (!has_rows(x) || x.dtype == DType::kFloat64) return 0;
  const std::int64_t groups = (last_size(x) + kGroup - 1) / kGroup;
  return count_rows(x) * groups *
         (kGroup + static_cast<std::int64_t>(sizeof(float)));
}

void linear_quantized(const ConstTensorView& x, const ConstTensorView& weight,
                      BlockFormat format, const ConstTensorView* bias,
                      const TensorView& out, void* scratch,
                      const Executor& executor) {
  const char* op = "linear_quantized";
  const Argument arg_x{"x", x}, arg_weight{"weight", weight},
      arg_bias{"bias", bias}, arg_out{"out", out};
  check_has_rows(op, arg_x);
  const std::int64_t k = last_size(x);
  const std::int64_t bytes =
      count_blocks(op, arg_x, format) * block_bytes(format);
  check_tensor(op, arg_weight, DType::kUInt8);
  if (weight.ndim != 2 || weight.sizes[1] != bytes) {
    fail(op, "weight has shape " + shape_text(weight.ndim, weight.sizes) +
                 ", expected (n, " + std::to_string(bytes) + "), as x has " +
                 std::to_string(k) + " columns and the format is " +
                 name(format));
  }
  check_contiguous_rows(op, arg_weight);
  const std::int64_t n = weight.sizes[0];
  check_tensor(op, arg_bias);
  check_same_dtype(op, arg_x, arg_bias);
  check_shape(op, arg_bias, 1, &n);
  std::int64_t sizes[kMaxDims];
  std::copy_n(x.sizes, x.ndim, sizes);
  sizes[x.ndim - 1] = n;
  check_tensor(op, arg_out);
  check_same_dtype(op, arg_x, arg_out);
  check_shape(op, arg_out, x.ndim, sizes);
  const Scratch memory(op, scratch, linear_quantized_scratch_size(x, executor));
  check_output(op, arg_out, {},
               {&arg_x, &arg_weight, &arg_bias, &memory.argument()});
  check_output(op, memory.argument(), {}, {&arg_x, &arg_weight, &arg_bias});
  const CpuThreads threads(op, executor);
  const std::int64_t rows = count_rows(x);
  if (rows == 0) return;

  const auto kernels = FOO_CORE_DISPATCH(LinearQuantized)(x.dtype, format);
  const bool exact = x.dtype == DType::kFloat64;
  const std::int64_t groups = k / kGroup;
  auto* const scales = static_cast<float*>(scratch);
  auto* const q = static_cast<std::int8_t*>(scratch) +
                  rows * groups * static_cast<std::int64_t>(sizeof(float));
  const auto nest = nest_of_rows(x, x, out);
  if (!exact) {
    threads.for_rows(x, [&](std::int64_t begin, std::int64_t end) {
      Walker<2> at(nest, nest.ndim, begin);
      for (; begin < end; ++begin, at.next()) {
        kernels.round(row_at(&x, at.offset(0)), k, q + begin * k,
                      scales + begin * groups);
      }
    });
  }
  const auto run = [&](std::int64_t begin, std::int64_t end) {
    for (; begin < end; ++begin) {
      const auto* const blocks = static_cast<const std::uint8_t*>(weight.data) +
                                 begin * weight.strides[0];
      const Row b = row_at(bias, begin * stride_of(bias, 0));
      Walker<2> at(nest, nest.ndim, 0);
      for (std::int64_t row = 0; row < rows; ++row, at.next()) {
        const Row from = row_at(&x, at.offset(0));
        const double y =
            exact ? kernels.exact_dot(static_cast<const double*>(from.data),
                                      from.stride, blocks, k)
                  : static_cast<double>(kernels.dot(
                        {q + row * k, scales + row * groups}, blocks, k));
        kernels.store(
            y, b.data,
            row_at(&out, at.offset(1) + begin * last_stride(out)).data);
      }
    }
  };
  threads.for_ranges(n, rows * k, run);
}

}  // namespace foo_core
#endif  // HWY_ONCE
