// Loads, stores and arithmetic with the same names for every dtype. Included
// once per SIMD target, so there is no ordinary include guard.
#if defined(FOO_CORE_VEC_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOO_CORE_VEC_INL_H_
#undef FOO_CORE_VEC_INL_H_
#else
#define FOO_CORE_VEC_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <limits>

#include "cpu/simd.h"
#include "foo_core/tensor.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// The type of computation for T: double for double, else float.
template <class T>
using Compute = hwy::If<hwy::IsSame<T, double>(), double, float>;

template <class T>
constexpr DType kDType = hwy::IsSame<T, double>()            ? DType::kFloat64
                         : hwy::IsSame<T, hwy::float16_t>()  ? DType::kFloat16
                         : hwy::IsSame<T, hwy::bfloat16_t>() ? DType::kBFloat16
                                                             : DType::kFloat32;

/// Two vectors of C, which are loaded, computed and stored in one step. Load
/// and Store agree on the order of elements, which may differ from that in
/// memory.
template <class C>
struct Pair {
  using D = hn::ScalableTag<C>;
  hn::Vec<D> a, b;

  // The implicit constructor would not be compiled for the target.
  HWY_INLINE Pair() {}
  HWY_INLINE Pair(hn::Vec<D> first, hn::Vec<D> second) : a(first), b(second) {}

  static HWY_INLINE Pair Set(C value) {
    if (value != value) value = std::numeric_limits<C>::quiet_NaN();
    return {hn::Set(D(), value), hn::Set(D(), value)};
  }
};

template <class C>
HWY_INLINE int64_t Lanes() {
  return 2 * static_cast<int64_t>(hn::Lanes(hn::ScalableTag<C>()));
}

template <class C>
HWY_INLINE Pair<C> operator+(Pair<C> x, Pair<C> y) {
  return {hn::Add(x.a, y.a), hn::Add(x.b, y.b)};
}

template <class C>
HWY_INLINE Pair<C> operator-(Pair<C> x, Pair<C> y) {
  return {hn::Sub(x.a, y.a), hn::Sub(x.b, y.b)};
}

template <class C>
HWY_INLINE Pair<C> operator*(Pair<C> x, Pair<C> y) {
  return {hn::Mul(x.a, y.a), hn::Mul(x.b, y.b)};
}

/// x * y + z, rounded once if the target has FMA.
template <class C>
HWY_INLINE Pair<C> MulAdd(Pair<C> x, Pair<C> y, Pair<C> z) {
  return {hn::MulAdd(x.a, y.a, z.a), hn::MulAdd(x.b, y.b, z.b)};
}

/// z - x * y, rounded once if the target has FMA.
template <class C>
HWY_INLINE Pair<C> NegMulAdd(Pair<C> x, Pair<C> y, Pair<C> z) {
  return {hn::NegMulAdd(x.a, y.a, z.a), hn::NegMulAdd(x.b, y.b, z.b)};
}

template <class C>
HWY_INLINE C Sum(Pair<C> x) {
  return hn::ReduceSum(hn::ScalableTag<C>(), hn::Add(x.a, x.b));
}

/// Loads p[at], p[at + 1], ...; lanes beyond p[n - 1] are 0. With kAll there
/// are enough elements, and n is ignored.
template <bool kAll, class D>
HWY_INLINE hn::Vec<D> LoadVector(D d, const hn::TFromD<D>* p, size_t at,
                                 int64_t n) {
  if constexpr (kAll) return hn::LoadU(d, p + at);
  at = HWY_MIN(at, static_cast<size_t>(n));
  return hn::LoadN(d, p + at, static_cast<size_t>(n) - at);
}

/// Stores what LoadVector loads. With kStream, p + at is aligned and the store
/// bypasses the caches.
template <bool kAll, bool kStream, class D>
HWY_INLINE void StoreVector(hn::Vec<D> x, D d, hn::TFromD<D>* p, size_t at,
                            int64_t n) {
  static_assert(kAll || !kStream);
  if constexpr (kStream) return hn::Stream(x, d, p + at);
  if constexpr (kAll) return hn::StoreU(x, d, p + at);
  at = HWY_MIN(at, static_cast<size_t>(n));
  hn::StoreN(x, d, p + at, static_cast<size_t>(n) - at);
}

