// Two passes over each row: one for max(|x|), in integer arithmetic, and one
// that divides. The second pass reads the row from a cache and prefetches the
// next row meanwhile.
#include "foo_core/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "checks.h"
#include "cpu/simd.h"
#include "cuda/kernels.h"
#include "loop.h"
#include "nest.h"
#include "view.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/quantize.cc"
// These read HWY_TARGET_INCLUDE, so they come after it.
#include "hwy/foreach_target.h"
//
#include "cpu/tile-inl.h"
#include "hwy/cache_control.h"

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {
namespace {

/// max(|x|), or NaN if there is one. It is the maximum of the bits without the
/// sign, which are ordered like the numbers, with NaN at the end.
template <class T>
HWY_INLINE Compute<T> AbsMax(const T* x, int64_t stride, int64_t n) {
  using I = hwy::SignedFromSize<sizeof(T)>;
  const hn::ScalableTag<I> d;
  const auto mask = hn::Set(d, hwy::LimitsMax<I>());
  const auto load = [&](const T* p) HWY_ATTR {
    return hn::And(hn::LoadU(d, reinterpret_cast<const I*>(p)), mask);
  };
  const auto step = static_cast<int64_t>(hn::Lanes(d));
  HWY_ALIGN T tile[kTile];
  auto m0 = hn::Zero(d), m1 = m0, m2 = m0, m3 = m0;
  for (int64_t begin = 0; begin < n; begin += kTile) {
    const int64_t m = HWY_MIN(kTile, n - begin);
    const T* p = InputTile(x, stride, begin, m, tile);
    int64_t i = 0;
    for (; i + 4 * step <= m; i += 4 * step) {
      m0 = hn::Max(m0, load(p + i));
      m1 = hn::Max(m1, load(p + i + step));
      m2 = hn::Max(m2, load(p + i + 2 * step));
      m3 = hn::Max(m3, load(p + i + 3 * step));
    }
    for (; i < m; i += step) {
      const auto rest = static_cast<size_t>(HWY_MIN(step, m - i));
      const auto* bits = reinterpret_cast<const I*>(p + i);
      m0 = hn::Max(m0, hn::And(hn::LoadN(d, bits, rest), mask));
    }
  }
  const I bits = hn::ReduceMax(d, hn::Max(hn::Max(m0, m1), hn::Max(m2, m3)));
  return hn::GetLane(LoadN(reinterpret_cast<const T*>(&bits), 1).a);
}

/// Adding this to a number rounds it to an integer, ties to even, which is then
/// in the low bits of the sum.
template <class C>
constexpr C kRounder = C{1.5} / std::numeric_limits<C>::epsilon();

/// Stores the low byte of each element, in the order of T's in memory.
template <class T>
HWY_INLINE void StoreLowBytes(Pair<Compute<T>> x, int8_t* q) {
  using D = hn::ScalableTag<Compute<T>>;
  const hn::RebindToUnsigned<D> du;
  auto* to = reinterpret_cast<uint8_t*>(q);
  const auto a = hn::BitCast(du, x.a), b = hn::BitCast(du, x.b);
  if constexpr (hwy::IsSame<T, hwy::bfloat16_t>()) {
    const hn::Repartition<uint16_t, D> dh;
    const auto words =
        hn::OddEven(hn::BitCast(dh, hn::ShiftLeft<16>(b)), hn::BitCast(dh, a));
    const hn::Rebind<uint8_t, decltype(dh)> d8;
    hn::StoreU(hn::TruncateTo(d8, words), d8, to);
  } else {
    const hn::Rebind<uint8_t, decltype(du)> d8;
    hn::StoreU(hn::TruncateTo(d8, a), d8, to);
    hn::StoreU(hn::TruncateTo(d8, b), d8, to + hn::Lanes(du));
  }
}

/// x / scale.
struct Division {
  template <class C>
  static HWY_INLINE Pair<C> Quotient(Pair<C> x, Pair<C> scale, Pair<C>) {
    // With a subnormal scale the quotient may be far beyond 127.
    const auto limit = Pair<C>::Set(127);
    x = {hn::Div(x.a, scale.a), hn::Div(x.b, scale.b)};
    return {hn::Max(hn::Min(x.a, limit.a), hn::Neg(limit.a)),
            hn::Max(hn::Min(x.b, limit.b), hn::Neg(limit.b))};
  }
};

/// x * reciprocal with a correction step, for float and a scale of at least
/// kMinScale, so that nothing underflows. It is 1.2× faster than a division in
/// AVX3 and 1.5× in AVX2. Its relative error is below 2^-45, so it can round to
/// another integer than x / scale only if that is as close to the midpoint
/// between a tie and the next float. Up to powers of two there are 2865 such
/// pairs; QuantizeTest.QuotientsNextToATie tries each, and all are right.
struct Reciprocal {
  template <class C>
  static HWY_INLINE Pair<C> Quotient(Pair<C> x, Pair<C> scale,
                                     Pair<C> reciprocal) {
    const auto y = x * reciprocal;
    return MulAdd(NegMulAdd(y, scale, x), reciprocal, y);
  }
};
constexpr float kMinScale = 0x1p-100f;

/// Computes q = x / scale for n elements.
template <class Method, bool kAll, class T>
HWY_INLINE void QuantizeSome(const T* x, Pair<Compute<T>> scale,
                             Pair<Compute<T>> reciprocal, int8_t* q,
                             int64_t n) {
  using C = Compute<T>;
  const auto y = Method::Quotient(LoadSome<kAll>(x, n), scale, reciprocal) +
                 Pair<C>::Set(kRounder<C>);
  if constexpr (kAll) {
    StoreLowBytes<T>(y, q);
  } else {
    HWY_ALIGN int8_t buffer[2 * hn::MaxLanes(hn::ScalableTag<C>())];
    StoreLowBytes<T>(y, buffer);
    hwy::CopyBytes(buffer, q, static_cast<size_t>(n));
  }
}

/// Computes q for a row. The row is in a cache since AbsMax, so memory is idle,
/// and the next row is prefetched (1.1× to 1.3× faster if rows are not in L2).
template <class Method, class T>
HWY_INLINE void QuantizeRow(const T* x, int64_t x_stride, const T* next,
                            Compute<T> scale, int8_t* q, int64_t q_stride,
                            int64_t n) {
  using C = Compute<T>;
  HWY_ALIGN T x_tile[kTile];
  HWY_ALIGN int8_t q_tile[kTile];
  const int64_t step = Lanes<C>();
  const auto s = Pair<C>::Set(scale), r = Pair<C>::Set(1 / scale);
  for (int64_t begin = 0; begin < n; begin += kTile) {
    const int64_t m = HWY_MIN(kTile, n - begin);
    const T* px = InputTile(x, x_stride, begin, m, x_tile);
    int8_t* pq = OutputTile(q, q_stride, begin, q_tile);
    int64_t i = 0;
    for (; i + step <= m; i += step) {
      PrefetchLoad(next + begin + i, 0);
      QuantizeSome<Method, true>(px + i, s, r, pq + i, step);
    }
    if (i < m) QuantizeSome<Method, false>(px + i, s, r, pq + i, m - i);
    FinishTile(q_tile, q, q_stride, begin, m);
  }
}

template <class T>
void Quantize(Row x, const void* next, MutableRow q, float* scale, int64_t n) {
  using C = Compute<T>;
  const auto* tx = static_cast<const T*>(x.data);
  auto* tq = static_cast<int8_t*>(q.data);
  float s = static_cast<float>(AbsMax(tx, x.stride, n) / C{127});
  if (s == 0) s = 1;
  *scale = s;
  if (!std::isfinite(s)) {
    for (int64_t i = 0; i < n; ++i) tq[i * q.stride] = 0;
    return;
  }
#if HWY_NATIVE_FMA
  if (hwy::IsSame<C, float>() && s >= kMinScale) {
    QuantizeRow<Reciprocal>(tx, x.stride, static_cast<const T*>(next), C{s}, tq,
                            q.stride, n);
    return;
  }
#endif
  QuantizeRow<Division>(tx, x.stride, static_cast<const T*>(next), C{s}, tq,
                        q.stride, n);
}

using QuantizeFunction = void (*)(Row x, const void* next, MutableRow q,
                                  float* scale, int64_t n);

struct KernelsOf {
  template <class T>
  HWY_INLINE QuantizeFunction operator()(T) const {
    return Quantize<T>;
  }
};

QuantizeFunction QuantizeInt8(DType dtype) {
  return ForDType(dtype, KernelsOf());
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foo_core {

void quantize_int8_rowwise(const ConstTensorView& x, const TensorView& q,
                           const TensorView& scale, const Executor& executor) {
  const char* op = "quantize_int8_rowwise";
  const Argument arg_x{"x", x}, arg_q{"q", q}, arg_scale{"scale", scale};
  check_has_rows(op, arg_x);
  check_tensor(op, arg_q, DType::kInt8);
  check_shape(op, arg_q, x.ndim, x.sizes);
  check_tensor(op, arg_scale, DType::kFloat32);
  std::int64_t sizes[kMaxDims];
  std::copy_n(x.sizes, x.ndim, sizes);
  sizes[x.ndim - 1] = 1;
  check_shape(op, arg_scale, x.ndim, sizes);
  check_output(op, arg_q, {}, {&arg_x});
  check_output(op, arg_scale, {}, {&arg_x, &arg_q});
  if constexpr (cuda::kBuilt) {
    if (on_cuda(executor)) {
      return cuda::quantize_int8_rowwise(x, q, scale, executor.stream);
    }
  }
  const CpuThreads threads(op, executor);

  const auto quantize = FOO_CORE_DISPATCH(QuantizeInt8)(x.dtype);
  const std::int64_t n = last_size(x);
  // Without elements, x and q may be null: the nest does not move in them.
  const auto nest =
      nest_of_rows(x, n == 0 ? nullptr : &x, n == 0 ? nullptr : &q, scale);
  const auto run = [&](std::int64_t begin, std::int64_t end) {
    Walker<3> at(nest, nest.ndim, begin);
    while (begin < end) {
      const Row row = row_at(&x, at.offset(0));
      const MutableRow out = row_at(&q, at.offset(1));
      float* const s = static_cast<float*>(scale.data) + at.offset(2);
      if (++begin < end) at.next();
      quantize(row, row_at(&x, at.offset(0)).data, out, s, n);
    }
  };
  threads.for_rows(x, run);
}

}  // namespace foo_core
#endif  // HWY_ONCE
