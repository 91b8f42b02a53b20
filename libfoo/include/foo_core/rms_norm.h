/// @file
/// Root-mean-square normalisation over the last dimension, after an addition or
/// not, and its gradient.
/// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
///
///     y = x * r * weight
///     r = 1 / sqrt(mean(x^2) + eps), over the last dimension
///
/// weight and grad_weight have shape (n), all else shape (..., n). All have the
/// same dtype. float32, float16 and bfloat16 are computed in float32 and
/// rounded once; float64 in float64. Strides are arbitrary. A row is one slice
/// along the last dimension; rows are counted in row-major order.
///
/// An output of shape (..., n) may be exactly an input of that shape (the same
/// memory, sizes and strides); InvalidArgument if it may overlap one in any
/// other way, or if an output may overlap weight, scratch or another output.
#pragma once

#include <cstdint>

#include "foo_core/export.h"
#include "foo_core/parallel.h"
#include "foo_core/tensor.h"

namespace foo_core {

/// out = x * r * weight; weight may be null: ones. Throws InvalidArgument.
FOO_CORE_EXPORT void rms_norm(const ConstTensorView& x,
                              const ConstTensorView* weight, double eps,
                              const TensorView& out,
                              const ParallelFor& parallel_for = serial());

/// residual_out = x + residual, rounded to the dtype, and
/// out = rms_norm(residual_out, weight, eps), in one pass over memory.
///
/// weight may be null: ones. Each output may be exactly x or exactly residual;
/// in place, out is x and residual_out is residual. out and residual_out must
/// not overlap. Throws InvalidArgument.
FOO_CORE_EXPORT void add_rms_norm(const ConstTensorView& x,
                                  const ConstTensorView& residual,
                                  const ConstTensorView* weight, double eps,
                                  const TensorView& out,
                                  const TensorView& residual_out,
                                  const ParallelFor& parallel_for = serial());

/// Bytes of scratch memory that rms_norm_backward needs to compute grad_weight
/// for this x; without grad_weight it needs none.
FOO_CORE_EXPORT std::int64_t rms_norm_backward_scratch_size(
    const ConstTensorView& x) noexcept;

/// The gradient of sum(grad * rms_norm(x, weight, eps)):
///
///     grad_x      = r * (g - x * r^2 * mean(g * x)),  g = grad * weight
///     grad_weight = sum over rows of grad * x * r
///
/// Either may be null: not wanted. weight may be null: ones. `scratch` is
/// rms_norm_backward_scratch_size(x) bytes aligned to 64, of any content; null
/// if grad_weight is null. The result does not depend on the number of
/// threads. Throws InvalidArgument.
FOO_CORE_EXPORT void rms_norm_backward(
    const ConstTensorView& grad, const ConstTensorView& x,
    const ConstTensorView* weight, double eps, const TensorView* grad_x,
    const TensorView* grad_weight, void* scratch,
    const ParallelFor& parallel_for = serial());

/// The gradient of add_rms_norm in x, which is also that in residual:
///
///     grad_x = grad_residual
///              + grad_x of rms_norm_backward at x = residual_out
///
/// rounded once, and in weight. grad and grad_residual are the gradients that
/// arrive at out and residual_out; grad_residual may be null: none. All else,
/// scratch too, is as for rms_norm_backward. Throws InvalidArgument.
FOO_CORE_EXPORT void add_rms_norm_backward(
    const ConstTensorView& grad, const ConstTensorView* grad_residual,
    const ConstTensorView& residual_out, const ConstTensorView* weight,
    double eps, const TensorView* grad_x, const TensorView* grad_weight,
    void* scratch, const ParallelFor& parallel_for = serial());

namespace cpu {

/// Rows [begin, end). Nothing is checked, nothing is thrown, no memory is
/// allocated.
/// @{

FOO_CORE_EXPORT void rms_norm(const ConstTensorView& x,
                              const ConstTensorView* weight, double eps,
                              const TensorView& out, std::int64_t begin,
                              std::int64_t end) noexcept;

FOO_CORE_EXPORT void add_rms_norm(const ConstTensorView& x,
                                  const ConstTensorView& residual,
                                  const ConstTensorView* weight, double eps,
                                  const TensorView& out,
                                  const TensorView& residual_out,
                                  std::int64_t begin,
                                  std::int64_t end) noexcept;

/// @}

}  // namespace cpu

namespace cuda {

/// As above, queued on `stream`, a cudaStream_t of the current device; scratch
/// is device memory. Throws InvalidArgument, and Unavailable if this build has
/// no CUDA kernels (build_info().cuda tells).
/// @{

FOO_CORE_EXPORT void rms_norm(const ConstTensorView& x,
                              const ConstTensorView* weight, double eps,
                              const TensorView& out, void* stream);

FOO_CORE_EXPORT void add_rms_norm(const ConstTensorView& x,
                                  const ConstTensorView& residual,
                                  const ConstTensorView* weight, double eps,
                                  const TensorView& out,
                                  const TensorView& residual_out, void* stream);

FOO_CORE_EXPORT void rms_norm_backward(const ConstTensorView& grad,
                                       const ConstTensorView& x,
                                       const ConstTensorView* weight,
                                       double eps, const TensorView* grad_x,
                                       const TensorView* grad_weight,
                                       void* scratch, void* stream);

FOO_CORE_EXPORT void add_rms_norm_backward(const ConstTensorView& grad,
                                           const ConstTensorView* grad_residual,
                                           const ConstTensorView& residual_out,
                                           const ConstTensorView* weight,
                                           double eps, const TensorView* grad_x,
                                           const TensorView* grad_weight,
                                           void* scratch, void* stream);

/// @}

}  // namespace cuda
}  // namespace foo_core
