/// @file
/// Symmetric quantization to int8 with one scale per row.
///
///     scale = max(|x|) / 127, over the last dimension
///     q     = x / scale, rounded to the nearest integer, ties to even
///
/// x and q have shape (..., n), scale has shape (..., 1). x is float32,
/// float64, float16 or bfloat16; q is int8, scale is float32. Strides are
/// arbitrary. A row is one slice along the last dimension.
///
/// Every bit is defined. max(|x|) / 127 is computed in float64 for float64,
/// else in float32, and rounded to float32. Where that is 0 (a row of zeros, of
/// tiny numbers or of no elements), scale is 1. x is divided by the rounded
/// scale in the same type, not multiplied by a reciprocal; the quotient is
/// rounded to an integer and clamped to [-127, 127], and NaN becomes 0. So a
/// row with a NaN has scale NaN, a row with an infinity (or a float64 beyond
/// the range of scale) has scale infinity, and both have q = 0 throughout.
///
/// q and scale must not overlap any other argument, or InvalidArgument is
/// thrown.
#pragma once

#include "foo_core/executor.h"
#include "foo_core/export.h"
#include "foo_core/tensor.h"

namespace foo_core {

/// Computes q and scale of x. Throws InvalidArgument.
FOO_CORE_EXPORT void quantize_int8_rowwise(const ConstTensorView& x,
                                           const TensorView& q,
                                           const TensorView& scale,
                                           const Executor& executor = {});

}  // namespace foo_core
