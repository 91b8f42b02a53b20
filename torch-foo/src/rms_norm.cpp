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

void launch_add(const Tensor& x, const Tensor& residual,
                const std::optional<Tensor>& weight, double eps,
                const Tensor& y, const Tensor& residual_out) {
  const ConstTensorView vx = view(x), vresidual = view(residual);
  const OptionalView vweight(weight);
  const TensorView vy = mutable_view(y), vout = mutable_view(residual_out);
  run(
      x,
      [&](const ParallelFor& threads) {
        foo_core::add_rms_norm(vx, vresidual, vweight.get(), eps, vy, vout,
                               threads);
      },
      [&](void* stream) {
        foo_core::cuda::add_rms_norm(vx, vresidual, vweight.get(), eps, vy,
                                     vout, stream);
      });
}

// Checks what foo_core cannot see: devices, layouts, names of dtypes.
void check(const char* op, const Tensor& x,
           const std::optional<Tensor>& weight) {
  check_arguments(op, {{"x", x}});
  if (weight) check_arguments(op, {{"x", x}, {"weight", *weight}});
}

// `cpu` takes (x, grad_x, grad_weight, scratch, threads) and `cuda` the same
// with a stream.
template <class Cpu, class Cuda>
std::tuple<Tensor, Tensor> backward(const char* op, const Tensor& x,
                                    bool wants_x, bool wants_weight, Cpu cpu,
                                    Cuda cuda) {
  if (x.dim() == 0) {
    fail(std::string(op) + ": x has no dimensions, expected at least 1");
  }
  const ConstTensorView vx = view(x);
  OptionalResult grad_x(wants_x, x.sizes(), x);
  OptionalResult grad_weight(wants_weight, {&x.sizes().back(), 1}, x);
  const Tensor scratch = empty_bytes(
      wants_weight ? foo_core::rms_norm_backward_scratch_size(vx) : 0, x);
  void* to_scratch = wants_weight ? scratch.mutable_data_ptr() : nullptr;
  run(
      x,
      [&](const ParallelFor& threads) {
        cpu(vx, grad_x.get(), grad_weight.get(), to_scratch, threads);
      },
      [&](void* stream) {
        cuda(vx, grad_x.get(), grad_weight.get(), to_scratch, stream);
      });
  return {grad_x.take(), grad_weight.take()};
}

}  // namespace

Tensor rms_norm(const Tensor& x, const std::optional<Tensor>& weight,
                double eps) {
  check("rms_norm", x, weight);
  Tensor out = empty(x.sizes(), x);
  launch(x, weight, eps, out);
  return out;
}

void rms_norm_out(const Tensor& x, const std::optional<Tensor>& weight,
                  double eps, const Tensor& out) {
  check("rms_norm", x, weight);
  check_arguments("rms_norm", {{"x", x}, {"out", out}});
  launch(x, weight, eps, out);
}

std::tuple<Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& residual,
                                        const std::optional<Tensor>& weight,
                                        double eps) {
  check("add_rms_norm", x, weight);
  check_arguments("add_rms_norm", {{"x", x}, {"residual", residual}});
  Tensor y = empty(x.sizes(), x), residual_out = empty(x.sizes(), x);
  launch_add(x, residual, weight, eps, y, residual_out);
  return {std::move(y), std::move(residual_out)};
}

void add_rms_norm_(const Tensor& x, const Tensor& residual,
                   const std::optional<Tensor>& weight, double eps) {
  check("add_rms_norm_", x, weight);
  check_arguments("add_rms_norm_", {{"x", x}, {"residual", residual}});
  in_place("add_rms_norm_", {{"out", "x"}, {"residual_out", "residual"}},
           [&] { launch_add(x, residual, weight, eps, x, residual); });
}

std::tuple<Tensor, Tensor> rms_norm_backward(
    const Tensor& grad, const Tensor& x, const std::optional<Tensor>& weight,
    double eps, bool wants_x, bool wants_weight) {
  check("rms_norm_backward", x, weight);
  check_arguments("rms_norm_backward", {{"x", x}, {"grad", grad}});
  const ConstTensorView vgrad = view(grad);
  return backward(
      "rms_norm_backward", x, wants_x, wants_weight,
      [&](const ConstTensorView& vx, const TensorView* grad_x,
          const TensorView* grad_weight, void* scratch,
          const ParallelFor& threads) {
        foo_core::rms_norm_backward(vgrad, vx, OptionalView(weight).get(), eps,
                                    grad_x, grad_weight, scratch, threads);
      },
      [&](const ConstTensorView& vx, const TensorView* grad_x,
          const TensorView* grad_weight, void* scratch, void* stream) {
        foo_core::cuda::rms_norm_backward(vgrad, vx, OptionalView(weight).get(),
                                          eps, grad_x, grad_weight, scratch,
                                          stream);
      });
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
  const ConstTensorView vgrad = view(grad);
  return backward(
      op, residual_out, wants_x, wants_weight,
      [&](const ConstTensorView& vsum, const TensorView* grad_x,
          const TensorView* grad_weight, void* scratch,
          const ParallelFor& threads) {
        foo_core::add_rms_norm_backward(vgrad,
                                        OptionalView(grad_residual).get(), vsum,
                                        OptionalView(weight).get(), eps, grad_x,
                                        grad_weight, scratch, threads);
      },
      [&](const ConstTensorView& vsum, const TensorView* grad_x,
          const TensorView* grad_weight, void* scratch, void* stream) {
        foo_core::cuda::add_rms_norm_backward(
            vgrad, OptionalView(grad_residual).get(), vsum,
            OptionalView(weight).get(), eps, grad_x, grad_weight, scratch,
            stream);
      });
}

}  // namespace torch_foo
