#include "foo_core/rms_norm.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "checks.h"
#include "cpu/nest.h"
#include "cpu/simd.h"
#include "cpu/stream.h"
#include "row.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/rms_norm.cc"
// These after HWY_TARGET_INCLUDE, which they read.
#include "hwy/foreach_target.h"
//
#include "cpu/rms_norm-inl.h"
#include "hwy/cache_control.h"

#ifndef FOO_CORE_RMS_NORM_
#define FOO_CORE_RMS_NORM_
namespace foo_core {

/// One row of each tensor; residual and sum are null where there is none.
struct ForwardRow {
  Row x, residual;
  MutableRow sum, out;
};

}  // namespace foo_core
#endif

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {

/// Elements [0, n) of what is normalised: x, or x + residual as stored to sum.
template <bool kAdd, bool kAll, class T>
HWY_INLINE Pair<Compute<T>> Input(const T* x, const T* residual, T* sum,
                                  int64_t n) {
  if constexpr (!kAdd) return LoadSome<kAll>(x, n);
  StoreSome<kAll>(LoadSome<kAll>(x, n) + LoadSome<kAll>(residual, n), sum, n);
  return LoadSome<kAll>(sum, n);
}

/// The sum of squares of x, or of x + residual, which is stored to sum.
template <bool kAdd, class T>
HWY_INLINE double SumSquares(Row x, Row residual, MutableRow sum, int64_t n) {
  using C = Compute<T>;
  const auto* tx = static_cast<const T*>(x.data);
  const auto* tresidual = static_cast<const T*>(residual.data);
  auto* tsum = static_cast<T*>(sum.data);
  HWY_ALIGN T x_tile[kTile], residual_tile[kTile], sum_tile[kTile];
  const int64_t step = Lanes<C>();
  double squares = 0;
  // As many sums as additions are under way at a time.
  const auto zero = Pair<C>::Set(0);
  auto s0 = zero, s1 = zero, s2 = zero, s3 = zero;
  for (int64_t begin = 0; begin < n; begin += kTile) {
    const int64_t m = HWY_MIN(kTile, n - begin);
    const T* px = Gather(tx, x.stride, begin, m, x_tile);
    const T* pr = px;
    T* ps = sum_tile;
    if constexpr (kAdd) {
      pr = Gather(tresidual, residual.stride, begin, m, residual_tile);
      ps = Target(tsum, sum.stride, begin, sum_tile);
    }
    const auto add = [&](int64_t i, Pair<C>& s) HWY_ATTR {
      const auto v = Input<kAdd, true>(px + i, pr + i, ps + i, step);
      s = MulAdd(v, v, s);
    };
    int64_t i = 0;
    for (; i + 4 * step <= m; i += 4 * step) {
      add(i, s0);
      add(i + step, s1);
      add(i + 2 * step, s2);
      add(i + 3 * step, s3);
    }
    for (; i + step <= m; i += step) add(i, s0);
    if (i < m) {
      const auto v = Input<kAdd, false>(px + i, pr + i, ps + i, m - i);
      s1 = MulAdd(v, v, s1);
    }
    if constexpr (kAdd) Scatter(sum_tile, tsum, sum.stride, begin, m);
    if ((begin + kTile) % kSumBlock == 0 || begin + kTile >= n) {
      squares += static_cast<double>(Sum((s0 + s1) + (s2 + s3)));
      s0 = s1 = s2 = s3 = zero;
    }
  }
  return squares;
}

/// out = x * r * weight. Where that goes past the caches, the row to come is
/// not in them either, and is fetched while memory would be idle, because this
/// row is (0.75 times as long for 4096 x 4096 float32, 0.8 for bfloat16).
template <bool kAdd, bool kWeight, bool kStream, class T>
void Scale(const T* x, Compute<T> r, const T* weight, T* out,
           const ForwardRow& next, int64_t n) {
  using C = Compute<T>;
  const int64_t step = Lanes<C>();
  const auto vr = Pair<C>::Set(r);
  int64_t i = 0;
  for (; i + step <= n; i += step) {
    if constexpr (kStream) {
      PrefetchLoad(static_cast<const T*>(next.x.data) + i, 0);
      if (kAdd) PrefetchLoad(static_cast<const T*>(next.residual.data) + i, 0);
    }
    const auto y = Load(x + i) * vr;
    Store<kStream>(kWeight ? y * Load(weight + i) : y, out + i);
  }
  if (i < n) {
    const auto y = LoadN(x + i, n - i) * vr;
    StoreN(kWeight ? y * LoadN(weight + i, n - i) : y, out + i, n - i);
  }
}

template <bool kAdd, class T>
void Forward(const ForwardRow& row, const ForwardRow& next, Row weight,
             double eps, bool stream, int64_t n) {
  using C = Compute<T>;
  const auto squares = SumSquares<kAdd, T>(row.x, row.residual, row.sum, n);
  const auto r = static_cast<C>(InverseRms<C>(squares, eps, n));
  const Row x = kAdd ? Row{row.sum.data, row.sum.stride} : row.x;
  const MutableRow out = row.out;
  const auto* tx = static_cast<const T*>(x.data);
  const auto* tw = static_cast<const T*>(weight.data);
  auto* tout = static_cast<T*>(out.data);
  stream = stream && out.stride == 1 && can_stream(tout);
  const auto choose = [&](auto has_weight) HWY_ATTR {
    constexpr bool kWeight = decltype(has_weight)::value;
    return stream ? Scale<kAdd, kWeight, true, T>
                  : Scale<kAdd, kWeight, false, T>;
  };
  const auto scale =
      tw == nullptr ? choose(std::false_type()) : choose(std::true_type());
  HWY_ALIGN T x_tile[kTile], w_tile[kTile], out_tile[kTile];
  const bool contiguous =
      x.stride == 1 && weight.stride == 1 && out.stride == 1;
  const int64_t tile = contiguous ? n : kTile;
  for (int64_t i = 0; i < n; i += tile) {
    const int64_t m = HWY_MIN(tile, n - i);
    const T* px = Gather(tx, x.stride, i, m, x_tile);
    const T* pw = tw == nullptr ? px : Gather(tw, weight.stride, i, m, w_tile);
    scale(px, r, pw, Target(tout, out.stride, i, out_tile), next, m);
    Scatter(out_tile, tout, out.stride, i, m);
  }
}

using ForwardFunction = void (*)(const ForwardRow& row, const ForwardRow& next,
                                 Row weight, double eps, bool stream,
                                 int64_t n);

template <bool kAdd>
struct ForwardOf {
  template <class T>
  HWY_INLINE ForwardFunction operator()(T) const {
    return Forward<kAdd, T>;
  }
};

ForwardFunction RmsNormForward(DType dtype) {
  return ForDType(dtype, ForwardOf<false>());
}

ForwardFunction AddRmsNormForward(DType dtype) {
  return ForDType(dtype, ForwardOf<true>());
}

}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foo_core {
namespace {

/// out shares memory with nothing but x or residual, of which it may be either.
void check_output(const char* op, const Argument& out, const Argument& x,
                  const ConstTensorView* residual,
                  const ConstTensorView* weight) {
  check_no_self_overlap(op, out);
  check_overlap(op, out, x, true);
  if (residual != nullptr) {
    check_overlap(op, out, {"residual", *residual}, true);
  }
  if (weight != nullptr) check_overlap(op, out, {"weight", *weight}, false);
}

/// Calls body on ranges of x's rows, which are worth a thread of their own.
void for_rows(const ConstTensorView& x, const ParallelFor& parallel_for,
              RangeBody body, void* context) {
  const std::int64_t count = numel(x);
  const std::int64_t rows = count_rows(x);
  if (count < kGrain || rows == 1) {
    body(context, 0, rows);
    return;
  }
  parallel_for.run(parallel_for.self, 0, rows,
                   std::max<std::int64_t>(1, kGrain * rows / count), body,
                   context);
}

/// Calls f(row, next) for rows [begin, end), which row_of finds; the last one
/// is its own next.
template <int N, class RowOf, class F>
void for_each_row(const Nest<N>& nest, std::int64_t begin, std::int64_t end,
                  RowOf row_of, F f) {
  Walker<N> at(nest, nest.ndim, begin);
  while (begin < end) {
    const ForwardRow row = row_of(at);
    if (++begin < end) at.next();
    f(row, row_of(at));
  }
}

}  // namespace

void rms_norm(const ConstTensorView& x, const ConstTensorView* weight,
              double eps, const TensorView& out,
              const ParallelFor& parallel_for) {
  constexpr const char* kOp = "rms_norm";
  const Argument arg_x{"x", x}, arg_out{"out", out};
  check_has_rows(kOp, arg_x);
  if (weight != nullptr) check_last_size(kOp, {"weight", *weight}, arg_x);
  check_like(kOp, arg_out, arg_x);
  if (numel(x) == 0) return;
  check_output(kOp, arg_out, arg_x, nullptr, weight);

  struct Context {
    const ConstTensorView& x;
    const ConstTensorView* weight;
    double eps;
    const TensorView& out;
  } context{x, weight, eps, out};
  for_rows(
      x, parallel_for,
      [](void* self, std::int64_t begin, std::int64_t end) {
        const auto& c = *static_cast<const Context*>(self);
        cpu::rms_norm(c.x, c.weight, c.eps, c.out, begin, end);
      },
      &context);
}

void add_rms_norm(const ConstTensorView& x, const ConstTensorView& residual,
                  const ConstTensorView* weight, double eps,
                  const TensorView& out, const TensorView& residual_out,
                  const ParallelFor& parallel_for) {
  constexpr const char* kOp = "add_rms_norm";
  const Argument arg_x{"x", x}, arg_out{"out", out};
  const Argument arg_sum{"residual_out", residual_out};
  check_has_rows(kOp, arg_x);
  check_like(kOp, {"residual", residual}, arg_x);
  if (weight != nullptr) check_last_size(kOp, {"weight", *weight}, arg_x);
  check_like(kOp, arg_out, arg_x);
  check_like(kOp, arg_sum, arg_x);
  if (numel(x) == 0) return;
  check_output(kOp, arg_out, arg_x, &residual, weight);
  check_output(kOp, arg_sum, arg_x, &residual, weight);
  check_overlap(kOp, arg_out, arg_sum, false);

  struct Context {
    const ConstTensorView &x, &residual;
    const ConstTensorView* weight;
    double eps;
    const TensorView &out, &residual_out;
  } context{x, residual, weight, eps, out, residual_out};
  for_rows(
      x, parallel_for,
      [](void* self, std::int64_t begin, std::int64_t end) {
        const auto& c = *static_cast<const Context*>(self);
        cpu::add_rms_norm(c.x, c.residual, c.weight, c.eps, c.out,
                          c.residual_out, begin, end);
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
  const bool stream = worth_streaming(out, {x.data});
  for_each_row(
      nest, begin, end,
      [&](const Walker<2>& at) {
        return ForwardRow{
            row_at(&x, at.offset(0)), {}, {}, row_at(&out, at.offset(1))};
      },
      [&](const ForwardRow& row, const ForwardRow& next) {
        forward(row, next, row_at(weight, 0), eps, stream, last_size(x));
      });
  if (stream) hwy::FlushStream();
}

void add_rms_norm(const ConstTensorView& x, const ConstTensorView& residual,
                  const ConstTensorView* weight, double eps,
                  const TensorView& out, const TensorView& residual_out,
                  std::int64_t begin, std::int64_t end) noexcept {
  const auto forward = FOO_CORE_DISPATCH(AddRmsNormForward)(x.dtype);
  Nest<4> nest;
  for (std::int64_t d = 0; d < x.ndim - 1; ++d) {
    nest.append(x.sizes[d], {x.strides[d], residual.strides[d], out.strides[d],
                             residual_out.strides[d]});
  }
  nest.finish();
  const bool stream = worth_streaming(out, {x.data, residual.data});
  for_each_row(
      nest, begin, end,
      [&](const Walker<4>& at) {
        return ForwardRow{
            row_at(&x, at.offset(0)), row_at(&residual, at.offset(1)),
            row_at(&residual_out, at.offset(3)), row_at(&out, at.offset(2))};
      },
      [&](const ForwardRow& row, const ForwardRow& next) {
        forward(row, next, row_at(weight, 0), eps, stream, last_size(x));
      });
  if (stream) hwy::FlushStream();
}

}  // namespace cpu
}  // namespace foo_core
#endif  // HWY_ONCE
