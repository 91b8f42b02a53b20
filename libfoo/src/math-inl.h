// Functions without an instruction: exponential, logistic and normal
// distribution. Included once per SIMD target, and for CUDA after
// cuda/scalar.h, where a vector is one number.
#if defined(FOO_CORE_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOO_CORE_MATH_INL_H_
#undef FOO_CORE_MATH_INL_H_
#else
#define FOO_CORE_MATH_INL_H_
#endif

#ifndef FOO_CORE_CUDA_SCALAR
#include "cpu/vec-inl.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {

// Highway does not specify Min and Max for NaN. x86 returns the second operand;
// Arm returns the number.

/// min(x, limit); NaN for NaN.
template <class V>
HWY_INLINE V AtMost(hn::TFromV<V> limit, V x) {
  const auto v = hn::Set(hn::DFromV<V>(), limit);
#if HWY_ARCH_X86
  return hn::Min(v, x);
#else
  return hn::IfThenElse(hn::Gt(x, v), v, x);
#endif
}

/// max(x, limit); NaN for NaN.
template <class V>
HWY_INLINE V AtLeast(hn::TFromV<V> limit, V x) {
  const auto v = hn::Set(hn::DFromV<V>(), limit);
#if HWY_ARCH_X86
  return hn::Max(v, x);
#else
  return hn::IfThenElse(hn::Lt(x, v), v, x);
#endif
}

/// factor * (c0 + c1 * y + c2 * y^2 + ...) with y = scale * x. Only constants
/// are scaled, at compile time.
template <class V>
HWY_INLINE V Polynomial(V, hn::TFromV<V>, hn::TFromV<V> factor,
                        hn::TFromV<V> c0) {
  return hn::Set(hn::DFromV<V>(), factor * c0);
}

template <class V, class... Rest>
HWY_INLINE V Polynomial(V x, hn::TFromV<V> scale, hn::TFromV<V> factor,
                        hn::TFromV<V> c0, Rest... rest) {
  return hn::MulAdd(Polynomial(x, scale, factor * scale, rest...), x,
                    hn::Set(hn::DFromV<V>(), factor * c0));
}

/// a * b - product: the rounding error of product = a * b.
template <class V>
HWY_INLINE V ProductError(V a, V b, V product) {
#if HWY_NATIVE_FMA
  return hn::MulSub(a, b, product);
#else  // Dekker 1971: products of halves of the bits are exact.
  using C = hn::TFromV<V>;
  const hn::DFromV<V> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  const auto mask =
      hn::Set(du, hwy::IsSame<C, float>() ? 0xFFFFF000 : 0xFFFFFFFFF8000000);
  const auto a_high = hn::And(a, hn::BitCast(d, mask));
  const auto b_high = hn::And(b, hn::BitCast(d, mask));
  const auto a_low = hn::Sub(a, a_high);
  const auto b_low = hn::Sub(b, b_high);
  auto error = hn::MulSub(a_high, b_high, product);
  error = hn::MulAdd(a_high, b_low, error);
  error = hn::MulAdd(a_low, b_high, error);
  return hn::MulAdd(a_low, b_low, error);
#endif
}

// Below, T is the type to which a result will be rounded. If it has 16 bits,
// less is computed: errors are below 0.01 of its ulp.
template <class T>
constexpr bool kIsHalf = sizeof(T) == 2;

/// x / y, to be rounded to T.
template <class T, class V>
HWY_INLINE V Divide(V x, V y) {
#ifdef FOO_CORE_CUDA_SCALAR
  if constexpr (kIsHalf<T>) return DivideApproximately(x, y);
#endif
  return hn::Div(x, y);
}

// exp(x) = 2^n * exp(r) with n = round(x / ln 2) and r = x - n * ln 2. ln 2 is
// the sum of kLn2High, whose product with n is exact, and kLn2Low. Adding
// kMagic rounds to an integer, which is then in the low bits of the sum.
template <class C>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float kMagic = 0x1.8p23f;
  static constexpr int kExponentShift = 23;
  static constexpr int kBias = 127;
  static constexpr float kInvLn2 = 0x1.715476p0f;
  static constexpr float kLn2 = 0x1.62e430p-1f;
  static constexpr float kLn2High = 0x1.62e4p-1f;
  static constexpr float kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr float kOverflow = 89;              // exp is infinite
  static constexpr float kUnderflow = -104;           // exp is 0
  static constexpr float kNormalUnderflow = -88.02f;  // n is -127
};

