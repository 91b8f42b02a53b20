/// @file
/// Quantization to int8 with one scale per row, the symmetric kind.
///
///     scale = max(|x|) / 127, over the last dimension
///     q     = x / scale, rounded to the nearest integer, ties to even
///
/// x has shape (..., n), q the same, scale (..., 1). x is float32, float64,
/// float16 or bfloat16; q is int8, scale float32. Strides are arbitrary. A row
/// is one slice along the last dimension; rows are counted in row-major order.
///
/// The bits are defined. max(|x|) / 127 is computed in float64 for float64,
/// else in float32, and rounded to float32; where it is 0 (a row of zeros, of
/// numbers too small, or of no elements) scale is 1. x is divided by that scale
/// in the same type (not multiplied by a reciprocal), the quotient rounded to
/// an integer, then clamped to [-127, 127]; a NaN becomes 0. A row with a NaN
/// thus has scale NaN and q = 0 throughout, as has any other row with an
/// infinity, or a float64 too large for scale, with scale infinity.
///
/// q and scale may overlap nothing else: InvalidArgument.
#pragma once

#include <cstdint>

#include "foo_core/export.h"
#include "foo_core/parallel.h"
#include "foo_core/tensor.h"

namespace foo_core {

/// q and scale of x. Throws InvalidArgument.
FOO_CORE_EXPORT void quantize_int8_rowwise(
    const ConstTensorView& x, const TensorView& q, const TensorView& scale,
    const ParallelFor& parallel_for = serial());

namespace cpu {

/// Rows [begin, end) of quantize_int8_rowwise. Nothing is checked, nothing is
/// thrown, no memory is allocated.
FOO_CORE_EXPORT void quantize_int8_rowwise(const ConstTensorView& x,
                                           const TensorView& q,
                                           const TensorView& scale,
                                           std::int64_t begin,
                                           std::int64_t end) noexcept;

}  // namespace cpu

namespace cuda {

/// As above, queued on `stream`, a cudaStream_t of the current device. Throws
/// InvalidArgument, and Unavailable if this build has no CUDA kernels
/// (build_info().cuda tells).
FOO_CORE_EXPORT void quantize_int8_rowwise(const ConstTensorView& x,
                                           const TensorView& q,
                                           const TensorView& scale,
                                           void* stream);

}  // namespace cuda
}  // namespace foo_core
