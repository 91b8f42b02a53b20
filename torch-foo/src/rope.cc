// Adaptors of rope and its gradient.
#include "adaptor.h"
#include "generated/operators.h"

namespace torch_foo {
namespace {

using foo_core::RopeOptions;

// x goes by `name` in messages.
void into(const char* op, const char* name, const Tensor& x, const Tensor& cos,
          const Tensor& sin, const std::optional<Tensor>& positions,
          const RopeOptions& options, const Tensor& out) {
  check_arguments(op, {{name, x}, {"out", out}});
  check_device(op, {"cos", cos}, {name, x});
  check_arguments(op, {{"cos", cos}, {"sin", sin}});
  if (positions) {
    check_argument(op, {"positions", *positions}, foo_core::DType::kInt64,
                   {name, x});
  }
  launch(x, foo_core::rope, view(x), view(cos), view(sin),
         OptionalView(positions).get(), options, mutable_view(out));
}

}  // namespace

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin,
            const std::optional<Tensor>& positions, bool interleaved) {
  check_arguments("rope", {{"x", x}});
  Tensor out = empty("rope", x.sizes(), x);
  into("rope", "x", x, cos, sin, positions, {interleaved, false}, out);
  return out;
}

void rope_out(const Tensor& x, const Tensor& cos, const Tensor& sin,
              const std::optional<Tensor>& positions, bool interleaved,
              const Tensor& out) {
  into("rope", "x", x, cos, sin, positions, {interleaved, false}, out);
}

void rope_(const Tensor& x, const Tensor& cos, const Tensor& sin,
           const std::optional<Tensor>& positions, bool interleaved) {
  renamed("rope_", {{"out", "x"}}, [&] {
    into("rope_", "x", x, cos, sin, positions, {interleaved, false}, x);
  });
}

Tensor rope_backward(const Tensor& grad, const Tensor& cos, const Tensor& sin,
                     const std::optional<Tensor>& positions, bool interleaved) {
  check_arguments("rope_backward", {{"grad", grad}});
  Tensor grad_x = empty("rope_backward", grad.sizes(), grad);
  renamed("rope_backward", {{"x", "grad"}}, [&] {
    into("rope_backward", "grad", grad, cos, sin, positions,
         {interleaved, true}, grad_x);
  });
  return grad_x;
}

}  // namespace torch_foo
