// softmax(scale query key^T + mask) value for few queries, where reading keys
// and values takes the time. The heads that share a key head, and all queries,
// are rows of one matrix, for which keys and values are read once. Scores are
// computed for a piece of the keys at a time, and sums of values are rescaled
// when a piece has a higher score (Milakov and Gimelshein 2018). Threads divide
// the key heads and parts of their keys, which sizes alone determine; what the
// parts give is combined in their order.
//
// The kernels are compiled for the dtypes of keys and values. Where query is
// float32 and these are not, only what is done once per piece differs.
#include "foo_core/attention.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

#include "checks.h"
#include "cpu/simd.h"
#include "cuda/kernels.h"
#include "loop.h"
#include "nest.h"
#include "view.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/attention.cc"
// These read HWY_TARGET_INCLUDE, so they come after it.
#include "hwy/foreach_target.h"
//
#include "cpu/cross_entropy-inl.h"
#include "cpu/tile-inl.h"

#ifndef FOO_CORE_ATTENTION_
#define FOO_CORE_ATTENTION_
namespace foo_core {
namespace {

/// Keys whose scores are held at a time.
constexpr std::int64_t kPiece = 128;

/// Rows of a block. Its keys and values are read once.
constexpr std::int64_t kMostRows = 64;

/// The most parts of a block's keys, and about as many blocks and parts that
/// threads can divide: many, because other work may keep some of the threads.
constexpr std::int64_t kMostParts = 256;

/// What any target pads a row of sums to, in elements.
constexpr std::int64_t kPadding = 32;

/// Some rows and a part of their keys.
struct AttentionBlock {
  std::int64_t rows;
  Row query[kMostRows];
  Row mask[kMostRows];  // data may be null
  bool adds_mask;       // else it has bytes
  Row key, value;       // the first ones
  bool widens;          // keys and values, of 16 bits, to query's float32
  std::int64_t key_step, value_step;
  std::int64_t keys, size, value_size;
  double scale;
  // In the type of computation: sums of values for each row, which are `width`
  // elements apart; and its highest score and its sum of weights.
  void *sums, *stats;
  std::int64_t width;
};

/// The parts of a row. A step is the distance of two.
struct AttentionRow {
  const void *sums, *stats;
  std::int64_t parts, sums_step, stats_step, value_size;
  MutableRow out;
  bool widens;  // as in AttentionBlock
};

struct AttentionKernels {
  void (*attend)(const AttentionBlock& block);
  void (*combine)(const AttentionRow& row);
};

}  // namespace
}  // namespace foo_core
#endif

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {
namespace {

/// Rows that are computed together: what the registers hold.
constexpr int kTogether = HWY_TARGET <= HWY_AVX3 ? 4 : 2;

/// Keys that are multiplied together. The sums of four vectors are one vector.
constexpr int kKeys = 4;

/// Columns of query at a time.
constexpr int64_t kColumns = 256;

/// Bytes from what is read to what is prefetched. The hardware prefetcher
/// starts anew where a piece of keys is followed by one of values, or the
/// reverse: with this, twice as fast on one thread (float32, heads of 64, Zen
/// 5).
constexpr int64_t kAhead = 8192;

template <class C>
using Vector = hn::Vec<hn::ScalableTag<C>>;

/// Calls f(Q()) with the type of query, of an added mask and of out, where keys
/// and values are T.
template <class T, class F>
HWY_INLINE void ForQuery(bool widens, F f) {
  if constexpr (sizeof(T) == 2) {
    if (widens) return f(float());
  }
  f(T());
}

template <class C>
constexpr C kLowest = -std::numeric_limits<C>::infinity();

/// The sum of a vector's parts of four elements.
template <class D>
HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> Fold(D d, hn::Vec<D> x) {
  if constexpr (hn::MaxLanes(d) == 4) {
    return x;
  } else {
    const hn::Half<D> half;
    return Fold(half, hn::Add(hn::LowerHalf(half, x), hn::UpperHalf(half, x)));
  }
}

/// Adds the sums of kKeys vectors to y.
HWY_INLINE void AddSums(const Vector<float> (&x)[kKeys], float* y) {
  const hn::ScalableTag<float> d;
  const hn::FixedTag<float, 4> d4;
  const auto pairs = [&](auto a, auto b) HWY_ATTR {
    return hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  };
  const auto sums = Fold(d, pairs(pairs(x[0], x[2]), pairs(x[1], x[3])));
  hn::StoreU(hn::Add(hn::LoadU(d4, y), sums), d4, y);
}

HWY_INLINE void AddSums(const Vector<double> (&x)[kKeys], double* y) {
  for (int j = 0; j < kKeys; ++j) {
    y[j] += hn::ReduceSum(hn::ScalableTag<double>(), x[j]);
  }
}

/// Adds the products of kCount rows of query and kKeys keys, of n contiguous
/// elements each, to scores. The rows are Pairs, with zeros beyond n.
template <int kCount, class T, class C>
HWY_INLINE void Multiply(const C (*query)[kColumns], const T* const* key,
                         int64_t n, C (*scores)[kPiece], int64_t at) {
  const hn::ScalableTag<C> d;
  Vector<C> sums[kCount][kKeys];
  for (auto& row : sums) {
    for (auto& sum : row) sum = hn::Zero(d);
  }
  const auto add = [&](auto whole, int64_t i) HWY_ATTR {
    constexpr bool kAll = decltype(whole)::value;
    Pair<C> q[kCount];
    for (int r = 0; r < kCount; ++r) q[r] = Load(query[r] + i);
    for (int j = 0; j < kKeys; ++j) {
      const auto k = LoadSome<kAll>(key[j] + i, n - i);
      for (int r = 0; r < kCount; ++r) {
        sums[r][j] = hn::MulAdd(q[r].a, k.a, sums[r][j]);
        sums[r][j] = hn::MulAdd(q[r].b, k.b, sums[r][j]);
      }
    }
  };
  const int64_t step = Lanes<C>();
  int64_t i = 0;
  for (; i + step <= n; i += step) add(std::true_type(), i);
  if (i < n) add(std::false_type(), i);
  for (int r = 0; r < kCount; ++r) AddSums(sums[r], scores[r] + at);
}

/// What is prefetched while a piece of n keys is read, or one of their values:
/// its rows, and then those of what is read next. Any address is valid.
struct Ahead {
  std::uintptr_t piece, next;            // the first rows
  std::uintptr_t piece_step, next_step;  // between rows
  int64_t n;
  int64_t rows;  // from what is read to what is prefetched; 0: nothing is

  /// While row j is read: `bytes` of a later row, from `at` on.
  HWY_INLINE void fetch(int64_t j, int64_t at, int64_t bytes) const {
    if (rows == 0) return;
    j += rows;
    std::uintptr_t from =
        j < n ? piece + static_cast<std::uintptr_t>(j) * piece_step
              : next + static_cast<std::uintptr_t>(j - n) * next_step;
    from += static_cast<std::uintptr_t>(at);
    for (int64_t i = 0; i < bytes; i += 64, from += 64) {  // a cache line
      hwy::Prefetch(reinterpret_cast<const char*>(from));
    }
  }
};

/// Copies elements [c, c + n) of `count` rows of query, in the order of
/// LoadSome for T.
template <class T, class C>
HWY_NOINLINE void CopyQuery(const AttentionBlock& block, int64_t row, int count,
                            int64_t c, int64_t n, C (*to)[kColumns]) {
  ForQuery<T>(block.widens, [&](auto type) HWY_ATTR {
    HWY_ALIGN decltype(type) tile[kColumns];
    for (int r = 0; r < count; ++r) {
      const Row& from = block.query[row + r];
      const auto* data = static_cast<const decltype(type)*>(from.data);
      const auto* q =
          InputTile(data + c * from.stride, from.stride, 0, n, tile);
      for (int64_t i = 0; i < n; i += Lanes<C>()) {
        Store(LoadSomeAs<T, false>(q + i, n - i), to[r] + i);
      }
    }
  });
}

/// Sets scores to the products of rows of query, from `row` on, and the keys of
/// a piece.
template <int kCount, class T, class C>
HWY_INLINE void Scores(const AttentionBlock& block, int64_t row, const T* key,
                       const Ahead& ahead, C (*scores)[kPiece]) {
  HWY_ALIGN C query[kCount][kColumns];
  HWY_ALIGN T tile[kKeys][kColumns];
  constexpr auto kItem = static_cast<int64_t>(sizeof(T));
  const int64_t n = ahead.n;
  for (int r = 0; r < kCount; ++r) {
    for (int64_t j = 0; j < kPiece; ++j) scores[r][j] = 0;
  }
  for (int64_t c = 0; c < block.size; c += kColumns) {
    const int64_t m = HWY_MIN(kColumns, block.size - c);
    CopyQuery<T>(block, row, kCount, c, m, query);
    const int64_t stride = block.key.stride, step = block.key_step;
    const T* from = key + c * stride;
    for (int64_t j = 0; j < n; j += kKeys) {
      const T* keys[kKeys];  // the last may be the same
      for (int l = 0; l < kKeys; ++l) {
        keys[l] = InputTile(from, stride, 0, m, tile[l]);
        if (j + l + 1 < n) from += step;
        ahead.fetch(j + l, c * kItem, m * kItem);
      }
      Multiply<kCount>(query, keys, m, scores, j);
    }
  }
}

/// Stores what has been loaded from T in the order of memory.
template <class T, class C>
HWY_INLINE void StoreInOrder(Pair<C> x, C* p) {
  if constexpr (hwy::IsSame<T, hwy::bfloat16_t>()) {
    hn::StoreInterleaved2(x.a, x.b, hn::ScalableTag<C>(), p);
  } else {
    Store(x, p);
  }
}

/// Sets bias to what a mask adds to the n scores of a piece whose first key is
/// `first`.
template <class T, class C>
HWY_INLINE void Bias(const AttentionBlock& block, const Row& mask,
                     int64_t first, int64_t n, C* bias) {
  if (block.adds_mask) {
    HWY_ALIGN T tile[kPiece];
    const T* p =
        InputTile(static_cast<const T*>(mask.data) + first * mask.stride,
                  mask.stride, 0, n, tile);
    for (int64_t j = 0; j < n; j += Lanes<C>()) {
      StoreInOrder<T>(LoadN(p + j, n - j), bias + j);
    }
    return;
  }
  const auto* p =
      static_cast<const std::uint8_t*>(mask.data) + first * mask.stride;
  for (int64_t j = 0; j < n; ++j) {
    bias[j] = p[j * mask.stride] != 0 ? 0 : kLowest<C>;
  }
}

/// e^x for one x <= 0.
template <class T, class C = Compute<T>>
HWY_INLINE C ExpOne(C x) {
  return hn::GetLane(ExpFor<T>(Pair<C>::Set(x)).a);
}

/// What scores are compared with, so that no exponential overflows: the highest
/// one, unless all are minus infinity.
template <class C>
HWY_INLINE C Base(C most) {
  return most == kLowest<C> ? 0 : most;
}

/// Makes weights of a row's n products with keys, and returns by what earlier
/// sums of the row are to be multiplied.
template <class T, class C>
HWY_INLINE C WeightsOf(C* scores, C scale, const C* bias, int64_t n, C* stats) {
  const int64_t step = Lanes<C>();
  auto highest = Pair<C>::Set(kLowest<C>);
  const auto factor = Pair<C>::Set(scale);
  for (int64_t j = 0; j < n; j += step) {
    auto x = Load(scores + j);
    x = bias == nullptr ? x * factor : MulAdd(x, factor, Load(bias + j));
    Store(x, scores + j);
    if (j + step > n) {
      for (int64_t i = n; i < j + step; ++i) scores[i] = kLowest<C>;
      x = Load(scores + j);
    }
    highest = Larger(highest, x);
  }
  const C most = Largest(highest), before = stats[0];
  // NaN is no highest score, but makes a weight, and the sum of them, NaN.
  const C after = most > before ? most : before;
  const auto base = Pair<C>::Set(Base(after));
  auto total = Pair<C>::Set(0);
  for (int64_t j = 0; j < n; j += step) {
    const auto weight = ExpFor<T>(Load(scores + j) - base);
    Store(weight, scores + j);
    total = total + weight;
  }
  const C rescale = ExpOne<T>(before - Base(after));
  stats[0] = after;
  stats[1] = stats[1] * rescale + Sum(total);
  return rescale;
}

/// Makes weights of the products of `count` rows, from `row` on, with a piece
/// of n keys whose first one is `first`, and sets rescale to what earlier sums
/// are to be multiplied by.
template <class T, class C>
HWY_NOINLINE void Weights(const AttentionBlock& block, int64_t row, int count,
                          int64_t first, int64_t n, C (*scores)[kPiece],
                          C* rescale) {
  HWY_ALIGN C bias[kPiece];
  auto* stats = static_cast<C*>(block.stats) + 2 * row;
  ForQuery<T>(block.widens, [&](auto type) HWY_ATTR {
    using Q = decltype(type);
    for (int r = 0; r < count; ++r, stats += 2) {
      const Row& mask = block.mask[row + r];
      const bool masks = mask.data != nullptr;
      if (masks && (r == 0 || mask.data != block.mask[row + r - 1].data)) {
        Bias<Q>(block, mask, first, n, bias);
      }
      rescale[r] = WeightsOf<Q>(scores[r], static_cast<C>(block.scale),
                                masks ? bias : nullptr, n, stats);
    }
  });
}

/// Multiplies sums by `rescale`, and adds the values of a piece times their
/// weights, for kPairs Pairs of columns from `at` on; the last may be short.
template <int kCount, int kPairs, bool kAll, class T, class C>
HWY_INLINE void Weigh(const AttentionBlock& block, const T* value,
                      const Ahead& ahead, int64_t at,
                      const C (*weights)[kPiece], const C* rescale, C* sums,
                      int64_t columns) {
  constexpr auto kItem = static_cast<int64_t>(sizeof(T));
  const int64_t step = Lanes<C>(), stride = block.value.stride;
  value += at * stride;
  sums += at;
  HWY_ALIGN T tile[2 * hn::MaxLanes(hn::ScalableTag<C>()) * kPairs];
  Pair<C> s[kCount][kPairs];
  for (int r = 0; r < kCount; ++r) {
    const auto factor = Pair<C>::Set(rescale[r]);
    for (int p = 0; p < kPairs; ++p) {
      s[r][p] = Load(sums + r * block.width + p * step) * factor;
    }
  }
  for (int64_t j = 0; j < ahead.n; ++j) {
    const T* v =
        InputTile(value + j * block.value_step, stride, 0, columns, tile);
    ahead.fetch(j, at * kItem, columns * kItem);
    Pair<C> x[kPairs];
    for (int p = 0; p < kPairs; ++p) {
      x[p] = LoadSome<kAll>(v + p * step, columns - p * step);
    }
    for (int r = 0; r < kCount; ++r) {
      const auto weight = hn::Set(hn::ScalableTag<C>(), weights[r][j]);
      for (int p = 0; p < kPairs; ++p) {
        s[r][p] = MulAdd(x[p], {weight, weight}, s[r][p]);
      }
    }
  }
  for (int r = 0; r < kCount; ++r) {
    for (int p = 0; p < kPairs; ++p) {
      Store(s[r][p], sums + r * block.width + p * step);
    }
  }
}

/// Adds a piece of n keys to kCount rows.
template <int kCount, class T>
void AttendPiece(const AttentionBlock& block, int64_t row, int64_t first,
                 int64_t n) {
  using C = Compute<T>;
  HWY_ALIGN C scores[kCount][kPiece];
  C rescale[kCount];
  const auto* key =
      static_cast<const T*>(block.key.data) + first * block.key_step;
  const auto* value =
      static_cast<const T*>(block.value.data) + first * block.value_step;
  constexpr auto kItem = static_cast<int64_t>(sizeof(T));
  const auto bytes_of = [](int64_t step) HWY_ATTR {
    return static_cast<std::uintptr_t>(step) * sizeof(T);
  };
  const auto key_step = bytes_of(block.key_step);
  const auto value_step = bytes_of(block.value_step);
  const auto keys = reinterpret_cast<std::uintptr_t>(key);
  const auto values = reinterpret_cast<std::uintptr_t>(value);
  const auto next_keys = keys + static_cast<std::uintptr_t>(n) * key_step;
  const int64_t bytes = HWY_MAX(block.size, block.value_size) * kItem;
  const bool fetches =
      row == 0 && block.key.stride == 1 && block.value.stride == 1;
  const int64_t rows = fetches ? HWY_MAX(1, kAhead / bytes) : 0;
  Scores<kCount>(block, row, key, {keys, values, key_step, value_step, n, rows},
                 scores);
  const Ahead ahead{values, next_keys, value_step, key_step, n, rows};
  Weights<T>(block, row, kCount, first, n, scores, rescale);
  auto* sums = static_cast<C*>(block.sums) + row * block.width;
  const int64_t step = Lanes<C>();
  const auto weigh = [&](auto pairs, auto whole, int64_t at,
                         int64_t columns) HWY_ATTR {
    Weigh<kCount, decltype(pairs)::value, decltype(whole)::value>(
        block, value, ahead, at, scores, rescale, sums, columns);
  };
  constexpr std::integral_constant<int, 1> kOne;
  constexpr std::integral_constant<int, 2> kTwo;
  int64_t at = 0;
  for (; at + 2 * step <= block.value_size; at += 2 * step) {
    weigh(kTwo, std::true_type(), at, 2 * step);
  }
  for (; at < block.value_size; at += step) {
    const int64_t left = block.value_size - at;
    if (left >= step) {
      weigh(kOne, std::true_type(), at, step);
    } else {
      weigh(kOne, std::false_type(), at, left);
    }
  }
}

template <class T>
void Attend(const AttentionBlock& block) {
  using C = Compute<T>;
  auto* stats = static_cast<C*>(block.stats);
  for (int64_t r = 0; r < block.rows; ++r) {
    stats[2 * r] = kLowest<C>;
    stats[2 * r + 1] = 0;
  }
  auto* sums = static_cast<C*>(block.sums);
  for (int64_t i = 0; i < block.rows * block.width; ++i) sums[i] = 0;
  for (int64_t i = 0; i < block.keys; i += kPiece) {
    const int64_t n = HWY_MIN(kPiece, block.keys - i);
    for (int64_t r = 0; r < block.rows;) {
      const int64_t left = block.rows - r;
      if (left >= kTogether) {
        AttendPiece<kTogether, T>(block, r, i, n);
        r += kTogether;
      } else if (left == 3) {
        AttendPiece<HWY_MIN(3, kTogether), T>(block, r, i, n);
        r += 3;
      } else if (left == 2) {
        AttendPiece<2, T>(block, r, i, n);
        r += 2;
      } else {
        AttendPiece<1, T>(block, r, i, n);
        r += 1;
      }
    }
  }
}

/// Combines the sums of a row, which are in the order of LoadSome for T, to a
/// row of Q.
template <class T, class Q>
HWY_INLINE void CombineTo(const AttentionRow& row) {
  using C = Compute<T>;
  const auto* stats = static_cast<const C*>(row.stats);
  C most = kLowest<C>, total = 0;
  for (int64_t i = 0; i < row.parts; ++i) {
    const C m = stats[i * row.stats_step];
    most = m > most ? m : most;
  }
  C weights[kMostParts];
  for (int64_t i = 0; i < row.parts; ++i) {
    const C* part = stats + i * row.stats_step;
    weights[i] = ExpOne<Q>(part[0] - Base(most));
    total += weights[i] * part[1];
  }
  const auto divisor = Pair<C>::Set(total == 0 ? 1 : total);
  const int64_t step = Lanes<C>();
  HWY_ALIGN Q tile[2 * hn::MaxLanes(hn::ScalableTag<C>())];
  HWY_ALIGN C ordered[2 * hn::MaxLanes(hn::ScalableTag<C>())];
  for (int64_t c = 0; c < row.value_size; c += step) {
    const C* sums = static_cast<const C*>(row.sums) + c;
    auto sum = Pair<C>::Set(0);
    for (int64_t i = 0; i < row.parts; ++i, sums += row.sums_step) {
      sum = MulAdd(Load(sums), Pair<C>::Set(weights[i]), sum);
    }
    sum = {hn::Div(sum.a, divisor.a), hn::Div(sum.b, divisor.b)};
    if constexpr (!hwy::IsSame<T, Q>()) {
      StoreInOrder<T>(sum, ordered);
      sum = Load(ordered);
    }
    const int64_t n = HWY_MIN(step, row.value_size - c);
    auto* out = static_cast<Q*>(row.out.data);
    Q* to = OutputTile(out, row.out.stride, c, tile);
    StoreN(sum, to, n);
    FinishTile(tile, out, row.out.stride, c, n);
  }
}

template <class T>
void Combine(const AttentionRow& row) {
  ForQuery<T>(row.widens,
              [&](auto q) HWY_ATTR { CombineTo<T, decltype(q)>(row); });
}

struct KernelsOf {
  template <class T>
  HWY_INLINE AttentionKernels operator()(T) const {
    return {Attend<T>, Combine<T>};
  }
};

AttentionKernels Attention(DType dtype) { return ForDType(dtype, KernelsOf()); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foo_core {
namespace {

/// How a call is divided. Sums depend on it, so sizes alone determine it.
struct Division {
  Division(const ConstTensorView& query, const ConstTensorView& key,
           const ConstTensorView& value) {
    const std::int64_t key_heads = key.sizes[1];
    rows = key_heads == 0 ? 0 : query.sizes[1] / key_heads * query.sizes[2];
    value_size = value.sizes[3];
    blocks = (rows + kMostRows - 1) / kMostRows;
    heads = query.sizes[0] * key_heads;
    if (heads == 0 || rows == 0 || value_size == 0) heads = blocks = 0;
    const std::int64_t pieces = (key.sizes[2] + kPiece - 1) / kPiece;
    const std::int64_t count = std::max<std::int64_t>(1, heads * blocks);
    parts = std::max<std::int64_t>(1, std::min(pieces, kMostParts / count));
    // A part is a whole number of pieces.
    part = (pieces + parts - 1) / parts * kPiece;
    if (pieces > 0) parts = (key.sizes[2] + part - 1) / part;
    width = (value_size + kPadding - 1) / kPadding * kPadding;
  }

  /// Rows of sums.
  std::int64_t slots() const {
    return heads * blocks * parts * std::min(rows, kMostRows);
  }

  std::int64_t rows;    // of a key head
  std::int64_t blocks;  // of these rows
  std::int64_t heads;   // key heads in all batches
  std::int64_t parts;   // of the keys
  std::int64_t part;    // keys in each, but for the last
  std::int64_t width, value_size;
};

std::int64_t compute_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : 4;
}

/// Whether key has 4 dimensions that are possible beside those of query.
bool fits_query(const ConstTensorView& query, const ConstTensorView& key) {
  const std::int64_t *q = query.sizes, *k = key.sizes;
  return key.ndim == 4 && k[0] == q[0] && k[3] == q[3] &&
         (k[1] == 0 ? q[1] == 0 : q[1] % k[1] == 0);
}

/// Whether value has 4 dimensions that are possible beside those of key.
bool fits_key(const ConstTensorView& key, const ConstTensorView& value) {
  return value.ndim == 4 && std::equal(key.sizes, key.sizes + 3, value.sizes);
}

void check_inputs(const char* op, const Argument& query, const Argument& key,
                  const Argument& value) {
  const auto text = [](std::int64_t size) { return std::to_string(size); };
  const auto refuse = [op](const Argument& x, const std::string& expected) {
    fail(op, std::string(x.name) + " has shape " +
                 shape_text(x.view.ndim, x.view.sizes) + ", expected " +
                 expected);
  };
  check_tensor(op, query);
  if (query.view.ndim != 4) refuse(query, "(batch, heads, queries, size)");
  check_tensor(op, key);
  if (query.view.dtype != DType::kFloat32) {
    check_same_dtype(op, query, key);
  } else if (key.view.dtype == DType::kFloat64) {
    fail(op, std::string(key.name) +
                 " is float64, expected float32, float16 or bfloat16, as " +
                 query.name + " is float32");
  }
  const std::int64_t *q = query.view.sizes, *k = key.view.sizes;
  if (!fits_query(query.view, key.view)) {
    refuse(key, "(" + text(q[0]) + ", key heads, keys, " + text(q[3]) +
                    "), where query's " + text(q[1]) +
                    " heads are a multiple of key heads");
  }
  check_tensor(op, value);
  check_same_dtype(op, key, value);
  if (!fits_key(key.view, value.view)) {
    refuse(value, "(" + text(k[0]) + ", " + text(k[1]) + ", " + text(k[2]) +
                      ", value size)");
  }
}

/// Checks the mask, and sets `strides` to those that it has when it broadcasts.
void check_mask(const char* op, const Argument& query, const Argument& mask,
                std::int64_t keys, std::int64_t (&strides)[4]) {
  std::fill_n(strides, 4, 0);
  if (!mask.given) return;
  const ConstTensorView& view = mask.view;
  if (view.dtype == DType::kUInt8) {
    check_tensor(op, mask, DType::kUInt8);
  } else {
    check_tensor(op, mask);
    check_same_dtype(op, query, mask);
  }
  const std::int64_t* q = query.view.sizes;
  const std::int64_t scores[] = {q[0], q[1], q[2], keys};
  bool broadcasts = view.ndim <= 4;
  for (std::int64_t d = 4 - view.ndim; broadcasts && d < 4; ++d) {
    const std::int64_t from = d - (4 - view.ndim);
    if (view.sizes[from] == scores[d]) {
      strides[d] = view.strides[from];
    } else {
      broadcasts = view.sizes[from] == 1;
    }
  }
  if (broadcasts) return;
  fail(op, "mask has shape " + shape_text(view.ndim, view.sizes) +
               ", which does not broadcast to " + shape_text(4, scores));
}

/// Memory of the parts of all rows, block by block.
struct Parts {
  Parts(const Division& division, DType dtype, void* scratch)
      : d(division), item(compute_bytes(dtype)), sums(scratch) {
    stats = static_cast<char*>(scratch) + d.slots() * d.width * item;
  }

  std::int64_t rows_of(std::int64_t block) const {
    return std::min(kMostRows, d.rows - block * kMostRows);
  }
  /// A part of a block's row.
  std::int64_t slot(std::int64_t block, std::int64_t part,
                    std::int64_t row) const {
    return (block * d.parts + part) * std::min(d.rows, kMostRows) + row;
  }
  void* sums_at(std::int64_t slot) const {
    return static_cast<char*>(sums) + slot * d.width * item;
  }
  void* stats_at(std::int64_t slot) const {
    return static_cast<char*>(stats) + slot * 2 * item;
  }

  const Division& d;
  std::int64_t item;
  void *sums, *stats;
};

}  // namespace

std::int64_t attention_scratch_size(const ConstTensorView& query,
                                    const ConstTensorView& key,
                                    const ConstTensorView& value,
                                    const Executor& executor) noexcept {
  if (executor.device == Device::kCuda) return 0;
  for (const ConstTensorView* x : {&query, &key, &value}) {
    if (!has_rows(*x)) return 0;
  }
  if (query.ndim != 4 || !fits_query(query, key) || !fits_key(key, value)) {
    return 0;
  }
  const Division d(query, key, value);
  const std::int64_t item = compute_bytes(query.dtype);
  // More than there can be, where the product might overflow.
  if (d.slots() > kMaxBytes / item / (d.width + 2)) return kMaxBytes;
  return d.slots() * (d.width + 2) * item;
}

void attention(const ConstTensorView& query, const ConstTensorView& key,
               const ConstTensorView& value, const ConstTensorView* mask,
               double scale, const TensorView& out, void* scratch,
               const Executor& executor) {
  const char* op = "attention";
  const Argument arg_query{"query", query}, arg_key{"key", key},
      arg_value{"value", value}, arg_mask{"mask", mask}, arg_out{"out", out};
  check_inputs(op, arg_query, arg_key, arg_value);
  const std::int64_t keys = key.sizes[2];
  std::int64_t mask_strides[4];
  check_mask(op, arg_query, arg_mask, keys, mask_strides);
  check_tensor(op, arg_out);
  check_same_dtype(op, arg_query, arg_out);
  const std::int64_t sizes[] = {query.sizes[0], query.sizes[1], query.sizes[2],
                                value.sizes[3]};
  check_shape(op, arg_out, 4, sizes);
  const Scratch memory(op, scratch,
                       attention_scratch_size(query, key, value, executor));
  check_output(
      op, arg_out, {},
      {&arg_query, &arg_key, &arg_value, &arg_mask, &memory.argument()});
  check_output(op, memory.argument(), {},
               {&arg_query, &arg_key, &arg_value, &arg_mask});
  const ConstTensorView wide_mask =
      mask == nullptr
          ? ConstTensorView()
          : ConstTensorView{mask->data, mask->dtype, 4, sizes, mask_strides};
  if constexpr (cuda::kBuilt) {
    if (on_cuda(executor)) {
      return cuda::attention(query, key, value,
                             mask == nullptr ? nullptr : &wide_mask, scale, out,
                             executor.stream);
    }
  }
  const CpuThreads threads(op, executor);
  const Division division(query, key, value);
  if (division.heads == 0) return;

  const auto kernels = FOO_CORE_DISPATCH(Attention)(key.dtype);
  const bool widens = query.dtype != key.dtype;
  const Parts parts(division, query.dtype, scratch);
  const std::int64_t queries = query.sizes[2];
  const std::int64_t key_heads = key.sizes[1];
  const std::int64_t group = query.sizes[1] / key_heads;
  // Where the row of a block is, in a tensor with a dimension of heads.
  const auto offset = [&](const std::int64_t* strides, std::int64_t block,
                          std::int64_t row) {
    const std::int64_t head = block / division.blocks;
    row += block % division.blocks * kMostRows;
    return head / key_heads * strides[0] +
           (head % key_heads * group + row / queries) * strides[1] +
           row % queries * strides[2];
  };
  const auto attend = [&](std::int64_t begin, std::int64_t end) {
    AttentionBlock a;
    a.adds_mask = mask != nullptr && mask->dtype != DType::kUInt8;
    a.key_step = key.strides[2];
    a.value_step = value.strides[2];
    a.size = key.sizes[3];
    a.value_size = division.value_size;
    a.widens = widens;
    a.scale = scale;
    a.width = division.width;
    for (; begin < end; ++begin) {
      const std::int64_t block = begin / division.parts;
      const std::int64_t part = begin % division.parts;
      const std::int64_t first = part * division.part;
      const std::int64_t head = block / division.blocks;
      const auto begin_of = [&](const ConstTensorView& x) {
        return row_at(&x, head / key_heads * x.strides[0] +
                              head % key_heads * x.strides[1] +
                              first * x.strides[2]);
      };
      a.keys = std::min(division.part, keys - first);
      a.key = begin_of(key);
      a.value = begin_of(value);
      a.rows = parts.rows_of(block % division.blocks);
      for (std::int64_t r = 0; r < a.rows; ++r) {
        a.query[r] = row_at(&query, offset(query.strides, block, r));
        a.mask[r] =
            row_at(mask == nullptr ? nullptr : &wide_mask,
                   offset(mask_strides, block, r) + first * mask_strides[3]);
      }
      const std::int64_t slot = parts.slot(block, part, 0);
      a.sums = parts.sums_at(slot);
      a.stats = parts.stats_at(slot);
      kernels.attend(a);
    }
  };
  const std::int64_t blocks = division.heads * division.blocks;
  const std::int64_t most_rows = std::min(division.rows, kMostRows);
  // Four rows take about as long as reading keys and values for them.
  const std::int64_t work = std::min(division.part, keys) *
                            (key.sizes[3] + division.value_size) *
                            ((most_rows + 3) / 4);
  threads.for_ranges(blocks * division.parts, work, attend);

  const auto combine = [&](std::int64_t begin, std::int64_t end) {
    for (; begin < end; ++begin) {
      for (std::int64_t r = 0; r < parts.rows_of(begin % division.blocks);
           ++r) {
        const std::int64_t slot = parts.slot(begin, 0, r);
        kernels.combine({parts.sums_at(slot), parts.stats_at(slot),
                         division.parts, most_rows * division.width,
                         most_rows * 2, division.value_size,
                         row_at(&out, offset(out.strides, begin, r)), widens});
      }
    }
  };
  threads.for_ranges(blocks, most_rows * division.parts * division.value_size,
                     combine);
}

}  // namespace foo_core
#endif  // HWY_ONCE
