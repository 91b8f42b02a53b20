/// @file
/// Cross-entropy of class indices over the last dimension, and its gradient.
/// No log-probabilities are stored: the loss and the gradient each read a row
/// of logits once.
/// Sources: PyTorch's cross_entropy for the definition; Szegedy et al.,
/// "Rethinking the Inception Architecture for Computer Vision", 2015, for label
/// smoothing; Milakov and Gimelshein, "Online normalizer calculation for
/// softmax", 2018, for the running maximum.
///
///     lse  = log(sum(exp(logits))), over the last dimension
///     loss = lse - (1 - s) * logits[target] - s * mean(logits)
///
/// where s is options.label_smoothing. logits has shape (..., n) and any
/// floating-point dtype. target has shape (...) and dtype int64; it holds class
/// indices 0 to n - 1, or options.ignore_index. The loss has shape (...) if
/// options.reduction is kNone, else (); it is float64 if the logits are, else
/// float32. lse has shape (...) and is always float64, because the rounding to
/// float32 would exceed the gradient of a row that is nearly right. Strides are
/// arbitrary.
///
/// An infinite logit makes its row's loss NaN. A logit of minus infinity is a
/// class of probability 0 and of infinite loss.
#pragma once

#include <cstdint>

#include "foo_core/executor.h"
#include "foo_core/export.h"
#include "foo_core/tensor.h"

namespace foo_core {

/// How the rows' losses are reduced. The numbers are part of the ABI.
enum class Reduction : std::int32_t {
  kNone = 0,  ///< to nothing: each row has a loss
  kMean = 1,  ///< to the mean over rows that are not ignored; NaN without any
  kSum = 2,   ///< to the sum
};

/// Options of cross_entropy and its gradient.
struct CrossEntropyOptions {
  /// Rows with this target have a loss and a gradient of 0.
  std::int64_t ignore_index = -100;
  Reduction reduction = Reduction::kMean;  ///< of the rows' losses
  double label_smoothing = 0;              ///< 0 to 1
};

/// Bytes of scratch memory that cross_entropy needs; 0 for Reduction::kNone and
/// for logits that it refuses. logits.data is not used.
FOO_CORE_EXPORT std::int64_t cross_entropy_scratch_size(
    const ConstTensorView& logits, const CrossEntropyOptions& options,
    const Executor& executor = {}) noexcept;

/// Computes the loss, and lse for cross_entropy_backward (0 in ignored rows).
/// `scratch` has cross_entropy_scratch_size(logits, options, executor) bytes of
/// any content and is aligned to 64 bytes; it may be null if that is 0. Throws
/// InvalidArgument, also if a target is not a class or if an output overlaps
/// any other argument.
FOO_CORE_EXPORT void cross_entropy(const ConstTensorView& logits,
                                   const ConstTensorView& target,
                                   const CrossEntropyOptions& options,
                                   const TensorView& loss,
                                   const TensorView& lse, void* scratch,
                                   const Executor& executor = {});

/// Bytes of scratch memory that cross_entropy_backward needs; 0 on the CPU.
FOO_CORE_EXPORT std::int64_t cross_entropy_backward_scratch_size(
    const ConstTensorView& logits, const CrossEntropyOptions& options,
    const Executor& executor = {}) noexcept;

/// Computes the gradient of sum(grad * loss), where grad has the loss's shape
/// and dtype and lse is what cross_entropy wrote:
///
///     grad_logits = grad * (p - (1 - s) * onehot(target) - s / n)
///     p           = exp(logits - lse)
///
/// Reduction::kMean divides it by the number of rows that are not ignored.
/// grad_logits has the logits' shape and dtype, and may be exactly the logits
/// (the same memory and strides). `scratch` is as in cross_entropy, but of
/// cross_entropy_backward_scratch_size(logits, options, executor) bytes. Throws
/// InvalidArgument.
FOO_CORE_EXPORT void cross_entropy_backward(
    const ConstTensorView& grad, const ConstTensorView& logits,
    const ConstTensorView& target, const ConstTensorView& lse,
    const CrossEntropyOptions& options, const TensorView& grad_logits,
    void* scratch, const Executor& executor = {});

}  // namespace foo_core
