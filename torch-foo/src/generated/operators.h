// Generated from ops.yaml by codegen/generate.py. Do not edit.
//
// The operators' kernels, as register.cpp gives them to the dispatcher.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "tensor.h"

namespace torch_foo {

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

std::tuple<Tensor, Tensor> rms_norm_backward(
    const Tensor& grad, const Tensor& x, const std::optional<Tensor>& weight,
    double eps, bool wants_x, bool wants_weight);

std::string version();

std::string core_version();

bool core_has_cuda();

std::string simd_target();

}  // namespace torch_foo