template <>
struct ExpConstants<double> {
  static constexpr double kMagic = 0x1.8p52;
  static constexpr int kExponentShift = 52;
  static constexpr int kBias = 1023;
  static constexpr double kInvLn2 = 0x1.71547652b82fep0;
  static constexpr double kLn2 = 0x1.62e42fefa39efp-1;
  static constexpr double kLn2High = 0x1.62e42fefap-1;
  static constexpr double kLn2Low = 0x1.cf79abc9e3b3ap-40;
  static constexpr double kOverflow = 710;
  static constexpr double kUnderflow = -746;
  static constexpr double kNormalUnderflow = -709.09;
};

/// Returns r with scale * x = n * ln 2 + scale * r, and sets sum to n + magic.
template <class T, class V>
HWY_INLINE V ExpReduce(V x, hn::TFromV<V> scale, hn::TFromV<V> magic, V& sum) {
  using K = ExpConstants<hn::TFromV<V>>;
  const hn::DFromV<V> d;
  sum = hn::MulAdd(x, hn::Set(d, scale * K::kInvLn2), hn::Set(d, magic));
  const auto n = hn::Sub(sum, hn::Set(d, magic));
  if constexpr (kIsHalf<T>) {
    return hn::NegMulAdd(n, hn::Set(d, K::kLn2 / scale), x);
  }
  const auto r = hn::NegMulAdd(n, hn::Set(d, K::kLn2High / scale), x);
  return hn::NegMulAdd(n, hn::Set(d, K::kLn2Low / scale), r);
}

/// y * exp(scale * x) for |scale * x| <= ln(2) / 2, by minimax polynomials
/// whose relative errors are below 2^-18, 2^-23, 2^-28 and 2^-57. y is a vector
/// or 1.
template <class T, class V, class Y>
HWY_INLINE V TimesExpReduced(Y y, V x, hn::TFromV<V> scale) {
  using C = hn::TFromV<V>;
  constexpr bool kOne = hwy::IsSame<Y, int>();
  if constexpr (kIsHalf<T>) {
    V p;
    if constexpr (hwy::IsSame<T, hwy::bfloat16_t>()) {
      p = Polynomial(x, scale, 1, 0x1.ffffe8p-1f, 0x1.fffb34p-1f,
                     0x1.0005b8p-1f, 0x1.57e0d8p-3f, 0x1.53a0eap-5f);
    } else {
      p = Polynomial(x, scale, 1, 0x1.000002p+0f, 0x1.fffff6p-1f,
                     0x1.fffd1ap-2f, 0x1.555a18p-3f, 0x1.575f08p-5f,
                     0x1.0fe5b6p-7f);
    }
    if constexpr (kOne)
      return p;
    else
      return hn::Mul(y, p);
  } else {
    const C square = scale * scale;
    V q;
    if constexpr (hwy::IsSame<C, float>()) {
      q = Polynomial(x, scale, square, 0x1.fffffcp-2f, 0x1.555492p-3f,
                     0x1.5558f2p-5f, 0x1.1239e2p-7f, 0x1.6a2434p-10f);
    } else {
      q = Polynomial(
          x, scale, square, 0x1.000000000000ap-1, 0x1.55555555554fap-3,
          0x1.555555555087cp-5, 0x1.1111111127be5p-7, 0x1.6c16c1842a11dp-10,
          0x1.a01a012a57b51p-13, 0x1.a0199a0c677acp-16, 0x1.71df2552390c2p-19,
          0x1.28ad72cc30daap-22, 0x1.ad7f6f0799ee2p-26);
    }
    const hn::DFromV<V> d;
    const auto one = hn::Set(d, 1), c1 = hn::Set(d, scale);
#if HWY_NATIVE_FMA
    q = hn::MulAdd(q, x, c1);
    if constexpr (kOne)
      return hn::MulAdd(q, x, one);
    else
      return hn::MulAdd(hn::Mul(q, x), y, y);
#else  // as above, this would be off by 1.2 ulp and no faster
    q = hn::MulAdd(q, hn::Mul(x, x), hn::Mul(c1, x));
    if constexpr (kOne)
      return hn::Add(one, q);
    else
      return hn::MulAdd(q, y, y);
#endif
  }
}

/// 2^n, where the low bits of `biased` are the integers n + kBias.
template <class V>
HWY_INLINE auto PowerOf2(V biased) {
  using C = hwy::If<sizeof(hn::TFromV<V>) == 4, float, double>;
  return hn::BitCast(hn::Rebind<C, hn::DFromV<V>>(),
                     hn::ShiftLeft<ExpConstants<C>::kExponentShift>(biased));
}

#if HWY_TARGET == HWY_AVX3
// x * 2^floor(n). Highway 1.1 has no function for it.
HWY_INLINE hn::Vec<hn::ScalableTag<float>> Scale(
    hn::Vec<hn::ScalableTag<float>> x, hn::Vec<hn::ScalableTag<float>> n) {
  return {_mm512_scalef_ps(x.raw, n.raw)};
}
HWY_INLINE hn::Vec<hn::ScalableTag<double>> Scale(
    hn::Vec<hn::ScalableTag<double>> x, hn::Vec<hn::ScalableTag<double>> n) {
  return {_mm512_scalef_pd(x.raw, n.raw)};
}
#endif

