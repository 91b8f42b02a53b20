/// @file
/// Gated linear units (the activation of a gate times another tensor) and their
/// gradients.
/// Sources: Shazeer, "GLU Variants Improve Transformer", 2020 (SwiGLU, GEGLU);
/// Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
///
///     silu(x) = x / (1 + exp(-x))
///     gelu(x) = x * Phi(x), where Phi is the normal distribution function, or
///               x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))
///
/// All tensors have the same shape, of any number of dimensions, and the same
/// dtype. float32, float16 and bfloat16 are computed in float32 and rounded
/// once; float64 is computed in float64. Strides are arbitrary; gate and up may
/// be halves of one tensor, and so may grad_gate and grad_up.
///
/// The relative error does not grow where results are small, unless the
/// activation itself is subnormal. The formulas hold for infinity and NaN too,
/// so silu(-inf) and gelu(-inf) are NaN.
///
/// out may be exactly gate or up, and each gradient may be exactly grad, gate
/// or up (the same memory, sizes and strides); any other overlap of an output
/// throws InvalidArgument.
#pragma once

#include <cstdint>

#include "foo_core/executor.h"
#include "foo_core/export.h"
#include "foo_core/tensor.h"

namespace foo_core {

/// The two formulas of gelu. The numbers are part of the ABI.
enum class GeluApproximation : std::int32_t {
  kNone = 0,
  kTanh = 1,
};

/// Computes out = silu(gate) * up. Throws InvalidArgument.
FOO_CORE_EXPORT void silu_mul(const ConstTensorView& gate,
                              const ConstTensorView& up, const TensorView& out,
                              const Executor& executor = {});

/// Computes the gradient of sum(grad * silu(gate) * up):
///
///     grad_gate = grad * up * silu'(gate)
///     grad_up   = grad * silu(gate)
///
/// A null grad_gate or grad_up is not computed. Throws InvalidArgument.
FOO_CORE_EXPORT void silu_mul_backward(const ConstTensorView& grad,
                                       const ConstTensorView& gate,
                                       const ConstTensorView& up,
                                       const TensorView* grad_gate,
                                       const TensorView* grad_up,
                                       const Executor& executor = {});

/// Computes out = gelu(gate) * up. Throws InvalidArgument.
FOO_CORE_EXPORT void gelu_mul(const ConstTensorView& gate,
                              const ConstTensorView& up,
                              GeluApproximation approximation,
                              const TensorView& out,
                              const Executor& executor = {});

/// Computes the gradient of sum(grad * gelu(gate) * up), like
/// silu_mul_backward.
FOO_CORE_EXPORT void gelu_mul_backward(const ConstTensorView& grad,
                                       const ConstTensorView& gate,
                                       const ConstTensorView& up,
                                       GeluApproximation approximation,
                                       const TensorView* grad_gate,
                                       const TensorView* grad_up,
                                       const Executor& executor = {});

}  // namespace foo_core
