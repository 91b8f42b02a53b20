// Functions that CPUs have no instruction for. Included once per SIMD target.
#if defined(FOO_CORE_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOO_CORE_MATH_INL_H_
#undef FOO_CORE_MATH_INL_H_
#else
#define FOO_CORE_MATH_INL_H_
#endif

#include "cpu/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {

// Highway leaves open what its Min and Max return for a NaN. With the limit as
// the first operand, both x86 and Arm return the NaN.

/// x, but at most `limit`; NaN for NaN.
template <class V>
HWY_INLINE V AtMost(hn::TFromV<V> limit, V x) {
  const auto v = hn::Set(hn::DFromV<V>(), limit);
#if HWY_ARCH_X86 || HWY_ARCH_ARM
  return hn::Min(v, x);
#else
  return hn::IfThenElse(hn::Gt(x, v), v, x);
#endif
}

/// x, but at least `limit`; NaN for NaN.
template <class V>
HWY_INLINE V AtLeast(hn::TFromV<V> limit, V x) {
  const auto v = hn::Set(hn::DFromV<V>(), limit);
#if HWY_ARCH_X86 || HWY_ARCH_ARM
  return hn::Max(v, x);
#else
  return hn::IfThenElse(hn::Lt(x, v), v, x);
#endif
}

/// c0 + c1 * x + c2 * x^2 + ...
template <class V>
HWY_INLINE V Polynomial(V, hn::TFromV<V> c0) {
  return hn::Set(hn::DFromV<V>(), c0);
}

template <class V, class... Rest>
HWY_INLINE V Polynomial(V x, hn::TFromV<V> c0, Rest... rest) {
  return hn::MulAdd(Polynomial(x, rest...), x, hn::Set(hn::DFromV<V>(), c0));
}

// exp(x) = 2^n * exp(r) with n = round(x / ln 2) and r = x - n * ln 2, where
// ln 2 is the sum of kLn2High, of which n times is exact, and kLn2Low. Adding
// kMagic leaves n in the low bits of a sum that has no others below.
template <class C>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float kMagic = 0x1.8p23f;
  static constexpr int kExponentShift = 23;
  static constexpr int kBias = 127;
  static constexpr float kInvLn2 = 0x1.715476p0f;
  static constexpr float kLn2High = 0x1.62e4p-1f;
  static constexpr float kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr float kOverflow = 89;              // exp of it is infinite,
  static constexpr float kUnderflow = -104;           // 0,
  static constexpr float kNormalUnderflow = -88.02f;  // 0 if n is -127
};

template <>
struct ExpConstants<double> {
  static constexpr double kMagic = 0x1.8p52;
  static constexpr int kExponentShift = 52;
  static constexpr int kBias = 1023;
  static constexpr double kInvLn2 = 0x1.71547652b82fep0;
  static constexpr double kLn2High = 0x1.62e42fefap-1;
  static constexpr double kLn2Low = 0x1.cf79abc9e3b3ap-40;
  static constexpr double kOverflow = 710;
  static constexpr double kUnderflow = -746;
  static constexpr double kNormalUnderflow = -709.09;
};

/// exp(x) for |x| <= ln(2) / 2: 1 + x + x^2 * q(x) with q a minimax polynomial,
/// relative error below 2^-28 and 2^-57.
template <class V>
HWY_INLINE V ExpReduced(V x) {
  V q;
  if constexpr (hwy::IsSame<hn::TFromV<V>, float>()) {
    q = Polynomial(x, 0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558f2p-5f,
                   0x1.1239e2p-7f, 0x1.6a2434p-10f);
  } else {
    q = Polynomial(x, 0x1.000000000000ap-1, 0x1.55555555554fap-3,
                   0x1.555555555087cp-5, 0x1.1111111127be5p-7,
                   0x1.6c16c1842a11dp-10, 0x1.a01a012a57b51p-13,
                   0x1.a0199a0c677acp-16, 0x1.71df2552390c2p-19,
                   0x1.28ad72cc30daap-22, 0x1.ad7f6f0799ee2p-26);
  }
  const auto one = hn::Set(hn::DFromV<V>(), 1);
#if HWY_NATIVE_FMA
  return hn::MulAdd(hn::MulAdd(q, x, one), x, one);
#else  // 1.2 ulp if done as above, and no slower
  return hn::Add(one, hn::MulAdd(q, hn::Mul(x, x), x));
#endif
}

