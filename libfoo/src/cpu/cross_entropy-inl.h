// Vector functions of softmax. Included once per SIMD target.
#if defined(FOO_CORE_CROSS_ENTROPY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOO_CORE_CROSS_ENTROPY_INL_H_
#undef FOO_CORE_CROSS_ENTROPY_INL_H_
#else
#define FOO_CORE_CROSS_ENTROPY_INL_H_
#endif

#include "hwy/cache_control.h"
#include "math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {

/// The larger of each two lanes; unspecified if one of them is NaN.
template <class C>
HWY_INLINE Pair<C> Larger(Pair<C> x, Pair<C> y) {
  return {hn::Max(x.a, y.a), hn::Max(x.b, y.b)};
}

template <class C>
HWY_INLINE C Largest(Pair<C> x) {
  return hn::GetLane(hn::MaxOfLanes(hn::ScalableTag<C>(), hn::Max(x.a, x.b)));
}

/// Loads the first n <= Lanes() elements; the other lanes are `fill`.
template <class T>
HWY_INLINE Pair<Compute<T>> LoadFilled(const T* p, int64_t n, Compute<T> fill) {
  HWY_ALIGN T buffer[2 * hn::MaxLanes(hn::ScalableTag<Compute<T>>())];
  Store(Pair<Compute<T>>::Set(fill), buffer);
  hwy::CopyBytes(p, buffer, static_cast<size_t>(n) * sizeof(T));
  return Load(buffer);
}

template <class T>
HWY_INLINE double LoadOne(const T* p) {
  return static_cast<double>(hn::GetLane(LoadN(p, 1).a));
}

/// Prefetches the n elements 16 KiB after p. The hardware prefetcher stops
/// while a block is read for the second time.
template <class T>
HWY_INLINE void FetchAhead(const T* p, int64_t n) {
  const char* begin = reinterpret_cast<const char*>(p) + 16384;
  const int64_t bytes = n * static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < bytes; i += 64) hwy::Prefetch(begin + i);
}

/// 2^x for |x| <= 1/2 by minimax polynomials, whose relative errors are below
/// 2^-18.4, 2^-23.4 and 2^-28.9; exact for 0.
template <int kDegree, class V>
HWY_INLINE V Exp2Reduced(V x) {
  if constexpr (kDegree == 4) {
    return Polynomial(x, 1, 1, 1, 0x1.62e12cp-1f, 0x1.ec0378p-3f,
                      0x1.c9fc46p-5f, 0x1.3a02ccp-7f);
  } else if constexpr (kDegree == 5) {
    return Polynomial(x, 1, 1, 1, 0x1.62e42ap-1f, 0x1.ebf9bcp-3f,
                      0x1.c6b752p-5f, 0x1.3cea88p-7f, 0x1.5bba14p-10f);
  } else {
    static_assert(kDegree == 6);
    return Polynomial(x, 1, 1, 1, 0x1.62e43p-1f, 0x1.ebfbdcp-3f, 0x1.c6aee8p-5f,
                      0x1.3b2d4cp-7f, 0x1.5f3e52p-10f, 0x1.41fbbcp-13f);
  }
}

// ExpNegative in fewer instructions: the relative error grows with |x|, but the
// absolute error does not, because e^x shrinks. In e^x = 2^(x / ln 2) = 2^f *
// 2^n, 1 / ln 2 is one constant without a correction, and 2^n stays a factor,
// by which an FMA multiplies. That makes the loss and its gradient 1.1× faster
// for float32. For 16-bit types the polynomials have a lower degree, 5 for the
// loss and 4 for a gradient that is rounded to few bits: 1.2× to 1.3× faster.

/// Returns 2^f and sets `power` to 2^n, for x up to a rounding error above 0,
/// or NaN.
template <int kDegree, class V>
HWY_INLINE V ExpFactors(V x, V& power) {
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
  return Exp2Reduced<kDegree>(f);
}

template <int kDegree>
HWY_INLINE Pair<float> ExpFactors(Pair<float> x, Pair<float>& power) {
  return {ExpFactors<kDegree>(x.a, power.a), ExpFactors<kDegree>(x.b, power.b)};
}

/// sum + e^x for x <= 0 or NaN, where x is a difference of two T.
template <class T>
HWY_INLINE Pair<Compute<T>> AddExp(Pair<Compute<T>> sum, Pair<Compute<T>> x) {
  if constexpr (hwy::IsSame<T, double>()) {
    return sum + ExpNegative(x);
  } else {
    Pair<float> power;
    const auto y = ExpFactors<sizeof(T) == 2 ? 5 : 6>(x, power);
    return MulAdd(y, power, sum);
  }
}

/// e^x, to be rounded to T, for x up to a rounding error above 0, or NaN.
template <class T>
HWY_INLINE Pair<Compute<T>> ExpFor(Pair<Compute<T>> x) {
  if constexpr (hwy::IsSame<T, double>()) {
    return ExpNegative(x);
  } else {
    Pair<float> power;
    const auto y = ExpFactors<sizeof(T) == 2 ? 4 : 6>(x, power);
    return y * power;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#endif  // once per target
