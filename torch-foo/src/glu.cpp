// Adaptors of silu_mul, gelu_mul and their gradients.
#include <algorithm>

#include "adaptor.h"
#include "generated/operators.h"

namespace torch_foo {
namespace {

using foo_core::ConstTensorView;
using foo_core::GeluApproximation;
using foo_core::ParallelFor;
using foo_core::TensorView;

// The halves of a tensor along its last dimension.
template <class View>
struct Halves {
  explicit Halves(const View& packed) : first(packed), second(packed) {
    std::copy_n(packed.sizes, packed.ndim, sizes);
    const std::int64_t n = sizes[packed.ndim - 1] /= 2;
    const std::int64_t stride = packed.strides[packed.ndim - 1];
    first.sizes = second.sizes = sizes;
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
  std::int64_t sizes[Shape::kMaxDims];
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

// `cpu` takes (gate, up, out, threads) and `cuda` takes (gate, up, out,
// stream).

template <class Cpu, class Cuda>
void launch(const Tensor& gate, const std::optional<Tensor>& up,
            const Tensor& out, Cpu cpu, Cuda cuda) {
  const TensorView vout = mutable_view(out);
  with_gate_and_up(gate, up, [&](const auto& vgate, const auto& vup) {
    run(
        gate,
        [&](const ParallelFor& threads) { cpu(vgate, vup, vout, threads); },
        [&](void* stream) { cuda(vgate, vup, vout, stream); });
  });
}

template <class Cpu, class Cuda>
Tensor forward(const char* op, const Tensor& gate,
               const std::optional<Tensor>& up, Cpu cpu, Cuda cuda) {
  check(op, gate, up);
  Shape shape(gate.sizes());
  if (!up) shape.sizes[shape.ndim - 1] /= 2;
  Tensor out = empty(shape, gate);
  launch(gate, up, out, cpu, cuda);
  return out;
}

template <class Cpu, class Cuda>
void forward_out(const char* op, const Tensor& gate,
                 const std::optional<Tensor>& up, const Tensor& out, Cpu cpu,
                 Cuda cuda) {
  check(op, gate, up);
  check_arguments(op, {{"gate", gate}, {"out", out}});
  launch(gate, up, out, cpu, cuda);
}

// `cpu` takes (grad, gate, up, grad_gate, grad_up, threads) and `cuda` the same
// with a stream.
template <class Cpu, class Cuda>
std::tuple<Tensor, Tensor> backward(const char* op, const Tensor& grad,
                                    const Tensor& gate,
                                    const std::optional<Tensor>& up,
                                    bool wants_gate, bool wants_up, Cpu cpu,
                                    Cuda cuda) {
  check(op, gate, up);
  check_arguments(op, {{"gate", gate}, {"grad", grad}});
  const ConstTensorView vgrad = view(grad);
  OptionalResult grad_gate(wants_gate, gate.sizes(), gate);
  OptionalResult grad_up(wants_up && up, gate.sizes(), gate);
  std::optional<Halves<TensorView>> packed;
  if (!up && wants_gate) packed.emplace(*grad_gate.get());
  const TensorView* to_gate = packed ? &packed->first : grad_gate.get();
  const TensorView* to_up = packed ? &packed->second : grad_up.get();
  with_gate_and_up(gate, up, [&](const auto& vgate, const auto& vup) {
    run(
        gate,
        [&](const ParallelFor& threads) {
          cpu(vgrad, vgate, vup, to_gate, to_up, threads);
        },
        [&](void* stream) { cuda(vgrad, vgate, vup, to_gate, to_up, stream); });
  });
  return {grad_gate.take(), grad_up.take()};
}

GeluApproximation approximation(const char* op, const std::string& name) {
  if (name == "none") return GeluApproximation::kNone;
  if (name == "tanh") return GeluApproximation::kTanh;
  fail(std::string(op) + ": approximate is '" + name +
       "', expected 'none' or 'tanh'");
}

// gelu_mul's kernels with the approximation bound: silu_mul's arguments.

auto gelu_cpu(GeluApproximation a) {
  return [a](const auto& gate, const auto& up, const auto& out,
             const ParallelFor& threads) {
    foo_core::gelu_mul(gate, up, a, out, threads);
  };
}

auto gelu_cuda(GeluApproximation a) {
  return [a](const auto& gate, const auto& up, const auto& out, void* stream) {
    foo_core::cuda::gelu_mul(gate, up, a, out, stream);
  };
}

}  // namespace

Tensor silu_mul(const Tensor& gate, const std::optional<Tensor>& up) {
  return forward("silu_mul", gate, up, foo_core::silu_mul,
                 foo_core::cuda::silu_mul);
}

void silu_mul_out(const Tensor& gate, const std::optional<Tensor>& up,
                  const Tensor& out) {
  forward_out("silu_mul", gate, up, out, foo_core::silu_mul,
              foo_core::cuda::silu_mul);
}

std::tuple<Tensor, Tensor> silu_mul_backward(const Tensor& grad,
                                             const Tensor& gate,
                                             const std::optional<Tensor>& up,
                                             bool wants_gate, bool wants_up) {
  return backward("silu_mul_backward", grad, gate, up, wants_gate, wants_up,
                  foo_core::silu_mul_backward,
                  foo_core::cuda::silu_mul_backward);
}

Tensor gelu_mul(const Tensor& gate, const std::optional<Tensor>& up,
                const std::string& approximate) {
  const GeluApproximation a = approximation("gelu_mul", approximate);
  return forward("gelu_mul", gate, up, gelu_cpu(a), gelu_cuda(a));
}

void gelu_mul_out(const Tensor& gate, const std::optional<Tensor>& up,
                  const std::string& approximate, const Tensor& out) {
  const GeluApproximation a = approximation("gelu_mul", approximate);
  forward_out("gelu_mul", gate, up, out, gelu_cpu(a), gelu_cuda(a));
}

std::tuple<Tensor, Tensor> gelu_mul_backward(const Tensor& grad,
                                             const Tensor& gate,
                                             const std::optional<Tensor>& up,
                                             const std::string& approximate,
                                             bool wants_gate, bool wants_up) {
  const char* op = "gelu_mul_backward";
  const GeluApproximation a = approximation(op, approximate);
  return backward(
      op, grad, gate, up, wants_gate, wants_up,
      [a](const auto& vgrad, const auto& vgate, const auto& vup,
          const TensorView* to_gate, const TensorView* to_up,
          const ParallelFor& threads) {
        foo_core::gelu_mul_backward(vgrad, vgate, vup, a, to_gate, to_up,
                                    threads);
      },
      [a](const auto& vgrad, const auto& vgate, const auto& vup,
          const TensorView* to_gate, const TensorView* to_up, void* stream) {
        foo_core::cuda::gelu_mul_backward(vgrad, vgate, vup, a, to_gate, to_up,
                                          stream);
      });
}

}  // namespace torch_foo
