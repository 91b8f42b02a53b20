// The operators' kernels, as register.cpp gives them to the dispatcher.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

namespace torch_foo {

using torch::stable::Tensor;

Tensor add(const Tensor& a, const Tensor& b);
void add_out(const Tensor& a, const Tensor& b, const Tensor& out);

Tensor mul(const Tensor& a, const Tensor& b);
void mul_out(const Tensor& a, const Tensor& b, const Tensor& out);

Tensor muladd(const Tensor& a, const Tensor& b, double c);
void muladd_out(const Tensor& a, const Tensor& b, double c, const Tensor& out);

Tensor rms_norm(const Tensor& x, const std::optional<Tensor>& weight,
                double eps);
void rms_norm_out(const Tensor& x, const std::optional<Tensor>& weight,
                  double eps, const Tensor& out);

/// The gradients of x and of weight; undefined tensors, which Python sees as
/// None, where they are not wanted.
std::tuple<Tensor, Tensor> rms_norm_backward(
    const Tensor& grad, const Tensor& x, const std::optional<Tensor>& weight,
    double eps, bool wants_x, bool wants_weight);

}  // namespace torch_foo
