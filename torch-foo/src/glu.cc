// Adaptors of silu_mul, gelu_mul and their gradients.
#include "adaptor.h"
#include "generated/operators.h"

namespace torch_foo {
namespace {

using foo_core::ConstTensorView;
using foo_core::GeluApproximation;
using foo_core::TensorView;

// The halves of a tensor along its last dimension.
template <class View>
struct Halves {
  explicit Halves(const View& packed)
      : first(packed),
        second(packed),
        sizes({packed.sizes, static_cast<std::size_t>(packed.ndim)}) {
    const std::int64_t n = sizes.last() /= 2;
    const std::int64_t stride = packed.strides[packed.ndim - 1];
    first.sizes = second.sizes = sizes.data();
    second.data =
        advanced(packed.data, n * stride * foo_core::item_size(packed.dtype));
  }
  Halves(const Halves&) = delete;

  static const void* advanced(const void* data, std::int64_t bytes) {
    return static_cast<const char*>(data) + bytes;
  }
  static void* advanced(void* data, std::int64_t bytes) {
    return static_cast<char*>(data) + bytes;
  }

  View first, second;
  Shape sizes;
};

// Calls f(gate, up), from two tensors or a packed one.
template <class F>
void with_gate_and_up(const Tensor& gate, const std::optional<Tensor>& up,
                      F f) {
  if (up) {
    f(view(gate), view(*up));
  } else {
    const Halves<ConstTensorView> halves(view(gate));
    f(halves.first, halves.second);
  }
}

void check(const char* op, const Tensor& gate,
           const std::optional<Tensor>& up) {
  check_arguments(op, {{"gate", gate}});
  if (up) {
    check_arguments(op, {{"gate", gate}, {"up", *up}});
  } else if (gate.dim() == 0 || gate.sizes().back() % 2 != 0) {
    fail(std::string(op) + ": gate has shape " + shape_text(gate.sizes()) +
         ", expected an even last dimension, of gate and up together");
  }
}

// `function` is foo_core's, and `a` its arguments after gate and up.

template <class F, class... A>
void into(const Tensor& gate, const std::optional<Tensor>& up,
          const Tensor& out, F function, A... a) {
  with_gate_and_up(gate, up, [&](const auto& vgate, const auto& vup) {
    launch(gate, function, vgate, vup, a..., mutable_view(out));
  });
}

template <class F, class... A>
Tensor forward(const char* op, const Tensor& gate,
               const std::optional<Tensor>& up, F function, A... a) {
  check(op, gate, up);
  Shape shape(gate.sizes());
  if (!up) shape.last() /= 2;
  Tensor out = empty(op, shape, gate);
  into(gate, up, out, function, a...);
  return out;
}

template <class F, class... A>
void forward_out(const char* op, const Tensor& gate,
                 const std::optional<Tensor>& up, const Tensor& out, F function,
                 A... a) {
  check(op, gate, up);
  check_arguments(op, {{"gate", gate}, {"out", out}});
  into(gate, up, out, function, a...);
}

template <class F, class... A>
std::tuple<Tensor, Tensor> backward(const char* op, const Tensor& grad,
                                    const Tensor& gate,
                                    const std::optional<Tensor>& up,
                                    bool wants_gate, bool wants_up, F function,
                                    A... a) {
  check(op, gate, up);
  check_arguments(op, {{"gate", gate}, {"grad", grad}});
  OptionalResult grad_gate(op, wants_gate, gate.sizes(), gate);
  OptionalResult grad_up(op, wants_up && up, gate.sizes(), gate);
  std::optional<Halves<TensorView>> packed;
  if (!up && wants_gate) packed.emplace(*grad_gate.get());
  const TensorView* to_gate = packed ? &packed->first : grad_gate.get();
  const TensorView* to_up = packed ? &packed->second : grad_up.get();
  with_gate_and_up(gate, up, [&](const auto& vgate, const auto& vup) {
    launch(gate, function, view(grad), vgate, vup, a..., to_gate, to_up);
  });
  return {grad_gate.take(), grad_up.take()};
}

GeluApproximation approximation(const char* op, const std::string& name) {
  if (name == "none") return GeluApproximation::kNone;
  if (name == "tanh") return GeluApproximation::kTanh;
  fail(std::string(op) + ": approximate is '" + name +
       "', expected 'none' or 'tanh'");
}

}  // namespace

Tensor silu_mul(const Tensor& gate, const std::optional<Tensor>& up) {
  return forward("silu_mul", gate, up, foo_core::silu_mul);
}

void silu_mul_out(const Tensor& gate, const std::optional<Tensor>& up,
                  const Tensor& out) {
  forward_out("silu_mul", gate, up, out, foo_core::silu_mul);
}

std::tuple<Tensor, Tensor> silu_mul_backward(const Tensor& grad,
                                             const Tensor& gate,
                                             const std::optional<Tensor>& up,
                                             bool wants_gate, bool wants_up) {
  return backward("silu_mul_backward", grad, gate, up, wants_gate, wants_up,
                  foo_core::silu_mul_backward);
}

Tensor gelu_mul(const Tensor& gate, const std::optional<Tensor>& up,
                const std::string& approximate) {
  return forward("gelu_mul", gate, up, foo_core::gelu_mul,
                 approximation("gelu_mul", approximate));
}

void gelu_mul_out(const Tensor& gate, const std::optional<Tensor>& up,
                  const std::string& approximate, const Tensor& out) {
  forward_out("gelu_mul", gate, up, out, foo_core::gelu_mul,
              approximation("gelu_mul", approximate));
}

std::tuple<Tensor, Tensor> gelu_mul_backward(const Tensor& grad,
                                             const Tensor& gate,
                                             const std::optional<Tensor>& up,
                                             const std::string& approximate,
                                             bool wants_gate, bool wants_up) {
  const char* op = "gelu_mul_backward";
  return backward(op, grad, gate, up, wants_gate, wants_up,
                  foo_core::gelu_mul_backward, approximation(op, approximate));
}

}  // namespace torch_foo
