// Cross-entropy and its gradient, which each read the logits once. The threads
// of a row have a running maximum and sum of exponentials each (Milakov and
// Gimelshein, 2018), which are combined at the end of the row. A target that is
// no class makes its row NaN.
#include <cmath>

#include "cuda/device.h"
#include "cuda/kernels.h"

namespace foo_core::cuda {
namespace {

/// e^x, to be rounded to T or added to others.
template <class T>
__device__ Compute<T> exp_for(Compute<T> x) {
  if constexpr (sizeof(T) == 2) {
    return __expf(x);
  } else {
    return std::exp(x);
  }
}

/// What is subtracted from each x, so that no exponential overflows: the
/// maximum, but 0 while all x are minus infinity, as x - shift would be NaN.
template <class C>
__device__ C shift_of(C max) {
  return max == -INFINITY ? 0 : max;
}

/// Sums over elements x of a row.
template <class C>
struct Sums {
  C max = -INFINITY;
  C exps = 0;         // of exp(x - shift)
  C differences = 0;  // of x - shift, for label smoothing
  C count = 0;

  /// Changes the maximum to a larger one.
  __device__ void move_to(C larger) {
    if (count > 0) {
      const C difference = max - shift_of(larger);
      // Without an element above minus infinity, differences may be no number.
      if (exps != 0) exps *= std::exp(difference);
      if (larger != max) differences += count * difference;
    }
    max = larger;
  }
};

template <class T>
struct ForwardArguments {
  Nest<4> rows;  // of logits, target, loss and lse
  Line<const T> logits;
  const int64_t* target;
  void* loss;  // of the type of computation
  double* lse;
  double* row_losses;  // null unless the loss is reduced
  int64_t count;       // of rows
  int64_t n;
  int64_t ignore_index;
  double smoothing;
};

constexpr int kThreads = 512;
constexpr int kVectors = 4;  // that a thread loads at once

template <class T, int kN, bool kSmooth>
__global__ void __launch_bounds__(kThreads, 2)
    loss_kernel(const ForwardArguments<T> a) {
  using C = Compute<T>;
  using V = Vec<T, kN>;
  const int64_t step = int64_t{blockDim.x} * kN;
  for (int64_t row = blockIdx.x; row < a.count; row += gridDim.x) {
    const Offsets<4> at(a.rows, row);
    const int64_t label = read_index(a.target + at.of[1]);
    // Threads may see different targets while another stream writes them, but
    // all must reach the barriers.
    const int64_t n = label == a.ignore_index ? 0 : a.n;
    const auto logits = moved(a.logits, at.of[0]);
    Sums<C> sums;
    const auto add = [&](const V(&v)[kVectors], int count) {
      C max = sums.max;
#pragma unroll
      for (int k = 0; k < kVectors; ++k) {
        if (k >= count) break;
        for (int j = 0; j < kN; ++j) max = v[k][j] > max ? v[k][j] : max;
      }
      if (max > sums.max) sums.move_to(max);
      const C shift = shift_of(sums.max);
#pragma unroll
      for (int k = 0; k < kVectors; ++k) {
        if (k >= count) break;
        for (int j = 0; j < kN; ++j) {
          const C difference = v[k][j] - shift;
          sums.exps += exp_for<T>(difference);
          if constexpr (kSmooth) sums.differences += difference;
        }
        sums.count += kN;
      }
    };
    V v[kVectors];
    int64_t i = int64_t{threadIdx.x} * kN;
    for (; i + (kVectors - 1) * step < n; i += kVectors * step) {
#pragma unroll
      for (int k = 0; k < kVectors; ++k) {
        v[k] = logits.template load<kN>(i + k * step);
      }
      add(v, kVectors);
    }
    for (; i < n; i += step) {
      v[0] = logits.template load<kN>(i);
      add(v, 1);
    }
    C maxima[] = {sums.max};
    const C max = static_cast<C>(reduce_row(maxima, Largest()).of[0]);
    sums.move_to(max);
    // The gradient needs all bits of lse.
    double parts[] = {static_cast<double>(sums.exps),
                      static_cast<double>(sums.differences)};
    const auto totals = reduce_row(parts, Sum());
    if (threadIdx.x != 0) continue;
    double loss = 0, lse = 0;
    if (label >= 0 && label < n) {
      const double log_sum = std::log(totals.of[0]);
      const double shift = static_cast<double>(shift_of(max));
      const auto x = widen(logits.data[label * logits.stride]);
      lse = shift + log_sum;
      // Not from lse, next to which the difference may be small.
      loss = log_sum + (shift - static_cast<double>(x));
      if constexpr (kSmooth) {
        const double mean = totals.of[1] / static_cast<double>(n);
        loss = (1 - a.smoothing) * loss + a.smoothing * (log_sum - mean);
      }
    } else if (label != a.ignore_index) {
      loss = lse = NAN;
    }
    a.lse[at.of[3]] = lse;
    if (a.row_losses != nullptr) {
      a.row_losses[row] = loss;
    } else {
      static_cast<C*>(a.loss)[at.of[2]] = static_cast<C>(loss);
    }
  }
}

struct ReduceArguments {
  Nest<1> targets;
  const int64_t* target;
  int64_t count;  // of rows
  int64_t ignore_index;
};

/// The number of rows of this thread that are not ignored.
__device__ double count_kept(const ReduceArguments& a) {
  double kept = 0;
  for (int64_t row = threadIdx.x; row < a.count; row += blockDim.x) {
    const Offsets<1> at(a.targets, row);
    if (read_index(a.target + at.of[0]) != a.ignore_index) kept += 1;
  }
  return kept;
}

/// The sum or the mean of the rows' losses, by one block.
template <class L>
__global__ void reduce_kernel(const ReduceArguments a, const double* row_losses,
                              bool mean, L* loss) {
  double sums[] = {0, mean ? count_kept(a) : 0};
  for (int64_t row = threadIdx.x; row < a.count; row += blockDim.x) {
    sums[0] += row_losses[row];
  }
  const auto totals = reduce_row(sums, Sum());
  if (threadIdx.x != 0) return;
  *loss = static_cast<L>(mean ? totals.of[0] / totals.of[1] : totals.of[0]);
}

/// The number of rows that are not ignored, by one block.
__global__ void count_kernel(const ReduceArguments a, int64_t* count) {
  double sums[] = {count_kept(a)};
  const auto totals = reduce_row(sums, Sum());
  if (threadIdx.x == 0) *count = static_cast<int64_t>(totals.of[0]);
}

template <class T>
struct BackwardArguments {
  Nest<5> rows;  // of grad, logits, target, lse and grad_logits
  const Compute<T>* grad;
  Line<const T> logits;
  const int64_t* target;
  const double* lse;
  Line<T> out;
  const int64_t* divisor;  // null stands for 1
  int64_t count;           // of rows
  int64_t n;
  int64_t ignore_index;
  double smoothing;
};

/// A block computes kVectors vectors of each thread, of one row.
template <class T, int kN>
__global__ void __launch_bounds__(kThreads)
    gradient_kernel(const BackwardArguments<T> a, int64_t pieces) {
  using C = Compute<T>;
  using V = Vec<T, kN>;
  const int64_t step = int64_t{blockDim.x} * kN;
  for (int64_t block = blockIdx.x; block < a.count * pieces;
       block += gridDim.x) {
    const auto [row, piece] = divide(block, pieces);
    const Offsets<5> at(a.rows, row);
    const auto logits = moved(a.logits, at.of[1]);
    const auto out = moved(a.out, at.of[4]);
    const int64_t begin = piece * kVectors * step + int64_t{threadIdx.x} * kN;
    V v[kVectors];
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int64_t i = begin + k * step;
      if (i < a.n) v[k] = logits.template load<kN>(i);
    }
    const int64_t label = read_index(a.target + at.of[2]);
    const bool ignored = label == a.ignore_index;
    const bool known = label >= 0 && label < a.n;
    double scale = static_cast<double>(a.grad[at.of[0]]);
    if (a.divisor != nullptr) scale /= static_cast<double>(*a.divisor);
    if (!known) scale = NAN;
    // The factor makes up for the rounding of lse to C.
    const double lse = a.lse[at.of[3]];
    const C shift = static_cast<C>(lse);
    const C factor =
        static_cast<C>(scale * std::exp(static_cast<double>(shift) - lse));
    const double mean = a.smoothing / static_cast<double>(a.n);
    const C term = static_cast<C>(a.smoothing == 0 ? 0 : -scale * mean);
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int64_t i = begin + k * step;
      if (i >= a.n) break;
      C y[kN];
      for (int j = 0; j < kN; ++j) {
        y[j] = fma(exp_for<T>(v[k][j] - shift), factor, term);
        if (ignored) y[j] = 0;
      }
      if (label >= i && label < i + kN && !ignored) {
        // expm1 avoids the cancellation in exp(x) - 1.
        for (int j = 0; j < kN; ++j) {
          if (i + j != label) continue;
          const double x = static_cast<double>(v[k][j]);
          y[j] = static_cast<C>(scale *
                                (std::expm1(x - lse) + a.smoothing - mean));
        }
      }
      out.store(i, V::of(y));
    }
  }
}

