// What is behind torch_foo.build_info(): operators that take no tensors, and so
// need no fake kernel, gradient or vmap rule.
#include <foo_core/foo_core.h>
#include <torch/csrc/stable/library.h>

#include "boxed.h"

namespace torch_foo {
namespace {

std::string version() { return TORCH_FOO_VERSION; }
std::string core_version() { return foo_core::version(); }
bool core_has_cuda() { return foo_core::build_info().cuda; }
std::string simd_target() { return foo_core::build_info().simd_target; }

}  // namespace
}  // namespace torch_foo

STABLE_TORCH_LIBRARY_FRAGMENT(torch_foo, m) {
  m.def("_version() -> str");
  m.def("_core_version() -> str");
  m.def("_core_has_cuda() -> bool");
  m.def("_simd_target() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(torch_foo, CompositeExplicitAutograd, m) {
  using torch_foo::boxed;
  m.impl("_version", boxed<&torch_foo::version>);
  m.impl("_core_version", boxed<&torch_foo::core_version>);
  m.impl("_core_has_cuda", boxed<&torch_foo::core_has_cuda>);
  m.impl("_simd_target", boxed<&torch_foo::simd_target>);
}
