// The SIMD targets for which kernels are compiled, and the one in use.
//
// Highway compiles a source once per target. This file chooses among them
// instead of HWY_DYNAMIC_DISPATCH, which shares its choice with every other
// user of libhwy in the process.
#pragma once

// This must precede Highway's headers. SSSE3, NEON with AES and the targets
// above AVX3 are not worth their compile time; those above AVX3_DL also flush
// subnormals when they convert to bfloat16. Vectors of unknown size cannot be
// members of a struct. A source that multiplies bytes defines
// FOO_CORE_MULTIPLIES_BYTES, and is compiled for AVX3_DL too, which has an
// instruction for that.
#ifdef FOO_CORE_MULTIPLIES_BYTES
#define FOO_CORE_TOO_NEW (HWY_AVX3_DL - 1)
#define FOO_CORE_CHOOSE_AVX3_DL HWY_CHOOSE_AVX3_DL
#else
#define FOO_CORE_TOO_NEW (HWY_AVX3 - 1)
#define FOO_CORE_CHOOSE_AVX3_DL HWY_CHOOSE_AVX3
#endif
#define HWY_DISABLED_TARGETS                                         \
  (HWY_SSSE3 | FOO_CORE_TOO_NEW | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | \
   HWY_SVE2_128 | HWY_NEON | HWY_NEON_BF16 | HWY_RVV)

namespace foo_core::simd {

/// The target in use, as an index into FOO_CORE_DISPATCH's table.
int current() noexcept;

const char* current_name() noexcept;
const char* available_names() noexcept;

/// Does what foo_core::set_simd_target does.
void set(const char* target);

}  // namespace foo_core::simd

/// The FUNCTION of the target in use. It needs highway.h and HWY_ONCE.
#define FOO_CORE_DISPATCH(FUNCTION)                                        \
  ([] {                                                                    \
    static constexpr decltype(&HWY_STATIC_DISPATCH(FUNCTION)) kTable[] = { \
        FOO_CORE_CHOOSE_AVX3_DL(FUNCTION), HWY_CHOOSE_AVX3(FUNCTION),      \
        HWY_CHOOSE_AVX2(FUNCTION),         HWY_CHOOSE_SSE4(FUNCTION),      \
        HWY_CHOOSE_SSE2(FUNCTION),         HWY_CHOOSE_FALLBACK(FUNCTION)}; \
    return kTable[::foo_core::simd::current()];                            \
  }())