/// The threads for a row.
dim3 threads_for(int64_t vectors) {
  const int64_t warps = ceil_div(vectors, int64_t{kVectors} * kWarp);
  return dim3(static_cast<unsigned>(
      kWarp * std::clamp<int64_t>(warps, 1, kThreads / kWarp)));
}

ReduceArguments reduce_arguments(const ConstTensorView& target,
                                 const CrossEntropyOptions& options) {
  return {nest_of(target.sizes, target.ndim, target),
          static_cast<const int64_t*>(target.data), numel(target),
          options.ignore_index};
}

}  // namespace

void cross_entropy(const ConstTensorView& logits, const ConstTensorView& target,
                   const CrossEntropyOptions& options, const TensorView& loss,
                   const TensorView& lse, void* scratch, void* stream) {
  const char* op = "cross_entropy";
  const int64_t rows = count_rows(logits), n = last_size(logits);
  const bool reduced = options.reduction != Reduction::kNone;
  for_dtype(logits.dtype, [&](auto t) {
    using T = decltype(t);
    using C = Compute<T>;
    auto* const row_losses = reduced ? static_cast<double*>(scratch) : nullptr;
    if (rows > 0) {
      const ForwardArguments<T> arguments{
          nest_of_rows(logits, logits, target, loss, lse),
          line_of<T>(logits),
          static_cast<const int64_t*>(target.data),
          loss.data,
          static_cast<double*>(lse.data),
          row_losses,
          rows,
          n,
          options.ignore_index,
          options.label_smoothing};
      const auto run = [&](auto width) {
        constexpr int kN = decltype(width)::value;
        launch(op,
               options.label_smoothing > 0 ? loss_kernel<T, kN, true>
                                           : loss_kernel<T, kN, false>,
               dim3(grid_size(rows)), threads_for(ceil_div(n, kN)), stream,
               arguments);
      };
      constexpr int kN = kWidth<T>;
      if (is_aligned<kN>(&logits, n)) {
        run(std::integral_constant<int, kN>());
      } else {
        run(std::integral_constant<int, 1>());
      }
    }
    if (!reduced) return;
    launch(op, reduce_kernel<C>, dim3(1), dim3(kMaxThreads), stream,
           reduce_arguments(target, options),
           static_cast<const double*>(row_losses),
           options.reduction == Reduction::kMean, static_cast<C*>(loss.data));
  });
}

