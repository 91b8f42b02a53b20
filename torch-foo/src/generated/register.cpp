// Generated from ops.yaml by codegen/generate.py. Do not edit.
//
// The operators' schemas and kernels. Their fake kernels, gradients, autocast
// and vmap rules are registered from Python (python/torch_foo/_dispatch.py):
// the stable ABI has no C++ interface for those.
#include <torch/csrc/stable/library.h>

#include "boxed.h"
#include "generated/operators.h"

STABLE_TORCH_LIBRARY(torch_foo, m) {
  m.def("add(Tensor a, Tensor b) -> Tensor");
  m.def("add.out(Tensor a, Tensor b, *, Tensor(a!) out) -> ()");
  m.def("_add(Tensor a, Tensor b) -> Tensor");
  m.def("_add_out(Tensor a, Tensor b, Tensor(a!) out) -> ()");
  m.def("mul(Tensor a, Tensor b) -> Tensor");
  m.def("mul.out(Tensor a, Tensor b, *, Tensor(a!) out) -> ()");
  m.def("_mul(Tensor a, Tensor b) -> Tensor");
  m.def("_mul_out(Tensor a, Tensor b, Tensor(a!) out) -> ()");
  m.def("muladd(Tensor a, Tensor b, float c) -> Tensor");
  m.def("muladd.out(Tensor a, Tensor b, float c, *, Tensor(a!) out) -> ()");
  m.def("_muladd(Tensor a, Tensor b, float c) -> Tensor");
  m.def("_muladd_out(Tensor a, Tensor b, float c, Tensor(a!) out) -> ()");
  m.def("rms_norm(Tensor x, Tensor? weight=None, float eps=1e-6) -> Tensor");
  m.def(
      "rms_norm.out(Tensor x, Tensor? weight=None, float eps=1e-6, *, "
      "Tensor(a!) out) -> ()");
  m.def("_rms_norm(Tensor x, Tensor? weight, float eps) -> Tensor");
  m.def(
      "_rms_norm_out(Tensor x, Tensor? weight, float eps, Tensor(a!) out) -> "
      "()");
  m.def(
      "_rms_norm_backward(Tensor grad, Tensor x, Tensor? weight, float eps, "
      "bool wants_x, bool wants_weight) -> (Tensor grad_x, Tensor "
      "grad_weight)");
  m.def("_version() -> str");
  m.def("_core_version() -> str");
  m.def("_core_has_cuda() -> bool");
  m.def("_simd_target() -> str");
}

namespace {

using torch::stable::detail::StableLibrary;
using torch_foo::boxed;

void implement_cpu(StableLibrary& m) {
  m.impl("add", boxed<&torch_foo::add>);
  m.impl("add.out", boxed<&torch_foo::add_out>);
  m.impl("_add", boxed<&torch_foo::add>);
  m.impl("_add_out", boxed<&torch_foo::add_out>);
  m.impl("mul", boxed<&torch_foo::mul>);
  m.impl("mul.out", boxed<&torch_foo::mul_out>);
  m.impl("_mul", boxed<&torch_foo::mul>);
  m.impl("_mul_out", boxed<&torch_foo::mul_out>);
  m.impl("muladd", boxed<&torch_foo::muladd>);
  m.impl("muladd.out", boxed<&torch_foo::muladd_out>);
  m.impl("_muladd", boxed<&torch_foo::muladd>);
  m.impl("_muladd_out", boxed<&torch_foo::muladd_out>);
  m.impl("rms_norm", boxed<&torch_foo::rms_norm>);
  m.impl("rms_norm.out", boxed<&torch_foo::rms_norm_out>);
  m.impl("_rms_norm", boxed<&torch_foo::rms_norm>);
  m.impl("_rms_norm_out", boxed<&torch_foo::rms_norm_out>);
  m.impl("_rms_norm_backward", boxed<&torch_foo::rms_norm_backward>);
}

void implement_cuda(StableLibrary& m) {
  m.impl("add", boxed<&torch_foo::add>);
  m.impl("add.out", boxed<&torch_foo::add_out>);
  m.impl("_add", boxed<&torch_foo::add>);
  m.impl("_add_out", boxed<&torch_foo::add_out>);
  m.impl("mul", boxed<&torch_foo::mul>);
  m.impl("mul.out", boxed<&torch_foo::mul_out>);
  m.impl("_mul", boxed<&torch_foo::mul>);
  m.impl("_mul_out", boxed<&torch_foo::mul_out>);
  m.impl("muladd", boxed<&torch_foo::muladd>);
  m.impl("muladd.out", boxed<&torch_foo::muladd_out>);
  m.impl("_muladd", boxed<&torch_foo::muladd>);
  m.impl("_muladd_out", boxed<&torch_foo::muladd_out>);
  m.impl("rms_norm", boxed<&torch_foo::rms_norm>);
  m.impl("rms_norm.out", boxed<&torch_foo::rms_norm_out>);
  m.impl("_rms_norm", boxed<&torch_foo::rms_norm>);
  m.impl("_rms_norm_out", boxed<&torch_foo::rms_norm_out>);
  m.impl("_rms_norm_backward", boxed<&torch_foo::rms_norm_backward>);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_foo, CompositeExplicitAutograd, m) {
  m.impl("_version", boxed<&torch_foo::version>);
  m.impl("_core_version", boxed<&torch_foo::core_version>);
  m.impl("_core_has_cuda", boxed<&torch_foo::core_has_cuda>);
  m.impl("_simd_target", boxed<&torch_foo::simd_target>);
}

STABLE_TORCH_LIBRARY_IMPL(torch_foo, CPU, m) { implement_cpu(m); }
STABLE_TORCH_LIBRARY_IMPL(torch_foo, CUDA, m) { implement_cuda(m); }

// Layouts that the adaptors refuse. Without these the dispatcher would, with
// a page about backends in place of one sentence.
STABLE_TORCH_LIBRARY_IMPL(torch_foo, SparseCPU, m) { implement_cpu(m); }
STABLE_TORCH_LIBRARY_IMPL(torch_foo, SparseCsrCPU, m) { implement_cpu(m); }
STABLE_TORCH_LIBRARY_IMPL(torch_foo, MkldnnCPU, m) { implement_cpu(m); }
STABLE_TORCH_LIBRARY_IMPL(torch_foo, QuantizedCPU, m) { implement_cpu(m); }
STABLE_TORCH_LIBRARY_IMPL(torch_foo, SparseCUDA, m) { implement_cuda(m); }
STABLE_TORCH_LIBRARY_IMPL(torch_foo, SparseCsrCUDA, m) { implement_cuda(m); }
STABLE_TORCH_LIBRARY_IMPL(torch_foo, QuantizedCUDA, m) { implement_cuda(m); }
