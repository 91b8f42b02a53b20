/// @file
/// Attention of few queries over many keys, as in a language model that
/// generates a token with a long cache.
///
///     out = softmax(scale query key^T + mask) value
///
/// query has shape (batch, heads, queries, size), key (batch, key heads, keys,
/// size), value (batch, key heads, keys, value size) and out (batch, heads,
/// queries, value size). Heads are a multiple of key heads, and heads that
/// follow each other share one. All have the same dtype, except that key and
/// value may both be float16 or both bfloat16 where query is float32: a cache
/// of half the bytes, whose numbers are widened exactly. float32, float16 and
/// bfloat16 are computed in float32 and rounded once; float64 is computed in
/// float64. Strides are arbitrary.
///
/// The mask broadcasts to (batch, heads, queries, keys). It either has query's
/// dtype and is added, or is uint8, where 0 stands for minus infinity and any
/// other number for 0. Where all scores of a query are minus infinity, its
/// weights are 0; so is its result, unless a value is not finite.
///
/// With few queries, reading keys and values takes most of the time: a key
/// head's are read once for up to 64 rows (queries times heads that share it).
/// With many rows the arithmetic does, and a kernel on top of a BLAS is faster.
///
/// out must not overlap any other argument, or InvalidArgument is thrown.
///
/// Source: torch.nn.functional.scaled_dot_product_attention; Dao et al.,
/// "Flash-Decoding for long-context inference", 2023.
#pragma once

#include <cstdint>

#include "foo_core/executor.h"
#include "foo_core/export.h"
#include "foo_core/tensor.h"

namespace foo_core {

/// The bytes of scratch memory that attention needs; 0 for views that it
/// refuses.
FOO_CORE_EXPORT std::int64_t attention_scratch_size(
    const ConstTensorView& query, const ConstTensorView& key,
    const ConstTensorView& value, const Executor& executor = {}) noexcept;

/// Computes out = softmax(scale query key^T + mask) value. A null mask stands
/// for zeros. `scratch` is aligned to 64 bytes. Throws InvalidArgument.
FOO_CORE_EXPORT void attention(const ConstTensorView& query,
                               const ConstTensorView& key,
                               const ConstTensorView& value,
                               const ConstTensorView* mask, double scale,
                               const TensorView& out, void* scratch,
                               const Executor& executor = {});

}  // namespace foo_core
