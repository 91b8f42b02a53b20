/// @file
/// GGUF's block formats: rows of numbers with 4 to 8 bits, and a scale for each
/// block of them.
///
/// A row of k numbers is k / elements blocks, without gaps, bit for bit as in
/// GGUF files; so k is a multiple of the block's elements. A tensor of shape
/// (..., k) becomes uint8 of shape (..., k / elements * bytes), whose last
/// dimension is contiguous.
///
/// | format | elements | bytes | a number is |
/// |---|---|---|---|
/// | Q8_0 | 32 | 34 | d q, q from -128 to 127 |
/// | Q4_0 | 32 | 18 | d (q - 8), q from 0 to 15 |
/// | Q4_1 | 32 | 20 | d q + m, q from 0 to 15 |
/// | Q4_K | 256 | 144 | d s q - m t, q from 0 to 15, s and t from 0 to 63 |
/// | Q6_K | 256 | 210 | d s (q - 32), q from 0 to 63, s from -128 to 127 |
///
/// d and m are float16. In Q4_K, s and t belong to 32 numbers, in Q6_K s to 16.
///
/// Source: ggml-quants.c of llama.cpp, and `gguf.quants` of PyPI's gguf.
#pragma once

#include <cstdint>

#include "foo_core/executor.h"
#include "foo_core/export.h"
#include "foo_core/tensor.h"

namespace foo_core {

/// The numbers are part of the ABI.
enum class BlockFormat : std::int32_t {
  kQ8_0 = 0,
  kQ4_0 = 1,
  kQ4_1 = 2,
  kQ4_K = 3,
  kQ6_K = 4,
};

/// The name, such as "q8_0"; "invalid" if `format` is not a BlockFormat.
FOO_CORE_EXPORT const char* name(BlockFormat format) noexcept;

/// The numbers in a block; 0 if `format` is not a BlockFormat.
FOO_CORE_EXPORT std::int64_t block_elements(BlockFormat format) noexcept;

/// The bytes of a block; 0 if `format` is not a BlockFormat.
FOO_CORE_EXPORT std::int64_t block_bytes(BlockFormat format) noexcept;

/// Computes the blocks of x, which is float32, float64, float16 or bfloat16, of
/// any strides, and is brought to float32 first. Throws InvalidArgument.
///
/// Every bit is defined. For Q8_0, Q4_0 and Q4_1 they are those of
/// `gguf.quants.quantize` and of llama.cpp's reference functions. For Q4_K and
/// Q6_K, which gguf does not make, each group of 32 or 16 numbers has the scale
/// that brings its range to that of q, and scales are rounded to nearest, ties
/// to even, as the numbers are; llama.cpp searches for scales with a smaller
/// error. A block whose scale is not finite has the q that stands for 0, as far
/// as its format has one.
///
/// `blocks` must not overlap x.
FOO_CORE_EXPORT void quantize(const ConstTensorView& x, BlockFormat format,
                              const TensorView& blocks,
                              const Executor& executor = {});

/// Computes the float32 numbers that blocks hold, each rounded once. `out` has
/// any strides, and must not overlap `blocks`. Throws InvalidArgument.
FOO_CORE_EXPORT void dequantize(const ConstTensorView& blocks,
                                BlockFormat format, const TensorView& out,
                                const Executor& executor = {});

/// The bytes of scratch memory that linear_quantized needs; 0 for a view that
/// it refuses.
FOO_CORE_EXPORT std::int64_t linear_quantized_scratch_size(
    const ConstTensorView& x, const Executor& executor = {}) noexcept;

/// Computes out = x weight^T + bias, where weight holds the blocks of a matrix
/// of n rows and k columns. A null bias stands for zeros. Throws
/// InvalidArgument.
///
/// x has shape (..., k), weight (n, k / elements * bytes), bias (n) and out
/// (..., n); x, bias and out have one dtype. `scratch` is aligned to 64 bytes.
///
/// float64 is computed in float64. Other x are first rounded to 8 bits in
/// blocks of 32 along the last dimension:
///
///     d = max(|x|) / 127
///     x = d q, q = x * (127 / max(|x|)), rounded to nearest, ties to even
///
/// in float32, with q = 0 where that is not finite. Products of integers are
/// exact, sums over blocks float32, from the first to the last, and the result
/// is rounded once. So the error is at most half a d times the sum of |weight|
/// over each block, beside float32's rounding. A block of x with a NaN or an
/// infinity makes NaN.
FOO_CORE_EXPORT void linear_quantized(const ConstTensorView& x,
                                      const ConstTensorView& weight,
                                      BlockFormat format,
                                      const ConstTensorView* bias,
                                      const TensorView& out, void* scratch,
                                      const Executor& executor = {});

}  // namespace foo_core
