// Adaptors of rms_norm and its gradient.
#include "adaptor.h"
#include "generated/operators.h"

namespace torch_foo {
namespace {

using foo_core::ConstTensorView;
using foo_core::ParallelFor;
using foo_core::TensorView;

// The view of an optional argument, for functions that take a pointer to one.
struct OptionalView {
  explicit OptionalView(const std::optional<Tensor>& tensor) {
    if (tensor) value = view(*tensor);
  }
  const ConstTensorView* get() const { return value ? &*value : nullptr; }
  std::optional<ConstTensorView> value;
};

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
  std::optional<Tensor> grad_x, grad_weight, scratch;
  TensorView vgrad_x, vgrad_weight;
  if (wants_x) {
    grad_x = empty(x.sizes(), x);
    vgrad_x = mutable_view(*grad_x);
  }
  if (wants_weight) {
    const std::int64_t n = x.sizes()[x.dim() - 1];
    grad_weight = empty({&n, 1}, x);
    vgrad_weight = mutable_view(*grad_weight);
    scratch = empty_bytes(foo_core::rms_norm_backward_scratch_size(vx), x);
  }
  const TensorView* to_grad_x = wants_x ? &vgrad_x : nullptr;
  const TensorView* to_grad_weight = wants_weight ? &vgrad_weight : nullptr;
  void* to_scratch = wants_weight ? scratch->mutable_data_ptr() : nullptr;
  run(
      x,
      [&](const ParallelFor& threads) {
        foo_core::rms_norm_backward(vgrad, vx, vweight.get(), eps, to_grad_x,
                                    to_grad_weight, to_scratch, threads);
      },
      [&](void* stream) {
        foo_core::cuda::rms_norm_backward(vgrad, vx, vweight.get(), eps,
                                          to_grad_x, to_grad_weight, to_scratch,
                                          stream);
      });
  return {grad_x ? std::move(*grad_x) : Tensor::undefined(),
          grad_weight ? std::move(*grad_weight) : Tensor::undefined()};
}

}  // namespace torch_foo
