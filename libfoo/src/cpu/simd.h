// The SIMD targets for which kernels are compiled, and the one in use.
//
// Highway compiles a source once per target. This file chooses among them
// instead of HWY_DYNAMIC_DISPATCH, which shares its choice with every other
// user of libhwy in the process.
#pragma once

// This must precede Highway's headers. SSSE3, NEON with AES and the targets
// above AVX3 are not worth their compile time; those above AVX3_DL also flush
// subnormals when they convert to bfloat16. Vectors of unknown size cannot be
// members of a struct. A source whose products have instructions of their own
// defines FOO_CORE_MORE_TARGETS: HWY_AVX3_DL for those of bytes, HWY_AVX3_ZEN4
// for those of bfloat16.
#ifndef FOO_CORE_MORE_TARGETS
#define FOO_CORE_MORE_TARGETS 0
#endif
#define HWY_DISABLED_TARGETS                                           \
  (HWY_SSSE3 | ((HWY_AVX3 - 1) & ~(FOO_CORE_MORE_TARGETS)) | HWY_SVE | \
   HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_NEON | HWY_NEON_BF16 | HWY_RVV)

namespace foo_core::simd {

/// The target in use, as an index into FOO_CORE_DISPATCH's table.
int current() noexcept;

const char* current_name() noexcept;
const char* available_names() noexcept;

/// Does what foo_core::set_simd_target does.
void set(const char* target);

}  // namespace foo_core::simd

/// The FUNCTION of the target in use, or of the next one for which the source
/// is compiled. It needs highway.h and HWY_ONCE.
#define FOO_CORE_DISPATCH(FUNCTION)                                        \
  ([] {                                                                    \
    static constexpr decltype(&HWY_STATIC_DISPATCH(FUNCTION)) kTable[] = { \
        HWY_CHOOSE_AVX3_ZEN4(FUNCTION), HWY_CHOOSE_AVX3_DL(FUNCTION),      \
        HWY_CHOOSE_AVX3(FUNCTION),      HWY_CHOOSE_AVX2(FUNCTION),         \
        HWY_CHOOSE_SSE4(FUNCTION),      HWY_CHOOSE_SSE2(FUNCTION),         \
        HWY_CHOOSE_FALLBACK(FUNCTION)};                                    \
    int i = ::foo_core::simd::current();                                   \
    while (kTable[i] == nullptr) ++i;                                      \
    return kTable[i];                                                      \
  }())
