/// @file
/// Gated linear units: the activation of a gate times another tensor, and their
/// gradients.
/// Sources: Shazeer, "GLU Variants Improve Transformer", 2020 (SwiGLU, GEGLU);
/// Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
///
///     silu(x) = x / (1 + exp(-x))
///     gelu(x) = x * Phi(x), Phi the normal distribution function, or
///               x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))
///
/// All tensors have the same shape, of any number of dimensions, and the same
/// dtype. float32, float16 and bfloat16 are computed in float32 and rounded
/// once; float64 in float64. Strides are arbitrary; gate and up may be halves
/// of one tensor, and so may grad_gate and grad_up.
///
/// Small results are as accurate as large ones, as long as the activation
/// itself is not subnormal. Of infinity and NaN the formulas decide, so
/// silu(-inf) and gelu(-inf) are NaN.
///
/// out may be exactly gate or up, and each gradient exactly grad, gate or up
/// (the same memory, sizes and strides); InvalidArgument if an output may
/// overlap anything else.
#pragma once

#include <cstdint>

#include "foo_core/export.h"
#include "foo_core/parallel.h"
#include "foo_core/tensor.h"

namespace foo_core {

/// The two formulas of gelu. The numbers are part of the ABI.
enum class GeluApproximation : std::int32_t {
  kNone = 0,
  kTanh = 1,
};

/// out = silu(gate) * up. Throws InvalidArgument.
FOO_CORE_EXPORT void silu_mul(const ConstTensorView& gate,
                              const ConstTensorView& up, const TensorView& out,
                              const ParallelFor& parallel_for = serial());

/// The gradient of sum(grad * silu(gate) * up):
///
///     grad_gate = grad * up * silu'(gate)
///     grad_up   = grad * silu(gate)
///
/// Either may be null: not wanted. Throws InvalidArgument.
FOO_CORE_EXPORT void silu_mul_backward(
    const ConstTensorView& grad, const ConstTensorView& gate,
    const ConstTensorView& up, const TensorView* grad_gate,
    const TensorView* grad_up, const ParallelFor& parallel_for = serial());

/// out = gelu(gate) * up. Throws InvalidArgument.
FOO_CORE_EXPORT void gelu_mul(const ConstTensorView& gate,
                              const ConstTensorView& up,
                              GeluApproximation approximation,
                              const TensorView& out,
                              const ParallelFor& parallel_for = serial());

/// The gradient of sum(grad * gelu(gate) * up), as in silu_mul_backward.
FOO_CORE_EXPORT void gelu_mul_backward(
    const ConstTensorView& grad, const ConstTensorView& gate,
    const ConstTensorView& up, GeluApproximation approximation,
    const TensorView* grad_gate, const TensorView* grad_up,
    const ParallelFor& parallel_for = serial());

namespace cpu {

/// Elements [begin, end), counted in row-major order. Nothing is checked,
/// nothing is thrown, no memory is allocated.
/// @{

FOO_CORE_EXPORT void silu_mul(const ConstTensorView& gate,
                              const ConstTensorView& up, const TensorView& out,
                              std::int64_t begin, std::int64_t end) noexcept;

FOO_CORE_EXPORT void gelu_mul(const ConstTensorView& gate,
                              const ConstTensorView& up,
                              GeluApproximation approximation,
                              const TensorView& out, std::int64_t begin,
                              std::int64_t end) noexcept;

/// @}

}  // namespace cpu

namespace cuda {

/// As above, queued on `stream`, a cudaStream_t of the current device. Throws
/// InvalidArgument, and Unavailable if this build has no CUDA kernels
/// (build_info().cuda tells).
/// @{

FOO_CORE_EXPORT void silu_mul(const ConstTensorView& gate,
                              const ConstTensorView& up, const TensorView& out,
                              void* stream);

FOO_CORE_EXPORT void silu_mul_backward(const ConstTensorView& grad,
                                       const ConstTensorView& gate,
                                       const ConstTensorView& up,
                                       const TensorView* grad_gate,
                                       const TensorView* grad_up, void* stream);

FOO_CORE_EXPORT void gelu_mul(const ConstTensorView& gate,
                              const ConstTensorView& up,
                              GeluApproximation approximation,
                              const TensorView& out, void* stream);

FOO_CORE_EXPORT void gelu_mul_backward(const ConstTensorView& grad,
                                       const ConstTensorView& gate,
                                       const ConstTensorView& up,
                                       GeluApproximation approximation,
                                       const TensorView* grad_gate,
                                       const TensorView* grad_up, void* stream);

/// @}

}  // namespace cuda
}  // namespace foo_core
