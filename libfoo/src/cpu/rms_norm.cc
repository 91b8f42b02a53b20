#include "foo_core/rms_norm.h"

#include <algorithm>
#include <cstdint>

#include "checks.h"
#include "cpu/nest.h"
#include "cpu/simd.h"
#include "row.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/rms_norm.cc"
// These after HWY_TARGET_INCLUDE, which they read.
#include "hwy/foreach_target.h"
//
#include "cpu/rms_norm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {

template <class T>
HWY_INLINE double SumSquares(const T* x, int64_t stride, int64_t n) {
  using C = Compute<T>;
  HWY_ALIGN T tile[kTile];
  const int64_t step = Lanes<C>();
  double sum = 0;
  auto s0 = Pair<C>::Set(0), s1 = s0;
  for (int64_t begin = 0; begin < n; begin += kTile) {
    const int64_t m = HWY_MIN(kTile, n - begin);
    const T* p = Gather(x, stride, begin, m, tile);
    int64_t i = 0;
    for (; i + 2 * step <= m; i += 2 * step) {
      const auto x0 = Load(p + i), x1 = Load(p + i + step);
      s0 = MulAdd(x0, x0, s0);
      s1 = MulAdd(x1, x1, s1);
    }
    for (; i < m; i += step) {
      const auto x0 = m - i < step ? LoadN(p + i, m - i) : Load(p + i);
      s0 = MulAdd(x0, x0, s0);
    }
    if ((begin + kTile) % kSumBlock == 0 || begin + kTile >= n) {
      sum += static_cast<double>(Sum(s0 + s1));
      s0 = s1 = Pair<C>::Set(0);
    }
  }
  return sum;
}

/// out = x * r * weight
template <bool kWeight, class T>
HWY_INLINE void Scale(const T* x, Compute<T> r, const T* weight, T* out,
                      int64_t n) {
  using C = Compute<T>;
  const int64_t step = Lanes<C>();
  const auto vr = Pair<C>::Set(r);
  int64_t i = 0;
  for (; i + step <= n; i += step) {
    const auto y = Load(x + i) * vr;
    Store(kWeight ? y * Load(weight + i) : y, out + i);
  }
  if (i < n) {
    const auto y = LoadN(x + i, n - i) * vr;
    StoreN(kWeight ? y * LoadN(weight + i, n - i) : y, out + i, n - i);
  }
}

template <class T>
void Forward(Row x, Row weight, double eps, MutableRow out, int64_t n) {
  using C = Compute<T>;
  const auto* tx = static_cast<const T*>(x.data);
  const auto* tw = static_cast<const T*>(weight.data);
  auto* tout = static_cast<T*>(out.data);
  const auto r =
      static_cast<C>(InverseRms<C>(SumSquares(tx, x.stride, n), eps, n));
  HWY_ALIGN T x_tile[kTile], w_tile[kTile], out_tile[kTile];
  for (int64_t i = 0; i < n; i += kTile) {
    const int64_t m = HWY_MIN(kTile, n - i);
    const T* px = Gather(tx, x.stride, i, m, x_tile);
    T* pout = Target(tout, out.stride, i, out_tile);
    if (tw == nullptr) {
      Scale<false>(px, r, px, pout, m);
    } else {
      Scale<true>(px, r, Gather(tw, weight.stride, i, m, w_tile), pout, m);
    }
    Scatter(out_tile, tout, out.stride, i, m);
  }
}

using ForwardFunction = void (*)(Row x, Row weight, double eps, MutableRow out,
                                 int64_t n);

struct ForwardOf {
  template <class T>
  HWY_INLINE ForwardFunction operator()(T) const {
    return Forward<T>;
  }
};

ForwardFunction RmsNormForward(DType dtype) {
  return ForDType(dtype, ForwardOf());
}

}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foo_core {

void rms_norm(const ConstTensorView& x, const ConstTensorView* weight,
              double eps, const TensorView& out,
              const ParallelFor& parallel_for) {
  constexpr const char* kOp = "rms_norm";
  const Argument arg_x{"x", x}, arg_out{"out", out};
  check_has_rows(kOp, arg_x);
  if (weight != nullptr) check_last_size(kOp, {"weight", *weight}, arg_x);
  check_like(kOp, arg_out, arg_x);
  const std::int64_t count = numel(x);
  if (count == 0) return;
  check_no_self_overlap(kOp, arg_out);
  check_overlap(kOp, arg_out, arg_x, true);
  if (weight != nullptr) {
    check_overlap(kOp, arg_out, {"weight", *weight}, false);
  }

  const std::int64_t rows = count_rows(x);
  if (count < kGrain || rows == 1) {
    cpu::rms_norm(x, weight, eps, out, 0, rows);
    return;
  }
  struct Context {
    const ConstTensorView& x;
    const ConstTensorView* weight;
    double eps;
    const TensorView& out;
  } context{x, weight, eps, out};
  parallel_for.run(
      parallel_for.self, 0, rows,
      std::max<std::int64_t>(1, kGrain * rows / count),
      [](void* self, std::int64_t begin, std::int64_t end) {
        const auto& c = *static_cast<const Context*>(self);
        cpu::rms_norm(c.x, c.weight, c.eps, c.out, begin, end);
      },
      &context);
}

namespace cpu {

void rms_norm(const ConstTensorView& x, const ConstTensorView* weight,
              double eps, const TensorView& out, std::int64_t begin,
              std::int64_t end) noexcept {
  const auto forward = FOO_CORE_DISPATCH(RmsNormForward)(x.dtype);
  Nest<2> nest;
  for (std::int64_t d = 0; d < x.ndim - 1; ++d) {
    nest.append(x.sizes[d], {x.strides[d], out.strides[d]});
  }
  nest.finish();
  Walker<2> at(nest, nest.ndim, begin);
  for (; begin < end; ++begin, at.next()) {
    forward(row_at(&x, at.offset(0)), row_at(weight, 0), eps,
            row_at(&out, at.offset(1)), last_size(x));
  }
}

}  // namespace cpu
}  // namespace foo_core
#endif  // HWY_ONCE
