// Adaptor of quantize_int8_rowwise.
#include "adaptor.h"
#include "generated/operators.h"

namespace torch_foo {

std::tuple<Tensor, Tensor> quantize_int8_rowwise(const Tensor& x) {
  using foo_core::DType;
  const char* op = "quantize_int8_rowwise";
  check_arguments(op, {{"x", x}});
  if (x.dim() == 0) {
    fail(std::string(op) + ": x has no dimensions, expected at least 1");
  }
  Shape rows(x.sizes());
  rows.last() = 1;
  Tensor q = empty(op, x.sizes(), DType::kInt8, x);
  Tensor scale = empty(op, rows, DType::kFloat32, x);
  launch(x, foo_core::quantize_int8_rowwise, view(x), mutable_view(q),
         mutable_view(scale));
  return {std::move(q), std::move(scale)};
}

}  // namespace torch_foo
