#include "foo_core/glu.h"

#include <cstdint>

#include "checks.h"
#include "cpu/nest.h"
#include "cpu/simd.h"
#include "cpu/stream.h"
#include "glu.h"
#include "row.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/glu.cc"
// These after HWY_TARGET_INCLUDE, which they read.
#include "hwy/foreach_target.h"
//
#include "cpu/glu-inl.h"
#include "hwy/cache_control.h"

#ifndef FOO_CORE_GLU_FORWARD_
#define FOO_CORE_GLU_FORWARD_
namespace foo_core {

/// n elements; the next rows begin `next` elements after these.
using ForwardFunction = void (*)(Row gate, std::int64_t gate_next, Row up,
                                 std::int64_t up_next, MutableRow out,
                                 bool stream, std::int64_t n);

}  // namespace foo_core
#endif

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {

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
    const T* pgate = Gather(tgate, gate.stride, begin, m, gate_tile);
    const T* pup = Gather(tup, up.stride, begin, m, up_tile);
    T* pout = Target(tout, out.stride, begin, out_tile);
    ForPairs(pout, stream, m, [&](auto whole, int64_t i, int64_t k) HWY_ATTR {
      PrefetchLoad(pgate + i, gate_next);
      PrefetchLoad(pup + i, up_next);
      ForwardAt<F, decltype(whole)::value>(pgate + i, pup + i, pout + i, stream,
                                           k);
    });
    Scatter(out_tile, tout, out.stride, begin, m);
  }
}

ForwardFunction GluForward(Activation activation, DType dtype) {
  return ForActivation(activation, [&](auto f) HWY_ATTR {
    return ForDType(dtype, [](auto t) HWY_ATTR -> ForwardFunction {
      return Forward<decltype(f), decltype(t)>;
    });
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foo_core {
namespace {

struct ForwardLoop {
  ForwardFunction forward;
  const ConstTensorView& gate;
  const ConstTensorView& up;
  const TensorView& out;
  bool stream = worth_streaming(out, {gate.data, up.data});
  Nest<3> nest = {};

  void append(std::int64_t d) {
    nest.append(out.sizes[d], {gate.strides[d], up.strides[d], out.strides[d]});
  }

  void run(std::int64_t begin, std::int64_t end) const {
    for_each_run(nest, begin, end, [&](const auto& at, std::int64_t n) {
      const std::int64_t* strides = nest.inner_strides();
      forward({element_at(gate, at[0]), strides[0]}, nest.next_row(0),
              {element_at(up, at[1]), strides[1]}, nest.next_row(1),
              {element_at(out, at[2]), strides[2]}, stream, n);
    });
    if (stream) hwy::FlushStream();
  }
};

void run(const char* op, Activation activation, const ConstTensorView& gate,
         const ConstTensorView& up, const TensorView& out,
         const ParallelFor& parallel_for) {
  const Argument arg_gate{"gate", gate}, arg_up{"up", up}, arg_out{"out", out};
  check_tensor(op, arg_gate);
  check_like(op, arg_up, arg_gate);
  check_like(op, arg_out, arg_gate);
  const std::int64_t count = numel(out);
  if (count == 0) return;
  check_no_self_overlap(op, arg_out);
  check_overlap(op, arg_out, arg_gate, true);
  check_overlap(op, arg_out, arg_up, true);

  // In the order of out's memory, so that transposed tensors are contiguous.
  int order[kMaxDims];
  sort_dims(out, order);
  ForwardLoop loop{FOO_CORE_DISPATCH(GluForward)(activation, out.dtype), gate,
                   up, out};
  for (int i = 0; i < out.ndim; ++i) loop.append(order[i]);
  loop.nest.finish();
  const ParallelFor& use = count < kGrain ? serial() : parallel_for;
  use.run(
      use.self, 0, count, kGrain,
      [](void* self, std::int64_t begin, std::int64_t end) {
        static_cast<const ForwardLoop*>(self)->run(begin, end);
      },
      &loop);
}

void run_range(Activation activation, const ConstTensorView& gate,
               const ConstTensorView& up, const TensorView& out,
               std::int64_t begin, std::int64_t end) {
  ForwardLoop loop{FOO_CORE_DISPATCH(GluForward)(activation, out.dtype), gate,
                   up, out};
  for (std::int64_t d = 0; d < out.ndim; ++d) loop.append(d);
  loop.nest.finish();
  loop.run(begin, end);
}

}  // namespace

void silu_mul(const ConstTensorView& gate, const ConstTensorView& up,
              const TensorView& out, const ParallelFor& parallel_for) {
  run("silu_mul", Activation::kSilu, gate, up, out, parallel_for);
}

void gelu_mul(const ConstTensorView& gate, const ConstTensorView& up,
              GeluApproximation approximation, const TensorView& out,
              const ParallelFor& parallel_for) {
  constexpr const char* kOp = "gelu_mul";
  run(kOp, gelu_activation(kOp, approximation), gate, up, out, parallel_for);
}

namespace cpu {

void silu_mul(const ConstTensorView& gate, const ConstTensorView& up,
              const TensorView& out, std::int64_t begin,
              std::int64_t end) noexcept {
  run_range(Activation::kSilu, gate, up, out, begin, end);
}

void gelu_mul(const ConstTensorView& gate, const ConstTensorView& up,
              GeluApproximation approximation, const TensorView& out,
              std::int64_t begin, std::int64_t end) noexcept {
  run_range(approximation == GeluApproximation::kTanh ? Activation::kGeluTanh
                                                      : Activation::kGelu,
            gate, up, out, begin, end);
}

}  // namespace cpu
}  // namespace foo_core
#endif  // HWY_ONCE
