// x weight^T + bias for few rows of x, where reading weight takes the time.
// Blocks of rows of weight and of x are multiplied in registers, so that each
// load serves several products: with 16 rows of x, arithmetic takes as long as
// memory. Threads divide the rows of weight.
//
// AVX3_ZEN4 has an instruction that adds two products of bfloat16, but takes
// subnormal numbers for 0. Otherwise it adds in the order of MulAdd and rounds
// as that does. So it is used where no number is or becomes subnormal, which is
// cheap to tell, and changes no result.
#define FOO_CORE_MORE_TARGETS HWY_AVX3_ZEN4

#include "foo_core/linear.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>

#include "checks.h"
#include "cpu/simd.h"
#include "cuda/kernels.h"
#include "loop.h"
#include "nest.h"
#include "view.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/linear.cc"
// These read HWY_TARGET_INCLUDE, so they come after it.
#include "hwy/foreach_target.h"
//
#include "cpu/tile-inl.h"

#ifndef FOO_CORE_LINEAR_
#define FOO_CORE_LINEAR_
namespace foo_core {
namespace {

/// Rows of weight that are multiplied together. The sums of four vectors are
/// one vector.
constexpr int kQuad = 4;

/// Rows of weight at a time.
constexpr int kWeights = 16;

/// Rows of x at a time, while a tile of weight stays in the L1 cache.
constexpr int kRows = 16;

/// Up to kRows rows of x, `columns` <= kWeights rows of weight, and their
/// products.
struct LinearBlock {
  int rows, columns;
  Row x[kRows];
  bool x_is_new;  // since the last call of the kernel
  bool dots;      // the kernel's: whether its instruction is exact for x
  MutableRow out[kRows];
  Row weight[kWeights];
  std::int64_t next;  // from a row of weight to the next
  Row bias;           // data may be null
};

using LinearKernel = void (*)(LinearBlock& block, std::int64_t k);

}  // namespace
}  // namespace foo_core
#endif

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {
namespace {

/// Rows of x that are multiplied together: what the registers hold.
constexpr int kXs = HWY_TARGET <= HWY_AVX3 ? 4 : 2;

/// Columns at a time. Tiles of weight and of x share the L1 cache with what is
/// prefetched, and the errors of short sums are small.
template <class T>
constexpr int64_t kColumnsOf = 2048 / static_cast<int64_t>(sizeof(T));

template <class C>
using Vector = hn::Vec<hn::ScalableTag<C>>;

/// Products in the type of computation.
template <class T>
struct Products {
  using V = Pair<Compute<T>>;

  template <bool kAll>
  static HWY_INLINE V Load(const T* p, int64_t n) {
    return LoadSome<kAll>(p, n);
  }

  static HWY_INLINE Vector<Compute<T>> Add(V x, V w, Vector<Compute<T>> sum) {
    return hn::MulAdd(x.a, w.a, hn::MulAdd(x.b, w.b, sum));
  }

  // The implicit constructor would not be compiled for the target.
  HWY_INLINE Products() {}
  HWY_INLINE void See(V) {}
  HWY_INLINE bool AreExact() const { return true; }
};

#if HWY_NATIVE_DOT_BF16
/// The same sums by one instruction, if all of x and weight are 0 or at least
/// kLeast: then products are multiples of 2^-126, the least normal number, and
/// so are their sums.
struct Dots {
  using D = hn::Repartition<hwy::bfloat16_t, hn::ScalableTag<float>>;
  using DU = hn::RebindToUnsigned<D>;
  using V = hn::Vec<D>;

  static constexpr uint16_t kLeast = (127 - 56) << 7;  // 2^-56, with 8 bits

  template <bool kAll>
  static HWY_INLINE V Load(const hwy::bfloat16_t* p, int64_t n) {
    const auto* bits = reinterpret_cast<const uint16_t*>(p);
    return hn::BitCast(D(), LoadVector<kAll>(DU(), bits, 0, n));
  }

  static HWY_INLINE Vector<float> Add(V x, V w, Vector<float> sum) {
    auto unused = sum;
    return hn::ReorderWidenMulAccumulate(hn::ScalableTag<float>(), x, w, sum,
                                         unused);
  }

  // What was seen, without its sign, with 0 above all others: doubled, less 1.
  hn::Vec<DU> least;

  HWY_INLINE Dots() : least(hn::Set(DU(), 0xFFFF)) {}

  HWY_INLINE void See(V v) {
    const auto bits = hn::BitCast(DU(), v);
    least = hn::Min(least, hn::Sub(hn::Add(bits, bits), hn::Set(DU(), 1)));
  }

  HWY_INLINE bool AreExact() const {
    return hn::AllTrue(DU(), hn::Ge(least, hn::Set(DU(), 2 * kLeast - 1)));
  }
};
#endif

/// Whether Dots are exact for rows of x.
template <class T>
HWY_INLINE bool AreForDots(const Row* x, int rows, int64_t k) {
#if HWY_NATIVE_DOT_BF16
  if constexpr (hwy::IsSame<T, hwy::bfloat16_t>()) {
    const auto step = static_cast<int64_t>(hn::Lanes(Dots::D()));
    Dots seen;
    for (int r = 0; r < rows; ++r) {
      if (x[r].stride != 1) return false;
      const auto* p = static_cast<const T*>(x[r].data);
      int64_t i = 0;
      for (; i + step <= k; i += step) seen.See(Dots::Load<true>(p + i, step));
      if (i < k) seen.See(Dots::Load<false>(p + i, k - i));
    }
    return seen.AreExact();
  }
#endif
  (void)x, (void)rows, (void)k;
  return false;
}

/// n elements of each of kQuad rows of weight.
template <class T>
struct Tile {
  const T* weight[kQuad];
  int64_t n;
  int64_t next;   // from each row to what is prefetched
  int from;       // the row from which that starts
  bool is_first;  // of the rows' tiles
};

/// Adds the products of kCount rows of x and a tile to sums: vectors of parts
/// of each sum. The order of additions does not depend on kCount. Prefetches
/// for kAhead rows. Returns false, and adds nothing, if P are not exact.
template <class P, int kCount, int kAhead, class T>
HWY_INLINE bool Multiply(const T* const* x, const Tile<T>& tile,
                         Compute<T>* sums) {
  using C = Compute<T>;
  const hn::ScalableTag<C> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int from = kAhead == kQuad ? 0 : tile.from;
  const T* ahead[kAhead];
  for (int j = 0; j < kAhead; ++j) {
    ahead[j] = tile.weight[(from + j) % kQuad];
  }
  P products;
  Vector<C> s[kCount][kQuad];
  for (auto& row : s) {
    for (auto& sum : row) sum = hn::Zero(d);
  }
  const int64_t n = tile.n;
  const auto add = [&](auto whole, int64_t i) HWY_ATTR {
    constexpr bool kAll = decltype(whole)::value;
    typename P::V v[kCount];
    for (int r = 0; r < kCount; ++r) {
      v[r] = P::template Load<kAll>(x[r] + i, n - i);
    }
    for (int j = 0; j < kQuad; ++j) {
      const auto w = P::template Load<kAll>(tile.weight[j] + i, n - i);
      if (j < kAhead) PrefetchLoad(ahead[j] + i, tile.next);
      products.See(w);
      for (int r = 0; r < kCount; ++r) s[r][j] = P::Add(v[r], w, s[r][j]);
    }
  };
  const int64_t step = Lanes<C>();
  int64_t i = 0;
  for (; i + step <= n; i += step) add(std::true_type(), i);
  if (i < n) add(std::false_type(), i);
  if (!products.AreExact()) return false;
  for (int r = 0; r < kCount; ++r) {
    for (int j = 0; j < kQuad; ++j) {
      C* const to = sums + (r * kWeights + j) * lanes;
      const auto sum =
          tile.is_first ? s[r][j] : hn::Add(hn::Load(d, to), s[r][j]);
      hn::Store(sum, d, to);
    }
  }
  return true;
}

/// Adds the same products, of the better kind. With one pass, reading weight
/// takes the time, and kAhead is kQuad.
template <int kCount, int kAhead, class T>
HWY_INLINE void MultiplyBest(bool dots, const T* const* x, const Tile<T>& tile,
                             Compute<T>* sums) {
#if HWY_NATIVE_DOT_BF16
  if constexpr (hwy::IsSame<T, hwy::bfloat16_t>()) {
    if constexpr (kAhead < kQuad) {
      if (dots && Multiply<Dots, kCount, kAhead>(x, tile, sums)) return;
    }
    Multiply<Products<T>, kCount, kQuad>(x, tile, sums);
    return;
  }
#endif
  (void)dots;
  Multiply<Products<T>, kCount, kAhead>(x, tile, sums);
}

/// Completes the sums of kQuad vectors.
HWY_INLINE void Complete(const double* sums, double* y) {
  const hn::ScalableTag<double> d;
  for (int j = 0; j < kQuad; ++j) {
    const auto at = static_cast<size_t>(j) * hn::Lanes(d);
    y[j] = hn::ReduceSum(d, hn::Load(d, sums + at));
  }
}

HWY_INLINE void Complete(const float* sums, float* y) {
  const hn::ScalableTag<float> d;
  const auto pairs = [&](auto a, auto b) HWY_ATTR {
    return hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  };
  const auto of = [&](size_t j)
                      HWY_ATTR { return hn::Load(d, sums + j * hn::Lanes(d)); };
  const auto parts = pairs(pairs(of(0), of(2)), pairs(of(1), of(3)));
  HWY_ALIGN float all[hn::MaxLanes(d)];
  hn::Store(parts, d, all);
  const hn::FixedTag<float, 4> d4;
  auto total = hn::Load(d4, all);
  for (size_t i = 4; i < hn::Lanes(d); i += 4) {
    total = hn::Add(total, hn::Load(d4, all + i));
  }
  hn::StoreU(total, d4, y);
}

template <class T>
void LinearOf(LinearBlock& block, int64_t k) {
  using C = Compute<T>;
  constexpr int64_t kColumns = kColumnsOf<T>;
  HWY_ALIGN T x_tile[kXs][kColumns], weight_tile[kWeights][kColumns];
  constexpr int64_t kLanes = hn::MaxLanes(hn::ScalableTag<C>());
  HWY_ALIGN C sums[kRows * kWeights * kLanes];
  const int passes = (block.rows + kXs - 1) / kXs;
  if (block.x_is_new) {
    block.dots = passes > 1 && AreForDots<T>(block.x, block.rows, k);
  }
  // Prefetches are spread over the passes, so that memory is never idle. More
  // rows of weight at a time need less of x's, but few are read faster.
  const int ahead = passes == 1 ? kQuad : passes <= 3 ? 2 : 1;
  const int group = passes == 1 ? kQuad : kWeights;
  for (int begin = 0; begin < block.columns; begin += group) {
    const int end = HWY_MIN(begin + group, block.columns);
    int64_t i = 0;
    do {  // once if k is 0, for sums of 0
      Tile<T> tile;
      tile.n = HWY_MIN(kColumns, k - i);
      tile.is_first = i == 0;
      // To these rows' next tile, the next rows' first one, or their last,
      // short one: each is prefetched once, shortly before it is needed.
      tile.next = i + 2 * kColumns <= k ? kColumns
                  : tile.n == kColumns  ? group * block.next - i
                                        : group * block.next;
      const T* weight[kWeights];
      for (int j = begin; j < end; ++j) {
        const Row& row = block.weight[j];
        weight[j] = InputTile(static_cast<const T*>(row.data), row.stride, i,
                              tile.n, weight_tile[j]);
      }
      for (int r = 0, pass = 0; r < block.rows; ++pass) {
        tile.from = pass * ahead;
        const T* x[kXs];
        const int left = block.rows - r;
        const int count = left >= kXs ? kXs : left >= 2 ? 2 : 1;
        for (int j = 0; j < count; ++j) {
          const Row& row = block.x[r + j];
          // The tile was another row's, so i is 0 for InputTile.
          x[j] = InputTile(static_cast<const T*>(row.data) + i * row.stride,
                           row.stride, 0, tile.n, x_tile[j]);
        }
        for (int q = begin; q < end; q += kQuad) {
          for (int j = 0; j < kQuad; ++j) {
            tile.weight[j] = weight[HWY_MIN(q + j, end - 1)];
          }
          C* const to = sums + (r * kWeights + q) * kLanes;
          const auto multiply = [&](auto rows, auto rows_ahead) HWY_ATTR {
            MultiplyBest<rows, rows_ahead>(block.dots, x, tile, to);
          };
          const std::integral_constant<int, kQuad> all{};
          const std::integral_constant<int, 2> two{};
          const std::integral_constant<int, 1> one{};
          if (count == kXs) {
            const std::integral_constant<int, kXs> most{};
            passes == 1   ? multiply(most, all)
            : passes <= 3 ? multiply(most, two)
                          : multiply(most, one);
          } else if (count == 2) {
            passes == 1 ? multiply(two, all) : multiply(two, two);
          } else {
            passes == 1 ? multiply(one, all) : multiply(one, two);
          }
        }
        r += count;
      }
      i += kColumns;
    } while (i < k);
  }
  const auto* bias = static_cast<const T*>(block.bias.data);
  T bias_tile[kWeights], out_tile[kWeights];
  if (bias != nullptr) {
    bias = InputTile(bias, block.bias.stride, 0, block.columns, bias_tile);
  }
  for (int r = 0; r < block.rows; ++r) {
    C y[kWeights];
    for (int q = 0; q < block.columns; q += kQuad) {
      Complete(sums + (r * kWeights + q) * kLanes, y + q);
    }
    const MutableRow& row = block.out[r];
    auto* const data = static_cast<T*>(row.data);
    T* const out = OutputTile(data, row.stride, 0, out_tile);
    for (int64_t j = 0; j < block.columns; j += Lanes<C>()) {
      const int64_t n = HWY_MIN(Lanes<C>(), block.columns - j);
      auto sum = LoadSomeAs<T, false>(y + j, n);
      if (bias != nullptr) sum = sum + LoadN(bias + j, n);
      StoreN(sum, out + j, n);
    }
    FinishTile(out, data, row.stride, 0, block.columns);
  }
}

struct KernelsOf {
  template <class T>
  HWY_INLINE LinearKernel operator()(T) const {
    return LinearOf<T>;
  }
};

LinearKernel Linear(DType dtype) { return ForDType(dtype, KernelsOf()); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foo_core {

void linear(const ConstTensorView& x, const ConstTensorView& weight,
            const ConstTensorView* bias, const TensorView& out,
            const Executor& executor) {
  const char* op = "linear";
  const Argument arg_x{"x", x}, arg_weight{"weight", weight},
      arg_bias{"bias", bias}, arg_out{"out", out};
  check_has_rows(op, arg_x);
  check_tensor(op, arg_weight);
  check_same_dtype(op, arg_x, arg_weight);
  const std::int64_t k = last_size(x);
  if (weight.ndim != 2 || weight.sizes[1] != k) {
    fail(op, "weight has shape " + shape_text(weight.ndim, weight.sizes) +
                 ", expected (n, " + std::to_string(k) +
                 "), as x's last dimension is " + std::to_string(k));
  }
  const std::int64_t n = weight.sizes[0];
  check_product(op, arg_x, n, arg_bias, arg_out);
  check_output(op, arg_out, {}, {&arg_x, &arg_weight, &arg_bias});
  if constexpr (cuda::kBuilt) {
    if (on_cuda(executor)) {
      return cuda::linear(x, weight, bias, out, executor.stream);
    }
  }
  const CpuThreads threads(op, executor);
  const std::int64_t rows = count_rows(x);
  if (rows == 0) return;

  const auto kernel = FOO_CORE_DISPATCH(Linear)(x.dtype);
  const auto nest = nest_of_rows(x, x, out);
  // Columns of out, which are rows of weight.
  const auto run = [&](std::int64_t begin, std::int64_t end) {
    LinearBlock block;
    block.next = n > kQuad ? weight.strides[0] : 0;
    std::int64_t first = -1;  // of the block's rows of x
    for (; begin < end; begin += kWeights) {
      block.columns =
          static_cast<int>(std::min<std::int64_t>(kWeights, end - begin));
      for (int j = 0; j < block.columns; ++j) {
        block.weight[j] = row_at(&weight, (begin + j) * weight.strides[0]);
      }
      block.bias = row_at(bias, begin * stride_of(bias, 0));
      Walker<2> at(nest, nest.ndim, 0);
      for (std::int64_t row = 0; row < rows; row += block.rows) {
        block.rows =
            static_cast<int>(std::min<std::int64_t>(kRows, rows - row));
        for (int r = 0; r < block.rows; ++r, at.next()) {
          block.x[r] = row_at(&x, at.offset(0));
          block.out[r] = row_at(&out, at.offset(1) + begin * last_stride(out));
        }
        block.x_is_new = first != row;
        first = row;
        kernel(block, k);
      }
    }
  };
  threads.for_ranges(n, rows * k, run);
}

}  // namespace foo_core
#endif  // HWY_ONCE
