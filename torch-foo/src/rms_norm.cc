// Adaptors of rms_norm and its gradient.
#include "adaptor.h"
#include "generated/operators.h"

namespace torch_foo {
namespace {

void into(const Tensor& x, const std::optional<Tensor>& weight, double eps,
          const Tensor& out) {
  launch(x, foo_core::rms_norm, view(x), OptionalView(weight).get(), eps,
         mutable_view(out));
}

void add_into(const Tensor& x, const Tensor& residual,
              const std::optional<Tensor>& weight, double eps, const Tensor& y,
              const Tensor& residual_out) {
  launch(x, foo_core::add_rms_norm, view(x), view(residual),
         OptionalView(weight).get(), eps, mutable_view(y),
         mutable_view(residual_out));
}

// Checks what foo_core cannot see: devices, layouts, names of dtypes.
void check(const char* op, const Tensor& x,
           const std::optional<Tensor>& weight) {
  check_arguments(op, {{"x", x}});
  if (weight) check_arguments(op, {{"x", x}, {"weight", *weight}});
}

// What the gradients of both are written to.
struct Gradients {
  OptionalResult x, weight;
  std::optional<Tensor> scratch;

  Gradients(const char* op, const Argument& argument, bool wants_x,
            bool wants_weight)
      : x(op, wants_x, argument.tensor.sizes(), argument.tensor),
        weight(op, wants_weight, last_size(op, argument), argument.tensor) {
    if (!wants_weight) return;
    const Tensor& like = argument.tensor;
    scratch = empty_bytes(
        op,
        foo_core::rms_norm_backward_scratch_size(view(like), device_of(like)),
        like);
  }

  static IntHeaderOnlyArrayRef last_size(const char* op, const Argument& like) {
    if (like.tensor.dim() > 0) return {&like.tensor.sizes().back(), 1};
    fail(std::string(op) + ": " + like.name +
         " has no dimensions, expected at least 1");
  }

  void* scratch_memory() const {
    return scratch ? scratch->mutable_data_ptr() : nullptr;
  }

  std::tuple<Tensor, Tensor> take() { return {x.take(), weight.take()}; }
};

}  // namespace

Tensor rms_norm(const Tensor& x, const std::optional<Tensor>& weight,
                double eps) {
  check("rms_norm", x, weight);
  Tensor out = empty("rms_norm", x.sizes(), x);
  into(x, weight, eps, out);
  return out;
}

void rms_norm_out(const Tensor& x, const std::optional<Tensor>& weight,
                  double eps, const Tensor& out) {
  check("rms_norm", x, weight);
  check_arguments("rms_norm", {{"x", x}, {"out", out}});
  into(x, weight, eps, out);
}

std::tuple<Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& residual,
                                        const std::optional<Tensor>& weight,
                                        double eps) {
  const char* op = "add_rms_norm";
  check(op, x, weight);
  check_arguments(op, {{"x", x}, {"residual", residual}});
  Tensor y = empty(op, x.sizes(), x), residual_out = empty(op, x.sizes(), x);
  add_into(x, residual, weight, eps, y, residual_out);
  return {std::move(y), std::move(residual_out)};
}

void add_rms_norm_(const Tensor& x, const Tensor& residual,
                   const std::optional<Tensor>& weight, double eps) {
  check("add_rms_norm_", x, weight);
  check_arguments("add_rms_norm_", {{"x", x}, {"residual", residual}});
  renamed("add_rms_norm_", {{"out", "x"}, {"residual_out", "residual"}},
          [&] { add_into(x, residual, weight, eps, x, residual); });
}

std::tuple<Tensor, Tensor> rms_norm_backward(
    const Tensor& grad, const Tensor& x, const std::optional<Tensor>& weight,
    double eps, bool wants_x, bool wants_weight) {
  check("rms_norm_backward", x, weight);
  check_arguments("rms_norm_backward", {{"x", x}, {"grad", grad}});
  Gradients gradients("rms_norm_backward", {"x", x}, wants_x, wants_weight);
  launch(x, foo_core::rms_norm_backward, view(grad), view(x),
         OptionalView(weight).get(), eps, gradients.x.get(),
         gradients.weight.get(), gradients.scratch_memory());
  return gradients.take();
}

std::tuple<Tensor, Tensor> add_rms_norm_backward(
    const Tensor& grad, const std::optional<Tensor>& grad_residual,
    const Tensor& residual_out, const std::optional<Tensor>& weight, double eps,
    bool wants_x, bool wants_weight) {
  const char* op = "add_rms_norm_backward";
  const Argument sum{"residual_out", residual_out};
  check_arguments(op, {sum, {"grad", grad}});
  if (weight) check_arguments(op, {sum, {"weight", *weight}});
  if (grad_residual) {
    check_arguments(op, {sum, {"grad_residual", *grad_residual}});
  }
  Gradients gradients(op, sum, wants_x, wants_weight);
  launch(residual_out, foo_core::add_rms_norm_backward, view(grad),
         OptionalView(grad_residual).get(), view(residual_out),
         OptionalView(weight).get(), eps, gradients.x.get(),
         gradients.weight.get(), gradients.scratch_memory());
  return gradients.take();
}

}  // namespace torch_foo
