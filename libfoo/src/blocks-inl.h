// The block formats, one block at a time: what quantize and dequantize mean, to
// the bit. Included once per SIMD target, and for CUDA after cuda/scalar.h.
#if defined(FOO_CORE_BLOCKS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOO_CORE_BLOCKS_INL_H_
#undef FOO_CORE_BLOCKS_INL_H_
#else
#define FOO_CORE_BLOCKS_INL_H_
#endif

#include <cstdint>

#ifndef FOO_CORE_CUDA_SCALAR
#include "cpu/vec-inl.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {

HWY_INLINE uint32_t BitsOf(float x) {
#ifdef FOO_CORE_CUDA_SCALAR
  return __float_as_uint(x);
#else
  return hwy::BitCastScalar<uint32_t>(x);
#endif
}

HWY_INLINE float FromBits(uint32_t bits) {
#ifdef FOO_CORE_CUDA_SCALAR
  return __uint_as_float(bits);
#else
  return hwy::BitCastScalar<float>(bits);
#endif
}

/// The float16 at `p`.
HWY_INLINE float LoadHalf(const uint8_t* p) {
  const uint32_t half = p[0] | static_cast<uint32_t>(p[1]) << 8;
  const uint32_t magnitude = (half & 0x7FFF) << 13;
  // Has float's bias; subnormals become normal.
  const uint32_t scaled = BitsOf(FromBits(magnitude) * 0x1p112f);
  const uint32_t special = magnitude > 0x0F7FFFFF ? 0x7F800000 : 0;
  return FromBits(scaled | special | (half & 0x8000) << 16);
}

/// Stores x as float16, rounded to nearest, ties to even, and returns what was
/// stored. NaN has no sign.
HWY_INLINE float StoreHalf(float x, uint8_t* p) {
  const uint32_t bits = BitsOf(x), magnitude = bits & 0x7FFFFFFF;
  uint32_t half = bits >> 16 & 0x8000;
  if (magnitude > 0x7F800000) {
    half = 0x7E00;
  } else if (magnitude >= 0x47800000) {
    half |= 0x7C00;
  } else if (magnitude < 0x38800000) {  // subnormal
    half |= BitsOf(FromBits(magnitude) + 0.5f) - 0x3F000000;
  } else {
    half |= (magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1)) >> 13;
  }
  p[0] = static_cast<uint8_t>(half);
  p[1] = static_cast<uint8_t>(half >> 8);
  return LoadHalf(p);
}

/// x as an integer: in [low, high], or 0 for NaN. x is whole.
HWY_INLINE int ToInteger(float x, int low, int high) {
  const auto least = static_cast<float>(low), most = static_cast<float>(high);
  if (x != x) return 0;
  return static_cast<int>(x < least ? least : x > most ? most : x);
}

/// x rounded to nearest, ties to even, for |x| up to 2^51; farther numbers stay
/// far. In double, so that no compiler merges the sum with a product before it.
HWY_INLINE float RoundToEven(float x) {
  constexpr double kRounder = 0x1.8p52;
  return static_cast<float>((static_cast<double>(x) + kRounder) - kRounder);
}

/// x rounded to nearest, ties away from zero, for |x| up to 2^22.
HWY_INLINE float RoundAway(float x) {
  const float a = x < 0 ? -x : x;
  if (!(a < 0x1p22f)) return x;
  const auto whole = static_cast<float>(static_cast<int>(a));
  const float rounded = whole + (a - whole >= 0.5f ? 1 : 0);
  return x < 0 ? -rounded : rounded;
}

/// 1 / x, and 0 for 0.
HWY_INLINE float Reciprocal(float x) { return x == 0 ? 0 : 1 / x; }

/// The number of the largest magnitude, the first of several; NaN if there is
/// one.
HWY_INLINE float Furthest(const float* x, int n) {
  float most = -1, result = 0;
  for (int i = 0; i < n; ++i) {
    const float a = x[i] < 0 ? -x[i] : x[i];
    if (a != a) return a;
    if (a > most) {
      most = a;
      result = x[i];
    }
  }
  return result;
}

struct Range {
  float low, high;
};

/// The least and the largest number; NaN if there is one. Zeros have no sign.
HWY_INLINE Range RangeOf(const float* x, int n) {
  Range range = {x[0], x[0]};
  for (int i = 0; i < n; ++i) {
    if (x[i] != x[i]) return {x[i], x[i]};
    if (x[i] < range.low) range.low = x[i];
    if (x[i] > range.high) range.high = x[i];
  }
  return {range.low + 0.0f, range.high + 0.0f};
}

struct Q8_0 {
  static constexpr int kElements = 32, kBytes = 34;

