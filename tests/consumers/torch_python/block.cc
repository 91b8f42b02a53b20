// GatedMLP: two autograd functions over foo_core, whose kernels run on
// PyTorch's threads, and linear layers of PyTorch's between them.
#include "block.h"

#include <ATen/Parallel.h>
#include <foo_core/foo_core.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <sstream>
#include <stdexcept>

// at::parallel_for is a template in ATen's headers. Without OpenMP it compiles
// to a plain loop on one thread, with no warning.
#ifndef INTRA_OP_PARALLEL
#error "compile with OpenMP, as torch itself is"
#endif

namespace {

using foo_core::ConstTensorView;
using foo_core::DType;
using foo_core::TensorView;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Throws std::invalid_argument("GatedMLP: " and the parts).
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << "GatedMLP: " << ... << parts);
  throw std::invalid_argument(message.str());
}

std::optional<DType> dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kDouble:
      return DType::kFloat64;
    case at::kHalf:
      return DType::kFloat16;
    case at::kBFloat16:
      return DType::kBFloat16;
    default:
      return std::nullopt;
  }
}

// Checks what foo_core cannot see; foo_core itself checks shapes.
void check(const char* name, const at::Tensor& tensor) {
  if (!tensor.is_cpu() || tensor.layout() != at::kStrided) {
    fail(name, " is a ", tensor.layout(), " tensor on ", tensor.device(),
         ", expected a Strided one on cpu");
  }
  if (!dtype_of(tensor)) {
    fail(name, " has dtype ", tensor.scalar_type(),
         ", expected Float, Double, Half or BFloat16");
  }
}

// Both libraries count strides in elements, and take any.

ConstTensorView view(const at::Tensor& tensor) {
  return {tensor.const_data_ptr(), *dtype_of(tensor), tensor.dim(),
          tensor.sizes().data(), tensor.strides().data()};
}

TensorView mutable_view(const at::Tensor& tensor) {
  return {tensor.mutable_data_ptr(), *dtype_of(tensor), tensor.dim(),
          tensor.sizes().data(), tensor.strides().data()};
}

at::Tensor empty_for(const at::Tensor& like) {
  return at::empty(like.sizes(), like.options());
}

// The gradient of one argument; null for foo_core if it is not wanted.
struct Gradient {
  Gradient(bool wanted, const at::Tensor& argument) {
    if (!wanted) return;
    tensor = empty_for(argument);
    view = mutable_view(tensor);
  }
  const TensorView* get() const { return tensor.defined() ? &view : nullptr; }

  at::Tensor tensor;
  TensorView view;
};

// PyTorch's threads.
foo_core::Executor torch_threads() {
  return foo_core::Executor::threads(
      [](void*, std::int64_t begin, std::int64_t end, std::int64_t grain,
         foo_core::RangeBody body, void* context) {
        at::parallel_for(
            begin, end, grain,
            [&](std::int64_t b, std::int64_t e) { body(context, b, e); });
      });
}

// Autograd does not see what foo_core writes, so a second derivative would be
// silently wrong. With create_graph=True, backward runs in grad mode.
void refuse_create_graph() {
  if (!at::GradMode::is_enabled()) return;
  fail("backward with create_graph=True is not implemented");
}

struct RMSNorm : Function<RMSNorm> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x,
                            const at::Tensor& weight, double eps) {
    check("x", x);
    check("norm", weight);
    if (x.scalar_type() != weight.scalar_type()) {  // foo_core takes others
      fail("x has dtype ", x.scalar_type(), ", but norm has ",
           weight.scalar_type());
    }
    ctx->save_for_backward({x, weight});
    ctx->saved_data["eps"] = eps;
    at::Tensor out = empty_for(x);
    const ConstTensorView vweight = view(weight);
    foo_core::rms_norm(view(x), &vweight, eps, mutable_view(out),
                       torch_threads());
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    refuse_create_graph();
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const ConstTensorView vx = view(x), vweight = view(weight);
    const Gradient grad_x(ctx->needs_input_grad(0), x);
    const Gradient grad_weight(ctx->needs_input_grad(1), weight);
    at::Tensor scratch;  // torch aligns it to 64 bytes
    if (grad_weight.get()) {
      scratch = at::empty(foo_core::rms_norm_backward_scratch_size(vx),
                          x.options().dtype(at::kByte));
    }
    foo_core::rms_norm_backward(
        view(grads[0]), vx, &vweight, ctx->saved_data["eps"].toDouble(),
        grad_x.get(), grad_weight.get(),
        scratch.defined() ? scratch.mutable_data_ptr() : nullptr,
        torch_threads());
    return {grad_x.tensor, grad_weight.tensor, at::Tensor()};
  }
};

struct SiluMul : Function<SiluMul> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate,
                            const at::Tensor& up) {
    ctx->save_for_backward({gate, up});
    at::Tensor out = empty_for(gate);
    foo_core::silu_mul(view(gate), view(up), mutable_view(out),
                       torch_threads());
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    refuse_create_graph();
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &gate = saved[0], &up = saved[1];
    const Gradient grad_gate(ctx->needs_input_grad(0), gate);
    const Gradient grad_up(ctx->needs_input_grad(1), up);
    foo_core::silu_mul_backward(view(grads[0]), view(gate), view(up),
                                grad_gate.get(), grad_up.get(),
                                torch_threads());
    return {grad_gate.tensor, grad_up.tensor};
  }
};

std::int64_t positive(const char* name, std::int64_t value) {
  if (value < 1) fail(name, " is ", value, ", expected at least 1");
  return value;
}

torch::nn::Linear linear(std::int64_t in, std::int64_t out) {
  return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(false));
}

}  // namespace

GatedMLP::GatedMLP(std::int64_t dim, std::int64_t hidden, double eps)
    : Module("GatedMLP"),
      eps_(eps),
      norm_(register_parameter("norm", at::ones(positive("dim", dim)))),
      gate_(register_module("gate", linear(dim, positive("hidden", hidden)))),
      up_(register_module("up", linear(dim, hidden))),
      down_(register_module("down", linear(hidden, dim))) {
  // This refuses NaN, too.
  if (!(eps >= 0)) fail("eps is ", eps, ", expected at least 0");
}

at::Tensor GatedMLP::forward(const at::Tensor& x) {
  try {
    // The dispatcher resolves the negative bit for its operators, but this code
    // runs before it. The imaginary part of a conjugate has the bit set.
    const at::Tensor normed = RMSNorm::apply(x.resolve_neg(), norm_, eps_);
    const at::Tensor hidden = SiluMul::apply(gate_(normed), up_(normed));
    return x + down_(hidden);
  } catch (const foo_core::InvalidArgument& error) {
    fail(error.what());
  }
}
