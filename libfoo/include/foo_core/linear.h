/// @file
/// The product with a matrix of weights, for the few rows that a language model
/// multiplies for each token it generates.
///
///     out = x weight^T + bias
///
/// x has shape (..., k), weight (n, k), bias (n) and out (..., n). All have the
/// same dtype. float32, float16 and bfloat16 are computed in float32 and
/// rounded once; float64 is computed in float64. Strides are arbitrary. A row
/// is one slice along the last dimension.
///
/// With up to about 16 rows, reading weight from memory takes most of the time.
/// With many rows the arithmetic does, and a BLAS is faster.
///
/// out must not overlap any other argument, or InvalidArgument is thrown.
#pragma once

#include "foo_core/executor.h"
#include "foo_core/export.h"
#include "foo_core/tensor.h"

namespace foo_core {

/// Computes out = x weight^T + bias. A null bias stands for zeros. Throws
/// InvalidArgument.
FOO_CORE_EXPORT void linear(const ConstTensorView& x,
                            const ConstTensorView& weight,
                            const ConstTensorView* bias, const TensorView& out,
                            const Executor& executor = {});

}  // namespace foo_core
