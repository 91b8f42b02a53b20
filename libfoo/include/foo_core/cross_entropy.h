/// @file
/// Cross-entropy of class indices over the last dimension, and its gradient,
/// without log-probabilities in memory: a row of logits is read once for the
/// loss and once for the gradient. Defined as in PyTorch's cross_entropy; label
/// smoothing is that of Szegedy et al., "Rethinking the Inception Architecture
/// for Computer Vision", 2015; the running maximum that of Milakov and
/// Gimelshein, "Online normalizer calculation for softmax", 2018.
///
///     lse  = log(sum(exp(logits))), over the last dimension
///     loss = lse - (1 - s) * logits[target] - s * mean(logits)
///
/// where s is options.label_smoothing. logits has shape (..., n) and any
/// floating-point dtype; target has shape (...), dtype int64 and holds class
/// indices 0 to n - 1 or options.ignore_index. The loss has shape (...) if
/// options.reduction is kNone, else (); it is float64 if the logits are, else
/// float32. lse has shape (...) and is always float64: rounded to float32 it
/// would be off by more than the gradient of a row that is nearly right.
/// Strides are arbitrary.
///
/// An infinite logit makes its row's loss NaN; one of minus infinity is a class
/// of probability 0, and so of infinite loss.
#pragma once

#include <cstdint>

#include "foo_core/export.h"
#include "foo_core/parallel.h"
#include "foo_core/tensor.h"

namespace foo_core {

/// What becomes of the rows' losses. The numbers are part of the ABI.
enum class Reduction : std::int32_t {
  kNone = 0,  ///< a loss for each row
  kMean = 1,  ///< over rows that are not ignored; NaN if there are none
  kSum = 2,   ///< over all rows
};

/// How cross_entropy counts and adds up rows.
struct CrossEntropyOptions {
  /// Rows with this target have a loss and a gradient of 0.
  std::int64_t ignore_index = -100;
  Reduction reduction = Reduction::kMean;  ///< what the loss is
  double label_smoothing = 0;              ///< 0 to 1
};

/// Bytes of scratch memory that cross_entropy needs; 0 for kNone.
FOO_CORE_EXPORT std::int64_t cross_entropy_scratch_size(
    const ConstTensorView& logits, const CrossEntropyOptions& options) noexcept;

/// Writes the loss, and lse for cross_entropy_backward (0 in ignored rows).
/// `scratch` is cross_entropy_scratch_size(logits, options) bytes aligned to
/// 64, of any content; null if that is 0. The result does not depend on the
/// number of threads. Throws InvalidArgument, for a target that is no class
/// too, and if an output may overlap anything else.
FOO_CORE_EXPORT void cross_entropy(const ConstTensorView& logits,
                                   const ConstTensorView& target,
                                   const CrossEntropyOptions& options,
                                   const TensorView& loss,
                                   const TensorView& lse, void* scratch,
                                   const ParallelFor& parallel_for = serial());

/// The gradient of sum(grad * loss), where grad has the loss's shape and dtype
/// and lse is what cross_entropy wrote:
///
///     grad_logits = grad * (p - (1 - s) * onehot(target) - s / n)
///     p           = exp(logits - lse)
///
/// divided by the number of rows that are not ignored if the reduction is
/// kMean. grad_logits has the logits' shape and dtype, and may be exactly the
/// logits (the same memory and strides). Throws InvalidArgument.
FOO_CORE_EXPORT void cross_entropy_backward(
    const ConstTensorView& grad, const ConstTensorView& logits,
    const ConstTensorView& target, const ConstTensorView& lse,
    const CrossEntropyOptions& options, const TensorView& grad_logits,
    const ParallelFor& parallel_for = serial());

namespace cuda {

/// As above, queued on `stream`, a cudaStream_t of the current device; scratch
/// is device memory. Throws InvalidArgument, and Unavailable if this build has
/// no CUDA kernels (build_info().cuda tells).
/// @{

FOO_CORE_EXPORT void cross_entropy(const ConstTensorView& logits,
                                   const ConstTensorView& target,
                                   const CrossEntropyOptions& options,
                                   const TensorView& loss,
                                   const TensorView& lse, void* scratch,
                                   void* stream);

FOO_CORE_EXPORT void cross_entropy_backward(const ConstTensorView& grad,
                                            const ConstTensorView& logits,
                                            const ConstTensorView& target,
                                            const ConstTensorView& lse,
                                            const CrossEntropyOptions& options,
                                            const TensorView& grad_logits,
                                            void* stream);

/// @}

}  // namespace cuda
}  // namespace foo_core
