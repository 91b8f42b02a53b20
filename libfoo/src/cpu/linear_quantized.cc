// x weight^T + bias, where weight holds blocks of a few bits per number.
//
// x is rounded to 8 bits first, so that products are those of bytes. A vector
// of weight is 4 columns of each of kColumns rows, because instructions for
// bytes add 4 products; so is a vector of sums, a float for each row, and
// nothing is ever added across a vector. x needs no order of its own: 4 of its
// columns are repeated for all rows. Rows of weight are transposed as they are
// unpacked, 16 bytes at a time, which is what instructions shuffle among.
//
// With few rows of x, reading weight takes the time. Its bytes stay in
// registers then, and are prefetched, because the hardware's prefetchers do not
// follow many short rows at once. With many, they are unpacked to a buffer in
// the L1 cache once for all rows of x.
#define FOO_CORE_MORE_TARGETS HWY_AVX3_DL

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>

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
constexpr int kQuad = 4;             // rows of weight that are transposed

/// Rows of x at a time; their sums stay in the L1 cache.
constexpr std::int64_t kPanel = 64;

/// The most rows of weight in a tile, those of two vectors of 64 bytes.
constexpr std::int64_t kMostColumns = 32;

/// The bytes of weight that are unpacked at a time for many rows of x.
constexpr std::int64_t kUnpacked = 16384;

/// How far ahead weight is prefetched for few rows of x, in bytes: more than
/// memory delivers in the time in which it answers.
constexpr std::int64_t kAhead = 24576;

/// A group of x in 8 bits.
struct QuantizedGroup {
  std::int8_t q[kGroup];
  float scale;
  float sum;              // of scale * q
  std::int32_t start[2];  // what the offset of weight's numbers adds to sums
                          // of products: of a group, or of its halves
};

/// A tile: rows of weight and a panel of x.
struct QuantizedTile {
  const std::uint8_t* weight;  // the first row
  std::int64_t stride;         // 0 if weight has fewer than kQuad rows
  std::int64_t left;           // rows of weight from the first on
  const QuantizedGroup* x;     // [rows][k / kGroup]
  std::int64_t rows, k;
  float* y;  // [rows][columns]
};

/// Brings a group of x, from column `begin` on, to float.
using QuantizedLoad = void (*)(Row x, std::int64_t begin, float* y);

struct QuantizedKernels {
  std::int64_t columns;  // rows of weight in a tile
  void (*round)(Row x, std::int64_t k, QuantizedLoad load, QuantizedGroup* to);
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
using DU32 = hn::ScalableTag<uint32_t>;
using DF = hn::ScalableTag<float>;
using V8 = hn::Vec<D8>;
using VI8 = hn::Vec<DI8>;
using VI16 = hn::Vec<DI16>;
using VI32 = hn::Vec<DI32>;
using VU32 = hn::Vec<DU32>;
using VF = hn::Vec<DF>;

constexpr int kBytes = hn::MaxLanes(D8());  // of a vector
constexpr int kParts = kBytes / 16;         // each of kQuad rows
constexpr int kColumns = kParts * kQuad;    // of y, rows of weight

/// Rows of x for which weight is not unpacked to a buffer.
constexpr int kFewRows = HWY_TARGET <= HWY_AVX2 ? 8 : 4;

/// Rows of x at a time, and vectors of weight for each, with a buffer: what
/// registers hold.
constexpr int kRows = HWY_TARGET <= HWY_AVX3 ? 4 : 2;
constexpr int kVectors = 2;
static_assert(kVectors * kColumns <= kMostColumns);

// --- rows of weight and their transposition

/// kColumns rows of weight.
struct WeightRows {
  const uint8_t* quads[kParts];  // the first rows
  int64_t stride;

  /// Rows of a tile from `first` on. The last quad of weight begins where 4
  /// rows are left.
  HWY_INLINE WeightRows(const QuantizedTile& tile, int64_t first)
      : stride(tile.stride) {
    for (int j = 0; j < kParts; ++j) {
      const int64_t at = HWY_MIN(first + j * kQuad, tile.left - kQuad);
      quads[j] = tile.weight + at * stride;
    }
  }

  HWY_INLINE void Advance(int64_t bytes) {
    for (auto& each : quads) each += bytes;
  }

