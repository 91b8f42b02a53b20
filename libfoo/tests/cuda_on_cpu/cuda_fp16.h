// IEEE 754 binary16, for cuda_runtime.h of this folder.
#pragma once

#include "cuda_runtime.h"

struct __half {
  std::uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }

inline float __half2float(__half x) {
  const unsigned magnitude = x.bits & 0x7FFFu, sign = (x.bits & 0x8000u) << 16;
  float y = static_cast<float>(magnitude) * 0x1p-24f;  // subnormal
  if (magnitude >= 0x7C00) {
    y = __uint_as_float(0x7F800000 | magnitude << 13);
  } else if (magnitude >= 0x0400) {
    y = __uint_as_float((magnitude << 13) + 0x38000000);
  }
  return __uint_as_float(__float_as_uint(y) | sign);
}

/// Rounds to the nearest number, ties to even.
inline __half __float2half_rn(float x) {
  const unsigned sign = __float_as_uint(x) >> 16 & 0x8000;
  unsigned bits = __float_as_uint(x) & 0x7FFFFFFF;
  if (bits > 0x7F800000) {
    bits = 0x7FFF;  // NaN
  } else if (bits >= 0x477FF000) {
    bits = 0x7C00;  // 65520 and more: infinity
  } else if (bits < 0x38800000) {
    // Numbers from 0.5 on have the spacing of binary16's subnormal ones.
    bits = __float_as_uint(__uint_as_float(bits) + 0.5f) - 0x3F000000;
  } else {
    bits = (bits - 0x38000000 + 0x0FFF + (bits >> 13 & 1)) >> 13;
  }
  return {static_cast<std::uint16_t>(sign | bits)};
}

inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
