/// @file
/// Rotary position embedding.
/// Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position
/// Embedding", 2021; half-split pairs as in GPT-NeoX and Llama.
///
/// A token's position selects a row of cos and of sin. With the elements c and
/// s of these rows, each pair (x1, x2) among the first rotary_dim elements of a
/// head becomes
///
///     y1 = x1 * c - x2 * s,  y2 = x2 * c + x1 * s
///
/// Pair i is (i, i + rotary_dim / 2), or (2i, 2i + 1) if interleaved.
/// rotary_dim is twice the number of columns of cos; the other elements of the
/// head are copied.
///
///     x, out     (batch, seq, heads, head_dim), of one dtype
///     cos, sin   (max_position, rotary_dim / 2), both of x's dtype or float32
///     positions  (seq) or (batch, seq), int64, each in [0, max_position);
///                null stands for 0, 1, ..., seq - 1
///
/// float32, float16 and bfloat16 are computed in float32 and rounded once;
/// float64 is computed in float64. The error of the computation is relative to
/// the larger of the two products, because they may cancel. Strides are
/// arbitrary.
///
/// out may be exactly x (the same memory, sizes and strides); any other overlap
/// throws InvalidArgument.
#pragma once

#include "foo_core/executor.h"
#include "foo_core/export.h"
#include "foo_core/tensor.h"

namespace foo_core {

/// How rope pairs elements, and which way it rotates them.
struct RopeOptions {
  bool interleaved = false;  ///< pairs are (2i, 2i + 1) instead of half-split
  bool inverse = false;      ///< rotates backwards: the gradient in x
};

/// Computes out = x, rotated by the angles of its positions. Throws
/// InvalidArgument.
FOO_CORE_EXPORT void rope(const ConstTensorView& x, const ConstTensorView& cos,
                          const ConstTensorView& sin,
                          const ConstTensorView* positions,
                          const RopeOptions& options, const TensorView& out,
                          const Executor& executor = {});

}  // namespace foo_core
