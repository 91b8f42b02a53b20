// Adaptors of the element-wise operators.
#include "adaptor.h"
#include "generated/operators.h"

namespace torch_foo {
namespace {

// `function` is foo_core's; `c` are its arguments between b and out.
template <class F, class... C>
Tensor elementwise(const char* op, const Tensor& a, const Tensor& b, F function,
                   C... c) {
  check_arguments(op, {{"a", a}, {"b", b}});
  Tensor out = empty(op, broadcast_shape(op, a, b), a);
  launch(a, function, view(a), view(b), c..., mutable_view(out));
  return out;
}

template <class F, class... C>
void elementwise_out(const char* op, const Tensor& a, const Tensor& b,
                     const Tensor& out, F function, C... c) {
  check_arguments(op, {{"a", a}, {"b", b}, {"out", out}});
  launch(a, function, view(a), view(b), c..., mutable_view(out));
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
