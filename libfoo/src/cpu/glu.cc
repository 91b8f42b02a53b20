// out = f(gate) * up. The exponentials take most of the time in the caches, and
// memory does beyond them, so a row is computed in one pass while the next one
// is prefetched.
#include "foo_core/glu.h"

#include <cstdint>

#include "checks.h"
#include "cpu/simd.h"
#include "cpu/stream.h"
#include "cuda/kernels.h"
#include "glu.h"
#include "loop.h"
#include "nest.h"
#include "view.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/glu.cc"
// These read HWY_TARGET_INCLUDE, so they come after it.
#include "hwy/foreach_target.h"
//
#include "cpu/tile-inl.h"
#include "glu-inl.h"
#include "hwy/cache_control.h"

#ifndef FOO_CORE_GLU_FORWARD_
#define FOO_CORE_GLU_FORWARD_
namespace foo_core {
namespace {

/// Computes n elements. The next rows begin gate_next and up_next elements
/// after these.
using ForwardFunction = void (*)(Row gate, std::int64_t gate_next, Row up,
                                 std::int64_t up_next, MutableRow out,
                                 bool stream, std::int64_t n);

}  // namespace
}  // namespace foo_core
#endif

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {
namespace {

template <class F, bool kAll, class T>
HWY_INLINE void ForwardAt(const T* gate, const T* up, T* out, bool stream,
                          int64_t n) {
  using V = Pair<Compute<T>>;
  const V x = LoadSome<kAll>(gate, n);
  const V y{F::template Value<T>(x.a), F::template Value<T>(x.b)};
  const V product = y * LoadSome<kAll>(up, n);
  if constexpr (kAll) return Store(product, out, stream);
  StoreN(product, out, n);
}

template <class F, class T>
void Forward(Row gate, int64_t gate_next, Row up, int64_t up_next,
             MutableRow out, bool stream, int64_t n) {
  const auto* tgate = static_cast<const T*>(gate.data);
  const auto* tup = static_cast<const T*>(up.data);
  auto* tout = static_cast<T*>(out.data);
  HWY_ALIGN T gate_tile[kTile], up_tile[kTile], out_tile[kTile];
  stream = stream && out.stride == 1;
  for (int64_t begin = 0; begin < n; begin += kTile) {
    const int64_t m = HWY_MIN(kTile, n - begin);
    const T* pgate = InputTile(tgate, gate.stride, begin, m, gate_tile);
    const T* pup = InputTile(tup, up.stride, begin, m, up_tile);
    T* pout = OutputTile(tout, out.stride, begin, out_tile);
    ForPairs(pout, stream, m, [&](auto whole, int64_t i, int64_t k) HWY_ATTR {
      PrefetchLoad(pgate + i, gate_next);
      PrefetchLoad(pup + i, up_next);
      ForwardAt<F, decltype(whole)::value>(pgate + i, pup + i, pout + i, stream,
                                           k);
    });
    FinishTile(out_tile, tout, out.stride, begin, m);
  }
}

ForwardFunction GluForward(Activation activation, DType dtype) {
  return ForActivation(activation, [&](auto f) HWY_ATTR {
    return ForDType(dtype, [](auto t) HWY_ATTR -> ForwardFunction {
      return Forward<decltype(f), decltype(t)>;
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

void gated(const char* op, Activation activation, const ConstTensorView& gate,
           const ConstTensorView& up, const TensorView& out,
           const Executor& executor) {
  const Argument arg_gate{"gate", gate}, arg_up{"up", up}, arg_out{"out", out};
  check_tensor(op, arg_gate);
  check_like(op, arg_up, arg_gate);
  check_like(op, arg_out, arg_gate);
  check_output(op, arg_out, {&arg_gate, &arg_up}, {});
  if constexpr (cuda::kBuilt) {
    if (on_cuda(executor)) {
      return cuda::gated(activation, gate, up, out, executor.stream);
    }
  }
  const CpuThreads threads(op, executor);

  const auto forward = FOO_CORE_DISPATCH(GluForward)(activation, out.dtype);
  const auto nest = nest_of_elements(out, gate, up, out);
  const std::int64_t* strides = nest.inner_strides();
  const bool stream = worth_streaming(out, {gate.data, up.data});
  const auto run = [&](std::int64_t begin, std::int64_t end) {
    for_each_run(nest, begin, end, [&](const auto& at, std::int64_t n) {
      forward({element_at(gate, at[0]), strides[0]}, nest.next_row(0),
              {element_at(up, at[1]), strides[1]}, nest.next_row(1),
              {element_at(out, at[2]), strides[2]}, stream, n);
    });
    if (stream) hwy::FlushStream();
  };
  threads.for_elements(numel(out), run);
}

}  // namespace

void silu_mul(const ConstTensorView& gate, const ConstTensorView& up,
              const TensorView& out, const Executor& executor) {
  gated("silu_mul", Activation::kSilu, gate, up, out, executor);
}

void gelu_mul(const ConstTensorView& gate, const ConstTensorView& up,
              GeluApproximation approximation, const TensorView& out,
              const Executor& executor) {
  const char* op = "gelu_mul";
  gated(op, gelu_activation(op, approximation), gate, up, out, executor);
}

}  // namespace foo_core
#endif  // HWY_ONCE
