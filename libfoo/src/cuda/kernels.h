// The launches of the CUDA kernels. Each function queues the work of the public
// function of the same name on a stream (a cudaStream_t) of the current device
// and returns at once. Its arguments have been checked, but for indices that
// are held in tensors; tensors may be empty.
#pragma once

#include <cstdint>

#include "foo_core/blocks.h"
#include "foo_core/cross_entropy.h"
#include "foo_core/rope.h"
#include "foo_core/tensor.h"
#include "glu.h"

namespace foo_core::cuda {

/// Whether this build has the functions below.
#ifdef FOO_CORE_CUDA
inline constexpr bool kBuilt = true;
#else
inline constexpr bool kBuilt = false;
#endif

enum class Elementwise {
  kAdd,
  kMul,
  kMulAdd,
};

/// `a` and `b` have out's shape: their strides are 0 where they broadcast.
void elementwise(Elementwise function, const ConstTensorView& a,
                 const ConstTensorView& b, double c, const TensorView& out,
                 void* stream);

void gated(Activation activation, const ConstTensorView& gate,
           const ConstTensorView& up, const TensorView& out, void* stream);

/// A null gradient is not computed.
void gated_backward(Activation activation, const ConstTensorView& grad,
                    const ConstTensorView& gate, const ConstTensorView& up,
                    const TensorView* grad_gate, const TensorView* grad_up,
                    void* stream);

/// add_rms_norm, or rms_norm if residual and residual_out are null.
void rms_norm(const ConstTensorView& x, const ConstTensorView* residual,
              const ConstTensorView* weight, double eps, const TensorView& out,
              const TensorView* residual_out, void* stream);

std::int64_t rms_norm_backward_scratch_size(const ConstTensorView& x) noexcept;

/// Adds `addend` to grad_x, unless it is null.
void rms_norm_backward(const ConstTensorView& grad,
                       const ConstTensorView* addend, const ConstTensorView& x,
                       const ConstTensorView* weight, double eps,
                       const TensorView* grad_x, const TensorView* grad_weight,
                       void* scratch, void* stream);

void linear(const ConstTensorView& x, const ConstTensorView& weight,
            const ConstTensorView* bias, const TensorView& out, void* stream);

/// `mask` has the shape of scores, or is null.
void attention(const ConstTensorView& query, const ConstTensorView& key,
               const ConstTensorView& value, const ConstTensorView* mask,
               double scale, const TensorView& out, void* stream);

void rope(const ConstTensorView& x, const ConstTensorView& cos,
          const ConstTensorView& sin, const ConstTensorView* positions,
          const RopeOptions& options, const TensorView& out, void* stream);

/// `scratch` has a double for each row, if the loss is reduced.
void cross_entropy(const ConstTensorView& logits, const ConstTensorView& target,
                   const CrossEntropyOptions& options, const TensorView& loss,
                   const TensorView& lse, void* scratch, void* stream);

/// `scratch` has one int64, if the loss is a mean.
void cross_entropy_backward(const ConstTensorView& grad,
                            const ConstTensorView& logits,
                            const ConstTensorView& target,
                            const ConstTensorView& lse,
                            const CrossEntropyOptions& options,
                            const TensorView& grad_logits, void* scratch,
                            void* stream);

void quantize(const ConstTensorView& x, BlockFormat format,
              const TensorView& blocks, void* stream);

void dequantize(const ConstTensorView& blocks, BlockFormat format,
                const TensorView& out, void* stream);

void linear_quantized(const ConstTensorView& x, const ConstTensorView& weight,
                      BlockFormat format, const ConstTensorView* bias,
                      const TensorView& out, void* stream);

void quantize_int8_rowwise(const ConstTensorView& x, const TensorView& q,
                           const TensorView& scale, void* stream);

}  // namespace foo_core::cuda
