// What softmax needs of vectors. Included once per SIMD target.
#if defined(FOO_CORE_CROSS_ENTROPY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOO_CORE_CROSS_ENTROPY_INL_H_
#undef FOO_CORE_CROSS_ENTROPY_INL_H_
#else
#define FOO_CORE_CROSS_ENTROPY_INL_H_
#endif

#include "cpu/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {

/// The larger of each two; either if one is NaN.
template <class C>
HWY_INLINE Pair<C> Larger(Pair<C> x, Pair<C> y) {
  return {hn::Max(x.a, y.a), hn::Max(x.b, y.b)};
}

template <class C>
HWY_INLINE C Largest(Pair<C> x) {
  return hn::ReduceMax(hn::ScalableTag<C>(), hn::Max(x.a, x.b));
}

template <class C>
HWY_INLINE Pair<C> Subtract(Pair<C> x, Pair<C> y) {
  return {hn::Sub(x.a, y.a), hn::Sub(x.b, y.b)};
}

/// The first n <= Lanes() elements; the others are `fill`.
template <class T>
HWY_INLINE Pair<Compute<T>> LoadFilled(const T* p, int64_t n, Compute<T> fill) {
  HWY_ALIGN T buffer[2 * hn::MaxLanes(hn::ScalableTag<Compute<T>>())];
  for (T& element : buffer) element = hwy::ConvertScalarTo<T>(fill);
  hwy::CopyBytes(p, buffer, static_cast<size_t>(n) * sizeof(T));
  return Load(buffer);
}

// ExpNegative for float with an error that is small next to the sum of a row,
// or next to that of rounding x: 2^-22, or 2^-18 if kCoarse (for results that
// are rounded to 16 bits). The factor 2^n comes apart from the rest, as an FMA
// can multiply by it. Here exp(x) = 2^(x / ln 2) = 2^n * 2^f, without a second
// constant for what 1 / ln 2 lacks, and with minimax polynomials for 2^f that
// are exact for f = 0. That makes the loss and its gradient 1.25 times as fast,
// kCoarse the gradient for bfloat16 another 1.07 to 1.11 times.
template <bool kCoarse, class V>
HWY_INLINE V FastExp(V x, V& power) {
  using K = ExpConstants<float>;
  const hn::DFromV<V> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  const auto inv_ln2 = hn::Set(d, K::kInvLn2);
  const auto magic = hn::Set(d, K::kMagic + K::kBias);
  x = AtLeast(K::kNormalUnderflow, x);
  const auto sum = hn::MulAdd(x, inv_ln2, magic);
  const auto f = hn::MulSub(x, inv_ln2, hn::Sub(sum, magic));
  power =
      hn::BitCast(d, hn::ShiftLeft<K::kExponentShift>(hn::BitCast(du, sum)));
  if constexpr (kCoarse) {
    return Polynomial(f, 1, 0x1.62e12cp-1f, 0x1.ec0378p-3f, 0x1.c9fc46p-5f,
                      0x1.3a02ccp-7f);
  } else {
    return Polynomial(f, 1, 0x1.62e42ap-1f, 0x1.ebf9bcp-3f, 0x1.c6b752p-5f,
                      0x1.3cea88p-7f, 0x1.5bba14p-10f);
  }
}

/// sum + e^x for x <= 0 (or NaN).
HWY_INLINE Pair<float> AddExp(Pair<float> sum, Pair<float> x) {
  Pair<float> power;
  const auto a = FastExp<false>(x.a, power.a);
  const auto b = FastExp<false>(x.b, power.b);
  return MulAdd({a, b}, power, sum);
}

HWY_INLINE Pair<double> AddExp(Pair<double> sum, Pair<double> x) {
  return sum + ExpNegative(x);
}

/// e^x for x <= 0 (or NaN), to be rounded to T.
template <class T>
HWY_INLINE Pair<Compute<T>> ExpFor(Pair<Compute<T>> x) {
  if constexpr (hwy::IsSame<T, double>()) {
    return ExpNegative(x);
  } else {
    Pair<float> power;
    const auto a = FastExp<sizeof(T) == 2>(x.a, power.a);
    const auto b = FastExp<sizeof(T) == 2>(x.b, power.b);
    return Pair<float>{a, b} * power;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#endif  // once per target
