// x weight^T + bias for few rows of x, where reading weight takes the time.
// Blocks of rows of weight and of x are multiplied in registers, so that each
// load serves several products: with 16 rows of x, arithmetic takes as long as
// memory. Sums of four rows of weight are completed together. Threads divide
// the rows of weight.
#include "foo_core/linear.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>

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

/// Rows of weight at a time. The sums of four vectors are one vector.
constexpr int kWeights = 4;

/// Rows of x at a time, while a tile of weight stays in the L1 cache.
constexpr int kRows = 16;

/// Up to kRows rows of x, kWeights rows of weight, of which the last may be the
/// same row, and `columns` of their products.
struct LinearBlock {
  int rows, columns;
  Row x[kRows];
  MutableRow out[kRows];
  Row weight[kWeights];
  std::int64_t next;  // from weight[j] to the row that is multiplied after it
  Row bias;           // data may be null
};

using LinearKernel = void (*)(const LinearBlock& block, std::int64_t k);

}  // namespace
}  // namespace foo_core
#endif

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {
namespace {

/// Rows of x that are multiplied together: what the registers hold.
constexpr int kXs = HWY_TARGET <= HWY_AVX3 ? 4 : 2;

/// Columns at a time. Tiles of weight and of x share the L1 cache with what is
/// prefetched, and the errors of short sums are small.
template <class T>
constexpr int64_t kColumnsOf = 2048 / static_cast<int64_t>(sizeof(T));

template <class C>
using Vector = hn::Vec<hn::ScalableTag<C>>;

/// Adds the products of kCount rows of x and kWeights rows of weight, of n
/// contiguous elements each, to sums: vectors of parts of each sum. The order
/// of additions does not depend on kCount.
template <int kCount, bool kPrefetch, class T>
HWY_INLINE void Multiply(const T* const* x, const T* const* weight,
                         int64_t next, int64_t n, Compute<T>* sums) {
  using C = Compute<T>;
  const hn::ScalableTag<C> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  Vector<C> s[kCount][kWeights];
  for (auto& row : s) {
    for (auto& sum : row) sum = hn::Zero(d);
  }
  const auto add = [&](auto whole, int64_t i) HWY_ATTR {
    constexpr bool kAll = decltype(whole)::value;
    Pair<C> v[kCount];
    for (int r = 0; r < kCount; ++r) v[r] = LoadSome<kAll>(x[r] + i, n - i);
    for (int j = 0; j < kWeights; ++j) {
      const auto w = LoadSome<kAll>(weight[j] + i, n - i);
      if constexpr (kPrefetch) PrefetchLoad(weight[j] + i, next);
      for (int r = 0; r < kCount; ++r) {
        s[r][j] = hn::MulAdd(v[r].a, w.a, s[r][j]);
        s[r][j] = hn::MulAdd(v[r].b, w.b, s[r][j]);
      }
    }
  };
  const int64_t step = Lanes<C>();
  int64_t i = 0;
  for (; i + step <= n; i += step) add(std::true_type(), i);
  if (i < n) add(std::false_type(), i);
  for (int r = 0; r < kCount; ++r) {
    for (int j = 0; j < kWeights; ++j) {
      C* const to = sums + (r * kWeights + j) * lanes;
      hn::Store(hn::Add(hn::Load(d, to), s[r][j]), d, to);
    }
  }
}

/// Completes the sums of kWeights vectors.
HWY_INLINE void Complete(const double* sums, double* y) {
  const hn::ScalableTag<double> d;
  for (int j = 0; j < kWeights; ++j) {
    const auto at = static_cast<size_t>(j) * hn::Lanes(d);
    y[j] = hn::ReduceSum(d, hn::Load(d, sums + at));
  }
}

HWY_INLINE void Complete(const float* sums, float* y) {
  const hn::ScalableTag<float> d;
  const auto pairs = [&](auto a, auto b) HWY_ATTR {
    return hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  };
  const auto of = [&](size_t j)
                      HWY_ATTR { return hn::Load(d, sums + j * hn::Lanes(d)); };
  const auto parts = pairs(pairs(of(0), of(2)), pairs(of(1), of(3)));
  HWY_ALIGN float all[hn::MaxLanes(d)];
  hn::Store(parts, d, all);
  const hn::FixedTag<float, 4> d4;
  auto total = hn::Load(d4, all);
  for (size_t i = 4; i < hn::Lanes(d); i += 4) {
    total = hn::Add(total, hn::Load(d4, all + i));
  }
  hn::StoreU(total, d4, y);
}

template <class T>
void Products(const LinearBlock& block, int64_t k) {
  using C = Compute<T>;
  constexpr int64_t kColumns = kColumnsOf<T>;
  HWY_ALIGN T x_tile[kXs][kColumns], weight_tile[kWeights][kColumns];
  constexpr int64_t kLanes = hn::MaxLanes(hn::ScalableTag<C>());
  HWY_ALIGN C sums[kRows * kWeights * kLanes];
  for (int64_t i = 0; i < block.rows * kWeights * kLanes; ++i) sums[i] = 0;
  for (int64_t i = 0; i < k; i += kColumns) {
    const int64_t m = HWY_MIN(kColumns, k - i);
    // To these rows' next tile, the next rows' first one, or their last, short
    // one: each is prefetched once, shortly before it is needed.
    const int64_t next = i + 2 * kColumns <= k ? kColumns
                         : m == kColumns       ? block.next - i
                                               : block.next;
    const T* weight[kWeights];
    for (int j = 0; j < kWeights; ++j) {
      const Row& row = block.weight[j];
      weight[j] = InputTile(static_cast<const T*>(row.data), row.stride, i, m,
                            weight_tile[j]);
    }
    for (int r = 0; r < block.rows;) {
      const T* x[kXs];
      const int left = block.rows - r;
      const int count = left >= kXs ? kXs : left >= 2 ? 2 : 1;
      for (int j = 0; j < count; ++j) {
        const Row& row = block.x[r + j];
        // The tile was another row's, so i is 0 for InputTile.
        x[j] = InputTile(static_cast<const T*>(row.data) + i * row.stride,
                         row.stride, 0, m, x_tile[j]);
      }
      C* const to = sums + r * kWeights * kLanes;
      const auto multiply = [&](auto rows) HWY_ATTR {
        constexpr int kCount = decltype(rows)::value;
        r == 0 ? Multiply<kCount, true>(x, weight, next, m, to)
               : Multiply<kCount, false>(x, weight, next, m, to);
      };
      if (count == kXs) {
        multiply(std::integral_constant<int, kXs>());
      } else if (count == 2) {
        multiply(std::integral_constant<int, 2>());
      } else {
        multiply(std::integral_constant<int, 1>());
      }
      r += count;
    }
  }
  const auto* bias = static_cast<const T*>(block.bias.data);
  for (int r = 0; r < block.rows; ++r) {
    auto* out = static_cast<T*>(block.out[r].data);
    C y[kWeights];
    Complete(sums + r * kWeights * kLanes, y);
    for (int j = 0; j < block.columns; ++j) {
      auto sum = Pair<C>::Set(y[j]);
      if (bias != nullptr) sum = sum + LoadN(bias + j * block.bias.stride, 1);
      StoreN(sum, out + j * block.out[r].stride, 1);
    }
  }
}

struct KernelsOf {
  template <class T>
  HWY_INLINE LinearKernel operator()(T) const {
    return Products<T>;
  }
};

LinearKernel Linear(DType dtype) { return ForDType(dtype, KernelsOf()); }

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
  check_product(op, arg_x, n, arg_bias, arg_out);
  check_output(op, arg_out, {}, {&arg_x, &arg_weight, &arg_bias});
  if constexpr (cuda::kBuilt) {
    if (on_cuda(executor)) {
      return cuda::linear(x, weight, bias, out, executor.stream);
    }
  }
  const CpuThreads threads(op, executor);
  const std::int64_t rows = count_rows(x);
  if (rows == 0) return;

  const auto kernel = FOO_CORE_DISPATCH(Linear)(x.dtype);
  const auto nest = nest_of_rows(x, x, out);
  // Columns of out, which are rows of weight.
  const auto run = [&](std::int64_t begin, std::int64_t end) {
    LinearBlock block;
    block.next = n > kWeights ? kWeights * weight.strides[0] : 0;
    for (; begin < end; begin += kWeights) {
      block.columns =
          static_cast<int>(std::min<std::int64_t>(kWeights, end - begin));
      for (int j = 0; j < kWeights; ++j) {
        const std::int64_t column = begin + std::min(j, block.columns - 1);
        block.weight[j] = row_at(&weight, column * weight.strides[0]);
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
        kernel(block, k);
      }
    }
  };
  threads.for_ranges(n, rows * k, run);
}

}  // namespace foo_core
#endif  // HWY_ONCE
