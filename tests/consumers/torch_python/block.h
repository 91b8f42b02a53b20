// A block of a transformer as a torch::nn::Module.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>

#include <cstdint>

/// x + down(silu(gate(n)) * up(n)), n = x / sqrt(mean(x^2) + eps) * norm
///
/// gate, up and down are linear layers without bias; norm is a vector. It runs
/// on the CPU, in float32, float64, float16 or bfloat16.
class GatedMLP : public torch::nn::Module {
 public:
  /// Throws std::invalid_argument, like forward.
  GatedMLP(std::int64_t dim, std::int64_t hidden, double eps);

  /// x and the result have shape (..., dim).
  at::Tensor forward(const at::Tensor& x);

 private:
  double eps_;
  at::Tensor norm_;
  torch::nn::Linear gate_, up_, down_;
};
