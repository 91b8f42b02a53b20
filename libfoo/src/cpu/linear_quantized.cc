// x weight^T + bias, where weight holds blocks of a few bits per number.
//
// x is rounded to 8 bits first, so that products are those of bytes. Four rows
// of weight are unpacked to bytes together and transposed: a vector's 16 bytes
// are 4 columns of each of the 4 rows, and so are the sums of 4 products that
// instructions for bytes make. Thus a sum over 32 columns becomes a float in
// one step for all 4 rows, and there are no sums across a vector before the
// end. The 16-byte parts of a vector belong to different blocks of weight; x is
// stored in the order in which they come.
//
// Unpacked bytes go through a buffer in the L1 cache, for one row of x as for
// many, and never to memory.
#define FOO_CORE_MULTIPLIES_BYTES

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "blocks.h"
#include "checks.h"
#include "cpu/simd.h"
#include "cuda/kernels.h"
#include "foo_core/blocks.h"
#include "loop.h"
#include "nest.h"
#include "view.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/linear_quantized.cc"
// These read HWY_TARGET_INCLUDE, so they come after it.
#include "hwy/foreach_target.h"
//
#include "blocks-inl.h"
#include "hwy/cache_control.h"

#ifndef FOO_CORE_LINEAR_QUANTIZED_
#define FOO_CORE_LINEAR_QUANTIZED_
namespace foo_core {
namespace {

constexpr std::int64_t kGroup = 32;  // columns of x with one scale
constexpr int kQuad = 4;  // rows of weight that are multiplied at once

/// Quads at a time. With few rows of x, reading weight takes the time: there is
/// one quad, whose rows are read in long pieces. With many, arithmetic does,
/// and what is loaded of x is used for several quads.
constexpr int kMostQuads = 4;
constexpr std::int64_t kFewRows = 8;

/// Rows of x at a time; their sums stay in the L1 cache.
constexpr std::int64_t kPanel = 64;

/// Groups of a row of weight that are unpacked at a time: multiples of those of
/// any step.
constexpr std::int64_t kGroupsOfMany = 32;
constexpr std::int64_t kMostGroups = 64;
constexpr std::int64_t kUnpacked = kMostQuads * kQuad * kGroupsOfMany * kGroup;

/// The most groups that complete the last vectors of a row.
constexpr std::int64_t kMostPadding = 15;

/// The bytes of a group of x: its numbers, and four times its scale and the
/// sums of its halves.
constexpr std::int64_t kGroupBytes = 32 + 16 + 32;

/// Rows of x in 8 bits. Arrays begin at multiples of 64 bytes.
struct QuantizedRows {
  std::int8_t* q;       // [rows][groups][32]
  float* scale;         // [rows][groups][4]
  std::int32_t* sum;    // [rows][groups][1 or 2][4]; bits of float or integers
  std::int64_t groups;  // with padding
  int sums;             // of a group: 1 or 2
};

/// A tile: rows of weight, which may be fewer than the last quad has, and a
/// panel of x.
struct QuantizedTile {
  const std::uint8_t* weight;
  std::int64_t weight_stride, weight_rows;
  int quads;
  QuantizedRows x;
  std::int64_t rows;
  std::int64_t k;
  float* y;  // [rows][quads * 4]
};

/// Brings a group of x, from column `begin` on, to float.
using QuantizedLoad = void (*)(Row x, std::int64_t begin, float* y);

struct QuantizedKernels {
  /// Groups of x that are multiplied together, and sums per group.
  int step, sums;
  void (*round)(Row x, std::int64_t k, QuantizedLoad load, std::int64_t row,
                const QuantizedRows& to);
  void (*multiply)(const QuantizedTile& tile);
  double (*exact_dot)(const double* x, std::int64_t stride,
                      const std::uint8_t* weight, std::int64_t k);
};

/// Stores y + bias, rounded, for n elements.
using StoreSums = void (*)(const float* y, Row bias, MutableRow out,
                           std::int64_t n);

struct QuantizedDType {
  QuantizedLoad load;
  StoreSums store;
};

}  // namespace
}  // namespace foo_core
#endif

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {
namespace {

using D8 = hn::ScalableTag<uint8_t>;
using DI8 = hn::ScalableTag<int8_t>;
using DI16 = hn::ScalableTag<int16_t>;
using DI32 = hn::ScalableTag<int32_t>;
using DF = hn::ScalableTag<float>;
using V8 = hn::Vec<D8>;
using VI16 = hn::Vec<DI16>;
using VI32 = hn::Vec<DI32>;
using VF = hn::Vec<DF>;

constexpr int kBytes = hn::MaxLanes(D8());  // of a vector
constexpr int kParts = kBytes / 16;         // which belong to different blocks

/// Rows of x at a time, and quads of weight for each: what the registers hold.
constexpr int kRows = HWY_TARGET <= HWY_AVX3 ? 4 : 2;
constexpr int kQuads = 2;

// --- formats: how the bytes of a row become vectors

// A unit is kGroups groups that share bytes, in pieces of 16. Piece p of unit u
// begins Offset(u, p) bytes after its row. Expand makes half e of group g of a
// unit, in kBits without a sign: the number plus kOffset, unless kHasMinimum.
// Scales writes the scales of groups [begin, begin + n) of 4 rows, kScales for
// each group and row, and their minima, in the order of x's groups; then zeros.

/// Scales or minima of groups [begin, begin + n) of 4 rows, as [groups][4],
/// where each is a float16 `offset` bytes after its block. Zeros follow, up to
/// `padded` groups.
template <class Format>
HWY_INLINE void LoadHalves(const uint8_t* const* rows, int64_t begin, int64_t n,
                           int64_t padded, int64_t offset, float* to) {
  HWY_ALIGN hwy::float16_t halves[kMostGroups * kQuad];
  for (int64_t i = 0; i < n; ++i) {
    const int64_t at = (begin + i) * Format::kBytes + offset;
    for (int r = 0; r < kQuad; ++r) {
      hwy::CopyBytes<2>(rows[r] + at, halves + i * kQuad + r);
    }
  }
  hwy::ZeroBytes(halves + n * kQuad,
                 static_cast<size_t>(padded - n) * kQuad * sizeof(halves[0]));
  const int64_t step = Lanes<float>();
  const int64_t count = padded * kQuad;
  int64_t i = 0;
  for (; i + step <= count; i += step) Store(Load(halves + i), to + i);
  if (i < count) StoreN(LoadN(halves + i, count - i), to + i, count - i);
}

/// Computes n products of bytes and d; n is a multiple of 8.
template <class T>
HWY_INLINE void ScaleBytes(const T* bytes, int64_t n, float d, float* x) {
  const hn::CappedTag<float, 8> df;
  const hn::Rebind<int32_t, decltype(df)> di;
  const hn::Rebind<T, decltype(df)> db;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  for (int64_t i = 0; i < n; i += lanes) {
    const auto v = hn::PromoteTo(di, hn::LoadU(db, bytes + i));
    hn::StoreU(hn::Mul(hn::ConvertTo(df, v), hn::Set(df, d)), df, x + i);
  }
}

/// Where group g of a row of x is stored.
template <class L>
HWY_INLINE int64_t Place(int64_t g) {
  const int64_t unit = g / L::kGroups;
  const int64_t step = unit / kParts * L::kGroups + g % L::kGroups;
  return step * kParts + unit % kParts;
}

/// Stores floats of 4 rows, kScales for each group, as [groups][4] in the order
/// of x's groups.
template <class L, int kScales>
HWY_INLINE void Interleave(const float (*rows)[kMostGroups * 2], int64_t count,
                           float* to) {
  const hn::FixedTag<float, 4> d;
  const hn::Repartition<uint64_t, decltype(d)> d64;
  for (int64_t i = 0; i < count * kScales; i += 4) {
    const auto a = hn::LoadU(d, rows[0] + i), b = hn::LoadU(d, rows[1] + i);
    const auto c = hn::LoadU(d, rows[2] + i), e = hn::LoadU(d, rows[3] + i);
    const auto ab = hn::BitCast(d64, hn::InterleaveLower(d, a, b));
    const auto ce = hn::BitCast(d64, hn::InterleaveLower(d, c, e));
    const auto ab1 = hn::BitCast(d64, hn::InterleaveUpper(d, a, b));
    const auto ce1 = hn::BitCast(d64, hn::InterleaveUpper(d, c, e));
    const auto store = [&](int64_t at, auto v) HWY_ATTR {
      int64_t place;
      if constexpr (kScales == 1) {
        place = Place<L>(at);
      } else {
        const int64_t group = Place<L>(at / 2);
        place = (group / kParts * 2 + at % 2) * kParts + group % kParts;
      }
      hn::StoreU(hn::BitCast(d, v), d, to + place * 4);
    };
    store(i, hn::InterleaveLower(d64, ab, ce));
    store(i + 1, hn::InterleaveUpper(d64, ab, ce));
    store(i + 2, hn::InterleaveLower(d64, ab1, ce1));
    store(i + 3, hn::InterleaveUpper(d64, ab1, ce1));
  }
}

/// Scales of 4 rows by the scales of one: f(row, scale, minimum).
template <class L, class F>
HWY_INLINE void InterleaveRows(const uint8_t* const* rows, int64_t n,
                               int64_t padded, float* scale, float* minimum,
                               F of_row) {
  HWY_ALIGN float scales[kQuad][kMostGroups * 2];
  HWY_ALIGN float minima[kQuad][kMostGroups * 2];
  for (int r = 0; r < kQuad; ++r) {
    of_row(rows[r], scales[r], minima[r]);
    for (int64_t i = n * L::kScales; i < padded * L::kScales; ++i) {
      scales[r][i] = minima[r][i] = 0;
    }
  }
  Interleave<L, L::kScales>(scales, padded, scale);
  if constexpr (L::kHasMinimum) Interleave<L, 1>(minima, padded, minimum);
}

template <class Format>
struct Layout;

struct LayoutOf32 {
  static constexpr int kGroups = 1, kScales = 1;
};

template <>
struct Layout<Q8_0> : LayoutOf32 {
  static constexpr int kPieces = 2, kBits = 8, kOffset = 128;
  static constexpr bool kHasMinimum = false;

  static HWY_INLINE int64_t Offset(int64_t unit, int p) {
    return unit * Q8_0::kBytes + 2 + 16 * p;
  }
  static HWY_INLINE V8 Expand(const V8* pieces, int, int e) {
    return hn::Xor(pieces[e], hn::Set(D8(), 128));
  }
  static HWY_INLINE void Scales(const uint8_t* const* rows, int64_t begin,
                                int64_t n, int64_t padded, float* scale,
                                float*) {
    LoadHalves<Q8_0>(rows, begin, n, padded, 0, scale);
  }
};

/// The lower or the upper 4 bits of each byte.
HWY_INLINE V8 Nibbles(V8 x, int upper) {
  const hn::Repartition<uint16_t, D8> d16;
  if (upper != 0) {
    x = hn::BitCast(D8(), hn::ShiftRight<4>(hn::BitCast(d16, x)));
  }
  return hn::And(x, hn::Set(D8(), 15));
}

template <>
struct Layout<Q4_0> : LayoutOf32 {
  static constexpr int kPieces = 1, kBits = 4, kOffset = 8;
  static constexpr bool kHasMinimum = false;

  static HWY_INLINE int64_t Offset(int64_t unit, int) {
    return unit * Q4_0::kBytes + 2;
  }
  static HWY_INLINE V8 Expand(const V8* pieces, int, int e) {
    return Nibbles(pieces[0], e);
  }
  static HWY_INLINE void Scales(const uint8_t* const* rows, int64_t begin,
                                int64_t n, int64_t padded, float* scale,
                                float*) {
    LoadHalves<Q4_0>(rows, begin, n, padded, 0, scale);
  }
};

template <>
struct Layout<Q4_1> : LayoutOf32 {
  static constexpr int kPieces = 1, kBits = 4, kOffset = 0;
  static constexpr bool kHasMinimum = true;

  static HWY_INLINE int64_t Offset(int64_t unit, int) {
    return unit * Q4_1::kBytes + 4;
  }
  static HWY_INLINE V8 Expand(const V8* pieces, int, int e) {
    return Nibbles(pieces[0], e);
  }
  static HWY_INLINE void Scales(const uint8_t* const* rows, int64_t begin,
                                int64_t n, int64_t padded, float* scale,
                                float* minimum) {
    LoadHalves<Q4_1>(rows, begin, n, padded, 0, scale);
    LoadHalves<Q4_1>(rows, begin, n, padded, 2, minimum);
  }
};

template <>
struct Layout<Q4_K> {
  static constexpr int kGroups = 2, kScales = 1;
  static constexpr int kPieces = 2, kBits = 4, kOffset = 0;
  static constexpr bool kHasMinimum = true;

  static HWY_INLINE int64_t Offset(int64_t unit, int p) {
    return unit / 4 * Q4_K::kBytes + 16 + unit % 4 * 32 + 16 * p;
  }
  static HWY_INLINE V8 Expand(const V8* pieces, int g, int e) {
    return Nibbles(pieces[e], g);
  }
  static HWY_INLINE void ScalesOfRow(const uint8_t* row, int64_t begin,
                                     int64_t n, float* scale, float* minimum) {
    const uint8_t* block = row + begin / 8 * Q4_K::kBytes;
    for (int64_t i = 0; i < n; i += 8, block += Q4_K::kBytes) {
      const float d = LoadHalf(block), m = -LoadHalf(block + 2);
      // Scale and Minimum of all groups at once.
      uint32_t words[3], bytes[4];
      hwy::CopyBytes<12>(block + 4, words);
      bytes[0] = words[0] & 0x3F3F3F3F;
      bytes[1] = (words[2] & 0x0F0F0F0F) | ((words[0] >> 6 & 0x03030303) << 4);
      bytes[2] = words[1] & 0x3F3F3F3F;
      bytes[3] =
          (words[2] >> 4 & 0x0F0F0F0F) | ((words[1] >> 6 & 0x03030303) << 4);
      uint8_t single[16];
      hwy::CopyBytes<16>(bytes, single);
      ScaleBytes(single, 8, d, scale + i);
      ScaleBytes(single + 8, 8, m, minimum + i);
    }
  }
  static HWY_INLINE void Scales(const uint8_t* const* rows, int64_t begin,
                                int64_t n, int64_t padded, float* scale,
                                float* minimum) {
    InterleaveRows<Layout>(
        rows, n, padded, scale, minimum,
        [&](const uint8_t* row, float* scales, float* minima)
            HWY_ATTR { ScalesOfRow(row, begin, n, scales, minima); });
  }
};

template <>
struct Layout<Q6_K> {
  static constexpr int kGroups = 4, kScales = 2;
  static constexpr int kPieces = 6, kBits = 6, kOffset = 32;
  static constexpr bool kHasMinimum = false;

  static HWY_INLINE int64_t Offset(int64_t unit, int p) {
    const int64_t block = unit / 2 * Q6_K::kBytes;
    return p < 4 ? block + unit % 2 * 64 + p * 16
                 : block + 128 + unit % 2 * 32 + (p - 4) * 16;
  }
  static HWY_INLINE V8 Expand(const V8* pieces, int g, int e) {
    const hn::Repartition<uint16_t, D8> d16;
    auto high = hn::BitCast(d16, pieces[4 + e]);
    if (g == 0) high = hn::ShiftLeft<4>(high);
    if (g == 1) high = hn::ShiftLeft<2>(high);
    if (g == 3) high = hn::ShiftRight<2>(high);
    return hn::Or(Nibbles(pieces[g % 2 * 2 + e], g / 2),
                  hn::And(hn::BitCast(D8(), high), hn::Set(D8(), 48)));
  }
  static HWY_INLINE void ScalesOfRow(const uint8_t* row, int64_t begin,
                                     int64_t n, float* scale, float*) {
    const uint8_t* block = row + begin / 8 * Q6_K::kBytes;
    for (int64_t i = 0; i < n; i += 8, block += Q6_K::kBytes) {
      const float d = LoadHalf(block + 208);
      ScaleBytes(reinterpret_cast<const int8_t*>(block + 192), 16, d,
                 scale + 2 * i);
    }
  }
  static HWY_INLINE void Scales(const uint8_t* const* rows, int64_t begin,
                                int64_t n, int64_t padded, float* scale,
                                float* minimum) {
    InterleaveRows<Layout>(
        rows, n, padded, scale, minimum,
        [&](const uint8_t* row, float* scales, float* minima)
            HWY_ATTR { ScalesOfRow(row, begin, n, scales, minima); });
  }
};

// --- rounding x

template <class T>
void LoadGroup(Row x, int64_t begin, float* y) {
  const auto* p = static_cast<const T*>(x.data) + begin * x.stride;
  for (int64_t i = 0; i < kGroup; ++i) {
    if constexpr (hwy::IsSame<T, hwy::float16_t>()) {
      y[i] = LoadHalf(reinterpret_cast<const uint8_t*>(p + i * x.stride));
    } else if constexpr (hwy::IsSame<T, hwy::bfloat16_t>()) {
      y[i] = hwy::F32FromBF16(p[i * x.stride]);
    } else {
      y[i] = static_cast<float>(p[i * x.stride]);
    }
  }
}

/// Rounds 32 numbers; returns their scale.
HWY_INLINE float RoundGroup(const float* x, int8_t* q) {
  const DF d;
  const DI32 di;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  // The bits without the sign are ordered like the numbers, with NaN at the
  // end.
  auto most_bits = hn::Zero(di);
  for (int64_t i = 0; i < kGroup; i += lanes) {
    const auto bits = hn::BitCast(di, hn::Abs(hn::LoadU(d, x + i)));
    most_bits = hn::Max(most_bits, bits);
  }
  const float most = hwy::BitCastScalar<float>(hn::ReduceMax(di, most_bits));
  const float inverse = 127 / most;
  if (!(inverse > 0 && inverse <= hwy::HighestValue<float>())) {
    for (int64_t i = 0; i < kGroup; ++i) q[i] = 0;
    return most / 127;
  }
  const hn::Rebind<int8_t, DF> d8;
  for (int64_t i = 0; i < kGroup; i += lanes) {
    const auto y = hn::Mul(hn::LoadU(d, x + i), hn::Set(d, inverse));
    hn::StoreU(hn::DemoteTo(d8, hn::NearestInt(y)), d8, q + i);
  }
  return most / 127;
}

HWY_INLINE int32_t SumOf16(const int8_t* q) {
  int32_t sum = 0;
  for (int i = 0; i < 16; ++i) sum += q[i];
  return sum;
}

template <class L>
void RoundRow(Row x, int64_t k, QuantizedLoad load, int64_t row,
              const QuantizedRows& to) {
  int8_t* const all = to.q + row * to.groups * kGroup;
  float* const scales = to.scale + row * to.groups * 4;
  int32_t* const sums = to.sum + row * to.groups * to.sums * 4;
  HWY_ALIGN float numbers[kGroup];
  HWY_ALIGN int8_t q[kGroup];
  for (int64_t g = 0; g < to.groups; ++g) {
    // Groups beyond the last are zeros.
    const bool is_padding = g * kGroup >= k;
    float scale = 0;
    if (is_padding) {
      for (auto& each : q) each = 0;
    } else {
      load(x, g * kGroup, numbers);
      scale = RoundGroup(numbers, q);
    }
    const int64_t place = Place<L>(g), step = place / kParts;
    const int64_t part = place % kParts;
    int8_t* const halves = all + step * kParts * kGroup + part * 16;
    hwy::CopyBytes<16>(q, halves);
    hwy::CopyBytes<16>(q + 16, halves + kBytes);
    const int32_t sum0 = SumOf16(q), sum1 = SumOf16(q + 16);
    for (int r = 0; r < kQuad; ++r) {
      scales[place * 4 + r] = scale;
      if constexpr (L::kHasMinimum) {
        const float sum = scale * static_cast<float>(sum0 + sum1);
        sums[place * 4 + r] = hwy::BitCastScalar<int32_t>(sum);
      } else if constexpr (L::kScales == 1) {
        sums[place * 4 + r] = -L::kOffset * (sum0 + sum1);
      } else {
        int32_t* const of_step = sums + step * kParts * 8 + part * 4;
        of_step[r] = -L::kOffset * sum0;
        of_step[kParts * 4 + r] = -L::kOffset * sum1;
      }
    }
  }
}

// --- unpacking weight

/// What is unpacked of four rows of weight. Vectors come in the order of x's
/// groups: for each step of kParts groups there are two halves of 4 vectors, of
/// 4 columns each.
struct Unpacked {
  uint8_t* q;
  float *scale, *minimum;
};

/// Piece p of units [unit, unit + kParts) of a row; zeros beyond the last.
template <class L, bool kWhole>
HWY_INLINE V8 LoadPieces(const uint8_t* row, int64_t unit, int64_t units,
                         int p) {
  const D8 d;
  const hn::FixedTag<uint8_t, 16> d16;
  const auto at = [&](int j) HWY_ATTR {
    if (!kWhole && unit + j >= units) return hn::Zero(d16);
    return hn::LoadU(d16, row + L::Offset(unit + j, p));
  };
  if constexpr (kParts == 1) {
    return at(0);
  } else if constexpr (kParts == 2) {
    return hn::Combine(d, at(1), at(0));
  } else {
    const hn::Half<D8> half;
    return hn::Combine(d, hn::Combine(half, at(3), at(2)),
                       hn::Combine(half, at(1), at(0)));
  }
}

/// Makes vectors of one column of 4 rows each from rows with 4 columns.
HWY_INLINE void Transpose(const V8* rows, V8* columns) {
  const D8 d;
  const hn::Repartition<uint32_t, D8> d32;
  const hn::Repartition<uint64_t, D8> d64;
  const auto word = [&](int i) HWY_ATTR { return hn::BitCast(d32, rows[i]); };
  const auto long_word = [&](auto v) HWY_ATTR { return hn::BitCast(d64, v); };
  const auto a = long_word(hn::InterleaveLower(d32, word(0), word(1)));
  const auto b = long_word(hn::InterleaveLower(d32, word(2), word(3)));
  const auto c = long_word(hn::InterleaveUpper(d32, word(0), word(1)));
  const auto e = long_word(hn::InterleaveUpper(d32, word(2), word(3)));
  columns[0] = hn::BitCast(d, hn::InterleaveLower(d64, a, b));
  columns[1] = hn::BitCast(d, hn::InterleaveUpper(d64, a, b));
  columns[2] = hn::BitCast(d, hn::InterleaveLower(d64, c, e));
  columns[3] = hn::BitCast(d, hn::InterleaveUpper(d64, c, e));
}

template <class L, bool kWhole>
HWY_INLINE void UnpackUnits(const uint8_t* const* rows, int64_t unit,
                            int64_t units, uint8_t* q) {
  V8 pieces[kQuad][L::kPieces];
  for (int p = 0; p < L::kPieces; ++p) {
    V8 of_rows[kQuad], columns[4];
    for (int r = 0; r < kQuad; ++r) {
      of_rows[r] = LoadPieces<L, kWhole>(rows[r], unit, units, p);
    }
    Transpose(of_rows, columns);
    for (int i = 0; i < 4; ++i) pieces[i][p] = columns[i];
  }
  for (int g = 0; g < L::kGroups; ++g) {
    for (int e = 0; e < 2; ++e) {
      for (int i = 0; i < 4; ++i) {
        hn::StoreU(L::Expand(pieces[i], g, e), D8(), q);
        q += kBytes;
      }
    }
  }
}

/// Unpacks groups [begin, begin + count) of 4 rows, and prefetches what is
/// unpacked next, `next` bytes further on.
template <class L>
HWY_INLINE void Unpack(const uint8_t* const* rows, int64_t begin, int64_t count,
                       int64_t next, const Unpacked& to) {
  // Interleave takes 4 at a time.
  constexpr int64_t kStep = HWY_MAX(4, kParts * L::kGroups);
  const int64_t padded = (count + kStep - 1) / kStep * kStep;
  L::Scales(rows, begin, count, padded, to.scale, to.minimum);
  const int64_t units = (begin + count) / L::kGroups;
  uint8_t* q = to.q;
  for (int64_t unit = begin / L::kGroups; unit < units; unit += kParts) {
    const int64_t bytes = L::Offset(unit + kParts, 0) - L::Offset(unit, 0);
    for (int r = 0; r < kQuad; ++r) {
      const auto at = reinterpret_cast<std::uintptr_t>(rows[r]) +
                      static_cast<std::uintptr_t>(L::Offset(unit, 0) + next);
      for (int64_t i = 0; i < bytes; i += 64) {
        hwy::Prefetch(reinterpret_cast<const uint8_t*>(
            at + static_cast<std::uintptr_t>(i)));
      }
    }
    if (unit + kParts <= units) {
      UnpackUnits<L, true>(rows, unit, units, q);
    } else {
      UnpackUnits<L, false>(rows, unit, units, q);
    }
    q += L::kGroups * 8 * kBytes;
  }
}

// --- products

/// Column i of 4, repeated for each of 4 rows of weight.
template <int i>
HWY_INLINE hn::Vec<DI8> Columns(hn::Vec<DI8> x) {
  const auto words = hn::BitCast(DI32(), x);
  return hn::BitCast(DI8(), hn::Per4LaneBlockShuffle<i, i, i, i>(words));
}

/// Sums of products of bytes of w, of kBits, and of x. Without an instruction
/// that adds 4 products, sums of 16 bits hold those of 8 vectors with 4 bits,
/// or of 2 with 6.
template <int kBits>
struct ByteSums {
#if HWY_TARGET <= HWY_AVX3_DL
  VI32 sum;

  HWY_INLINE void Clear(VI32 start) { sum = start; }
  HWY_INLINE void Add(V8 w, hn::Vec<DI8> x) {
    sum = hn::SumOfMulQuadAccumulate(DI32(), w, x, sum);
  }
  HWY_INLINE void AddTwo(V8 w0, hn::Vec<DI8> x0, V8 w1, hn::Vec<DI8> x1) {
    Add(w0, x0);
    Add(w1, x1);
  }
  HWY_INLINE VI32 Total() const { return sum; }
#else
  VI32 sum;
  VI16 low, high;

  HWY_INLINE void Clear(VI32 start) {
    sum = start;
    low = high = hn::Zero(DI16());
  }
  static HWY_INLINE VI16 Products(V8 w, hn::Vec<DI8> x) {
    return hn::SatWidenMulPairwiseAdd(DI16(), w, x);
  }
  HWY_INLINE void AddTwo(V8 w0, hn::Vec<DI8> x0, V8 w1, hn::Vec<DI8> x1) {
    if constexpr (kBits == 4) {
      low = hn::Add(low, hn::Add(Products(w0, x0), Products(w1, x1)));
    } else if constexpr (kBits == 6) {
      sum =
          hn::Add(sum, Widened(hn::Add(Products(w0, x0), Products(w1, x1)), 1));
    } else {
      low = hn::Add(low, hn::Add(Products(Nibbles(w0, 0), x0),
                                 Products(Nibbles(w1, 0), x1)));
      high = hn::Add(high, hn::Add(Products(Nibbles(w0, 1), x0),
                                   Products(Nibbles(w1, 1), x1)));
    }
  }
  HWY_INLINE VI32 Total() const {
    if constexpr (kBits == 6) return sum;
    const auto lower = hn::Add(sum, Widened(low, 1));
    if constexpr (kBits == 4) return lower;
    return hn::Add(lower, Widened(high, 16));
  }

 private:
  static HWY_INLINE VI32 Widened(VI16 x, int16_t factor) {
    return hn::WidenMulPairwiseAdd(DI32(), x, hn::Set(DI16(), factor));
  }
#endif
};

/// Adds the products of kXs rows of x, `steps` steps from `step` on, and kQs
/// quads to sums.
template <class L, int kXs, int kQs>
HWY_INLINE void Multiply(const QuantizedRows& x, int64_t row, int64_t step,
                         int64_t steps, const Unpacked* weight, float* sums,
                         int64_t sums_stride) {
  const D8 d8;
  const DI8 di8;
  const DI32 di32;
  const DF df;
  VF total[kXs][kQs];
  const int8_t* q[kXs];
  const float* scale[kXs];
  const int32_t* sum[kXs];
  for (int r = 0; r < kXs; ++r) {
    for (int n = 0; n < kQs; ++n) {
      total[r][n] = hn::LoadU(df, sums + r * sums_stride + n * kParts * 4);
    }
    const int64_t first = (row + r) * x.groups + step * kParts;
    q[r] = x.q + first * kGroup;
    scale[r] = x.scale + first * 4;
    sum[r] = x.sum + first * L::kScales * 4;
  }
  for (int64_t s = 0; s < steps; ++s) {
    ByteSums<L::kBits> products[kXs][kQs];
    const auto clear = [&](int e) HWY_ATTR {
      for (int r = 0; r < kXs; ++r) {
        auto start = hn::Zero(di32);
        if constexpr (!L::kHasMinimum) {
          start = hn::LoadU(di32, sum[r] + (s * L::kScales + e) * kParts * 4);
        }
        for (int n = 0; n < kQs; ++n) products[r][n].Clear(start);
      }
    };
    const auto add_half = [&](int e) HWY_ATTR {
      hn::Vec<DI8> v[kXs];
      for (int r = 0; r < kXs; ++r) {
        v[r] = hn::LoadU(di8, q[r] + (s * 2 + e) * kBytes);
      }
      const auto add = [&](int i, auto columns0, auto columns1) HWY_ATTR {
        V8 w0[kQs], w1[kQs];
        for (int n = 0; n < kQs; ++n) {
          const uint8_t* at = weight[n].q + ((s * 2 + e) * 4 + i) * kBytes;
          w0[n] = hn::LoadU(d8, at);
          w1[n] = hn::LoadU(d8, at + kBytes);
        }
        for (int r = 0; r < kXs; ++r) {
          const auto x0 = columns0(v[r]), x1 = columns1(v[r]);
          for (int n = 0; n < kQs; ++n) {
            products[r][n].AddTwo(w0[n], x0, w1[n], x1);
          }
        }
      };
      add(
          0, [](auto all) HWY_ATTR { return Columns<0>(all); },
          [](auto all) HWY_ATTR { return Columns<1>(all); });
      add(
          2, [](auto all) HWY_ATTR { return Columns<2>(all); },
          [](auto all) HWY_ATTR { return Columns<3>(all); });
    };
    const auto add_products = [&](int e) HWY_ATTR {
      for (int r = 0; r < kXs; ++r) {
        const auto of_x = hn::LoadU(df, scale[r] + s * kParts * 4);
        for (int n = 0; n < kQs; ++n) {
          const auto of_w = hn::LoadU(
              df, weight[n].scale + (s * L::kScales + e) * kParts * 4);
          total[r][n] = hn::MulAdd(hn::ConvertTo(df, products[r][n].Total()),
                                   hn::Mul(of_x, of_w), total[r][n]);
        }
      }
    };
    clear(0);
    add_half(0);
    if constexpr (L::kScales == 2) {
      add_products(0);
      clear(1);
    }
    add_half(1);
    add_products(L::kScales - 1);
    if constexpr (L::kHasMinimum) {
      for (int r = 0; r < kXs; ++r) {
        const auto of_x =
            hn::BitCast(df, hn::LoadU(di32, sum[r] + s * kParts * 4));
        for (int n = 0; n < kQs; ++n) {
          const auto minimum =
              hn::LoadU(df, weight[n].minimum + s * kParts * 4);
          total[r][n] = hn::MulAdd(of_x, minimum, total[r][n]);
        }
      }
    }
  }
  for (int r = 0; r < kXs; ++r) {
    for (int n = 0; n < kQs; ++n) {
      hn::StoreU(total[r][n], df, sums + r * sums_stride + n * kParts * 4);
    }
  }
}

template <class L, int kQs>
HWY_INLINE void MultiplyRows(const QuantizedRows& x, int64_t rows, int64_t step,
                             int64_t steps, const Unpacked* weight, float* sums,
                             int64_t stride) {
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) {
    Multiply<L, kRows, kQs>(x, row, step, steps, weight, sums + row * stride,
                            stride);
  }
  for (; row < rows; ++row) {
    Multiply<L, 1, kQs>(x, row, step, steps, weight, sums + row * stride,
                        stride);
  }
}

template <class L>
void MultiplyTile(const QuantizedTile& tile) {
  HWY_ALIGN uint8_t q[kUnpacked];
  constexpr int64_t kScales = kUnpacked / kGroup;
  HWY_ALIGN float scale[kScales * L::kScales];
  HWY_ALIGN float minimum[L::kHasMinimum ? kScales : 1];
  HWY_ALIGN float sums[kPanel * kMostQuads * kParts * 4];
  const int64_t groups = tile.k / kGroup;
  const int64_t quads = tile.quads, stride = quads * kParts * 4;
  const int64_t chunk = quads == 1 ? kMostGroups : kGroupsOfMany;
  for (int64_t i = 0; i < tile.rows * stride; ++i) sums[i] = 0;
  for (int64_t begin = 0; begin < groups; begin += chunk) {
    const int64_t count = HWY_MIN(chunk, groups - begin);
    Unpacked unpacked[kMostQuads];
    for (int64_t n = 0; n < quads; ++n) {
      const uint8_t* rows[kQuad];
      for (int64_t r = 0; r < kQuad; ++r) {
        // Beyond the last row, the last is computed again.
        const int64_t at = HWY_MIN(n * kQuad + r, tile.weight_rows - 1);
        rows[r] = tile.weight + at * tile.weight_stride;
      }
      const int64_t first = n * chunk * kQuad;
      unpacked[n] = {q + first * kGroup, scale + first * L::kScales,
                     minimum + (L::kHasMinimum ? first : 0)};
      // These rows' next columns, or the next rows.
      const int64_t here = L::Offset(begin / L::kGroups, 0);
      const int64_t next =
          quads > 1 ? kQuad * tile.weight_stride
          : begin + chunk < groups
              ? L::Offset((begin + chunk) / L::kGroups, 0) - here
              : kQuad * tile.weight_stride + L::Offset(0, 0) - here;
      Unpack<L>(rows, begin, count, next, unpacked[n]);
    }
    const int64_t step = begin / kParts;
    const int64_t steps =
        (count + kParts * L::kGroups - 1) / (kParts * L::kGroups) * L::kGroups;
    int64_t n = 0;
    for (; n + kQuads <= quads; n += kQuads) {
      MultiplyRows<L, kQuads>(tile.x, tile.rows, step, steps, unpacked + n,
                              sums + n * kParts * 4, stride);
    }
    for (; n < quads; ++n) {
      MultiplyRows<L, 1>(tile.x, tile.rows, step, steps, unpacked + n,
                         sums + n * kParts * 4, stride);
    }
  }
  // The parts of a vector are sums over different blocks.
  for (int64_t i = 0; i < tile.rows * quads; ++i) {
    for (int r = 0; r < kQuad; ++r) {
      float sum = 0;
      for (int j = 0; j < kParts; ++j) sum += sums[(i * kParts + j) * 4 + r];
      tile.y[i * kQuad + r] = sum;
    }
  }
}

template <class Format>
double ExactDot(const double* x, int64_t stride, const uint8_t* weight,
                int64_t k) {
  double sum = 0;
  float numbers[Format::kElements];
  for (int64_t i = 0; i < k; i += Format::kElements) {
    Format::Unpack(weight, numbers);
    weight += Format::kBytes;
    for (int64_t j = 0; j < Format::kElements; ++j) {
      sum += static_cast<double>(numbers[j]) * x[(i + j) * stride];
    }
  }
  return sum;
}

template <class T>
void StoreRow(const float* y, Row bias, MutableRow out, int64_t n) {
  using C = Compute<T>;
  const auto* b = static_cast<const T*>(bias.data);
  auto* to = static_cast<T*>(out.data);
  for (int64_t i = 0; i < n; ++i) {
    auto sum = Pair<C>::Set(static_cast<C>(y[i]));
    if (b != nullptr) sum = sum + LoadN(b + i * bias.stride, 1);
    StoreN(sum, to + i * out.stride, 1);
  }
}

struct KernelsOf {
  template <class Format>
  HWY_INLINE QuantizedKernels operator()(Format) const {
    using L = Layout<Format>;
    return {kParts * L::kGroups, L::kScales, RoundRow<L>, MultiplyTile<L>,
            ExactDot<Format>};
  }
};

QuantizedKernels LinearQuantized(BlockFormat format) {
  return ForFormat(format, KernelsOf());
}

struct DTypeOf {
  template <class T>
  HWY_INLINE QuantizedDType operator()(T) const {
    return {LoadGroup<T>, StoreRow<T>};
  }
};

QuantizedDType LinearDType(DType dtype) { return ForDType(dtype, DTypeOf()); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foo_core {
namespace {

/// The tensors of a call, which have been checked.
struct Call {
  const ConstTensorView& x;
  const ConstTensorView& weight;
  const ConstTensorView* bias;
  const TensorView& out;
  std::int64_t rows, k, n;
  Nest<2> nest;  // of the rows of x and of out

  const std::uint8_t* blocks(std::int64_t row) const {
    return static_cast<const std::uint8_t*>(weight.data) +
           row * weight.strides[0];
  }
};

/// Computes float64 in float64.
void multiply_exactly(const Call& call, const QuantizedKernels& kernels,
                      const CpuThreads& threads) {
  const auto run = [&](std::int64_t begin, std::int64_t end) {
    for (; begin < end; ++begin) {
      const Row bias = row_at(call.bias, begin * stride_of(call.bias, 0));
      const double start =
          bias.data == nullptr ? 0 : *static_cast<const double*>(bias.data);
      Walker<2> at(call.nest, call.nest.ndim, 0);
      for (std::int64_t row = 0; row < call.rows; ++row, at.next()) {
        const Row x = row_at(&call.x, at.offset(0));
        *static_cast<double*>(element_at(
            call.out, at.offset(1) + begin * last_stride(call.out))) =
            start + kernels.exact_dot(static_cast<const double*>(x.data),
                                      x.stride, call.blocks(begin), call.k);
      }
    }
  };
  threads.for_ranges(call.n, call.rows * call.k, run);
}

/// Computes `count` rows from `first` on.
void multiply_panel(const Call& call, std::int64_t first, std::int64_t count,
                    const QuantizedKernels& kernels,
                    const QuantizedRows& rounded, const CpuThreads& threads) {
  const auto of_dtype = FOO_CORE_DISPATCH(LinearDType)(call.x.dtype);
  threads.for_ranges(count, call.k, [&](std::int64_t begin, std::int64_t end) {
    Walker<2> at(call.nest, call.nest.ndim, first + begin);
    for (; begin < end; ++begin) {
      kernels.round(row_at(&call.x, at.offset(0)), call.k, of_dtype.load, begin,
                    rounded);
      if (begin + 1 < end) at.next();
    }
  });
  const int quads = count < kFewRows ? 1 : kMostQuads;
  const std::int64_t columns = quads * kQuad;
  const auto run = [&](std::int64_t begin, std::int64_t end) {
    float y[kPanel * kMostQuads * kQuad];
    for (; begin < end; ++begin) {
      const std::int64_t column = begin * columns;
      const std::int64_t n = std::min(columns, call.n - column);
      kernels.multiply({call.blocks(column), call.weight.strides[0], n, quads,
                        rounded, count, call.k, y});
      const Row bias = row_at(call.bias, column * stride_of(call.bias, 0));
      Walker<2> at(call.nest, call.nest.ndim, first);
      for (std::int64_t row = 0; row < count; ++row) {
        const MutableRow out =
            row_at(&call.out, at.offset(1) + column * last_stride(call.out));
        of_dtype.store(y + row * columns, {bias.data, stride_of(call.bias, 0)},
                       out, n);
        if (row + 1 < count) at.next();
      }
    }
  };
  const std::int64_t work = std::min(call.k, kGrain) * columns * count;
  threads.for_ranges((call.n + columns - 1) / columns, work, run);
}

}  // namespace

std::int64_t linear_quantized_scratch_size(const ConstTensorView& x,
                                           const Executor& executor) noexcept {
  if (executor.device == Device::kCuda || !has_rows(x) ||
      x.dtype == DType::kFloat64 || last_size(x) < kGroup) {
    return 0;
  }
  return std::min(count_rows(x), kPanel) *
         (last_size(x) / kGroup + kMostPadding) * kGroupBytes;
}

void linear_quantized(const ConstTensorView& x, const ConstTensorView& weight,
                      BlockFormat format, const ConstTensorView* bias,
                      const TensorView& out, void* scratch,
                      const Executor& executor) {
  const char* op = "linear_quantized";
  const Argument arg_x{"x", x}, arg_weight{"weight", weight},
      arg_bias{"bias", bias}, arg_out{"out", out};
  check_has_rows(op, arg_x);
  const std::int64_t k = last_size(x);
  const std::int64_t bytes =
      count_blocks(op, arg_x, format) * block_bytes(format);
  check_tensor(op, arg_weight, DType::kUInt8);
  if (weight.ndim != 2 || weight.sizes[1] != bytes) {
    fail(op, "weight has shape " + shape_text(weight.ndim, weight.sizes) +
                 ", expected (n, " + std::to_string(bytes) +
                 "), as x's last dimension is " + std::to_string(k) +
                 " and the format is " + name(format));
  }
  check_contiguous_rows(op, arg_weight);
  const std::int64_t n = weight.sizes[0];
  check_product(op, arg_x, n, arg_bias, arg_out);
  const Scratch memory(op, scratch, linear_quantized_scratch_size(x, executor));
  check_output(op, arg_out, {},
               {&arg_x, &arg_weight, &arg_bias, &memory.argument()});
  check_output(op, memory.argument(), {}, {&arg_x, &arg_weight, &arg_bias});
  if constexpr (cuda::kBuilt) {
    if (on_cuda(executor)) {
      return cuda::linear_quantized(x, weight, format, bias, out,
                                    executor.stream);
    }
  }
  const CpuThreads threads(op, executor);
  const std::int64_t rows = count_rows(x);
  if (rows == 0 || n == 0) return;

  const Call call{x, weight, bias, out, rows, k, n, nest_of_rows(x, x, out)};
  const auto kernels = FOO_CORE_DISPATCH(LinearQuantized)(format);
  if (x.dtype == DType::kFloat64) {
    return multiply_exactly(call, kernels, threads);
  }
  QuantizedRows rounded;
  rounded.sums = kernels.sums;
  rounded.groups =
      (k / kGroup + kernels.step - 1) / kernels.step * kernels.step;
  const std::int64_t groups = std::min(rows, kPanel) * rounded.groups;
  rounded.q = static_cast<std::int8_t*>(scratch);
  rounded.scale = reinterpret_cast<float*>(rounded.q + groups * kGroup);
  rounded.sum = reinterpret_cast<std::int32_t*>(rounded.scale + groups * 4);
  for (std::int64_t first = 0; first < rows; first += kPanel) {
    multiply_panel(call, first, std::min(kPanel, rows - first), kernels,
                   rounded, threads);
  }
}

}  // namespace foo_core
#endif  // HWY_ONCE
