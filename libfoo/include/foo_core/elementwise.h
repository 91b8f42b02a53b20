/// @file
/// Element-wise operators with broadcasting: add, mul, muladd.
///
/// Three forms each:
///
///     foo_core::add        a whole tensor on the CPU, arguments checked
///     foo_core::cpu::add   a range of it, arguments not checked
///     foo_core::cuda::add  a whole tensor on a CUDA device, arguments checked
///
/// float32, float16 and bfloat16 are computed in float32 and rounded once;
/// float64 in float64. a, b and out have the same dtype.
///
/// Shapes broadcast as NumPy's do, and out has the broadcast shape. Strides are
/// arbitrary. out may be exactly one of the inputs (the same memory, sizes and
/// strides); InvalidArgument if it may overlap one in any other way.
#pragma once

#include <cstdint>

#include "foo_core/export.h"
#include "foo_core/parallel.h"
#include "foo_core/tensor.h"

namespace foo_core {

/// out = a + b. Throws InvalidArgument.
FOO_CORE_EXPORT void add(const ConstTensorView& a, const ConstTensorView& b,
                         const TensorView& out,
                         const ParallelFor& parallel_for = serial());

/// out = a * b. Throws InvalidArgument.
FOO_CORE_EXPORT void mul(const ConstTensorView& a, const ConstTensorView& b,
                         const TensorView& out,
                         const ParallelFor& parallel_for = serial());

/// out = a * b + c. Throws InvalidArgument.
FOO_CORE_EXPORT void muladd(const ConstTensorView& a, const ConstTensorView& b,
                            double c, const TensorView& out,
                            const ParallelFor& parallel_for = serial());

namespace cpu {

/// Elements [begin, end) of out, counted in row-major order of its shape. a and
/// b have out's shape: where one broadcasts, its stride is 0. Nothing is
/// checked, nothing is thrown, no memory is allocated.
/// @{

FOO_CORE_EXPORT void add(const ConstTensorView& a, const ConstTensorView& b,
                         const TensorView& out, std::int64_t begin,
                         std::int64_t end) noexcept;

FOO_CORE_EXPORT void mul(const ConstTensorView& a, const ConstTensorView& b,
                         const TensorView& out, std::int64_t begin,
                         std::int64_t end) noexcept;

FOO_CORE_EXPORT void muladd(const ConstTensorView& a, const ConstTensorView& b,
                            double c, const TensorView& out, std::int64_t begin,
                            std::int64_t end) noexcept;

/// @}

}  // namespace cpu

namespace cuda {

/// As above, queued on `stream`, a cudaStream_t of the current device. Throws
/// InvalidArgument, and Unavailable if this build has no CUDA kernels
/// (build_info().cuda tells).
/// @{

FOO_CORE_EXPORT void add(const ConstTensorView& a, const ConstTensorView& b,
                         const TensorView& out, void* stream);

FOO_CORE_EXPORT void mul(const ConstTensorView& a, const ConstTensorView& b,
                         const TensorView& out, void* stream);

FOO_CORE_EXPORT void muladd(const ConstTensorView& a, const ConstTensorView& b,
                            double c, const TensorView& out, void* stream);

/// @}

}  // namespace cuda
}  // namespace foo_core
