// Adaptors of add, mul and muladd.
#include "adaptor.h"
#include "generated/operators.h"

namespace torch_foo {
namespace {

using foo_core::ConstTensorView;
using foo_core::ParallelFor;
using foo_core::TensorView;

// `cpu` takes (a, b, out, threads) and `cuda` takes (a, b, out, stream).

template <class Cpu, class Cuda>
void launch(const Tensor& a, const Tensor& b, const Tensor& out, Cpu cpu,
            Cuda cuda) {
  const ConstTensorView va = view(a), vb = view(b);
  const TensorView vout = mutable_view(out);
  run(
      out, [&](const ParallelFor& threads) { cpu(va, vb, vout, threads); },
      [&](void* stream) { cuda(va, vb, vout, stream); });
}

template <class Cpu, class Cuda>
Tensor elementwise(const char* op, const Tensor& a, const Tensor& b, Cpu cpu,
                   Cuda cuda) {
  check_arguments(op, {{"a", a}, {"b", b}});
  Tensor out = empty(broadcast_shape(op, a, b), a);
  launch(a, b, out, cpu, cuda);
  return out;
}

template <class Cpu, class Cuda>
void elementwise_out(const char* op, const Tensor& a, const Tensor& b,
                     const Tensor& out, Cpu cpu, Cuda cuda) {
  check_arguments(op, {{"a", a}, {"b", b}, {"out", out}});
  launch(a, b, out, cpu, cuda);
}

// muladd's two kernels with c bound: the same arguments as add's and mul's.

auto muladd_cpu(double c) {
  return [c](const ConstTensorView& a, const ConstTensorView& b,
             const TensorView& out, const ParallelFor& threads) {
    foo_core::muladd(a, b, c, out, threads);
  };
}

auto muladd_cuda(double c) {
  return [c](const ConstTensorView& a, const ConstTensorView& b,
             const TensorView& out,
             void* stream) { foo_core::cuda::muladd(a, b, c, out, stream); };
}

}  // namespace

Tensor add(const Tensor& a, const Tensor& b) {
  return elementwise("add", a, b, foo_core::add, foo_core::cuda::add);
}

void add_out(const Tensor& a, const Tensor& b, const Tensor& out) {
  elementwise_out("add", a, b, out, foo_core::add, foo_core::cuda::add);
}

Tensor mul(const Tensor& a, const Tensor& b) {
  return elementwise("mul", a, b, foo_core::mul, foo_core::cuda::mul);
}

void mul_out(const Tensor& a, const Tensor& b, const Tensor& out) {
  elementwise_out("mul", a, b, out, foo_core::mul, foo_core::cuda::mul);
}

Tensor muladd(const Tensor& a, const Tensor& b, double c) {
  return elementwise("muladd", a, b, muladd_cpu(c), muladd_cuda(c));
}

void muladd_out(const Tensor& a, const Tensor& b, double c, const Tensor& out) {
  elementwise_out("muladd", a, b, out, muladd_cpu(c), muladd_cuda(c));
}

}  // namespace torch_foo