/// Loads n <= Lanes() elements, or Lanes() if kAll; the other lanes are 0.
template <bool kAll, class C>
HWY_INLINE Pair<C> LoadSome(const C* p, int64_t n) {
  const hn::ScalableTag<C> d;
  return {LoadVector<kAll>(d, p, 0, n),
          LoadVector<kAll>(d, p, hn::Lanes(d), n)};
}

template <bool kAll, bool kStream = false, class C>
HWY_INLINE void StoreSome(Pair<C> x, C* p, int64_t n) {
  const hn::ScalableTag<C> d;
  StoreVector<kAll, kStream>(x.a, d, p, 0, n);
  StoreVector<kAll, kStream>(x.b, d, p, hn::Lanes(d), n);
}

#if HWY_TARGET == HWY_SSE2 || HWY_TARGET == HWY_SSE4
// Converts float16 bits in 32-bit words. Without a conversion instruction, as
// in SSE, Highway's PromoteTo makes infinity and NaN finite.
HWY_INLINE hn::Vec<hn::ScalableTag<float>> PromoteFloat16(
    hn::Vec<hn::ScalableTag<uint32_t>> half) {
  const hn::ScalableTag<float> d;
  const hn::ScalableTag<uint32_t> du;
  const auto magnitude = hn::ShiftLeft<13>(hn::And(half, hn::Set(du, 0x7FFF)));
  const auto scaled =  // has float's bias; subnormals become normal
      hn::Mul(hn::BitCast(d, magnitude), hn::Set(d, 0x1p112f));
  const auto special = hn::IfThenElseZero(
      hn::Gt(magnitude, hn::Set(du, 0x0F7FFFFF)), hn::Set(du, 0x7F800000));
  const auto sign = hn::ShiftLeft<16>(hn::And(half, hn::Set(du, 0x8000)));
  return hn::Or(scaled, hn::BitCast(d, hn::Or(special, sign)));
}
#endif

template <bool kAll>
HWY_INLINE Pair<float> LoadSome(const hwy::float16_t* p, int64_t n) {
  const hn::ScalableTag<float> d;
#if HWY_TARGET == HWY_SSE2 || HWY_TARGET == HWY_SSE4
  const hn::ScalableTag<uint32_t> du;
  const hn::Repartition<uint16_t, decltype(d)> dh;
  const auto bits =
      LoadVector<kAll>(dh, reinterpret_cast<const uint16_t*>(p), 0, n);
  return {PromoteFloat16(hn::PromoteLowerTo(du, bits)),
          PromoteFloat16(hn::PromoteUpperTo(du, bits))};
#else
  const hn::Rebind<hwy::float16_t, decltype(d)> dh;
  return {hn::PromoteTo(d, LoadVector<kAll>(dh, p, 0, n)),
          hn::PromoteTo(d, LoadVector<kAll>(dh, p, hn::Lanes(d), n))};
#endif
}

/// kStream is ignored, because half vectors are too short to be streamed.
template <bool kAll, bool kStream = false>
HWY_INLINE void StoreSome(Pair<float> x, hwy::float16_t* p, int64_t n) {
  const hn::ScalableTag<float> d;
  const hn::Rebind<hwy::float16_t, decltype(d)> dh;
  StoreVector<kAll, false>(hn::DemoteTo(dh, x.a), dh, p, 0, n);
  StoreVector<kAll, false>(hn::DemoteTo(dh, x.b), dh, p, hn::Lanes(d), n);
}

// A bfloat16 is the upper half of a float. In a 32-bit word with two of them,
// the second needs only a mask to become a float and the first only a shift. So
// a takes the first ones and b the second ones, and no element crosses
// lanes: 1.1× to 1.6× faster in AVX2 than Highway's PromoteLowerTo and
// OrderedDemote2To.
template <bool kAll>
HWY_INLINE Pair<float> LoadSome(const hwy::bfloat16_t* p, int64_t n) {
  const hn::ScalableTag<float> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  const hn::Repartition<uint16_t, decltype(d)> dh;
  const auto words = hn::BitCast(
      du, LoadVector<kAll>(dh, reinterpret_cast<const uint16_t*>(p), 0, n));
  return {hn::BitCast(d, hn::ShiftLeft<16>(words)),
          hn::BitCast(d, hn::And(words, hn::Set(du, 0xFFFF0000u)))};
}

