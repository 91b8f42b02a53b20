// What is behind torch_foo.build_info(): operators that take no tensors, and so
// need no fake kernel, gradient or vmap rule.
#include <dlfcn.h>
#include <foo_core/foo_core.h>

#include "boxed.h"
#include "library.h"

namespace torch_foo {
namespace {

std::string version() { return TORCH_FOO_VERSION; }
std::string core_version() { return foo_core::version(); }
bool core_has_cuda() { return foo_core::build_info().cuda; }
std::string simd_target() { return foo_core::build_info().simd_target; }

std::string path() { return library_path(); }

}  // namespace

const char* library_path() {
  Dl_info info;
  const auto here = reinterpret_cast<void*>(&library_path);
  return dladdr(here, &info) != 0 ? info.dli_fname : "";
}

void define_build_info(const Library& m) {
  m.def("_version() -> str");
  m.def("_path() -> str");
  m.def("_core_version() -> str");
  m.def("_core_has_cuda() -> bool");
  m.def("_simd_target() -> str");
}

void implement_build_info(const Library& m) {
  m.impl("_version", boxed<&version>);
  m.impl("_path", boxed<&path>);
  m.impl("_core_version", boxed<&core_version>);
  m.impl("_core_has_cuda", boxed<&core_has_cuda>);
  m.impl("_simd_target", boxed<&simd_target>);
}

}  // namespace torch_foo
