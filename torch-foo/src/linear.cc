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

void into(const Tensor& x, const Tensor& weight,
          const std::optional<Tensor>& bias, const Tensor& out) {
  launch(x, foo_core::linear, view(x), view(weight), OptionalView(bias).get(),
         mutable_view(out));
}

}  // namespace

Tensor linear(const Tensor& x, const Tensor& weight,
              const std::optional<Tensor>& bias) {
  check(x, weight, bias);
  Shape shape(x.sizes());
  // Where there is no such dimension, foo_core says so before it writes.
  if (x.dim() > 0 && weight.dim() > 0) {
    shape.last() = weight.sizes()[0];
  }
  Tensor out = empty("linear", shape, x);
  into(x, weight, bias, out);
  return out;
}

void linear_out(const Tensor& x, const Tensor& weight,
                const std::optional<Tensor>& bias, const Tensor& out) {
  check(x, weight, bias);
  check_arguments("linear", {{"x", x}, {"out", out}});
  into(x, weight, bias, out);
}

}  // namespace torch_foo