  /// Loads 16 bytes of each row and makes vectors of 4 bytes of each.
  HWY_INLINE void LoadColumns(int64_t offset, V8 (&columns)[4]) const {
    const D8 d;
    const hn::Repartition<uint64_t, D8> d64;
    VU32 rows[kQuad];
    for (int r = 0; r < kQuad; ++r) {
      rows[r] = hn::BitCast(DU32(), LoadRow(r * stride + offset));
    }
    const auto long_word = [&](auto v) HWY_ATTR { return hn::BitCast(d64, v); };
    const auto a = long_word(hn::InterleaveLower(DU32(), rows[0], rows[1]));
    const auto b = long_word(hn::InterleaveLower(DU32(), rows[2], rows[3]));
    const auto c = long_word(hn::InterleaveUpper(DU32(), rows[0], rows[1]));
    const auto e = long_word(hn::InterleaveUpper(DU32(), rows[2], rows[3]));
    columns[0] = hn::BitCast(d, hn::InterleaveLower(d64, a, b));
    columns[1] = hn::BitCast(d, hn::InterleaveUpper(d64, a, b));
    columns[2] = hn::BitCast(d, hn::InterleaveLower(d64, c, e));
    columns[3] = hn::BitCast(d, hn::InterleaveUpper(d64, c, e));
  }

  /// LoadColumns for words.
  HWY_INLINE void LoadWords(int64_t offset, VU32 (&words)[4]) const {
    V8 columns[4];
    LoadColumns(offset, columns);
    for (int i = 0; i < 4; ++i) words[i] = hn::BitCast(DU32(), columns[i]);
  }

 private:
  HWY_INLINE V8 LoadRow(int64_t offset) const {
    const hn::FixedTag<uint8_t, 16> d16;
    return Join([&](int j)
                    HWY_ATTR { return hn::LoadU(d16, quads[j] + offset); });
  }

  /// The parts of a vector, one after the other.
  template <class F>
  static HWY_INLINE V8 Join(F part) {
    const D8 d;
    if constexpr (kParts == 1) {
      return part(0);
    } else if constexpr (kParts == 2) {
      return hn::Combine(d, part(1), part(0));
    } else {
      const hn::Half<D8> half;
      return hn::Combine(d, hn::Combine(half, part(3), part(2)),
                         hn::Combine(half, part(1), part(0)));
    }
  }
};

/// Prefetches rows of `row_bytes` bytes in the order in which they are used,
/// `ahead` bytes of each row ahead. After them, `next` bytes further on, come
/// the rows that are used next. A CPU has few misses under way at a time, so
/// the quads' lines are spread over the bytes of a line.
class Prefetcher {
 public:
  HWY_INLINE Prefetcher(const WeightRows& rows, int64_t row_bytes,
                        int64_t ahead, int64_t next)
      : rows_(rows),
        row_bytes_(HWY_MAX(row_bytes, 1)),  // a row may be empty
        next_(next),
        shift_(ahead / row_bytes_ * next),
        end_(ahead % row_bytes_),
        line_(end_ / kLine * kLine),
        quad_(end_ % kLine / kSpread) {}

  /// Says that `bytes` more of each row are used.
  HWY_INLINE void Advance(int64_t bytes) {
    end_ += bytes;
    while (line_ + quad_ * kSpread < end_) {
      // Past the end of the matrix in the end, where no pointer may point.
      auto at = reinterpret_cast<std::uintptr_t>(rows_.quads[quad_]) +
                static_cast<std::uintptr_t>(shift_ + line_);
      for (int r = 0; r < kQuad; ++r) {
        hwy::Prefetch(reinterpret_cast<const uint8_t*>(at));
        at += static_cast<std::uintptr_t>(rows_.stride);
      }
      if (++quad_ < kParts) continue;
      quad_ = 0;
      line_ += kLine;
      if (line_ < row_bytes_) continue;
      line_ = 0;
      end_ -= row_bytes_;
      shift_ += next_;
    }
  }

 private:
  static constexpr int64_t kLine = 64, kSpread = kLine / kParts;

