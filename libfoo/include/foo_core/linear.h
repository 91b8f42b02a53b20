/// @file
/// The product with a matrix of weights, made for few rows: what a language
/// model does for each token it generates.
///
///     out = x weight^T + bias
///
/// x has shape (..., k), weight (n, k), bias (n), out (..., n). All have the
/// same dtype. float32, float16 and bfloat16 are computed in float32 and
/// rounded once; float64 in float64. Strides are arbitrary. A row is one slice
/// along the last dimension.
///
/// With a few rows of float32, or one of 16-bit numbers, the time is that of
/// reading weight once from memory. With many it is that of the arithmetic, for
/// which a BLAS has better kernels.
///
/// out may overlap nothing else: InvalidArgument.
#pragma once

#include <cstdint>

#include "foo_core/export.h"
#include "foo_core/parallel.h"
#include "foo_core/tensor.h"

namespace foo_core {

/// out = x weight^T + bias; bias may be null: zeros. The result does not depend
/// on the number of threads. Throws InvalidArgument.
FOO_CORE_EXPORT void linear(const ConstTensorView& x,
                            const ConstTensorView& weight,
                            const ConstTensorView* bias, const TensorView& out,
                            const ParallelFor& parallel_for = serial());

namespace cpu {

/// Columns [begin, end) of out, which are rows of weight. Nothing is checked,
/// nothing is thrown, no memory is allocated.
FOO_CORE_EXPORT void linear(const ConstTensorView& x,
                            const ConstTensorView& weight,
                            const ConstTensorView* bias, const TensorView& out,
                            std::int64_t begin, std::int64_t end) noexcept;

}  // namespace cpu

namespace cuda {

/// As above, queued on `stream`, a cudaStream_t of the current device. Throws
/// InvalidArgument, and Unavailable if this build has no CUDA kernels
/// (build_info().cuda tells).
FOO_CORE_EXPORT void linear(const ConstTensorView& x,
                            const ConstTensorView& weight,
                            const ConstTensorView* bias, const TensorView& out,
                            void* stream);

}  // namespace cuda
}  // namespace foo_core
