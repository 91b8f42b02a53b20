/// @file
/// Rotary position embedding.
/// Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position
/// Embedding", 2021; half-split pairs as in GPT-NeoX and Llama.
///
/// With the cosines c and sines s of a token's position, which are one row of
/// cos and sin, each pair (x1, x2) of a head's first rotary_dim elements
/// becomes
///
///     y1 = x1 * c - x2 * s,  y2 = x2 * c + x1 * s
///
/// Pair number i is (i, i + rotary_dim / 2), or (2i, 2i + 1) if interleaved.
/// rotary_dim is twice the columns of cos; the rest of head_dim is copied.
///
///     x, out     (batch, seq, heads, head_dim), of one dtype
///     cos, sin   (max_position, rotary_dim / 2), both of x's dtype or float32
///     positions  (seq) or (batch, seq), int64, each in [0, max_position);
///                null: 0, 1, ..., seq - 1
///
/// float32, float16 and bfloat16 are computed in float32 and rounded once;
/// float64 in float64. An error of the type of computation is relative to the
/// larger of the two products, which may cancel. Strides are arbitrary. A token
/// is all heads at one position; tokens are counted in row-major order.
///
/// out may be exactly x (the same memory, sizes and strides); InvalidArgument
/// if it may overlap anything else.
#pragma once

#include <cstdint>

#include "foo_core/export.h"
#include "foo_core/parallel.h"
#include "foo_core/tensor.h"

namespace foo_core {

/// How rope pairs and turns elements.
struct RopeOptions {
  bool interleaved = false;  ///< pairs (2i, 2i + 1), not half-split ones
  bool inverse = false;  ///< by the negative angle, which is the gradient in x
};

/// out = x, rotated by the angles of its positions. Throws InvalidArgument.
FOO_CORE_EXPORT void rope(const ConstTensorView& x, const ConstTensorView& cos,
                          const ConstTensorView& sin,
                          const ConstTensorView* positions,
                          const RopeOptions& options, const TensorView& out,
                          const ParallelFor& parallel_for = serial());

namespace cpu {

/// Tokens [begin, end) of rope; positions, if not null, has shape (batch, seq).
/// Nothing is checked, nothing is thrown, no memory is allocated.
FOO_CORE_EXPORT void rope(const ConstTensorView& x, const ConstTensorView& cos,
                          const ConstTensorView& sin,
                          const ConstTensorView* positions,
                          const RopeOptions& options, const TensorView& out,
                          std::int64_t begin, std::int64_t end) noexcept;

}  // namespace cpu

namespace cuda {

/// As above, queued on `stream`, a cudaStream_t of the current device;
/// positions are not compared with max_position. Throws InvalidArgument, and
/// Unavailable if this build has no CUDA kernels (build_info().cuda tells).
FOO_CORE_EXPORT void rope(const ConstTensorView& x, const ConstTensorView& cos,
                          const ConstTensorView& sin,
                          const ConstTensorView* positions,
                          const RopeOptions& options, const TensorView& out,
                          void* stream);

}  // namespace cuda
}  // namespace foo_core