  const WeightRows rows_;
  const int64_t row_bytes_, next_;
  int64_t shift_;       // from rows_ to those that are prefetched
  int64_t end_, line_;  // the bytes of a row to prefetch, and the line
  int64_t quad_;        // that is next
};

// --- formats: how the bytes of a row become vectors

// A block has kUnits units of kGroups groups that share bytes, in pieces of 16.
// Piece p of unit u begins Offset(u, p) bytes after its block. Expand makes
// half e of group g of a unit, in kBits without a sign: the number plus
// kOffset, unless kHasMinimum. Scales computes the scales of a block, kScales
// for each group, and the minima of its groups.

/// The float16 in the lower half of each word.
HWY_INLINE VF LowerHalves(VU32 words) {
#if HWY_TARGET == HWY_SSE2 || HWY_TARGET == HWY_SSE4
  return PromoteFloat16(hn::And(words, hn::Set(DU32(), 0xFFFF)));
#else
  const hn::Rebind<uint16_t, DF> d16;
  const hn::Rebind<hwy::float16_t, DF> dh;
  return hn::PromoteTo(DF(), hn::BitCast(dh, hn::TruncateTo(d16, words)));
#endif
}

HWY_INLINE VF UpperHalves(VU32 words) {
  return LowerHalves(hn::ShiftRight<16>(words));
}

/// Bits [first, first + bits) of each word.
template <int first, int bits>
HWY_INLINE VU32 Bits(VU32 words) {
  return hn::And(hn::ShiftRight<first>(words),
                 hn::Set(DU32(), (uint32_t{1} << bits) - 1));
}

HWY_INLINE VF ToFloat(VU32 words) {
  return hn::ConvertTo(DF(), hn::BitCast(DI32(), words));
}

template <class Format>
struct Layout;

/// Blocks of one group that begin with a float16 scale.
template <class Format>
struct LayoutOf32 {
  static constexpr int kBlock = Format::kBytes;
  static constexpr int kUnits = 1, kGroups = 1, kScales = 1;
  static constexpr bool kHasMinimum = false;

  static HWY_INLINE void Scales(const WeightRows& rows, VF* scale, VF*) {
    VU32 words[4];
    rows.LoadWords(0, words);
    scale[0] = LowerHalves(words[0]);
  }
};

template <>
struct Layout<Q8_0> : LayoutOf32<Q8_0> {
  static constexpr int kPieces = 2, kBits = 8, kOffset = 128;

  static constexpr int64_t Offset(int, int p) { return 2 + 16 * p; }
  template <int g, int e>
  static HWY_INLINE V8 Expand(const V8* pieces) {
    return hn::Xor(pieces[e], hn::Set(D8(), 128));
  }
};

/// The lower or the upper 4 bits of each byte.
template <int upper>
HWY_INLINE V8 Nibbles(V8 x) {
  const hn::Repartition<uint16_t, D8> d16;
  if constexpr (upper != 0) {
    x = hn::BitCast(D8(), hn::ShiftRight<4>(hn::BitCast(d16, x)));
  }
  return hn::And(x, hn::Set(D8(), 15));
}

template <>
struct Layout<Q4_0> : LayoutOf32<Q4_0> {
  static constexpr int kPieces = 1, kBits = 4, kOffset = 8;

  static constexpr int64_t Offset(int, int) { return 2; }
  template <int g, int e>
  static HWY_INLINE V8 Expand(const V8* pieces) {
    return Nibbles<e>(pieces[0]);
  }
};

template <>
struct Layout<Q4_1> : LayoutOf32<Q4_1> {
  static constexpr int kPieces = 1, kBits = 4, kOffset = 0;
  static constexpr bool kHasMinimum = true;

  static constexpr int64_t Offset(int, int) { return 4; }
  template <int g, int e>
  static HWY_INLINE V8 Expand(const V8* pieces) {
    return Nibbles<e>(pieces[0]);
  }
  static HWY_INLINE void Scales(const WeightRows& rows, VF* scale,
                                VF* minimum) {
    VU32 words[4];
    rows.LoadWords(0, words);
    scale[0] = LowerHalves(words[0]);
    minimum[0] = UpperHalves(words[0]);
  }
};

template <>
struct Layout<Q4_K> {
  static constexpr int kBlock = Q4_K::kBytes;
  static constexpr int kUnits = 4, kGroups = 2, kScales = 1;
  static constexpr int kPieces = 2, kBits = 4, kOffset = 0;
  static constexpr bool kHasMinimum = true;

