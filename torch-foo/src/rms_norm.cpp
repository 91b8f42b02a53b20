// Adaptors of rms_norm and its gradient.
#include "adaptor.h"
#include "generated/operators.h"

namespace torch_foo {
namespace {

using foo_core::ConstTensorView;
using foo_core::ParallelFor;
using foo_core::TensorView;

void launch(const Tensor& x, const std::optional<Tensor>& weight, double eps,
            const Tensor& out) {
  const ConstTensorView vx = view(x);
  const OptionalView vweight(weight);
  const TensorView vout = mutable_view(out);
  run(
      x,
      [&](const ParallelFor& threads) {
        foo_core::rms_norm(vx, vweight.get(), eps, vout, threads);
      },
      [&](void* stream) {
        foo_core::cuda::rms_norm(vx, vweight.get(), eps, vout, stream);
      });
}

}  // namespace

Tensor rms_norm(const Tensor& x, const std::optional<Tensor>& weight,
                double eps) {
  check_arguments("rms_norm", {{"x", x}});
  if (weight) check_arguments("rms_norm", {{"x", x}, {"weight", *weight}});
  Tensor out = empty(x.sizes(), x);
  launch(x, weight, eps, out);
  return out;
}

void rms_norm_out(const Tensor& x, const std::optional<Tensor>& weight,
                  double eps, const Tensor& out) {
  if (weight) check_arguments("rms_norm", {{"x", x}, {"weight", *weight}});
  check_arguments("rms_norm", {{"x", x}, {"out", out}});
  launch(x, weight, eps, out);
}

std::tuple<Tensor, Tensor> rms_norm_backward(
    const Tensor& grad, const Tensor& x, const std::optional<Tensor>& weight,
    double eps, bool wants_x, bool wants_weight) {
  const char* op = "rms_norm_backward";
  if (weight) check_arguments(op, {{"x", x}, {"weight", *weight}});
  check_arguments(op, {{"x", x}, {"grad", grad}});
  if (x.dim() == 0) {
    fail("rms_norm_backward: x has no dimensions, expected at least 1");
  }

  const ConstTensorView vgrad = view(grad), vx = view(x);
  const OptionalView vweight(weight);
  OptionalResult grad_x(wants_x, x.sizes(), x);
  OptionalResult grad_weight(wants_weight, {&x.sizes().back(), 1}, x);
  const Tensor scratch = empty_bytes(
      wants_weight ? foo_core::rms_norm_backward_scratch_size(vx) : 0, x);
  void* to_scratch = wants_weight ? scratch.mutable_data_ptr() : nullptr;
  run(
      x,
      [&](const ParallelFor& threads) {
        foo_core::rms_norm_backward(vgrad, vx, vweight.get(), eps, grad_x.get(),
                                    grad_weight.get(), to_scratch, threads);
      },
      [&](void* stream) {
        foo_core::cuda::rms_norm_backward(vgrad, vx, vweight.get(), eps,
                                          grad_x.get(), grad_weight.get(),
                                          to_scratch, stream);
      });
  return {grad_x.take(), grad_weight.take()};
}

}  // namespace torch_foo
