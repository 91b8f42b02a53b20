// The parts of build_info(), each from the one place that knows it.
#include "foo_core/build_info.h"

#include "cpu/simd.h"
#include "cuda/kernels.h"
#include "foo_core/version.h"

namespace foo_core {

BuildInfo build_info() {
  return {version(), cuda::kBuilt, simd::current_name(),
          simd::available_names()};
}

const char* version() noexcept { return FOO_CORE_VERSION; }

void set_simd_target(const char* target) { simd::set(target); }

}  // namespace foo_core