/// 2^n * f(r) with scale * x = n * ln 2 + scale * r, for scale * x from about
/// kUnderflow to kOverflow. The result may be subnormal.
template <class T, class V, class F>
HWY_INLINE V ScaledExp(V x, hn::TFromV<V> scale, F f) {
  using K = ExpConstants<hn::TFromV<V>>;
  const hn::DFromV<V> d;
  V sum;
#if HWY_TARGET == HWY_AVX3
  const auto y = f(ExpReduce<T>(x, scale, K::kMagic, sum));
  return Scale(y, hn::Sub(sum, hn::Set(d, K::kMagic)));
#else
  // 2^n may not be normal, but 2^floor(n / 2) and 2^ceil(n / 2) are. The sum's
  // low bits are n + 2 * kBias.
  const auto y = f(ExpReduce<T>(x, scale, K::kMagic + 2 * K::kBias, sum));
  const auto bits = hn::BitCast(hn::RebindToUnsigned<decltype(d)>(), sum);
  const auto half = hn::ShiftRight<1>(bits);
  return hn::Mul(hn::Mul(y, PowerOf2(half)), PowerOf2(hn::Sub(bits, half)));
#endif
}

/// e^x within 1 ulp, including subnormal results; 1.6× faster than Exp in
/// Highway's contrib.
template <class C>
HWY_INLINE Pair<C> Exp(Pair<C> x) {
  using K = ExpConstants<C>;
  const auto exp = [](auto v) HWY_ATTR {
    v = AtMost(K::kOverflow, AtLeast(K::kUnderflow, v));
    return ScaledExp<C>(
        v, 1, [](auto r) HWY_ATTR { return TimesExpReduced<C>(1, r, 1); });
  };
  return {exp(x.a), exp(x.b)};
}

/// e^x for x <= 0, with 0 for results that are not normal. That saves five
/// instructions per vector, except in AVX-512, which has one for it.
template <class C>
HWY_INLINE Pair<C> ExpNegative(Pair<C> x) {
  using K = ExpConstants<C>;
  const auto exp = [](auto v) HWY_ATTR {
#if HWY_TARGET == HWY_AVX3
    return ScaledExp<C>(AtLeast(K::kUnderflow, v), 1, [](auto r) HWY_ATTR {
      return TimesExpReduced<C>(1, r, 1);
    });
#else
    const hn::RebindToUnsigned<hn::ScalableTag<C>> du;
    auto sum = v;
    v = AtLeast(K::kNormalUnderflow, v);
    const auto r = ExpReduce<C>(v, 1, K::kMagic + K::kBias, sum);
    return hn::Mul(TimesExpReduced<C>(1, r, 1), PowerOf2(hn::BitCast(du, sum)));
#endif
  };
  return {exp(x.a), exp(x.b)};
}

/// The fraction power / denominator, whose parts do not overflow; rest /
/// denominator is 1 minus it.
template <class V>
struct SigmoidFraction {
  V power, rest, denominator;
};

/// At kLow `power` is 0; at kHigh rest / denominator is 0.
template <class C>
struct SigmoidRange;

template <>
struct SigmoidRange<float> {
  static constexpr float kLow = -176.06f;  // -2 * kBias * ln 2
  static constexpr float kHigh = 110;
};

template <>
struct SigmoidRange<double> {
  static constexpr double kLow = -1418.18;
  static constexpr double kHigh = 760;
};