  static HWY_INLINE void Unpack(const uint8_t* block, float* x) {
    const float d = LoadHalf(block);
    for (int i = 0; i < kElements; ++i) {
      x[i] = d * static_cast<float>(static_cast<int8_t>(block[2 + i]));
    }
  }

  static HWY_INLINE void Pack(const float* x, uint8_t* block) {
    const float furthest = Furthest(x, kElements);
    const float d = (furthest < 0 ? -furthest : furthest) / 127;
    const float inverse = Reciprocal(d);
    StoreHalf(d, block);
    for (int i = 0; i < kElements; ++i) {
      const float q = RoundAway(x[i] * inverse);
      block[2 + i] = static_cast<uint8_t>(ToInteger(q, -127, 127));
    }
  }
};

/// Packs q of 32 numbers in 16 bytes: the first half in the lower bits.
HWY_INLINE void StoreNibbles(const uint8_t* q, uint8_t* bytes) {
  for (int i = 0; i < 16; ++i) {
    bytes[i] = static_cast<uint8_t>(q[i] | q[i + 16] << 4);
  }
}

struct Q4_0 {
  static constexpr int kElements = 32, kBytes = 18;

  static HWY_INLINE void Unpack(const uint8_t* block, float* x) {
    const float d = LoadHalf(block);
    for (int i = 0; i < 16; ++i) {
      x[i] = d * static_cast<float>((block[2 + i] & 15) - 8);
      x[i + 16] = d * static_cast<float>((block[2 + i] >> 4) - 8);
    }
  }

  static HWY_INLINE void Pack(const float* x, uint8_t* block) {
    const float d = Furthest(x, kElements) / -8;
    const double inverse = static_cast<double>(Reciprocal(d));
    StoreHalf(d, block);
    uint8_t q[kElements];
    for (int i = 0; i < kElements; ++i) {
      // Exact in double.
      const double product = static_cast<double>(x[i]) * inverse;
      const double shifted = (product == product ? product : 0) + 8.5;
      q[i] =
          static_cast<uint8_t>(ToInteger(static_cast<float>(shifted), 0, 15));
    }
    StoreNibbles(q, block + 2);
  }
};

struct Q4_1 {
  static constexpr int kElements = 32, kBytes = 20;

  static HWY_INLINE void Unpack(const uint8_t* block, float* x) {
    const float d = LoadHalf(block), m = LoadHalf(block + 2);
    for (int i = 0; i < 16; ++i) {
      x[i] = d * static_cast<float>(block[4 + i] & 15) + m;
      x[i + 16] = d * static_cast<float>(block[4 + i] >> 4) + m;
    }
  }

  static HWY_INLINE void Pack(const float* x, uint8_t* block) {
    const Range range = RangeOf(x, kElements);
    const float d = (range.high - range.low) / 15;
    const float inverse = Reciprocal(d);
    StoreHalf(d, block);
    StoreHalf(range.low, block + 2);
    uint8_t q[kElements];
    for (int i = 0; i < kElements; ++i) {
      const float product = (x[i] - range.low) * inverse;
      // In double, so that no compiler merges the sum with the product.
      const double shifted = static_cast<double>(product) + 0.5;
      q[i] =
          static_cast<uint8_t>(ToInteger(static_cast<float>(shifted), 0, 15));
    }
    StoreNibbles(q, block + 4);
  }
};

struct Q4_K {
  static constexpr int kElements = 256, kBytes = 144, kGroup = 32;

  /// The 6-bit scale and minimum of group j, from 12 bytes.
  static HWY_INLINE int Scale(const uint8_t* s, int j) {
    return j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
  }
  static HWY_INLINE int Minimum(const uint8_t* s, int j) {
    return j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
  }

  static HWY_INLINE void Unpack(const uint8_t* block, float* x) {
    const float d = LoadHalf(block), m = LoadHalf(block + 2);
    for (int j = 0; j < 8; ++j) {
      const float scale = d * static_cast<float>(Scale(block + 4, j));
      const float minimum = m * static_cast<float>(Minimum(block + 4, j));
      // Two groups share 32 bytes.
      const uint8_t* q = block + 16 + j / 2 * 32;
      const int shift = j % 2 * 4;
      for (int i = 0; i < kGroup; ++i) {
        x[j * kGroup + i] =
            scale * static_cast<float>(q[i] >> shift & 15) - minimum;
      }
    }
  }

