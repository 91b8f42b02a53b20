// Adaptors of rope and its gradient.
#include "adaptor.h"
#include "generated/operators.h"

namespace torch_foo {
namespace {

using foo_core::RopeOptions;

// The dtype in which foo_core takes the tables: x's or float32. Tables of other
// dtypes are converted, since they are small.
foo_core::DType table_dtype(const Tensor& x, const Tensor& cos,
                            const Tensor& sin) {
  using foo_core::DType;
  const DType dtype = view(cos).dtype;
  if (dtype == view(sin).dtype &&
      (dtype == DType::kFloat32 || dtype == view(x).dtype)) {
    return dtype;
  }
  return view(x).dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

// x goes by `name` in messages.
void into(const char* op, const char* name, const Tensor& x, const Tensor& cos,
          const Tensor& sin, const std::optional<Tensor>& positions,
          const RopeOptions& options, const Tensor& out) {
  check_arguments(op, {{name, x}, {"out", out}});
  check_any_dtypes(op, {{name, x}, {"cos", cos}, {"sin", sin}});
  if (positions) {
    check_argument(op, {"positions", *positions}, foo_core::DType::kInt64,
                   {name, x});
  }
  const foo_core::DType dtype = table_dtype(x, cos, sin);
  const Converted to_cos(op, cos, dtype), to_sin(op, sin, dtype);
  launch(x, foo_core::rope, view(x), view(to_cos), view(to_sin),
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
