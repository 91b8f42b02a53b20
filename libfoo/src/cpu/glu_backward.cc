// Both gradients of f(gate) * up in one pass. f and f' share their exponential,
// and the kernel is compiled for each set of wanted gradients.
#include <cstdint>
#include <type_traits>

#include "checks.h"
#include "cpu/simd.h"
#include "cpu/stream.h"
#include "cuda/kernels.h"
#include "foo_core/glu.h"
#include "glu.h"
#include "loop.h"
#include "nest.h"
#include "view.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/glu_backward.cc"
// These read HWY_TARGET_INCLUDE, so they come after it.
#include "hwy/foreach_target.h"
//
#include "cpu/tile-inl.h"
#include "glu-inl.h"
#include "hwy/cache_control.h"

#ifndef FOO_CORE_GLU_BACKWARD_
#define FOO_CORE_GLU_BACKWARD_
namespace foo_core {
namespace {

/// A piece of a row of each tensor. The data of a gradient that is not wanted
/// is null. The next rows begin *_next elements after these.
struct BackwardPieces {
  Row grad, gate, up;
  std::int64_t grad_next, gate_next, up_next;
  MutableRow grad_gate, grad_up;
  bool stream;
};

using BackwardFunction = void (*)(const BackwardPieces& pieces, std::int64_t n);

}  // namespace
}  // namespace foo_core
#endif

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {
namespace {

template <class F, bool kGate, bool kUp, bool kAll, class T>
HWY_INLINE void BackwardAt(const T* grad, const T* gate, const T* up,
                           T* grad_gate, T* grad_up, bool stream, int64_t n) {
  using V = Pair<Compute<T>>;
  const auto store = [&](V result, T* to) HWY_ATTR {
    if constexpr (kAll) return Store(result, to, stream);
    StoreN(result, to, n);
  };
  const V g = LoadSome<kAll>(grad, n);
  const V x = LoadSome<kAll>(gate, n);
  const auto a = F::template Derivative<T>(x.a);
  const auto b = F::template Derivative<T>(x.b);
  if constexpr (kGate) {
    const V slope{a.slope, b.slope};
    const V result = g * LoadSome<kAll>(up, n) * slope;
    if constexpr (kUp) store(g * V{a.value, b.value}, grad_up);
    store(result, grad_gate);
  } else {
    store(g * V{a.value, b.value}, grad_up);
  }
}

template <class F, bool kGate, bool kUp, class T>
void Backward(const BackwardPieces& pieces, int64_t n) {
  const auto* tgrad = static_cast<const T*>(pieces.grad.data);
  const auto* tgate = static_cast<const T*>(pieces.gate.data);
  const auto* tup = static_cast<const T*>(pieces.up.data);
  auto* tgrad_gate = static_cast<T*>(pieces.grad_gate.data);
  auto* tgrad_up = static_cast<T*>(pieces.grad_up.data);
  HWY_ALIGN T grad_tile[kTile], gate_tile[kTile], up_tile[kTile];
  HWY_ALIGN T grad_gate_tile[kTile], grad_up_tile[kTile];
  const bool stream =
      pieces.stream && (!kGate || pieces.grad_gate.stride == 1) &&
      (!kUp || pieces.grad_up.stride == 1) &&
      (!kGate || !kUp ||
       elements_to_alignment(tgrad_gate) == elements_to_alignment(tgrad_up));
  for (int64_t begin = 0; begin < n; begin += kTile) {
    const int64_t m = HWY_MIN(kTile, n - begin);
    const T* g = InputTile(tgrad, pieces.grad.stride, begin, m, grad_tile);
    const T* x = InputTile(tgate, pieces.gate.stride, begin, m, gate_tile);
    const T* u = InputTile(tup, pieces.up.stride, begin, m, up_tile);
    T* gx = kGate ? OutputTile(tgrad_gate, pieces.grad_gate.stride, begin,
                               grad_gate_tile)
                  : grad_gate_tile;
    T* gu =
        kUp ? OutputTile(tgrad_up, pieces.grad_up.stride, begin, grad_up_tile)
            : grad_up_tile;
    const auto at = [&](auto whole, int64_t i, int64_t k) HWY_ATTR {
      PrefetchLoad(g + i, pieces.grad_next);
      PrefetchLoad(x + i, pieces.gate_next);
      PrefetchLoad(u + i, pieces.up_next);
      BackwardAt<F, kGate, kUp, decltype(whole)::value>(
          g + i, x + i, u + i, gx + i, gu + i, stream, k);
    };
    ForPairs(kGate ? gx : gu, stream, m, at);
    if constexpr (kGate) {
      FinishTile(grad_gate_tile, tgrad_gate, pieces.grad_gate.stride, begin, m);
    }
    if constexpr (kUp) {
      FinishTile(grad_up_tile, tgrad_up, pieces.grad_up.stride, begin, m);
    }
  }
}

BackwardFunction GluBackward(Activation activation, DType dtype, bool gate,
                             bool up) {
  return ForActivation(activation, [&](auto f) HWY_ATTR {
    return ForDType(dtype, [&](auto t) HWY_ATTR -> BackwardFunction {
      using F = decltype(f);
      using T = decltype(t);
      if (gate && up) return Backward<F, true, true, T>;
      return gate ? Backward<F, true, false, T> : Backward<F, false, true, T>;
    });
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foo_core {
namespace {

void gated_backward(const char* op, Activation activation,
                    const ConstTensorView& grad, const ConstTensorView& gate,
                    const ConstTensorView& up, const TensorView* grad_gate,
                    const TensorView* grad_up, const Executor& executor) {
  const Argument arg_grad{"grad", grad}, arg_gate{"gate", gate},
      arg_up{"up", up}, arg_grad_gate{"grad_gate", grad_gate},
      arg_grad_up{"grad_up", grad_up};
  check_tensor(op, arg_gate);
  check_like(op, arg_grad, arg_gate);
  check_like(op, arg_up, arg_gate);
  check_like(op, arg_grad_gate, arg_gate);
  check_like(op, arg_grad_up, arg_gate);
  const Arguments inputs = {&arg_grad, &arg_gate, &arg_up};
  check_output(op, arg_grad_gate, inputs, {});
  check_output(op, arg_grad_up, inputs, {&arg_grad_gate});
  if constexpr (cuda::kBuilt) {
    if (on_cuda(executor)) {
      return cuda::gated_backward(activation, grad, gate, up, grad_gate,
                                  grad_up, executor.stream);
    }
  }
  const CpuThreads threads(op, executor);
  if (grad_gate == nullptr && grad_up == nullptr) return;

  const auto backward = FOO_CORE_DISPATCH(GluBackward)(
      activation, gate.dtype, grad_gate != nullptr, grad_up != nullptr);
  const auto nest =
      nest_of_elements(grad_gate != nullptr ? *grad_gate : *grad_up, grad, gate,
                       up, grad_gate, grad_up);
  const std::int64_t* strides = nest.inner_strides();
  const auto worth = [&](const TensorView* out) {
    return out == nullptr ||
           worth_streaming(*out, {grad.data, gate.data, up.data});
  };
  const bool stream = worth(grad_gate) && worth(grad_up);
  const auto run = [&](std::int64_t begin, std::int64_t end) {
    for_each_run(nest, begin, end, [&](const auto& at, std::int64_t n) {
      const auto output = [&](const TensorView* x, int k) -> MutableRow {
        if (x == nullptr) return {nullptr, 1};
        return {element_at(*x, at[k]), strides[k]};
      };
      backward({{element_at(grad, at[0]), strides[0]},
                {element_at(gate, at[1]), strides[1]},
                {element_at(up, at[2]), strides[2]},
                nest.next_row(0),
                nest.next_row(1),
                nest.next_row(2),
                output(grad_gate, 3),
                output(grad_up, 4),
                stream},
               n);
    });
    if (stream) hwy::FlushStream();
  };
  threads.for_elements(numel(gate), run);
}

}  // namespace

void silu_mul_backward(const ConstTensorView& grad, const ConstTensorView& gate,
                       const ConstTensorView& up, const TensorView* grad_gate,
                       const TensorView* grad_up, const Executor& executor) {
  gated_backward("silu_mul_backward", Activation::kSilu, grad, gate, up,
                 grad_gate, grad_up, executor);
}

void gelu_mul_backward(const ConstTensorView& grad, const ConstTensorView& gate,
                       const ConstTensorView& up,
                       GeluApproximation approximation,
                       const TensorView* grad_gate, const TensorView* grad_up,
                       const Executor& executor) {
  const char* op = "gelu_mul_backward";
  gated_backward(op, gelu_activation(op, approximation), grad, gate, up,
                 grad_gate, grad_up, executor);
}

}  // namespace foo_core
#endif  // HWY_ONCE