  static HWY_INLINE void Pack(const float* x, uint8_t* block) {
    float scales[8], minima[8];
    for (int j = 0; j < 8; ++j) {
      const Range range = RangeOf(x + j * kGroup, kGroup);
      const float low = range.low > 0 ? 0 : range.low;
      scales[j] = (range.high - low) / 15;
      minima[j] = 0 - low;
    }
    const float most_scale = RangeOf(scales, 8).high;
    const float most_minimum = RangeOf(minima, 8).high;
    const float d = StoreHalf(most_scale / 63, block);
    const float m = StoreHalf(most_minimum / 63, block + 2);
    uint8_t* const packed = block + 4;
    for (int i = 0; i < 12; ++i) packed[i] = 0;
    for (int j = 0; j < 8; ++j) {
      const int s = Ratio(scales[j], most_scale);
      const int t = Ratio(minima[j], most_minimum);
      if (j < 4) {
        packed[j] = static_cast<uint8_t>(s);
        packed[j + 4] = static_cast<uint8_t>(t);
      } else {
        packed[j + 4] = static_cast<uint8_t>((s & 15) | (t & 15) << 4);
        packed[j - 4] = static_cast<uint8_t>(packed[j - 4] | s >> 4 << 6);
        packed[j] = static_cast<uint8_t>(packed[j] | t >> 4 << 6);
      }
    }
    for (int j = 0; j < 8; ++j) {
      const float scale = d * static_cast<float>(Scale(packed, j));
      const float minimum = m * static_cast<float>(Minimum(packed, j));
      uint8_t* const q = block + 16 + j / 2 * 32;
      for (int i = 0; i < kGroup; ++i) {
        const float y = (x[j * kGroup + i] + minimum) / scale;
        const int whole = ToInteger(RoundToEven(y), 0, 15);
        q[i] = static_cast<uint8_t>(j % 2 == 0 ? whole : q[i] | whole << 4);
      }
    }
  }

 private:
  /// x / most in 6 bits.
  static HWY_INLINE int Ratio(float x, float most) {
    return ToInteger(RoundToEven(x / most * 63), 0, 63);
  }
};

struct Q6_K {
  static constexpr int kElements = 256, kBytes = 210, kGroup = 16;

  static HWY_INLINE int Number(const uint8_t* block, int i) {
    // 128 numbers have 64 bytes with 4 lower bits and 32 with 2 upper bits.
    const int half = i / 128, quarter = i % 128 / 32, at = i % 32;
    const uint8_t low = block[half * 64 + quarter % 2 * 32 + at];
    const uint8_t high = block[128 + half * 32 + at];
    return ((low >> quarter / 2 * 4 & 15) | (high >> quarter * 2 & 3) << 4) -
           32;
  }

  static HWY_INLINE void Unpack(const uint8_t* block, float* x) {
    const float d = LoadHalf(block + 208);
    for (int j = 0; j < 16; ++j) {
      const float scale =
          d * static_cast<float>(static_cast<int8_t>(block[192 + j]));
      for (int i = j * kGroup; i < (j + 1) * kGroup; ++i) {
        x[i] = scale * static_cast<float>(Number(block, i));
      }
    }
  }

  static HWY_INLINE void Pack(const float* x, uint8_t* block) {
    float scales[16];
    for (int j = 0; j < 16; ++j) {
      scales[j] = Furthest(x + j * kGroup, kGroup) / -32;
    }
    const float most = Furthest(scales, 16) / -128;
    const float d = StoreHalf(most, block + 208);
    for (int i = 0; i < 192; ++i) block[i] = 0;
    for (int j = 0; j < 16; ++j) {
      const int s = ToInteger(RoundToEven(scales[j] / most), -128, 127);
      block[192 + j] = static_cast<uint8_t>(s);
      const float scale = d * static_cast<float>(s);
      for (int i = j * kGroup; i < (j + 1) * kGroup; ++i) {
        const int q = ToInteger(RoundToEven(x[i] / scale), -32, 31) + 32;
        const int half = i / 128, quarter = i % 128 / 32, at = i % 32;
        uint8_t& low = block[half * 64 + quarter % 2 * 32 + at];
        uint8_t& high = block[128 + half * 32 + at];
        low = static_cast<uint8_t>(low | (q & 15) << quarter / 2 * 4);
        high = static_cast<uint8_t>(high | q >> 4 << quarter * 2);
      }
    }
  }
};

/// Returns f(Format()) for a valid format.
template <class F>
HWY_INLINE auto ForFormat(BlockFormat format, F f) {
  switch (format) {
    case BlockFormat::kQ4_0:
      return f(Q4_0());
    case BlockFormat::kQ4_1:
      return f(Q4_1());
    case BlockFormat::kQ4_K:
      return f(Q4_K());
    case BlockFormat::kQ6_K:
      return f(Q6_K());
    default:
      return f(Q8_0());
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#endif  // once per target