  static constexpr int64_t Offset(int unit, int p) {
    return 16 + unit * 32 + 16 * p;
  }
  template <int g, int e>
  static HWY_INLINE V8 Expand(const V8* pieces) {
    return Nibbles<g>(pieces[e]);
  }
  static HWY_INLINE void Scales(const WeightRows& rows, VF* scale,
                                VF* minimum) {
    VU32 words[4];
    rows.LoadWords(0, words);
    const VF d = LowerHalves(words[0]), m = hn::Neg(UpperHalves(words[0]));
    // Scale and Minimum of groups i and 4 + i.
    const auto of_byte = [&](auto byte) HWY_ATTR {
      constexpr int i = byte, first = 8 * i;
      const auto product = [](VF of_block, VU32 number) HWY_ATTR {
        return hn::Mul(of_block, ToFloat(number));
      };
      scale[i] = product(d, Bits<first, 6>(words[1]));
      minimum[i] = product(m, Bits<first, 6>(words[2]));
      scale[4 + i] =
          product(d, hn::Or(Bits<first, 4>(words[3]),
                            hn::ShiftLeft<4>(Bits<first + 6, 2>(words[1]))));
      minimum[4 + i] =
          product(m, hn::Or(Bits<first + 4, 4>(words[3]),
                            hn::ShiftLeft<4>(Bits<first + 6, 2>(words[2]))));
    };
    of_byte(std::integral_constant<int, 0>());
    of_byte(std::integral_constant<int, 1>());
    of_byte(std::integral_constant<int, 2>());
    of_byte(std::integral_constant<int, 3>());
  }
};

template <>
struct Layout<Q6_K> {
  static constexpr int kBlock = Q6_K::kBytes;
  static constexpr int kUnits = 2, kGroups = 4, kScales = 2;
  static constexpr int kPieces = 6, kBits = 6, kOffset = 32;
  static constexpr bool kHasMinimum = false;

  static constexpr int64_t Offset(int unit, int p) {
    return p < 4 ? unit * 64 + p * 16 : 128 + unit * 32 + (p - 4) * 16;
  }
  template <int g, int e>
  static HWY_INLINE V8 Expand(const V8* pieces) {
    const hn::Repartition<uint16_t, D8> d16;
    auto high = hn::BitCast(d16, pieces[4 + e]);
    if constexpr (g == 0) high = hn::ShiftLeft<4>(high);
    if constexpr (g == 1) high = hn::ShiftLeft<2>(high);
    if constexpr (g == 3) high = hn::ShiftRight<2>(high);
    return hn::Or(Nibbles<g / 2>(pieces[g % 2 * 2 + e]),
                  hn::And(hn::BitCast(D8(), high), hn::Set(D8(), 48)));
  }
  static HWY_INLINE void Scales(const WeightRows& rows, VF* scale, VF*) {
    VU32 words[4], last[4];
    rows.LoadWords(192, words);
    rows.LoadWords(194, last);
    const VF d = UpperHalves(last[3]);
    for (int i = 0; i < 4; ++i) {
      const auto bytes = hn::BitCast(DI32(), words[i]);
      const auto product = [&](VI32 upper) HWY_ATTR {
        return hn::Mul(d, hn::ConvertTo(DF(), hn::ShiftRight<24>(upper)));
      };
      scale[4 * i] = product(hn::ShiftLeft<24>(bytes));
      scale[4 * i + 1] = product(hn::ShiftLeft<16>(bytes));
      scale[4 * i + 2] = product(hn::ShiftLeft<8>(bytes));
      scale[4 * i + 3] = product(bytes);
    }
  }
};

/// Calls f(g) for the groups of a unit, each a constant.
template <class L, class F>
HWY_INLINE void ForGroups(F f) {
  f(std::integral_constant<int, 0>());
  if constexpr (L::kGroups > 1) f(std::integral_constant<int, 1>());
  if constexpr (L::kGroups > 2) {
    f(std::integral_constant<int, 2>());
    f(std::integral_constant<int, 3>());
  }
}

/// The pieces of a unit of kColumns rows, of 4 columns each.
template <class L>
HWY_INLINE void LoadPieces(const WeightRows& rows, int unit,
                           V8 (&pieces)[4][L::kPieces]) {
  for (int p = 0; p < L::kPieces; ++p) {
    V8 columns[4];
    rows.LoadColumns(L::Offset(unit, p), columns);
    for (int i = 0; i < 4; ++i) pieces[i][p] = columns[i];
  }
}

// --- rounding x

template <class T>
void LoadGroup(Row x, int64_t begin, float* y) {
  const auto* p = static_cast<const T*>(x.data) + begin * x.stride;
  const auto load = [&](int64_t stride) HWY_ATTR {
    for (int64_t i = 0; i < kGroup; ++i) {
      if constexpr (hwy::IsSame<T, hwy::float16_t>()) {
        y[i] = LoadHalf(reinterpret_cast<const uint8_t*>(p + i * stride));
      } else if constexpr (hwy::IsSame<T, hwy::bfloat16_t>()) {
        y[i] = hwy::F32FromBF16(p[i * stride]);
      } else {
        y[i] = static_cast<float>(p[i * stride]);
      }
    }
  };
  // The compiler makes vectors of this.
  if (x.stride == 1) return load(1);
  load(x.stride);
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
  const hn::FixedTag<int8_t, 16> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  const hn::Repartition<uint64_t, decltype(d)> d64;
  // There are sums of bytes without a sign.
  const auto shifted =
      hn::BitCast(du, hn::Xor(hn::LoadU(d, q), hn::Set(d, -128)));
  const auto sum = hn::ReduceSum(d64, hn::SumsOf8(shifted));
  return static_cast<int32_t>(sum) - 16 * 128;
}

template <class L>
void RoundRow(Row x, int64_t k, QuantizedLoad load, QuantizedGroup* to) {
  HWY_ALIGN float numbers[kGroup];
  for (int64_t begin = 0; begin < k; begin += kGroup, ++to) {
    load(x, begin, numbers);
    to->scale = RoundGroup(numbers, to->q);
    const int32_t sum0 = SumOf16(to->q), sum1 = SumOf16(to->q + 16);
    to->sum = to->scale * static_cast<float>(sum0 + sum1);
    if constexpr (!L::kHasMinimum) {
      to->start[0] = -L::kOffset * (L::kScales == 1 ? sum0 + sum1 : sum0);
      to->start[1] = -L::kOffset * sum1;
    }
  }
}

// --- products

/// Sums of products of bytes of w, of kBits, and of x. Without an instruction
/// that adds 4 products, sums of 16 bits hold those of 8 vectors with 4 bits,
/// or of 2 with 6.
template <int kBits>
struct ByteSums {
#if HWY_TARGET <= HWY_AVX3_DL
  VI32 sum;

