// Both gradients of f(gate) * up in one pass. f and f' share their exponential.
// If only one gradient is wanted, the other is written to a tile: a kernel for
// each set of wanted gradients would triple the time to compile.
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

/// Where a gradient is written, and how.
template <class T>
struct Gradient {
  T* data;
  bool stream;
};

template <class F, bool kAll, class T>
HWY_INLINE void BackwardAt(const T* grad, const T* gate, const T* up,
                           Gradient<T> grad_gate, Gradient<T> grad_up,
                           int64_t i, int64_t n) {
  using V = Pair<Compute<T>>;
  const auto store = [&](V result, Gradient<T> to) HWY_ATTR {
    if constexpr (kAll) return Store(result, to.data + i, to.stream);
    StoreN(result, to.data + i, n);
  };
  const V g = LoadSome<kAll>(grad + i, n);
  const V x = LoadSome<kAll>(gate + i, n);
  const auto a = F::template Derivative<T>(x.a);
  const auto b = F::template Derivative<T>(x.b);
  const V slope{a.slope, b.slope};
  const V result = g * LoadSome<kAll>(up + i, n) * slope;
  store(g * V{a.value, b.value}, grad_up);
  store(result, grad_gate);
}

template <class F, class T>
void Backward(const BackwardPieces& pieces, int64_t n) {
  const auto* tgrad = static_cast<const T*>(pieces.grad.data);
  const auto* tgate = static_cast<const T*>(pieces.gate.data);
  const auto* tup = static_cast<const T*>(pieces.up.data);
  auto* tgrad_gate = static_cast<T*>(pieces.grad_gate.data);
  auto* tgrad_up = static_cast<T*>(pieces.grad_up.data);
  HWY_ALIGN T grad_tile[kTile], gate_tile[kTile], up_tile[kTile];
  HWY_ALIGN T grad_gate_tile[kTile], grad_up_tile[kTile];
  const bool to_gate = tgrad_gate != nullptr, to_up = tgrad_up != nullptr;
  const bool stream =
      pieces.stream && pieces.grad_gate.stride == 1 &&
      pieces.grad_up.stride == 1 &&
      (!to_gate || !to_up ||
       elements_to_alignment(tgrad_gate) == elements_to_alignment(tgrad_up));
  for (int64_t begin = 0; begin < n; begin += kTile) {
    const int64_t m = HWY_MIN(kTile, n - begin);
    const T* g = InputTile(tgrad, pieces.grad.stride, begin, m, grad_tile);
    const T* x = InputTile(tgate, pieces.gate.stride, begin, m, gate_tile);
    const T* u = InputTile(tup, pieces.up.stride, begin, m, up_tile);
    Gradient<T> gx{grad_gate_tile, stream && to_gate};
    Gradient<T> gu{grad_up_tile, stream && to_up};
    if (to_gate) {
      gx.data = OutputTile(tgrad_gate, pieces.grad_gate.stride, begin, gx.data);
    }
    if (to_up) {
      gu.data = OutputTile(tgrad_up, pieces.grad_up.stride, begin, gu.data);
    }
    const auto at = [&](auto whole, int64_t i, int64_t k) HWY_ATTR {
      PrefetchLoad(g + i, pieces.grad_next);
      PrefetchLoad(x + i, pieces.gate_next);
      PrefetchLoad(u + i, pieces.up_next);
      BackwardAt<F, decltype(whole)::value>(g, x, u, gx, gu, i, k);
    };
    ForPairs(to_gate ? gx.data : gu.data, stream, m, at);
    if (to_gate) {
      FinishTile(gx.data, tgrad_gate, pieces.grad_gate.stride, begin, m);
    }
    if (to_up) FinishTile(gu.data, tgrad_up, pieces.grad_up.stride, begin, m);
  }
}

BackwardFunction GluBackward(Activation activation, DType dtype) {
  return ForActivation(activation, [&](auto f) HWY_ATTR {
    return ForDType(dtype, [](auto t) HWY_ATTR -> BackwardFunction {
      return Backward<decltype(f), decltype(t)>;
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

  const auto backward = FOO_CORE_DISPATCH(GluBackward)(activation, gate.dtype);
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
