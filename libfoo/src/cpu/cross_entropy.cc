#include "foo_core/cross_entropy.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>

#include "checks.h"
#include "cpu/nest.h"
#include "cpu/simd.h"
#include "cpu/stream.h"
#include "row.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/cross_entropy.cc"
// These after HWY_TARGET_INCLUDE, which they read.
#include "hwy/foreach_target.h"
//
#include "cpu/cross_entropy-inl.h"
#include "cpu/tile-inl.h"
#include "hwy/cache_control.h"

#ifndef FOO_CORE_CROSS_ENTROPY_
#define FOO_CORE_CROSS_ENTROPY_
namespace foo_core {

/// Of one row, as far as it has been read: sums of blocks, which are in the
/// type of computation, in double.
struct RowSums {
  double max = -std::numeric_limits<double>::infinity();
  double exps = 0;         // of exp(x - shift())
  double differences = 0;  // of x - shift(), if wanted
  double target = 0;       // x[target]

  /// The maximum, with which nothing overflows; but x minus it must not be NaN
  /// while all x are minus infinity.
  double shift() const { return max < -DBL_MAX ? 0 : max; }

  /// Adds `difference` to each x - shift() of the `count` elements so far.
  void move_by(double difference, std::int64_t count) {
    exps *= std::exp(difference);
    differences += static_cast<double>(count) * difference;
  }
};

struct CrossEntropyKernels {
  RowSums (*sums)(Row logits, std::int64_t n, std::int64_t target, bool smooth);
  /// out = scale * (exp(logits - lse) - (1 - smoothing) * onehot(target) -
  /// smoothing / n)
  void (*gradient)(Row logits, std::int64_t n, std::int64_t target, double lse,
                   double scale, double smoothing, MutableRow out, bool stream);
};

}  // namespace foo_core
#endif

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {

/// Of n > 0 elements; any of them if one is NaN.
template <class T>
HWY_INLINE Compute<T> Largest(const T* x, int64_t n) {
  using C = Compute<T>;
  constexpr C kLowest = -std::numeric_limits<C>::infinity();
  const int64_t step = Lanes<C>();
  auto m0 = Pair<C>::Set(kLowest), m1 = m0;
  int64_t i = 0;
  for (; i + 2 * step <= n; i += 2 * step) {
    m0 = Larger(m0, Load(x + i));
    m1 = Larger(m1, Load(x + i + step));
  }
  for (; i + step <= n; i += step) m0 = Larger(m0, Load(x + i));
  if (i < n) m1 = Larger(m1, LoadFilled(x + i, n - i, kLowest));
  return Largest(Larger(m0, m1));
}

template <bool kSmooth, class T>
HWY_INLINE void AddElements(Pair<Compute<T>> x, Pair<Compute<T>> shift,
                            Pair<Compute<T>>& exps,
                            Pair<Compute<T>>& differences) {
  const auto difference = Subtract(x, shift);
  exps = AddExp<T>(exps, difference);
  if constexpr (kSmooth) differences = differences + difference;
}

/// Adds a block of n elements of which the first is number `begin` of its row.
/// They are read twice, but from memory only once: up to 1.4 times as fast as
/// reading the whole row for its maximum first.
template <bool kSmooth, class T>
HWY_INLINE void AddBlock(const T* x, int64_t n, int64_t begin, RowSums& sums) {
  using C = Compute<T>;
  const double max = static_cast<double>(Largest(x, n));
  if (max > sums.max) {
    if (begin > 0) sums.move_by(sums.max - max, begin);
    sums.max = max;
  }
  const auto shift = static_cast<C>(sums.shift());
  const auto vshift = Pair<C>::Set(shift);
  const int64_t step = Lanes<C>();
  // Two sums each, which is no faster but more accurate.
  auto e0 = Pair<C>::Set(0), e1 = e0, d0 = e0, d1 = e0;
  int64_t i = 0;
  for (; i + 2 * step <= n; i += 2 * step) {
    FetchAhead(x + i, 2 * step);  // for float32 in AVX-512 1.5 times as fast
    AddElements<kSmooth, T>(Load(x + i), vshift, e0, d0);
    AddElements<kSmooth, T>(Load(x + i + step), vshift, e1, d1);
  }
  for (; i + step <= n; i += step) {
    AddElements<kSmooth, T>(Load(x + i), vshift, e0, d0);
  }
  if (i < n) {  // with e^x = 0, and then x = 0, where there is no element
    constexpr C kLowest = -std::numeric_limits<C>::infinity();
    const auto exps = LoadFilled(x + i, n - i, kLowest);
    AddElements<false, T>(exps, vshift, e1, d1);
    const auto differences = LoadFilled(x + i, n - i, shift);
    if constexpr (kSmooth) d1 = d1 + Subtract(differences, vshift);
  }
  sums.exps += static_cast<double>(Sum(e0 + e1));
  if constexpr (kSmooth) sums.differences += static_cast<double>(Sum(d0 + d1));
}

template <bool kSmooth, class T>
HWY_INLINE void AddRow(const T* x, int64_t stride, int64_t n, RowSums& sums) {
  HWY_ALIGN T tile[kTile];
  for (int64_t i = 0; i < n; i += kTile) {
    const int64_t m = HWY_MIN(kTile, n - i);
    AddBlock<kSmooth>(Gather(x, stride, i, m, tile), m, i, sums);
  }
}

template <class T>
RowSums Sums(Row logits, int64_t n, int64_t target, bool smooth) {
  const auto* x = static_cast<const T*>(logits.data);
  RowSums sums;
  sums.target = LoadOne(x + target * logits.stride);
  if (smooth) {
    AddRow<true>(x, logits.stride, n, sums);
  } else {
    AddRow<false>(x, logits.stride, n, sums);
  }
  return sums;
}

/// out = factor * exp(x - shift) + term
template <class T>
HWY_INLINE void Softmax(const T* x, int64_t n, Compute<T> shift,
                        Compute<T> factor, Compute<T> term, T* out,
                        bool stream) {
  using C = Compute<T>;
  const auto vshift = Pair<C>::Set(shift);
  const auto vfactor = Pair<C>::Set(factor), vterm = Pair<C>::Set(term);
  ForPairs(out, stream, n, [&](auto whole, int64_t i, int64_t m) HWY_ATTR {
    constexpr bool kAll = decltype(whole)::value;
    const auto p = ExpFor<T>(Subtract(LoadSome<kAll>(x + i, m), vshift));
    const auto y = MulAdd(p, vfactor, vterm);
    if constexpr (kAll) return Store(y, out + i, stream);
    StoreN(y, out + i, m);
  });
}

template <class T>
void Gradient(Row logits, int64_t n, int64_t target, double lse, double scale,
              double smoothing, MutableRow out, bool stream) {
  using C = Compute<T>;
  const auto* x = static_cast<const T*>(logits.data);
  auto* tout = static_cast<T*>(out.data);
  // What lse loses in C goes to the factor.
  const auto shift = static_cast<C>(lse);
  const auto factor = scale * std::exp(static_cast<double>(shift) - lse);
  const double mean = smoothing / static_cast<double>(n);
  const double term = smoothing == 0 ? 0 : -scale * mean;
  // exp(x) - 1 without cancellation; logits may be gone when it is needed.
  const double at_target =
      scale * (std::expm1(LoadOne(x + target * logits.stride) - lse) +
               smoothing - mean);
  HWY_ALIGN T tile[kTile], out_tile[kTile];
  for (int64_t i = 0; i < n; i += kTile) {
    const int64_t m = HWY_MIN(kTile, n - i);
    Softmax(Gather(x, logits.stride, i, m, tile), m, shift,
            static_cast<C>(factor), static_cast<C>(term),
            Target(tout, out.stride, i, out_tile), stream && out.stride == 1);
    Scatter(out_tile, tout, out.stride, i, m);
  }
  StoreN(Pair<C>::Set(static_cast<C>(at_target)), tout + target * out.stride,
         1);
}

struct KernelsOf {
  template <class T>
  HWY_INLINE CrossEntropyKernels operator()(T) const {
    return {Sums<T>, Gradient<T>};
  }
};

CrossEntropyKernels CrossEntropy(DType dtype) {
  return ForDType(dtype, KernelsOf());
}

}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foo_core {
namespace {

DType loss_dtype(const ConstTensorView& logits) {
  return logits.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

std::int64_t index_at(const ConstTensorView& x, std::int64_t offset) {
  return static_cast<const std::int64_t*>(x.data)[offset];
}

/// Of float32 or float64.
double number_at(const ConstTensorView& x, std::int64_t offset) {
  if (x.dtype == DType::kFloat64) {
    return static_cast<const double*>(x.data)[offset];
  }
  return static_cast<double>(static_cast<const float*>(x.data)[offset]);
}

void set_number(const TensorView& x, std::int64_t offset, double value) {
  if (x.dtype == DType::kFloat64) {
    static_cast<double*>(x.data)[offset] = value;
  } else {
    static_cast<float*>(x.data)[offset] = static_cast<float>(value);
  }
}

/// The number of rows that are not ignored.
std::int64_t check_targets(const char* op, const ConstTensorView& target,
                           std::int64_t classes, std::int64_t ignore_index) {
  const std::int64_t rows = numel(target);
  if (rows == 0) return 0;
  Nest<1> nest;
  for (std::int64_t d = 0; d < target.ndim; ++d) {
    nest.append(target.sizes[d], {target.strides[d]});
  }
  nest.finish();
  std::int64_t count = 0;
  Walker<1> at(nest, nest.ndim, 0);
  for (std::int64_t row = 0; row < rows; ++row, at.next()) {
    const std::int64_t value = index_at(target, at.offset(0));
    if (value == ignore_index) continue;
    ++count;
    if (value >= 0 && value < classes) continue;
    std::int64_t index[kMaxDims];
    std::int64_t rest = row;
    for (std::int64_t d = target.ndim - 1; d >= 0; --d) {
      index[d] = rest % target.sizes[d];
      rest /= target.sizes[d];
    }
    fail(op, "target is " + std::to_string(value) + " at index " +
                 shape_text(target.ndim, index) + ", expected 0 to " +
                 std::to_string(classes - 1) + " or ignore_index (" +
                 std::to_string(ignore_index) + ")");
  }
  return count;
}

/// What the loss and the gradient have in common, but for the targets' values.
void check_inputs(const char* op, const Argument& logits,
                  const Argument& target, const CrossEntropyOptions& options) {
  check_has_rows(op, logits);
  const std::int64_t row_dims = logits.view.ndim - 1;
  check_tensor(op, target, DType::kInt64);
  check_shape(op, target, row_dims, logits.view.sizes);
  if (options.reduction != Reduction::kNone &&
      options.reduction != Reduction::kMean &&
      options.reduction != Reduction::kSum) {
    fail(op, "reduction is number " +
                 std::to_string(static_cast<std::int32_t>(options.reduction)) +
                 ", which is none of Reduction's");
  }
  if (!(options.label_smoothing >= 0 && options.label_smoothing <= 1)) {
    char number[32];
    std::snprintf(number, sizeof(number), "%g", options.label_smoothing);
    fail(op, std::string("label_smoothing is ") + number + ", expected 0 to 1");
  }
  if (last_size(logits.view) == 0 && count_rows(logits.view) > 0) {
    fail(op, "logits has shape " +
                 shape_text(logits.view.ndim, logits.view.sizes) +
                 ", expected at least 1 class");
  }
}

/// x is sound in itself and has the shape and dtype of the loss.
void check_like_loss(const char* op, const Argument& x,
                     const ConstTensorView& logits,
                     const CrossEntropyOptions& options) {
  check_tensor(op, x, loss_dtype(logits));
  const bool rows = options.reduction == Reduction::kNone;
  check_shape(op, x, rows ? logits.ndim - 1 : 0, logits.sizes);
}

void check_lse(const char* op, const Argument& lse,
               const ConstTensorView& logits) {
  check_tensor(op, lse, DType::kFloat64);
  check_shape(op, lse, logits.ndim - 1, logits.sizes);
}

/// Stride d of the loss or its gradient, which one number stands for if the
/// rows' losses are reduced.
std::int64_t loss_stride(const ConstTensorView& loss, std::int64_t d) {
  return loss.ndim == 0 ? 0 : loss.strides[d];
}

/// loop.run(begin, end) for all rows of x.
template <class Loop>
void for_rows(const ConstTensorView& x, Loop& loop,
              const ParallelFor& parallel_for) {
  const std::int64_t rows = count_rows(x), count = numel(x);
  if (rows == 0) return;
  const ParallelFor& run =
      count < kGrain || rows == 1 ? serial() : parallel_for;
  run.run(
      run.self, 0, rows, std::max<std::int64_t>(1, kGrain * rows / count),
      [](void* self, std::int64_t begin, std::int64_t end) {
        static_cast<const Loop*>(self)->run(begin, end);
      },
      &loop);
}

struct LossLoop {
  CrossEntropyKernels kernels;
  const ConstTensorView& logits;
  const ConstTensorView& target;
  const CrossEntropyOptions& options;
  const TensorView& loss;
  const TensorView& lse;
  double* row_losses;  // null if they are not reduced
  Nest<4> nest;

  void run(std::int64_t begin, std::int64_t end) const {
    Walker<4> at(nest, nest.ndim, begin);
    for (; begin < end; ++begin, at.next()) {
      double row_lse = 0;
      const double row_loss = loss_of(row_at(&logits, at.offset(0)),
                                      index_at(target, at.offset(1)), row_lse);
      set_number(lse, at.offset(3), row_lse);
      if (row_losses != nullptr) {
        row_losses[begin] = row_loss;
      } else {
        set_number(loss, at.offset(2), row_loss);
      }
    }
  }

  double loss_of(Row row, std::int64_t label, double& row_lse) const {
    if (label == options.ignore_index) return 0;
    const double smoothing = options.label_smoothing;
    const std::int64_t n = last_size(logits);
    const RowSums sums = kernels.sums(row, n, label, smoothing > 0);
    const double log_sum = std::log(sums.exps);
    row_lse = sums.shift() + log_sum;
    // Not from lse, next to which the difference may be small.
    const double nll = log_sum + (sums.shift() - sums.target);
    if (smoothing == 0) return nll;
    const double mean = sums.differences / static_cast<double>(n);
    return (1 - smoothing) * nll + smoothing * (log_sum - mean);
  }
};

struct GradientLoop {
  CrossEntropyKernels kernels;
  const ConstTensorView& grad;
  const ConstTensorView& logits;
  const ConstTensorView& target;
  const ConstTensorView& lse;
  const CrossEntropyOptions& options;
  const TensorView& grad_logits;
  double count;  // that the sum of losses was divided by
  bool stream;
  Nest<5> nest;

  void run(std::int64_t begin, std::int64_t end) const {
    const std::int64_t n = last_size(logits);
    Walker<5> at(nest, nest.ndim, begin);
    for (; begin < end; ++begin, at.next()) {
      const MutableRow out = row_at(&grad_logits, at.offset(4));
      const std::int64_t label = index_at(target, at.offset(2));
      if (label == options.ignore_index) {
        zero(out);
        continue;
      }
      kernels.gradient(row_at(&logits, at.offset(1)), n, label,
                       number_at(lse, at.offset(3)),
                       number_at(grad, at.offset(0)) / count,
                       options.label_smoothing, out, stream);
    }
    if (stream) hwy::FlushStream();
  }

  void zero(MutableRow row) const {
    const std::int64_t n = last_size(logits), item = item_size(logits.dtype);
    auto* p = static_cast<char*>(row.data);
    if (row.stride == 1) {
      std::fill_n(p, n * item, '\0');
      return;
    }
    for (std::int64_t i = 0; i < n; ++i) {
      std::fill_n(p + i * row.stride * item, item, '\0');
    }
  }
};

}  // namespace

std::int64_t cross_entropy_scratch_size(
    const ConstTensorView& logits,
    const CrossEntropyOptions& options) noexcept {
  if (options.reduction == Reduction::kNone || logits.ndim < 1) return 0;
  return count_rows(logits) * static_cast<std::int64_t>(sizeof(double));
}

void cross_entropy(const ConstTensorView& logits, const ConstTensorView& target,
                   const CrossEntropyOptions& options, const TensorView& loss,
                   const TensorView& lse, void* scratch,
                   const ParallelFor& parallel_for) {
  constexpr const char* kOp = "cross_entropy";
  const Argument arg_logits{"logits", logits}, arg_target{"target", target};
  const Argument arg_loss{"loss", loss}, arg_lse{"lse", lse};
  check_inputs(kOp, arg_logits, arg_target, options);
  check_like_loss(kOp, arg_loss, logits, options);
  check_lse(kOp, arg_lse, logits);
  const std::int64_t needed = cross_entropy_scratch_size(logits, options);
  if (needed > 0 && scratch == nullptr) {
    fail(kOp, "scratch is null, expected " + std::to_string(needed) + " bytes");
  }
  if (needed > 0 && reinterpret_cast<std::uintptr_t>(scratch) % 64 != 0) {
    fail(kOp, "scratch is not aligned to 64 bytes");
  }
  const std::int64_t rows = count_rows(logits), stride = 1;
  const TensorView scratch_view{scratch, DType::kFloat64, 1, &rows, &stride};
  const Argument arg_scratch{"scratch", scratch_view};
  const auto check_output = [&](const Argument& out) {
    check_no_self_overlap(kOp, out);
    check_overlap(kOp, out, arg_logits, false);
    check_overlap(kOp, out, arg_target, false);
  };
  check_output(arg_loss);
  check_output(arg_lse);
  check_overlap(kOp, arg_lse, arg_loss, false);
  if (needed > 0) {
    check_output(arg_scratch);
    check_overlap(kOp, arg_scratch, arg_loss, false);
    check_overlap(kOp, arg_scratch, arg_lse, false);
  }
  const std::int64_t count =
      check_targets(kOp, target, last_size(logits), options.ignore_index);

  LossLoop loop{FOO_CORE_DISPATCH(CrossEntropy)(logits.dtype),
                logits,
                target,
                options,
                loss,
                lse,
                static_cast<double*>(needed > 0 ? scratch : nullptr),
                {}};
  for (std::int64_t d = 0; d < logits.ndim - 1; ++d) {
    loop.nest.append(logits.sizes[d], {logits.strides[d], target.strides[d],
                                       loss_stride(loss, d), lse.strides[d]});
  }
  loop.nest.finish();
  for_rows(logits, loop, parallel_for);
  if (options.reduction == Reduction::kNone) return;
  double sum = 0;
  for (std::int64_t row = 0; row < rows; ++row) sum += loop.row_losses[row];
  if (options.reduction == Reduction::kMean) sum /= static_cast<double>(count);
  set_number(loss, 0, sum);
}

void cross_entropy_backward(const ConstTensorView& grad,
                            const ConstTensorView& logits,
                            const ConstTensorView& target,
                            const ConstTensorView& lse,
                            const CrossEntropyOptions& options,
                            const TensorView& grad_logits,
                            const ParallelFor& parallel_for) {
  constexpr const char* kOp = "cross_entropy_backward";
  const Argument arg_logits{"logits", logits}, arg_target{"target", target};
  const Argument arg_grad{"grad", grad}, arg_lse{"lse", lse};
  const Argument out{"grad_logits", grad_logits};
  check_inputs(kOp, arg_logits, arg_target, options);
  check_like_loss(kOp, arg_grad, logits, options);
  check_lse(kOp, arg_lse, logits);
  check_like(kOp, out, arg_logits);
  check_no_self_overlap(kOp, out);
  check_overlap(kOp, out, arg_logits, true);
  check_overlap(kOp, out, arg_grad, false);
  check_overlap(kOp, out, arg_target, false);
  check_overlap(kOp, out, arg_lse, false);
  const std::int64_t count =
      check_targets(kOp, target, last_size(logits), options.ignore_index);

  const bool mean = options.reduction == Reduction::kMean;
  GradientLoop loop{FOO_CORE_DISPATCH(CrossEntropy)(logits.dtype),
                    grad,
                    logits,
                    target,
                    lse,
                    options,
                    grad_logits,
                    mean ? static_cast<double>(count) : 1,
                    worth_streaming(grad_logits, {logits.data}),
                    {}};
  for (std::int64_t d = 0; d < logits.ndim - 1; ++d) {
    loop.nest.append(logits.sizes[d], {loss_stride(grad, d), logits.strides[d],
                                       target.strides[d], lse.strides[d],
                                       grad_logits.strides[d]});
  }
  loop.nest.finish();
  for_rows(logits, loop, parallel_for);
}

}  // namespace foo_core
#endif  // HWY_ONCE