/// 1 / (1 + exp(-x - tail...)) for x from about kLow to kHigh, in the form
/// 2^-h / (2^-h + 2^h * exp(-r)) with h about -x / (2 * ln 2). The product
/// y / denominator * power then keeps all its bits until it is subnormal
/// itself, and for y = -inf it is NaN, like -inf / (1 + exp(inf)).
template <class T, class V, class... Tail>
HWY_INLINE SigmoidFraction<V> Sigmoid(V x, Tail... tail) {
  using C = hn::TFromV<V>;
  using K = ExpConstants<C>;
  const hn::RebindToUnsigned<hn::DFromV<V>> du;
  const auto bias2 = hn::Set(du, hn::TFromD<decltype(du)>{2 * K::kBias});
  V sum;
#ifdef FOO_CORE_CUDA_SCALAR
  if constexpr (kIsHalf<T>) {  // by two instructions of GPUs
    const V half = x * static_cast<V>(0.5 / 0x1.62e430p-1);
    const V power = Exp2Approximately(half), rest = Exp2Approximately(-half);
    return {power, rest, power + rest};
  }
#endif
  if constexpr (kIsHalf<T>) {  // saves an operation and doubles the error
    const auto r = ExpReduce<T>(x, C(-0.5), K::kMagic + K::kBias, sum);
    const auto root = TimesExpReduced<T>(1, r, C(-0.5));
    const auto square = hn::Mul(root, root);
    const auto bits = hn::BitCast(du, sum);
    const auto inverse = PowerOf2(bits), power = PowerOf2(hn::Sub(bias2, bits));
    return {power, hn::Mul(square, inverse),
            hn::MulAdd(square, inverse, power)};
  } else {  // the exponent n is split as in ScaledExp
    auto r = ExpReduce<T>(x, C(-1), K::kMagic + 2 * K::kBias, sum);
    if constexpr (sizeof...(tail) > 0) r = hn::Add(r, tail...);
    const auto exp = TimesExpReduced<T>(1, r, C(-1));
    const auto bits = hn::BitCast(du, sum);
    const auto half = hn::ShiftRight<1>(bits);
    const auto inverse = PowerOf2(half);
    const auto power = PowerOf2(hn::Sub(hn::Add(bias2, half), bits));
    return {power, hn::Mul(exp, inverse), hn::MulAdd(exp, inverse, power)};
  }
}

/// exp(x^2 / 2) * Phi(-x), where Phi is the normal distribution function, for x
/// from 0 to kNormalTailEnd; x times that if kTimesX. It is about 0.4 / (x +
/// k), times a polynomial in t = (x - k) / (x + k) + 1 - center. The relative
/// errors are below 2^-18, 2^-28 and 2^-57. For float, k and center make the
/// constant term 1, which saves a rounding.
template <bool kTimesX, class T, class V>
HWY_INLINE V NormalTail(V x) {
  using C = hn::TFromV<V>;
  const hn::DFromV<V> d;
  constexpr bool kFloat = hwy::IsSame<T, float>();
  constexpr C k = hwy::IsSame<T, double>() ? 6 : kFloat ? 2.328125 : 3.5;
  constexpr C center = kFloat ? 0x1.528db0p-2 : 1;
  const auto one = hn::Set(d, 1);
  const auto scale = Divide<T>(kTimesX ? x : one, hn::Add(x, hn::Set(d, k)));
  const auto t =
      kTimesX ? hn::MulSub(scale, hn::Set(d, 2), hn::Set(d, center))
              : hn::NegMulAdd(scale, hn::Set(d, 2 * k), hn::Set(d, 2 - center));
  V q;
  if constexpr (kIsHalf<T>) {
    q = Polynomial(t, 1, 1, 0x1.7d23d0p-1f, -0x1.2191a2p-1f, 0x1.43184ep-2f,
                   -0x1.db453cp-4f, 0x1.12d348p-6f, 0x1.9ddf5ep-8f,
                   -0x1.05cdf0p-9f);
  } else if constexpr (hwy::IsSame<T, float>()) {
    q = Polynomial(t, 1, 1, -0x1.f58272p-2f, 0x1.f9070ap-6f, 0x1.1ffbe2p-5f,
                   0x1.56b4f6p-9f, -0x1.816aacp-9f, -0x1.2f2d72p-10f,
                   0x1.1aa26ep-18f, -0x1.745698p-14f, 0x1.235aeap-12f,
                   -0x1.40c61cp-14f);
    return hn::MulAdd(hn::Mul(scale, t), q, scale);
  } else {
    q = Polynomial(
        t, 1, 1, 0x1.8e010d2b8a0eap-1, -0x1.66eaa7d09640ep-1,
        0x1.234fe3fd925c2p-1, -0x1.a7d6577269c54p-2, 0x1.1267d7383d8b2p-2,
        -0x1.38b069dbb39b7p-3, 0x1.33e777760b06cp-4, -0x1.fba9d530b6377p-6,
        0x1.48a83bce20d1bp-7, -0x1.1764cd5649b85p-9, 0x1.13bbedf06435dp-15,
        0x1.7c5722851c0d3p-13, -0x1.0f972e90accf6p-14, 0x1.20b9a4e9b173cp-20,
        0x1.c825cab88af59p-18, -0x1.e318f15eebd4bp-20, -0x1.cf0329a7421bbp-22,
        0x1.4d2c2405f1f34p-22, 0x1.550ec42b4089ap-27, -0x1.71129b125ed08p-25,
        0x1.003262faa7b16p-37, 0x1.44b691f817d5bp-28, 0x1.7e0033ae342ffp-31);
  }
  return hn::Mul(q, scale);
}

template <class C>
constexpr C kNormalTailEnd = hwy::IsSame<C, float>() ? 14.5 : 39;

}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#endif  // once per target
