// Adaptor of linear.
#include "adaptor.h"
#include "generated/operators.h"

namespace torch_foo {
namespace {

void check(const Tensor& x, const Tensor& weight,
           const std::optional<Tensor>& bias) {
  check_arguments("linear", {{"x", x}, {"weight", weight}});
  if (bias) check_arguments("linear", {{"x", x}, {"bias", *bias}});
}

void launch(const Tensor& x, const Tensor& weight,
            const std::optional<Tensor>& bias, const Tensor& out) {
  const foo_core::ConstTensorView vx = view(x), vweight = view(weight);
  const OptionalView vbias(bias);
  const foo_core::TensorView vout = mutable_view(out);
  run(
      x,
      [&](const foo_core::ParallelFor& threads) {
        foo_core::linear(vx, vweight, vbias.get(), vout, threads);
      },
      [&](void* stream) {
        foo_core::cuda::linear(vx, vweight, vbias.get(), vout, stream);
      });
}

}  // namespace

Tensor linear(const Tensor& x, const Tensor& weight,
              const std::optional<Tensor>& bias) {
  check(x, weight, bias);
  Shape shape(x.sizes());
  // Where there is no such dimension, foo_core says so before it writes.
  if (x.dim() > 0 && weight.dim() > 0) {
    shape.sizes[shape.ndim - 1] = weight.sizes()[0];
  }
  Tensor out = empty(shape, x);
  launch(x, weight, bias, out);
  return out;
}

void linear_out(const Tensor& x, const Tensor& weight,
                const std::optional<Tensor>& bias, const Tensor& out) {
  check(x, weight, bias);
  check_arguments("linear", {{"x", x}, {"out", out}});
  launch(x, weight, bias, out);
}

}  // namespace torch_foo
