// Adaptors of rope and its gradient.
#include "adaptor.h"
#include "generated/operators.h"

namespace torch_foo {
namespace {

using foo_core::ConstTensorView;
using foo_core::ParallelFor;
using foo_core::RopeOptions;
using foo_core::TensorView;

void launch(const char* op, const char* name, const Tensor& x,
            const Tensor& cos, const Tensor& sin,
            const std::optional<Tensor>& positions, const RopeOptions& options,
            const Tensor& out) {
  check_arguments(op, {{name, x}, {"out", out}});
  check_arguments(op, {{"cos", cos}, {"sin", sin}});
  check_device(op, {"cos", cos}, {name, x});
  if (positions) {
    check_argument(op, {"positions", *positions}, foo_core::DType::kInt64,
                   {name, x});
  }
  const ConstTensorView vx = view(x), vcos = view(cos), vsin = view(sin);
  const OptionalView vpositions(positions);
  const TensorView vout = mutable_view(out);
  run(
      x,
      [&](const ParallelFor& threads) {
        foo_core::rope(vx, vcos, vsin, vpositions.get(), options, vout,
                       threads);
      },
      [&](void* stream) {
        foo_core::cuda::rope(vx, vcos, vsin, vpositions.get(), options, vout,
                             stream);
      });
}

}  // namespace

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin,
            const std::optional<Tensor>& positions, bool interleaved) {
  check_arguments("rope", {{"x", x}});
  Tensor out = empty(x.sizes(), x);
  launch("rope", "x", x, cos, sin, positions, {interleaved, false}, out);
  return out;
}

void rope_out(const Tensor& x, const Tensor& cos, const Tensor& sin,
              const std::optional<Tensor>& positions, bool interleaved,
              const Tensor& out) {
  launch("rope", "x", x, cos, sin, positions, {interleaved, false}, out);
}

void rope_(const Tensor& x, const Tensor& cos, const Tensor& sin,
           const std::optional<Tensor>& positions, bool interleaved) {
  in_place("rope_", {{"out", "x"}}, [&] {
    launch("rope_", "x", x, cos, sin, positions, {interleaved, false}, x);
  });
}

Tensor rope_backward(const Tensor& grad, const Tensor& cos, const Tensor& sin,
                     const std::optional<Tensor>& positions, bool interleaved) {
  check_arguments("rope_backward", {{"grad", grad}});
  Tensor grad_x = empty(grad.sizes(), grad);
  launch("rope_backward", "grad", grad, cos, sin, positions,
         {interleaved, true}, grad_x);
  return grad_x;
}

}  // namespace torch_foo