void cross_entropy_backward(const ConstTensorView& grad,
                            const ConstTensorView& logits,
                            const ConstTensorView& target,
                            const ConstTensorView& lse,
                            const CrossEntropyOptions& options,
                            const TensorView& grad_logits, void* scratch,
                            void* stream) {
  const char* op = "cross_entropy_backward";
  const int64_t rows = count_rows(logits), n = last_size(logits);
  if (rows == 0) return;
  int64_t* divisor = nullptr;
  if (options.reduction == Reduction::kMean) {
    divisor = static_cast<int64_t*>(scratch);
    launch(op, count_kernel, dim3(1), dim3(kMaxThreads), stream,
           reduce_arguments(target, options), divisor);
  }
  for_dtype(logits.dtype, [&](auto t) {
    using T = decltype(t);
    const BackwardArguments<T> arguments{
        nest_of_rows(logits, grad, logits, target, lse, grad_logits),
        static_cast<const Compute<T>*>(grad.data),
        line_of<T>(logits),
        static_cast<const int64_t*>(target.data),
        static_cast<const double*>(lse.data),
        line_of<T>(grad_logits),
        divisor,
        rows,
        n,
        options.ignore_index,
        options.label_smoothing};
    const auto run = [&](auto width) {
      constexpr int kN = decltype(width)::value;
      const dim3 block = threads_for(ceil_div(n, kN));
      const int64_t pieces = ceil_div(n, int64_t{kVectors} * kN * block.x);
      launch(op, gradient_kernel<T, kN>, dim3(grid_size(rows * pieces)), block,
             stream, arguments, pieces);
    };
    constexpr int kN = kWidth<T>;
    if (is_aligned<kN>(&logits, n) && is_aligned<kN>(&grad_logits, n)) {
      run(std::integral_constant<int, kN>());
    } else {
      run(std::integral_constant<int, 1>());
    }
  });
}

}  // namespace foo_core::cuda