/// exp(x - n * ln 2), where sum = n + magic is set too.
template <class V>
HWY_INLINE V ExpWithout(V x, hn::TFromV<V> magic, V& sum) {
  using K = ExpConstants<hn::TFromV<V>>;
  const hn::DFromV<V> d;
  sum = hn::MulAdd(x, hn::Set(d, K::kInvLn2), hn::Set(d, magic));
  const auto n = hn::Sub(sum, hn::Set(d, magic));
  auto r = hn::NegMulAdd(n, hn::Set(d, K::kLn2High), x);
  r = hn::NegMulAdd(n, hn::Set(d, K::kLn2Low), r);
  return ExpReduced(r);
}

#if HWY_TARGET == HWY_AVX3
// x * 2^floor(n), for which Highway 1.1 has no name.
HWY_INLINE hn::Vec<hn::ScalableTag<float>> Scale(
    hn::Vec<hn::ScalableTag<float>> x, hn::Vec<hn::ScalableTag<float>> n) {
  return {_mm512_scalef_ps(x.raw, n.raw)};
}
HWY_INLINE hn::Vec<hn::ScalableTag<double>> Scale(
    hn::Vec<hn::ScalableTag<double>> x, hn::Vec<hn::ScalableTag<double>> n) {
  return {_mm512_scalef_pd(x.raw, n.raw)};
}
#endif

/// e^x, with subnormal results.
template <class V>
HWY_INLINE V ExpOf(V x) {
  using K = ExpConstants<hn::TFromV<V>>;
  V sum;
  x = AtMost(K::kOverflow, AtLeast(K::kUnderflow, x));
#if HWY_TARGET == HWY_AVX3
  const auto y = ExpWithout(x, K::kMagic, sum);
  return Scale(y, hn::Sub(sum, hn::Set(hn::DFromV<V>(), K::kMagic)));
#else
  // 2^n may not be a normal number, but its factors 2^floor(n / 2) and
  // 2^ceil(n / 2) are. The sum's low bits are n + 2 * kBias.
  const hn::RebindToUnsigned<hn::DFromV<V>> du;
  const auto y = ExpWithout(x, K::kMagic + 2 * K::kBias, sum);
  const auto bits = hn::BitCast(du, sum);
  const auto half = hn::ShiftRight<1>(bits);
  const auto power = [](auto exponent) HWY_ATTR {
    return hn::BitCast(hn::DFromV<V>(),
                       hn::ShiftLeft<K::kExponentShift>(exponent));
  };
  return hn::Mul(hn::Mul(y, power(half)), power(hn::Sub(bits, half)));
#endif
}

/// e^x for x <= 0 (or NaN), where results that are not normal may be 0.
template <class V>
HWY_INLINE V ExpNegativeOf(V x) {
  using K = ExpConstants<hn::TFromV<V>>;
  V sum;
#if HWY_TARGET == HWY_AVX3
  x = AtLeast(K::kUnderflow, x);
  const auto y = ExpWithout(x, K::kMagic, sum);
  return Scale(y, hn::Sub(sum, hn::Set(hn::DFromV<V>(), K::kMagic)));
#else
  const hn::RebindToUnsigned<hn::DFromV<V>> du;
  x = AtLeast(K::kNormalUnderflow, x);
  const auto y = ExpWithout(x, K::kMagic + K::kBias, sum);
  const auto power = hn::ShiftLeft<K::kExponentShift>(hn::BitCast(du, sum));
  return hn::Mul(y, hn::BitCast(hn::DFromV<V>(), power));
#endif
}

/// e^x within 1 ulp, subnormal results included.
template <class C>
HWY_INLINE Pair<C> Exp(Pair<C> x) {
  return {ExpOf(x.a), ExpOf(x.b)};
}

/// The same for x <= 0, but results below the smallest normal number may be 0.
/// Five instructions a vector fewer, but for AVX-512 with one.
template <class C>
HWY_INLINE Pair<C> ExpNegative(Pair<C> x) {
  return {ExpNegativeOf(x.a), ExpNegativeOf(x.b)};
}

}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#endif  // once per target