// Rounds to nearest even: the lower half decides whether the upper half is
// incremented. A check for NaN would take a third of the time, and is not
// needed: NaN comes from a bfloat16, an instruction or Pair::Set, with a lower
// half of 0.
template <bool kAll, bool kStream = false>
HWY_INLINE void StoreSome(Pair<float> x, hwy::bfloat16_t* p, int64_t n) {
  const hn::ScalableTag<uint32_t> du;
  const hn::Repartition<uint16_t, decltype(du)> dh;
  const auto a = hn::BitCast(du, x.a), b = hn::BitCast(du, x.b);
  const auto upper =
      hn::OddEven(hn::BitCast(dh, b), hn::BitCast(dh, hn::ShiftRight<16>(a)));
  const auto lower =
      hn::OddEven(hn::BitCast(dh, hn::ShiftLeft<16>(b)), hn::BitCast(dh, a));
  // 1 where lower > 0x8000, or lower == 0x8000 and upper is odd
  const auto even = hn::AndNot(upper, hn::Set(dh, 1));
  const auto up = hn::ShiftRight<15>(hn::SaturatedSub(lower, even));
  StoreVector<kAll, kStream>(hn::Add(upper, up), dh,
                             reinterpret_cast<uint16_t*>(p), 0, n);
}

template <class T>
HWY_INLINE Pair<Compute<T>> Load(const T* p) {
  return LoadSome<true>(p, 0);
}

template <bool kStream = false, class T>
HWY_INLINE void Store(Pair<Compute<T>> x, T* p) {
  StoreSome<true, kStream>(x, p, 0);
}

template <class T>
HWY_INLINE void Store(Pair<Compute<T>> x, T* p, bool stream) {
  stream ? Store<true>(x, p) : Store<false>(x, p);
}

/// Loads the first n <= Lanes() elements; the other lanes are 0.
template <class T>
HWY_INLINE Pair<Compute<T>> LoadN(const T* p, int64_t n) {
  return LoadSome<false>(p, n);
}

/// Stores the first n <= Lanes() elements.
template <class T>
HWY_INLINE void StoreN(Pair<Compute<T>> x, T* p, int64_t n) {
  StoreSome<false>(x, p, n);
}

/// Loads n <= Lanes() elements, or Lanes() if kAll, of a type that may be wider
/// than T, in the order of LoadSome for elements of T; the other lanes are 0.
template <class T, bool kAll, class S>
HWY_INLINE Pair<Compute<T>> LoadSomeAs(const S* p, int64_t n) {
  if constexpr (hwy::IsSame<T, S>()) {
    return LoadSome<kAll>(p, n);
  } else if constexpr (hwy::IsSame<T, double>()) {
    const hn::ScalableTag<double> d;
    const hn::Rebind<S, decltype(d)> ds;
    return {hn::PromoteTo(d, LoadVector<kAll>(ds, p, 0, n)),
            hn::PromoteTo(d, LoadVector<kAll>(ds, p, hn::Lanes(d), n))};
  } else {
    static_assert(hwy::IsSame<S, float>());
    const hn::ScalableTag<float> d;
    auto x = LoadSome<kAll>(p, n);
    // StoreSome relies on the lower half of a NaN.
    const auto nan = Pair<float>::Set(std::numeric_limits<float>::quiet_NaN());
    x.a = hn::IfThenElse(hn::IsNaN(x.a), nan.a, x.a);
    x.b = hn::IfThenElse(hn::IsNaN(x.b), nan.b, x.b);
    if constexpr (hwy::IsSame<T, hwy::bfloat16_t>()) {
      return {hn::ConcatEven(d, x.b, x.a), hn::ConcatOdd(d, x.b, x.a)};
    }
    return x;
  }
}

/// Returns f(T()) for the T of `dtype`.
template <class F>
HWY_INLINE auto ForDType(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat64:
      return f(double());
    case DType::kFloat16:
      return f(hwy::float16_t());
    case DType::kBFloat16:
      return f(hwy::bfloat16_t());
    default:
      return f(float());
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#endif  // once per target
