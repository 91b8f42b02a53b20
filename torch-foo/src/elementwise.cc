// Adaptors of the element-wise operators.
#include "adaptor.h"
#include "generated/operators.h"

namespace torch_foo {
namespace {

// The arguments in the dtype of the result. They seldom differ, so where they
// do, a pass over memory is spent on it instead of more kernels.
struct Operands {
  Operands(const char* op, const Tensor& a, const Tensor& b)
      : dtype((check_any_dtypes(op, {{"a", a}, {"b", b}}), result_dtype(a, b))),
        a(op, a, dtype),
        b(op, b, dtype) {}

  foo_core::DType dtype;
  Converted a, b;
};

// `function` is foo_core's; `c` are its arguments between b and out.
template <class F, class... C>
Tensor elementwise(const char* op, const Tensor& a, const Tensor& b, F function,
                   C... c) {
  const Operands operands(op, a, b);
  Tensor out = empty(op, broadcast_shape(op, a, b), operands.dtype, a);
  launch(a, function, view(operands.a), view(operands.b), c...,
         mutable_view(out));
  return out;
}

template <class F, class... C>
void elementwise_out(const char* op, const Tensor& a, const Tensor& b,
                     const Tensor& out, F function, C... c) {
  const Operands operands(op, a, b);
  check_out(op, {"a", a}, {"out", out}, operands.dtype);
  launch(a, function, view(operands.a), view(operands.b), c...,
         mutable_view(out));
}

}  // namespace

Tensor add(const Tensor& a, const Tensor& b) {
  return elementwise("add", a, b, foo_core::add);
}

void add_out(const Tensor& a, const Tensor& b, const Tensor& out) {
  elementwise_out("add", a, b, out, foo_core::add);
}

Tensor mul(const Tensor& a, const Tensor& b) {
  return elementwise("mul", a, b, foo_core::mul);
}

void mul_out(const Tensor& a, const Tensor& b, const Tensor& out) {
  elementwise_out("mul", a, b, out, foo_core::mul);
}

Tensor muladd(const Tensor& a, const Tensor& b, double c) {
  return elementwise("muladd", a, b, foo_core::muladd, c);
}

void muladd_out(const Tensor& a, const Tensor& b, double c, const Tensor& out) {
  elementwise_out("muladd", a, b, out, foo_core::muladd, c);
}

}  // namespace torch_foo
