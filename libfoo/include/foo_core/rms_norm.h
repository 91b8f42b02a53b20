/// @file
/// Root-mean-square normalization over the last dimension, optionally of a sum
/// of two tensors, and its gradient.
/// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
///
///     y = x * r * weight
///     r = 1 / sqrt(mean(x^2) + eps), over the last dimension
///
/// weight and grad_weight have shape (n), all other tensors (..., n) and one
/// dtype. float32, float16 and bfloat16 are computed in float32 and rounded
/// once; float64 is computed in float64. Strides are arbitrary. A row is one
/// slice along the last dimension.
///
/// weight may have another floating-point dtype, which grad_weight has, too; if
/// there is no weight, grad_weight has that of x. A weight is converted where
/// it is read, without a copy: to float64 if x is float64, else to float32.
///
/// An output of shape (..., n) may be exactly an input of that shape (the same
/// memory, sizes and strides). Any other overlap of an output throws
/// InvalidArgument.
#pragma once

#include <cstdint>

#include "foo_core/executor.h"
#include "foo_core/export.h"
#include "foo_core/tensor.h"

namespace foo_core {

/// Computes out = x * r * weight. A null weight stands for ones. Throws
/// InvalidArgument.
FOO_CORE_EXPORT void rms_norm(const ConstTensorView& x,
                              const ConstTensorView* weight, double eps,
                              const TensorView& out,
                              const Executor& executor = {});

/// Computes residual_out = x + residual, rounded to the dtype, and
/// out = rms_norm(residual_out, weight, eps), in one pass over memory.
///
/// A null weight stands for ones. Each output may be exactly x or exactly
/// residual; the usual call in place has out = x and residual_out = residual.
/// Throws InvalidArgument.
FOO_CORE_EXPORT void add_rms_norm(const ConstTensorView& x,
                                  const ConstTensorView& residual,
                                  const ConstTensorView* weight, double eps,
                                  const TensorView& out,
                                  const TensorView& residual_out,
                                  const Executor& executor = {});

/// Bytes of scratch memory that rms_norm_backward needs for the grad_weight of
/// this x; 0 for one that it refuses. x.data is not used. Without grad_weight
/// it needs none.
FOO_CORE_EXPORT std::int64_t rms_norm_backward_scratch_size(
    const ConstTensorView& x, const Executor& executor = {}) noexcept;

/// Computes the gradient of sum(grad * rms_norm(x, weight, eps)):
///
///     grad_x      = r * (g - x * r^2 * mean(g * x)),  g = grad * weight
///     grad_weight = sum over rows of grad * x * r
///
/// A null grad_x or grad_weight is not computed. A null weight stands for ones.
/// `scratch` has rms_norm_backward_scratch_size(x, executor) bytes of any
/// content and is aligned to 64 bytes; it may be null if grad_weight is null.
/// Throws InvalidArgument.
FOO_CORE_EXPORT void rms_norm_backward(const ConstTensorView& grad,
                                       const ConstTensorView& x,
                                       const ConstTensorView* weight,
                                       double eps, const TensorView* grad_x,
                                       const TensorView* grad_weight,
                                       void* scratch,
                                       const Executor& executor = {});

/// Computes the gradient of add_rms_norm in x, which equals that in residual,
/// and in weight:
///
///     grad_x = grad_residual
///              + grad_x of rms_norm_backward at x = residual_out
///
/// The sum is rounded once. grad and grad_residual are the gradients of out and
/// of residual_out; a null grad_residual stands for zeros. All other arguments,
/// scratch included, are those of rms_norm_backward. Throws InvalidArgument.
FOO_CORE_EXPORT void add_rms_norm_backward(
    const ConstTensorView& grad, const ConstTensorView* grad_residual,
    const ConstTensorView& residual_out, const ConstTensorView* weight,
    double eps, const TensorView* grad_x, const TensorView* grad_weight,
    void* scratch, const Executor& executor = {});

}  // namespace foo_core
