/// @file
/// The version of the library, and the SIMD target of its kernels.
#pragma once

#include "foo_core/export.h"

namespace foo_core {

/// What this copy of the library is and what it runs on.
struct BuildInfo {
  const char* version;      ///< of the library that was loaded: "0.1.0"
  bool cuda;                ///< whether foo_core::cuda has kernels
  const char* simd_target;  ///< that kernels run with now: "AVX2"
  /// The targets that kernels were compiled for and this CPU can run, best
  /// first, separated by spaces: "AVX3 AVX2 SSE4 SSE2"
  const char* simd_targets;
};

/// The strings live as long as the library; simd_target is as of this call.
FOO_CORE_EXPORT BuildInfo build_info();

/// The version of the library that was loaded, "0.1.0"; version.h has that of
/// the headers.
FOO_CORE_EXPORT const char* version() noexcept;

/// Makes all later calls run with one of build_info().simd_targets, or with
/// the best again if `target` is null. For tests and measurements: not while
/// another thread is in a kernel. Throws InvalidArgument for another name.
///
/// The environment variable FOO_CORE_SIMD_TARGET does the same for a whole
/// process; it is read at the first call of a kernel or of build_info(), and
/// an unusable value is reported once on stderr and then ignored.
FOO_CORE_EXPORT void set_simd_target(const char* target);

}  // namespace foo_core
