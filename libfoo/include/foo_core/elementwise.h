/// @file
/// Element-wise operators with broadcasting.
///
/// a, b and out have the same dtype. float32, float16 and bfloat16 are computed
/// in float32 and rounded once; float64 is computed in float64.
///
/// Shapes broadcast as in NumPy, and out has the broadcast shape. Strides are
/// arbitrary. out may be exactly an input (the same memory, sizes and strides);
/// any other overlap throws InvalidArgument.
#pragma once

#include "foo_core/executor.h"
#include "foo_core/export.h"
#include "foo_core/tensor.h"

namespace foo_core {

/// Computes out = a + b. Throws InvalidArgument.
FOO_CORE_EXPORT void add(const ConstTensorView& a, const ConstTensorView& b,
                         const TensorView& out, const Executor& executor = {});

/// Computes out = a * b. Throws InvalidArgument.
FOO_CORE_EXPORT void mul(const ConstTensorView& a, const ConstTensorView& b,
                         const TensorView& out, const Executor& executor = {});

/// Computes out = a * b + c. Throws InvalidArgument.
FOO_CORE_EXPORT void muladd(const ConstTensorView& a, const ConstTensorView& b,
                            double c, const TensorView& out,
                            const Executor& executor = {});

}  // namespace foo_core
