// Generated from python/torch_foo/operators by codegen/generate.py. Do not
// edit.
//
// The operators' kernels, as register.cc gives them to the dispatcher.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "tensor.h"

// So that a missing one shows when linking, not when loading.
#pragma GCC visibility push(hidden)

namespace torch_foo {

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value,
                 const std::optional<Tensor>& mask,
                 const std::optional<double>& scale);
void attention_out(const Tensor& query, const Tensor& key, const Tensor& value,
                   const std::optional<Tensor>& mask,
                   const std::optional<double>& scale, const Tensor& out);

Tensor quantize(const Tensor& weight, const std::string& format);

Tensor dequantize(const Tensor& blocks, const std::string& format);

Tensor linear_quantized(const Tensor& x, const Tensor& weight,
                        const std::optional<Tensor>& bias,
                        const std::string& format);
void linear_quantized_out(const Tensor& x, const Tensor& weight,
                          const std::optional<Tensor>& bias,
                          const std::string& format, const Tensor& out);

std::tuple<Tensor, Tensor> cross_entropy(const Tensor& logits,
                                         const Tensor& target,
                                         std::int64_t ignore_index,
                                         const std::string& reduction,
                                         double label_smoothing);

Tensor cross_entropy_backward(const Tensor& grad, const Tensor& logits,
                              const Tensor& target, const Tensor& lse,
                              std::int64_t ignore_index,
                              const std::string& reduction,
                              double label_smoothing);

Tensor add(const Tensor& a, const Tensor& b);
void add_out(const Tensor& a, const Tensor& b, const Tensor& out);

Tensor mul(const Tensor& a, const Tensor& b);
void mul_out(const Tensor& a, const Tensor& b, const Tensor& out);

Tensor muladd(const Tensor& a, const Tensor& b, double c);
void muladd_out(const Tensor& a, const Tensor& b, double c, const Tensor& out);

Tensor silu_mul(const Tensor& gate, const std::optional<Tensor>& up);
void silu_mul_out(const Tensor& gate, const std::optional<Tensor>& up,
                  const Tensor& out);

std::tuple<Tensor, Tensor> silu_mul_backward(const Tensor& grad,
                                             const Tensor& gate,
                                             const std::optional<Tensor>& up,
                                             bool wants_gate, bool wants_up);

Tensor gelu_mul(const Tensor& gate, const std::optional<Tensor>& up,
                const std::string& approximate);
void gelu_mul_out(const Tensor& gate, const std::optional<Tensor>& up,
                  const std::string& approximate, const Tensor& out);

std::tuple<Tensor, Tensor> gelu_mul_backward(const Tensor& grad,
                                             const Tensor& gate,
                                             const std::optional<Tensor>& up,
                                             const std::string& approximate,
                                             bool wants_gate, bool wants_up);

Tensor linear(const Tensor& x, const Tensor& weight,
              const std::optional<Tensor>& bias);
void linear_out(const Tensor& x, const Tensor& weight,
                const std::optional<Tensor>& bias, const Tensor& out);

std::tuple<Tensor, Tensor> quantize_int8_rowwise(const Tensor& x);

Tensor rms_norm(const Tensor& x, const std::optional<Tensor>& weight,
                double eps);
void rms_norm_out(const Tensor& x, const std::optional<Tensor>& weight,
                  double eps, const Tensor& out);

std::tuple<Tensor, Tensor> rms_norm_backward(
    const Tensor& grad, const Tensor& x, const std::optional<Tensor>& weight,
    double eps, bool wants_x, bool wants_weight);

std::tuple<Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& residual,
                                        const std::optional<Tensor>& weight,
                                        double eps);
void add_rms_norm_(const Tensor& x, const Tensor& residual,
                   const std::optional<Tensor>& weight, double eps);

std::tuple<Tensor, Tensor> add_rms_norm_backward(
    const Tensor& grad, const std::optional<Tensor>& grad_residual,
    const Tensor& residual_out, const std::optional<Tensor>& weight, double eps,
    bool wants_x, bool wants_weight);

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin,
            const std::optional<Tensor>& positions, bool interleaved);
void rope_out(const Tensor& x, const Tensor& cos, const Tensor& sin,
              const std::optional<Tensor>& positions, bool interleaved,
              const Tensor& out);
void rope_(const Tensor& x, const Tensor& cos, const Tensor& sin,
           const std::optional<Tensor>& positions, bool interleaved);

Tensor rope_backward(const Tensor& grad, const Tensor& cos, const Tensor& sin,
                     const std::optional<Tensor>& positions, bool interleaved);

}  // namespace torch_foo

#pragma GCC visibility pop
