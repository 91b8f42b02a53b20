// Gated linear units and their gradients, by the formulas of glu-inl.h.
#include "cuda/elementwise.h"
#include "cuda/kernels.h"
#include "cuda/scalar.h"
//
#include "glu-inl.h"

namespace foo_core::cuda {
namespace {

/// out = f(gate) * up
template <class F, class T>
struct Forward {
  template <class C>
  __device__ void operator()(const C (&x)[2], C (&y)[1]) const {
    y[0] = F::template Value<T>(x[0]) * x[1];
  }
};

/// The gradients in gate and up, from grad, gate and up.
template <class F, class T>
struct Backward {
  template <class C>
  __device__ void operator()(const C (&x)[3], C (&y)[2]) const {
    const auto f = F::template Derivative<T>(x[1]);
    y[0] = x[0] * x[2] * f.slope;
    y[1] = x[0] * f.value;
  }
};

/// Calls f with the activation's class.
template <class F>
void for_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::kSilu:
      return f(N_CUDA::Silu());
    case Activation::kGelu:
      return f(N_CUDA::Gelu());
    case Activation::kGeluTanh:
      return f(N_CUDA::GeluTanh());
  }
}

const char* name_of(Activation activation, const char* silu, const char* gelu) {
  return activation == Activation::kSilu ? silu : gelu;
}

}  // namespace

void gated(Activation activation, const ConstTensorView& gate,
           const ConstTensorView& up, const TensorView& out, void* stream) {
  const char* op = name_of(activation, "silu_mul", "gelu_mul");
  for_dtype(out.dtype, [&](auto t) {
    using T = decltype(t);
    const ElementwiseArguments<T, 2, 1> arguments{
        nest_of_elements(out, gate, up, out),
        {static_cast<const T*>(gate.data), static_cast<const T*>(up.data)},
        {static_cast<T*>(out.data)}};
    for_activation(activation, [&](auto f) {
      launch_elementwise(op, arguments, numel(out), Forward<decltype(f), T>(),
                         stream);
    });
  });
}

void gated_backward(Activation activation, const ConstTensorView& grad,
                    const ConstTensorView& gate, const ConstTensorView& up,
                    const TensorView* grad_gate, const TensorView* grad_up,
                    void* stream) {
  const char* op =
      name_of(activation, "silu_mul_backward", "gelu_mul_backward");
  const TensorView* out = grad_gate != nullptr ? grad_gate : grad_up;
  if (out == nullptr) return;
  for_dtype(gate.dtype, [&](auto t) {
    using T = decltype(t);
    const auto data_of = [](const TensorView* x) {
      return x == nullptr ? nullptr : static_cast<T*>(x->data);
    };
    const ElementwiseArguments<T, 3, 2> arguments{
        nest_of_elements(*out, grad, gate, up, grad_gate, grad_up),
        {static_cast<const T*>(grad.data), static_cast<const T*>(gate.data),
         static_cast<const T*>(up.data)},
        {data_of(grad_gate), data_of(grad_up)}};
    for_activation(activation, [&](auto f) {
      launch_elementwise(op, arguments, numel(gate), Backward<decltype(f), T>(),
                         stream);
    });
  });
}

}  // namespace foo_core::cuda