  HWY_INLINE void Clear(VI32 start) { sum = start; }
  HWY_INLINE void AddTwo(V8 w0, VI8 x0, V8 w1, VI8 x1) {
    sum = hn::SumOfMulQuadAccumulate(DI32(), w0, x0, sum);
    sum = hn::SumOfMulQuadAccumulate(DI32(), w1, x1, sum);
  }
  HWY_INLINE VI32 Total() const { return sum; }
#else
  VI32 sum;
  VI16 low, high;

  HWY_INLINE void Clear(VI32 start) {
    sum = start;
    low = high = hn::Zero(DI16());
  }
  static HWY_INLINE VI16 Products(V8 w, VI8 x) {
    return hn::SatWidenMulPairwiseAdd(DI16(), w, x);
  }
  HWY_INLINE void AddTwo(V8 w0, VI8 x0, V8 w1, VI8 x1) {
    if constexpr (kBits == 4) {
      low = hn::Add(low, hn::Add(Products(w0, x0), Products(w1, x1)));
    } else if constexpr (kBits == 6) {
      sum =
          hn::Add(sum, Widened(hn::Add(Products(w0, x0), Products(w1, x1)), 1));
    } else {
      low = hn::Add(low, hn::Add(Products(Nibbles<0>(w0), x0),
                                 Products(Nibbles<0>(w1), x1)));
      high = hn::Add(high, hn::Add(Products(Nibbles<1>(w0), x0),
                                   Products(Nibbles<1>(w1), x1)));
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

/// Column i of 4 columns of x, repeated for all rows of weight.
template <int i>
HWY_INLINE VI8 Repeat(const int8_t* columns) {
  if constexpr (kParts == 1) {  // SSE shuffles what it repeats.
    const auto words = hn::BitCast(DI32(), hn::LoadU(DI8(), columns));
    return hn::BitCast(DI8(), hn::Per4LaneBlockShuffle<i, i, i, i>(words));
  } else {
    int32_t word;
    hwy::CopyBytes<4>(columns + i * 4, &word);
    return hn::BitCast(DI8(), hn::Set(DI32(), word));
  }
}

/// Adds the products of a group of kXs rows of x, `stride` groups apart, and of
/// kVs vectors of rows of weight to total. column(n, e, i) is vector n's column
/// i of half e.
template <class L, int kXs, int kVs, class F>
HWY_INLINE void MultiplyGroup(const QuantizedGroup* x, int64_t stride, F column,
                              const VF* const* scale, const VF* const* minimum,
                              VF (&total)[kXs][kVs]) {
  const DF df;
  ByteSums<L::kBits> products[kXs][kVs];
  const auto clear = [&](int e) HWY_ATTR {
    for (int r = 0; r < kXs; ++r) {
      auto start = hn::Zero(DI32());
      if constexpr (!L::kHasMinimum) {
        start = hn::Set(DI32(), x[r * stride].start[e]);
      }
      for (int n = 0; n < kVs; ++n) products[r][n].Clear(start);
    }
  };
  const auto add_half = [&](auto e) HWY_ATTR {
    const auto add_two = [&](auto i) HWY_ATTR {
      V8 w0[kVs], w1[kVs];
      for (int n = 0; n < kVs; ++n) {
        w0[n] = column(n, e, i);
        w1[n] = column(n, e, i + 1);
      }
      for (int r = 0; r < kXs; ++r) {
        const int8_t* half = x[r * stride].q + e * 16;
        const auto x0 = Repeat<i>(half), x1 = Repeat<i + 1>(half);
        for (int n = 0; n < kVs; ++n) {
          products[r][n].AddTwo(w0[n], x0, w1[n], x1);
        }
      }
    };
    add_two(std::integral_constant<int, 0>());
    add_two(std::integral_constant<int, 2>());
  };
  const auto add_products = [&](int e) HWY_ATTR {
    for (int r = 0; r < kXs; ++r) {
      const auto of_x = hn::Set(df, x[r * stride].scale);
      for (int n = 0; n < kVs; ++n) {
        total[r][n] = hn::MulAdd(hn::ConvertTo(df, products[r][n].Total()),
                                 hn::Mul(of_x, scale[n][e]), total[r][n]);
      }
    }
  };
  clear(0);
  add_half(std::integral_constant<int, 0>());
  if constexpr (L::kScales == 2) {
    add_products(0);
    clear(1);
  }
  add_half(std::integral_constant<int, 1>());
  add_products(L::kScales - 1);
  if constexpr (L::kHasMinimum) {
    for (int r = 0; r < kXs; ++r) {
      const auto of_x = hn::Set(df, x[r * stride].sum);
      for (int n = 0; n < kVs; ++n) {
        total[r][n] = hn::MulAdd(of_x, minimum[n][0], total[r][n]);
      }
    }
  }
}

// --- few rows of x

/// Computes y of kXs rows of x and kColumns rows of weight.
template <class L, int kXs>
HWY_INLINE void MultiplyRows(const QuantizedGroup* x, int64_t groups,
                             WeightRows rows, float* y, int64_t y_stride) {
  VF total[kXs][1];
  for (auto& each : total) each[0] = hn::Zero(DF());
  constexpr int kGroupsOfBlock = L::kUnits * L::kGroups;
  const int64_t blocks = groups / kGroupsOfBlock;
  Prefetcher prefetcher(rows, blocks * L::kBlock, kAhead / kColumns,
                        kColumns * rows.stride);
  for (int64_t block = 0; block < blocks; ++block) {
    VF scales[kGroupsOfBlock * L::kScales], minima[kGroupsOfBlock];
    L::Scales(rows, scales, minima);
    for (int unit = 0; unit < L::kUnits; ++unit) {
      prefetcher.Advance(L::kBlock / L::kUnits);
      V8 pieces[4][L::kPieces];
      LoadPieces<L>(rows, unit, pieces);
      ForGroups<L>([&](auto g) HWY_ATTR {
        const auto column = [&](int, auto e, int i) HWY_ATTR {
          return L::template Expand<g, e>(pieces[i]);
        };
        const int at = unit * L::kGroups + g;
        const VF *scale = scales + at * L::kScales, *minimum = minima + at;
        MultiplyGroup<L, kXs, 1>(x, groups, column, &scale, &minimum, total);
        ++x;
      });
    }
    rows.Advance(L::kBlock);
  }
  for (int r = 0; r < kXs; ++r) {
    hn::StoreU(total[r][0], DF(), y + r * y_stride);
  }
}

/// Computes y of up to kMost rows of x.
template <class L, int kMost>
HWY_INLINE void MultiplyFewRows(const QuantizedTile& tile) {
  if constexpr (kMost > 1) {
    if (tile.rows < kMost) return MultiplyFewRows<L, kMost - 1>(tile);
  }
  constexpr int64_t kStride = kVectors * kColumns;
  for (int64_t n = 0; n < kStride && n < tile.left; n += kColumns) {
    MultiplyRows<L, kMost>(tile.x, tile.k / kGroup, WeightRows(tile, n),
                           tile.y + n, kStride);
  }
}

// --- many rows of x

/// What is unpacked of kColumns rows of weight: for each group two halves of 4
/// vectors, of 4 columns each.
struct Unpacked {
  uint8_t* q;
  VF *scale, *minimum;
};

/// Unpacks `blocks` blocks of rows.
template <class L>
HWY_INLINE void Unpack(WeightRows& rows, int64_t blocks, Prefetcher& prefetcher,
                       Unpacked to) {
  for (int64_t block = 0; block < blocks; ++block) {
    L::Scales(rows, to.scale, to.minimum);
    for (int unit = 0; unit < L::kUnits; ++unit) {
      prefetcher.Advance(L::kBlock / L::kUnits);
      V8 pieces[4][L::kPieces];
      LoadPieces<L>(rows, unit, pieces);
      ForGroups<L>([&](auto g) HWY_ATTR {
        for (int i = 0; i < 4; ++i) {
          hn::StoreU(L::template Expand<g, 0>(pieces[i]), D8(),
                     to.q + i * kBytes);
          hn::StoreU(L::template Expand<g, 1>(pieces[i]), D8(),
                     to.q + (4 + i) * kBytes);
        }
        to.q += 8 * kBytes;
      });
    }
    to.scale += L::kUnits * L::kGroups * L::kScales;
    if constexpr (L::kHasMinimum) to.minimum += L::kUnits * L::kGroups;
    rows.Advance(L::kBlock);
  }
}

/// Adds the products of `count` groups of kXs rows of x and of what is unpacked
/// to y.
template <class L, int kXs>
HWY_INLINE void Multiply(const QuantizedGroup* x, int64_t groups, int64_t count,
                         const Unpacked* weight, float* y) {
  const DF df;
  VF total[kXs][kVectors];
  for (int r = 0; r < kXs; ++r) {
    for (int n = 0; n < kVectors; ++n) {
      total[r][n] = hn::LoadU(df, y + (r * kVectors + n) * kColumns);
    }
  }
  for (int64_t g = 0; g < count; ++g) {
    const VF *scale[kVectors], *minimum[kVectors];
    for (int n = 0; n < kVectors; ++n) {
      scale[n] = weight[n].scale + g * L::kScales;
      minimum[n] = weight[n].minimum + (L::kHasMinimum ? g : 0);
    }
    const auto column = [&](int n, int e, int i) HWY_ATTR {
      return hn::LoadU(D8(), weight[n].q + ((g * 2 + e) * 4 + i) * kBytes);
    };
    MultiplyGroup<L, kXs, kVectors>(x + g, groups, column, scale, minimum,
                                    total);
  }
  for (int r = 0; r < kXs; ++r) {
    for (int n = 0; n < kVectors; ++n) {
      hn::StoreU(total[r][n], df, y + (r * kVectors + n) * kColumns);
    }
  }
}

template <class L>
HWY_INLINE void MultiplyManyRows(const QuantizedTile& tile) {
  constexpr int64_t kChunk = kUnpacked / (kVectors * kColumns * kGroup);
  constexpr int kGroupsOfBlock = L::kUnits * L::kGroups;
  static_assert(kChunk % kGroupsOfBlock == 0);
  constexpr int64_t kMinima = L::kHasMinimum ? kChunk : 1;
  HWY_ALIGN uint8_t q[kUnpacked];
  VF scale[kVectors][kChunk * L::kScales], minimum[kVectors][kMinima];
  const int64_t groups = tile.k / kGroup;
  WeightRows rows[] = {{tile, 0}, {tile, kColumns}};
  static_assert(kVectors == 2);
  const auto prefetcher = [&](const WeightRows& of) HWY_ATTR {
    return Prefetcher(of, groups / kGroupsOfBlock * L::kBlock,
                      kChunk / kGroupsOfBlock * L::kBlock,
                      kVectors * kColumns * of.stride);
  };
  Prefetcher prefetchers[] = {prefetcher(rows[0]), prefetcher(rows[1])};
  for (int64_t i = 0; i < tile.rows * kVectors * kColumns; ++i) tile.y[i] = 0;
  for (int64_t begin = 0; begin < groups; begin += kChunk) {
    const int64_t count = HWY_MIN(kChunk, groups - begin);
    Unpacked unpacked[kVectors];
    for (int n = 0; n < kVectors; ++n) {
      unpacked[n] = {q + n * kChunk * kColumns * kGroup, scale[n], minimum[n]};
      Unpack<L>(rows[n], count / kGroupsOfBlock, prefetchers[n], unpacked[n]);
    }
    int64_t row = 0;
    const auto multiply = [&](auto xs) HWY_ATTR {
      for (; row + xs <= tile.rows; row += xs) {
        Multiply<L, xs>(tile.x + row * groups + begin, groups, count, unpacked,
                        tile.y + row * kVectors * kColumns);
      }
    };
    multiply(std::integral_constant<int, kRows>());
    multiply(std::integral_constant<int, 1>());
  }
}

/// Without HWY_FLATTEN some lambdas are called, with vectors in memory.
template <class L>
HWY_FLATTEN void MultiplyTile(const QuantizedTile& tile) {
  if (tile.rows <= kFewRows) {
    MultiplyFewRows<L, kFewRows>(tile);
  } else {
    MultiplyManyRows<L>(tile);
  }
  // The last quad of weight began earlier.
  const int64_t begin = tile.left / kQuad * kQuad;
  const int64_t more = tile.left - begin;
  if (begin < kVectors * kColumns && more > 0) {
    for (int64_t row = 0; row < tile.rows; ++row) {
      float* const y = tile.y + row * kVectors * kColumns + begin;
      for (int64_t i = 0; i < more; ++i) y[i] = y[i + kQuad - more];
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
  const auto* b = static_cast<const T*>(bias.data);
  auto* to = static_cast<T*>(out.data);
  const bool is_contiguous =
      out.stride == 1 && (b == nullptr || bias.stride == 1);
  const int64_t step = is_contiguous ? Lanes<Compute<T>>() : 1;
  for (int64_t i = 0; i < n; i += step) {
    const int64_t count = HWY_MIN(step, n - i);
    auto sum = LoadSomeAs<T, false>(y + i, count);
    if (b != nullptr) sum = sum + LoadN(b + i * bias.stride, count);
    StoreN(sum, to + i * out.stride, count);
  }
}

struct KernelsOf {
  template <class Format>
  HWY_INLINE QuantizedKernels operator()(Format) const {
    using L = Layout<Format>;
    return {kVectors * kColumns, RoundRow<L>, MultiplyTile<L>,
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
  std::int64_t stride;  // of the rows of weight; 0 if they are empty
  Nest<2> nest;         // of the rows of x and of out

  const std::uint8_t* blocks(std::int64_t row) const {
    return static_cast<const std::uint8_t*>(weight.data) + row * stride;
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
                    const QuantizedKernels& kernels, QuantizedGroup* rounded,
                    const CpuThreads& threads) {
  const auto of_dtype = FOO_CORE_DISPATCH(LinearDType)(call.x.dtype);
  threads.for_ranges(count, call.k, [&](std::int64_t begin, std::int64_t end) {
    Walker<2> at(call.nest, call.nest.ndim, first + begin);
    for (; begin < end; ++begin) {
      kernels.round(row_at(&call.x, at.offset(0)), call.k, of_dtype.load,
                    rounded + begin * (call.k / kGroup));
      if (begin + 1 < end) at.next();
    }
  });
  const std::int64_t stride = call.n < kQuad ? 0 : call.stride;
  const std::int64_t columns = call.n < kQuad ? 1 : kernels.columns;
  const auto run = [&](std::int64_t begin, std::int64_t end) {
    float y[kPanel * kMostColumns];
    for (; begin < end; ++begin) {
      const std::int64_t column = begin * columns, left = call.n - column;
      const std::int64_t n = std::min(columns, left);
      kernels.multiply(
          {call.blocks(column), stride, left, rounded, count, call.k, y});
      const Row bias = row_at(call.bias, column * stride_of(call.bias, 0));
      Walker<2> at(call.nest, call.nest.ndim, first);
      for (std::int64_t row = 0; row < count; ++row) {
        const MutableRow out =
            row_at(&call.out, at.offset(1) + column * last_stride(call.out));
        of_dtype.store(y + row * kernels.columns,
                       {bias.data, stride_of(call.bias, 0)}, out, n);
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
  return std::min(count_rows(x), kPanel) * (last_size(x) / kGroup) *
         static_cast<std::int64_t>(sizeof(QuantizedGroup));
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

  // An empty weight may have any stride.
  const std::int64_t stride = bytes == 0 ? 0 : weight.strides[0];
  const Call call{
      x, weight, bias, out, rows, k, n, stride, nest_of_rows(x, x, out)};
  const auto kernels = FOO_CORE_DISPATCH(LinearQuantized)(format);
  if (x.dtype == DType::kFloat64) {
    return multiply_exactly(call, kernels, threads);
  }
  auto* const rounded = static_cast<QuantizedGroup*>(scratch);
  for (std::int64_t first = 0; first < rows; first += kPanel) {
    multiply_panel(call, first, std::min(kPanel, rows - first), kernels,
                   rounded, threads);
  }
}

}  // namespace foo_core
#endif  // HWY_ONCE
