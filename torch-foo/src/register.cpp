// The operators' schemas and kernels. Their fake kernels, gradients, autocast
// and vmap rules are registered from Python (python/torch_foo/ops/): the
// stable ABI has no C++ interface for those.
#include <foo_core/foo_core.h>
#include <torch/csrc/stable/library.h>

#include <string>

#include "operators.h"

namespace {

using torch::stable::detail::StableLibrary;

void implement(StableLibrary& m) {
  m.impl("add", TORCH_BOX(&torch_foo::add));
  m.impl("add.out", TORCH_BOX(&torch_foo::add_out));
  m.impl("mul", TORCH_BOX(&torch_foo::mul));
  m.impl("mul.out", TORCH_BOX(&torch_foo::mul_out));
  m.impl("muladd", TORCH_BOX(&torch_foo::muladd));
  m.impl("muladd.out", TORCH_BOX(&torch_foo::muladd_out));
  m.impl("rms_norm", TORCH_BOX(&torch_foo::rms_norm));
  m.impl("rms_norm.out", TORCH_BOX(&torch_foo::rms_norm_out));
  m.impl("rms_norm_backward", TORCH_BOX(&torch_foo::rms_norm_backward));
}

// Behind torch_foo.build_info().
std::string version() { return TORCH_FOO_VERSION; }
std::string core_version() { return foo_core::version(); }
bool core_has_cuda() { return foo_core::build_info().cuda; }
std::string simd_target() { return foo_core::build_info().simd_target; }

}  // namespace

STABLE_TORCH_LIBRARY(torch_foo, m) {
  m.def("add(Tensor a, Tensor b) -> Tensor");
  m.def("add.out(Tensor a, Tensor b, *, Tensor(a!) out) -> ()");
  m.def("mul(Tensor a, Tensor b) -> Tensor");
  m.def("mul.out(Tensor a, Tensor b, *, Tensor(a!) out) -> ()");
  m.def("muladd(Tensor a, Tensor b, float c) -> Tensor");
  m.def("muladd.out(Tensor a, Tensor b, float c, *, Tensor(a!) out) -> ()");
  m.def("rms_norm(Tensor x, Tensor? weight=None, float eps=1e-6) -> Tensor");
  m.def(
      "rms_norm.out(Tensor x, Tensor? weight=None, float eps=1e-6, *, "
      "Tensor(a!) out) -> ()");
  m.def(
      "rms_norm_backward(Tensor grad, Tensor x, Tensor? weight, float eps, "
      "bool wants_x, bool wants_weight) -> (Tensor, Tensor)");

  m.def("_version() -> str");
  m.def("_core_version() -> str");
  m.def("_core_has_cuda() -> bool");
  m.def("_simd_target() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(torch_foo, CompositeExplicitAutograd, m) {
  m.impl("_version", TORCH_BOX(&version));
  m.impl("_core_version", TORCH_BOX(&core_version));
  m.impl("_core_has_cuda", TORCH_BOX(&core_has_cuda));
  m.impl("_simd_target", TORCH_BOX(&simd_target));
}

STABLE_TORCH_LIBRARY_IMPL(torch_foo, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(torch_foo, CUDA, m) { implement(m); }

// Layouts that the adaptors refuse. Without these the dispatcher would, with
// a page about backends in place of one sentence.
STABLE_TORCH_LIBRARY_IMPL(torch_foo, SparseCPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(torch_foo, SparseCUDA, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(torch_foo, SparseCsrCPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(torch_foo, SparseCsrCUDA, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(torch_foo, MkldnnCPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(torch_foo, QuantizedCPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(torch_foo, QuantizedCUDA, m) { implement(m); }
