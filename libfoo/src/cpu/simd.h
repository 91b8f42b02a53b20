// The SIMD targets that kernels are compiled for, and which of them is in use.
//
// Highway compiles a source once per target. Choosing among them is done here
// and not by HWY_DYNAMIC_DISPATCH, whose choice is shared with every other
// user of libhwy in the process.
#pragma once

// Before any of Highway's headers. Not worth their compile time: SSSE3, NEON
// with AES, which kernels do not use, and what is better than AVX3, where the
// native conversion to bfloat16 moreover flushes subnormals. Not possible:
// vectors of unknown size, which no struct can hold.
#define HWY_DISABLED_TARGETS                                       \
  (HWY_SSSE3 | (HWY_AVX3 - 1) | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | \
   HWY_SVE2_128 | HWY_NEON | HWY_NEON_BF16 | HWY_RVV)

namespace foo_core::simd {

/// The target in use, as an index into FOO_CORE_DISPATCH's table.
int current() noexcept;

const char* current_name() noexcept;
const char* available_names() noexcept;

/// As foo_core::set_simd_target.
void set(const char* target);

}  // namespace foo_core::simd

/// FUNCTION of the target in use. Goes where HWY_ONCE is true, after
/// highway.h.
#define FOO_CORE_DISPATCH(FUNCTION)                                        \
  ([] {                                                                    \
    static constexpr decltype(&HWY_STATIC_DISPATCH(FUNCTION)) kTable[] = { \
        HWY_CHOOSE_AVX3(FUNCTION), HWY_CHOOSE_AVX2(FUNCTION),              \
        HWY_CHOOSE_SSE4(FUNCTION), HWY_CHOOSE_SSE2(FUNCTION),              \
        HWY_CHOOSE_FALLBACK(FUNCTION)};                                    \
    return kTable[::foo_core::simd::current()];                            \
  }())
