// Cross-entropy and its gradient, without log-probabilities in memory. The loss
// reads a row in blocks: each is read for its maximum and, while it is in the
// L1 cache, for its sum of exponentials, and a new maximum rescales the sums so
// far. The gradient recomputes the probabilities from lse. Sums of blocks are
// in the type of computation, sums over blocks and rows in double.
#include "foo_core/cross_entropy.h"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>

#include "checks.h"
#include "cpu/simd.h"
#include "cpu/stream.h"
#include "cuda/kernels.h"
#include "loop.h"
#include "nest.h"
#include "view.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/cross_entropy.cc"
// These read HWY_TARGET_INCLUDE, so they come after it.
#include "hwy/foreach_target.h"
//
#include "cpu/cross_entropy-inl.h"
#include "cpu/tile-inl.h"
#include "hwy/cache_control.h"

#ifndef FOO_CORE_CROSS_ENTROPY_
#define FOO_CORE_CROSS_ENTROPY_
namespace foo_core {
namespace {

/// Sums over the blocks of a row that have been read.
struct RowSums {
  double max = -std::numeric_limits<double>::infinity();
  double exps = 0;         // of exp(x - shift())
  double differences = 0;  // of x - shift(), for label smoothing
  double target = 0;       // x[target]

  /// The number subtracted from each x, so that no exponential overflows: the
  /// maximum, but 0 while all x are minus infinity, as x - shift() would be
  /// NaN.
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

}  // namespace
}  // namespace foo_core
#endif

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {
namespace {

/// The maximum of x[0..n), n > 0; unspecified if an element is NaN.
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
  const auto difference = x - shift;
  exps = AddExp<T>(exps, difference);
  if constexpr (kSmooth) differences = differences + difference;
}

/// Adds a block: elements [begin, begin + n) of a row. It is read twice, but
/// from memory only once, which is up to 1.4× faster than reading the whole row
/// for its maximum first.
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
  // Two accumulators each are no faster, but more accurate.
  auto e0 = Pair<C>::Set(0), e1 = e0, d0 = e0, d1 = e0;
  int64_t i = 0;
  for (; i + 2 * step <= n; i += 2 * step) {
    FetchAhead(x + i, 2 * step);  // 1.5× faster for float32 in AVX-512
    AddElements<kSmooth, T>(Load(x + i), vshift, e0, d0);
    AddElements<kSmooth, T>(Load(x + i + step), vshift, e1, d1);
  }
  for (; i + step <= n; i += step) {
    AddElements<kSmooth, T>(Load(x + i), vshift, e0, d0);
  }
  if (i < n) {  // lanes without an element add e^x = 0 and x - shift = 0
    constexpr C kLowest = -std::numeric_limits<C>::infinity();
    const auto exps = LoadFilled(x + i, n - i, kLowest);
    AddElements<false, T>(exps, vshift, e1, d1);
    const auto differences = LoadFilled(x + i, n - i, shift);
    if constexpr (kSmooth) d1 = d1 + (differences - vshift);
  }
  sums.exps += static_cast<double>(Sum(e0 + e1));
  if constexpr (kSmooth) sums.differences += static_cast<double>(Sum(d0 + d1));
}

template <bool kSmooth, class T>
HWY_INLINE void AddRow(const T* x, int64_t stride, int64_t n, RowSums& sums) {
  HWY_ALIGN T tile[kTile];
  for (int64_t i = 0; i < n; i += kTile) {
    const int64_t m = HWY_MIN(kTile, n - i);
    AddBlock<kSmooth>(InputTile(x, stride, i, m, tile), m, i, sums);
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
    const auto p = ExpFor<T>(LoadSome<kAll>(x + i, m) - vshift);
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
  // The factor makes up for the rounding of lse to C.
  const auto shift = static_cast<C>(lse);
  const auto factor = scale * std::exp(static_cast<double>(shift) - lse);
  const double mean = smoothing / static_cast<double>(n);
  const double term = smoothing == 0 ? 0 : -scale * mean;
  // expm1 avoids the cancellation in exp(x) - 1. In place, the logit is gone
  // after the loop.
  const double at_target =
      scale * (std::expm1(LoadOne(x + target * logits.stride) - lse) +
               smoothing - mean);
  HWY_ALIGN T tile[kTile], out_tile[kTile];
  for (int64_t i = 0; i < n; i += kTile) {
    const int64_t m = HWY_MIN(kTile, n - i);
    Softmax(InputTile(x, logits.stride, i, m, tile), m, shift,
            static_cast<C>(factor), static_cast<C>(term),
            OutputTile(tout, out.stride, i, out_tile),
            stream && out.stride == 1);
    FinishTile(out_tile, tout, out.stride, i, m);
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

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foo_core {
namespace {

DType loss_dtype(const ConstTensorView& logits) {
  return logits.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

/// The targets of a call.
struct Targets {
  const ConstTensorView& view;
  std::int64_t classes;
  std::int64_t ignore_index;
  /// Whether another thread has made a target invalid that had been checked.
  mutable std::atomic<bool> changed{false};

  std::int64_t read(std::int64_t offset) const {
    return read_index(static_cast<const std::int64_t*>(view.data) + offset);
  }

  bool is_valid(std::int64_t target) const {
    return target == ignore_index || (target >= 0 && target < classes);
  }

  /// A class or ignore_index.
  std::int64_t at(std::int64_t offset) const {
    const std::int64_t target = read(offset);
    if (is_valid(target)) return target;
    changed = true;
    return ignore_index;
  }
};

/// The number at `offset` of a float32 or float64 tensor.
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

/// Returns the number of rows that are not ignored. Throws InvalidArgument for
/// a target that is not a class.
std::int64_t check_targets(const char* op, const Targets& targets) {
  const ConstTensorView& target = targets.view;
  const std::int64_t rows = numel(target);
  if (rows == 0) return 0;
  const auto nest = nest_of(target.sizes, target.ndim, target);
  std::int64_t count = 0;
  Walker<1> at(nest, nest.ndim, 0);
  for (std::int64_t row = 0; row < rows; ++row, at.next()) {
    const std::int64_t value = targets.read(at.offset(0));
    count += value != targets.ignore_index;
    if (targets.is_valid(value)) continue;
    std::int64_t index[kMaxDims];
    std::int64_t rest = row;
    for (std::int64_t d = target.ndim - 1; d >= 0; --d) {
      index[d] = rest % target.sizes[d];
      rest /= target.sizes[d];
    }
    fail(op, "target is " + std::to_string(value) + " at index " +
                 shape_text(target.ndim, index) + ", expected 0 to " +
                 std::to_string(targets.classes - 1) + " or ignore_index (" +
                 std::to_string(targets.ignore_index) + ")");
  }
  return count;
}

/// Checks the arguments that the loss and the gradient share, but not the
/// values of the targets.
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

/// x is a valid view with the shape and dtype of the loss.
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

/// The loss of a row that is not ignored, and its lse.
double loss_of(const CrossEntropyKernels& kernels, Row row, std::int64_t n,
               std::int64_t label, double smoothing, double& lse) {
  const RowSums sums = kernels.sums(row, n, label, smoothing > 0);
  const double log_sum = std::log(sums.exps);
  lse = sums.shift() + log_sum;
  // From the sums and not from lse, next to which the difference may be small.
  const double nll = log_sum + (sums.shift() - sums.target);
  if (smoothing == 0) return nll;
  const double mean = sums.differences / static_cast<double>(n);
  return (1 - smoothing) * nll + smoothing * (log_sum - mean);
}

}  // namespace

std::int64_t cross_entropy_scratch_size(const ConstTensorView& logits,
                                        const CrossEntropyOptions& options,
                                        const Executor&) noexcept {
  if (options.reduction == Reduction::kNone || !has_rows(logits) ||
      last_size(logits) == 0) {
    return 0;
  }
  return count_rows(logits) * static_cast<std::int64_t>(sizeof(double));
}

std::int64_t cross_entropy_backward_scratch_size(
    const ConstTensorView&, const CrossEntropyOptions& options,
    const Executor& executor) noexcept {
  // The kernel counts the rows that are not ignored.
  const bool counts =
      executor.device == Device::kCuda && options.reduction == Reduction::kMean;
  return counts ? static_cast<std::int64_t>(sizeof(std::int64_t)) : 0;
}

void cross_entropy(const ConstTensorView& logits, const ConstTensorView& target,
                   const CrossEntropyOptions& options, const TensorView& loss,
                   const TensorView& lse, void* scratch,
                   const Executor& executor) {
  const char* op = "cross_entropy";
  const Argument arg_logits{"logits", logits}, arg_target{"target", target},
      arg_loss{"loss", loss}, arg_lse{"lse", lse};
  check_inputs(op, arg_logits, arg_target, options);
  check_like_loss(op, arg_loss, logits, options);
  check_lse(op, arg_lse, logits);
  const Scratch losses(op, scratch,
                       cross_entropy_scratch_size(logits, options, executor));
  check_output(op, arg_loss, {}, {&arg_logits, &arg_target});
  check_output(op, arg_lse, {}, {&arg_logits, &arg_target, &arg_loss});
  check_output(op, losses.argument(), {},
               {&arg_logits, &arg_target, &arg_loss, &arg_lse});
  if constexpr (cuda::kBuilt) {
    if (on_cuda(executor)) {
      return cuda::cross_entropy(logits, target, options, loss, lse, scratch,
                                 executor.stream);
    }
  }
  const CpuThreads threads(op, executor);
  const std::int64_t n = last_size(logits);
  const Targets targets{target, n, options.ignore_index};
  const std::int64_t count = check_targets(op, targets);

  const auto kernels = FOO_CORE_DISPATCH(CrossEntropy)(logits.dtype);
  const auto nest = nest_of_rows(logits, logits, target, loss, lse);
  const bool reduced = options.reduction != Reduction::kNone;
  auto* const row_losses = static_cast<double*>(scratch);  // if reduced
  const auto run = [&](std::int64_t begin, std::int64_t end) {
    Walker<4> at(nest, nest.ndim, begin);
    for (; begin < end; ++begin, at.next()) {
      const std::int64_t label = targets.at(at.offset(1));
      double row_loss = 0, row_lse = 0;
      if (label != options.ignore_index) {
        row_loss = loss_of(kernels, row_at(&logits, at.offset(0)), n, label,
                           options.label_smoothing, row_lse);
      }
      set_number(lse, at.offset(3), row_lse);
      if (reduced) {
        row_losses[begin] = row_loss;
      } else {
        set_number(loss, at.offset(2), row_loss);
      }
    }
  };
  threads.for_rows(logits, run);
  if (targets.changed) fail_changed(op, "target");
  if (!reduced) return;
  double sum = 0;
  const std::int64_t rows = count_rows(logits);
  for (std::int64_t row = 0; row < rows; ++row) sum += row_losses[row];
  if (options.reduction == Reduction::kMean) sum /= static_cast<double>(count);
  set_number(loss, 0, sum);
}

void cross_entropy_backward(const ConstTensorView& grad,
                            const ConstTensorView& logits,
                            const ConstTensorView& target,
                            const ConstTensorView& lse,
                            const CrossEntropyOptions& options,
                            const TensorView& grad_logits, void* scratch,
                            const Executor& executor) {
  const char* op = "cross_entropy_backward";
  const Argument arg_logits{"logits", logits}, arg_target{"target", target},
      arg_grad{"grad", grad}, arg_lse{"lse", lse},
      arg_out{"grad_logits", grad_logits};
  check_inputs(op, arg_logits, arg_target, options);
  check_like_loss(op, arg_grad, logits, options);
  check_lse(op, arg_lse, logits);
  check_like(op, arg_out, arg_logits);
  const Scratch count_of_rows(
      op, scratch,
      cross_entropy_backward_scratch_size(logits, options, executor));
  const Argument& arg_scratch = count_of_rows.argument();
  check_output(op, arg_scratch, {},
               {&arg_grad, &arg_logits, &arg_target, &arg_lse});
  check_output(op, arg_out, {&arg_logits},
               {&arg_grad, &arg_target, &arg_lse, &arg_scratch});
  if constexpr (cuda::kBuilt) {
    if (on_cuda(executor)) {
      return cuda::cross_entropy_backward(grad, logits, target, lse, options,
                                          grad_logits, scratch,
                                          executor.stream);
    }
  }
  const CpuThreads threads(op, executor);
  const std::int64_t n = last_size(logits);
  const Targets targets{target, n, options.ignore_index};
  const std::int64_t count = check_targets(op, targets);

  const auto kernels = FOO_CORE_DISPATCH(CrossEntropy)(logits.dtype);
  const auto nest =
      nest_of_rows(logits, grad, logits, target, lse, grad_logits);
  const bool mean = options.reduction == Reduction::kMean;
  const double divisor = mean ? static_cast<double>(count) : 1;
  const bool stream = worth_streaming(grad_logits, {logits.data});
  const auto run = [&](std::int64_t begin, std::int64_t end) {
    Walker<5> at(nest, nest.ndim, begin);
    for (; begin < end; ++begin, at.next()) {
      const MutableRow out = row_at(&grad_logits, at.offset(4));
      const std::int64_t label = targets.at(at.offset(2));
      if (label == options.ignore_index) {
        fill_zeros(out, n, item_bytes(logits.dtype));
        continue;
      }
      kernels.gradient(row_at(&logits, at.offset(1)), n, label,
                       number_at(lse, at.offset(3)),
                       number_at(grad, at.offset(0)) / divisor,
                       options.label_smoothing, out, stream);
    }
    if (stream) hwy::FlushStream();
  };
  threads.for_rows(logits, run);
  if (targets.changed) fail_changed(op, "target");
}

}  // namespace foo_core
#endif  // HWY_ONCE
