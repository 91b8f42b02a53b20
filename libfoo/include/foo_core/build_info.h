/// @file
/// The version of the library and the SIMD target of its kernels.
#pragma once

#include "foo_core/export.h"

namespace foo_core {

/// What the loaded library is, and what its kernels run on.
struct BuildInfo {
  const char* version;      ///< the library's, such as "0.2.0"
  bool cuda;                ///< whether Executor::cuda is available
  const char* simd_target;  ///< what kernels run with now, such as "AVX2"
  /// The compiled targets that this CPU can run, best first, separated by
  /// spaces, such as "AVX3 AVX2 SSE4 SSE2".
  const char* simd_targets;
};

/// The library's BuildInfo. The strings live as long as the library;
/// simd_target is as of this call.
FOO_CORE_EXPORT BuildInfo build_info();

/// The version of the loaded library, such as "0.2.0". version.h has that of
/// the headers.
FOO_CORE_EXPORT const char* version() noexcept;

/// Makes all later calls run with one of build_info().simd_targets, or with the
/// best one if `target` is null. Throws InvalidArgument for another name. It is
/// meant for tests and measurements; no other thread may run a kernel
/// meanwhile.
///
/// The environment variable FOO_CORE_SIMD_TARGET does the same for the whole
/// process. The first call of a kernel or of build_info() reads it; an unusable
/// value is ignored after one message on stderr.
FOO_CORE_EXPORT void set_simd_target(const char* target);

}  // namespace foo_core
