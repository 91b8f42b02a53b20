// What is behind torch_foo.build_info().
#include <foo_core/foo_core.h>

#include "generated/operators.h"

namespace torch_foo {

std::string version() { return TORCH_FOO_VERSION; }
std::string core_version() { return foo_core::version(); }
bool core_has_cuda() { return foo_core::build_info().cuda; }
std::string simd_target() { return foo_core::build_info().simd_target; }

}  // namespace torch_foo
