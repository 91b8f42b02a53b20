// x weight^T + bias for few rows of x, where reading weight takes the time.
// Each row of weight is read from memory once and multiplied with up to kRows
// rows of x from the L1 cache. Threads divide the rows of weight.
#include "foo_core/linear.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "checks.h"
#include "cpu/simd.h"
#include "cuda/kernels.h"
#include "loop.h"
#include "nest.h"
#include "view.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/linear.cc"
// These read HWY_TARGET_INCLUDE, so they come after it.
#include "hwy/foreach_target.h"
//
#include "cpu/tile-inl.h"

#ifndef FOO_CORE_LINEAR_
#define FOO_CORE_LINEAR_
namespace foo_core {
namespace {

/// Rows of weight at a time. Their accumulators hide the latency of FMA and fit
/// in the registers.
constexpr int kWeights = 4;

/// Rows of x at a time, while a tile of weight stays in the L1 cache.
constexpr int kRows = 16;

/// Up to kRows rows of x, up to kWeights rows of weight, and their products.
struct LinearBlock {
  int rows;
  Row x[kRows];
  MutableRow out[kRows];
  Row weight[kWeights];
  Row bias;  // data may be null
};

struct LinearKernels {
  void (*some)(const LinearBlock& block, std::int64_t k);  // kWeights rows
  void (*one)(const LinearBlock& block, std::int64_t k);   // one row of weight
};

}  // namespace
}  // namespace foo_core
#endif

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {
namespace {

/// Adds the dot products of x and kCount rows of weight, of n contiguous
/// elements each, to sums. The order of additions does not depend on kCount.
template <int kCount, class T>
HWY_INLINE void Dot(const T* x, const T* const* weight, int64_t n,
                    double* sums) {
  using C = Compute<T>;
  Pair<C> s[kCount];
  for (auto& sum : s) sum = Pair<C>::Set(0);
  const int64_t step = Lanes<C>();
  int64_t i = 0;
  for (; i + step <= n; i += step) {
    const auto v = Load(x + i);
    for (int j = 0; j < kCount; ++j)
      s[j] = MulAdd(v, Load(weight[j] + i), s[j]);
  }
  if (i < n) {
    const auto v = LoadN(x + i, n - i);
    for (int j = 0; j < kCount; ++j) {
      s[j] = MulAdd(v, LoadN(weight[j] + i, n - i), s[j]);
    }
  }
  for (int j = 0; j < kCount; ++j) sums[j] += static_cast<double>(Sum(s[j]));
}

template <int kCount, class T>
void Products(const LinearBlock& block, int64_t k) {
  HWY_ALIGN T x_tile[kTile], weight_tile[kCount][kTile];
  double sums[kRows][kCount] = {};
  for (int64_t i = 0; i < k; i += kTile) {
    const int64_t m = HWY_MIN(kTile, k - i);
    const T* weight[kCount];
    for (int j = 0; j < kCount; ++j) {
      const Row& row = block.weight[j];
      weight[j] = InputTile(static_cast<const T*>(row.data), row.stride, i, m,
                            weight_tile[j]);
    }
    for (int r = 0; r < block.rows; ++r) {
      const Row& row = block.x[r];
      // The tile was another row's, so i is 0 for InputTile.
      const T* x = InputTile(static_cast<const T*>(row.data) + i * row.stride,
                             row.stride, 0, m, x_tile);
      Dot<kCount>(x, weight, m, sums[r]);
    }
  }
  const auto* bias = static_cast<const T*>(block.bias.data);
  for (int r = 0; r < block.rows; ++r) {
    auto* out = static_cast<T*>(block.out[r].data);
    for (int j = 0; j < kCount; ++j) {
      double y = sums[r][j];
      if (bias != nullptr) {
        const auto b = LoadN(bias + j * block.bias.stride, 1);
        y += static_cast<double>(hn::GetLane(b.a));
      }
      using C = Compute<T>;
      StoreN(Pair<C>::Set(static_cast<C>(y)), out + j * block.out[r].stride, 1);
    }
  }
}

struct KernelsOf {
  template <class T>
  HWY_INLINE LinearKernels operator()(T) const {
    return {Products<kWeights, T>, Products<1, T>};
  }
};

LinearKernels Linear(DType dtype) { return ForDType(dtype, KernelsOf()); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foo_core {

void linear(const ConstTensorView& x, const ConstTensorView& weight,
            const ConstTensorView* bias, const TensorView& out,
            const Executor& executor) {
  const char* op = "linear";
  const Argument arg_x{"x", x}, arg_weight{"weight", weight},
      arg_bias{"bias", bias}, arg_out{"out", out};
  check_has_rows(op, arg_x);
  check_tensor(op, arg_weight);
  check_same_dtype(op, arg_x, arg_weight);
  const std::int64_t k = last_size(x);
  if (weight.ndim != 2 || weight.sizes[1] != k) {
    fail(op, "weight has shape " + shape_text(weight.ndim, weight.sizes) +
                 ", expected (n, " + std::to_string(k) +
                 "), as x's last dimension is " + std::to_string(k));
  }
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
  check_output(op, arg_out, {}, {&arg_x, &arg_weight, &arg_bias});
  if constexpr (cuda::kBuilt) {
    if (on_cuda(executor)) {
      return cuda::linear(x, weight, bias, out, executor.stream);
    }
  }
  const CpuThreads threads(op, executor);
  const std::int64_t rows = count_rows(x);
  if (rows == 0) return;

  const auto kernels = FOO_CORE_DISPATCH(Linear)(x.dtype);
  const auto nest = nest_of_rows(x, x, out);
  // Columns of out, which are rows of weight.
  const auto run = [&](std::int64_t begin, std::int64_t end) {
    LinearBlock block;
    while (begin < end) {
      const bool some = end - begin >= kWeights;
      const int columns = some ? kWeights : 1;
      for (int j = 0; j < columns; ++j) {
        block.weight[j] = row_at(&weight, (begin + j) * weight.strides[0]);
      }
      block.bias = row_at(bias, begin * stride_of(bias, 0));
      Walker<2> at(nest, nest.ndim, 0);
      for (std::int64_t row = 0; row < rows; row += block.rows) {
        block.rows =
            static_cast<int>(std::min<std::int64_t>(kRows, rows - row));
        for (int r = 0; r < block.rows; ++r, at.next()) {
          block.x[r] = row_at(&x, at.offset(0));
          block.out[r] = row_at(&out, at.offset(1) + begin * last_stride(out));
        }
        (some ? kernels.some : kernels.one)(block, k);
      }
      begin += columns;
    }
  };
  threads.for_ranges(n, rows * k, run);
}

}  // namespace foo_core
#endif  // HWY_ONCE
