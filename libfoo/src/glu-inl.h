// The activations of gated linear units and their derivatives. Included once
// per SIMD target, and for CUDA after cuda/scalar.h.
#if defined(FOO_CORE_GLU_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOO_CORE_GLU_INL_H_
#undef FOO_CORE_GLU_INL_H_
#else
#define FOO_CORE_GLU_INL_H_
#endif

#include "glu.h"
#include "math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {

// Each activation f has Value, which returns f(x), and Derivative, which
// returns f(x) and f'(x). T is the type to which results will be rounded.

/// The result of Derivative: f(x) and f'(x).
template <class V>
struct Activated {
  V value, slope;
};

/// Differentiates y = x * sigmoid(z): y' = sigmoid(z) + y * (1 - sigmoid(z)) *
/// z'. A second division saves a rounding of y, which 16-bit results do not
/// need.
template <class T, class V, class... Slope>
HWY_INLINE Activated<V> Derive(V x, SigmoidFraction<V> sigmoid, Slope... z) {
  const auto inverse =
      Divide<T>(hn::Set(hn::DFromV<V>(), 1), sigmoid.denominator);
  const auto quotient =
      kIsHalf<T> ? hn::Mul(x, inverse) : hn::Div(x, sigmoid.denominator);
  const auto y = hn::Mul(quotient, sigmoid.power);
  auto rest = hn::Mul(sigmoid.rest, inverse);
  if constexpr (sizeof...(z) > 0) rest = hn::Mul(rest, z...);
  return {y, hn::MulAdd(y, rest, hn::Mul(sigmoid.power, inverse))};
}

/// x * sigmoid(x)
struct Silu {
  template <class V>
  static HWY_INLINE V Clamp(V x) {
    using Range = SigmoidRange<hn::TFromV<V>>;
    return AtMost(Range::kHigh, AtLeast(Range::kLow, x));
  }

  template <class T, class V>
  static HWY_INLINE V Value(V x) {
    const auto s = Sigmoid<T>(Clamp(x));
    return hn::Mul(Divide<T>(x, s.denominator), s.power);
  }

  template <class T, class V>
  static HWY_INLINE Activated<V> Derivative(V x) {
    return Derive<T>(x, Sigmoid<T>(Clamp(x)));
  }
};

/// x * Phi(x), where Phi is the normal distribution function. It is computed as
/// max(x, 0) - |x| * Phi(-|x|), so that small results keep all their bits.
struct Gelu {
  /// |x|, clamped to where Phi(-|x|) becomes 0.
  template <class V>
  static HWY_INLINE V Size(V x) {
    return AtMost(kNormalTailEnd<hn::TFromV<V>>, hn::Abs(x));
  }

  /// y * exp(-size^2 / 2)
  template <class T, class V, class Y>
  static HWY_INLINE V TimesExp(Y y, V size) {
    using C = hn::TFromV<V>;
    const auto square = hn::Mul(size, size);
    return ScaledExp<T>(square, C(-0.5), [&](V r) HWY_ATTR {
      // For a large square the rounding error matters.
      if constexpr (!kIsHalf<T>) {
        r = hn::Add(r, ProductError(size, size, square));
      }
      return TimesExpReduced<T>(y, r, C(-0.5));
    });
  }

  /// max(x, 0), but NaN for -inf, because -inf * 0 is NaN.
  template <class V>
  static HWY_INLINE V Positive(V x) {
    const hn::DFromV<V> d;
    return hn::Mul(x, hn::IfNegativeThenElse(x, hn::Zero(d), hn::Set(d, 1)));
  }

  template <class T, class V>
  static HWY_INLINE V Value(V x) {
    const auto size = Size(x);
    return hn::Sub(Positive(x), TimesExp<T>(NormalTail<true, T>(size), size));
  }

  template <class T, class V>
  static HWY_INLINE Activated<V> Derivative(V x) {
    const hn::DFromV<V> d;
    const auto size = Size(x);
    const auto exp = TimesExp<T>(1, size);
    const auto below = hn::Mul(NormalTail<false, T>(size), exp);
    const auto phi =
        hn::IfNegativeThenElse(x, below, hn::Sub(hn::Set(d, 1), below));
    const auto density = hn::Mul(  // exp / sqrt(2 * pi)
        exp, hn::Set(d, hn::TFromV<V>(0x1.9884533d43651p-2)));
    return {hn::NegMulAdd(size, below, Positive(x)),
            hn::MulAdd(x, density, phi)};
  }
};

/// x * (1 + tanh(z / 2)) / 2 = x * sigmoid(z), z = first * x + third * x^3
struct GeluTanh {
  // sqrt(8 / pi) and 0.044715 times it, with their rounding errors. At x = kLow
  // and kHigh, z reaches the ends of SigmoidRange.
  template <class C>
  struct Constants {
    static constexpr double kFirst = 0x1.9884533d43651p+0;
    static constexpr double kFirstRest = -0x1.cbc0d30ebfd15p-54;
    static constexpr double kThird = 0x1.2444f2a4d8b4bp-4;
    static constexpr double kThirdRest = -0x1.6c843a29d1c70p-61;
    static constexpr double kLow = -26.81233;
    static constexpr double kHigh = 21.66;
  };

  /// Returns sigmoid(z) and sets `slope` to z'.
  template <class T, class V>
  static HWY_INLINE SigmoidFraction<V> Split(V x, V& slope) {
    using C = hn::TFromV<V>;
    using K = Constants<C>;
    const hn::DFromV<V> d;
    const auto first = hn::Set(d, K::kFirst), third = hn::Set(d, K::kThird);
    x = AtMost(K::kHigh, AtLeast(K::kLow, x));
    const auto square = hn::Mul(x, x);
    slope = hn::MulAdd(square, hn::Set(d, 3 * K::kThird), first);
    if constexpr (kIsHalf<T>) {
      return Sigmoid<T>(hn::Mul(x, hn::MulAdd(square, third, first)));
    }
    // exp(-z) needs more bits of a large z than a number has, so z carries the
    // errors of all roundings. Without them small results are off by 100 ulp.
    const auto cubic = hn::Mul(square, third);
    const auto sum = hn::Add(cubic, first);
    const auto z = hn::Mul(x, sum);
    auto error =
        hn::Sub(hn::Min(cubic, first), hn::Sub(sum, hn::Max(cubic, first)));
    error = hn::Add(error, ProductError(square, third, cubic));
    error = hn::MulAdd(ProductError(x, x, square), third, error);
    error = hn::MulAdd(square, hn::Set(d, K::kThirdRest), error);
    error = hn::Add(error, hn::Set(d, K::kFirstRest));
    return Sigmoid<T>(z, hn::MulAdd(x, error, ProductError(x, sum, z)));
  }

  template <class T, class V>
  static HWY_INLINE V Value(V x) {
    V slope;
    const auto s = Split<T>(x, slope);
    return hn::Mul(Divide<T>(x, s.denominator), s.power);
  }

  template <class T, class V>
  static HWY_INLINE Activated<V> Derivative(V x) {
    V slope;
    const auto s = Split<T>(x, slope);
    return Derive<T>(x, s, slope);
  }
};

template <>
struct GeluTanh::Constants<float> {
  static constexpr float kFirst = 0x1.988454p+0f;
  static constexpr float kFirstRest = -0x1.857936p-25f;
  static constexpr float kThird = 0x1.2444f2p-4f;
  static constexpr float kThirdRest = 0x1.49b16ap-29f;
  static constexpr float kLow = -12.9614f;
  static constexpr float kHigh = 10.907f;
};

/// Returns f(Silu()), f(Gelu()) or f(GeluTanh()).
template <class F>
HWY_INLINE auto ForActivation(Activation activation, F f) {
  switch (activation) {
    case Activation::kGelu:
      return f(Gelu());
    case Activation::kGeluTanh:
      return f(GeluTanh());
    default:
      return f(Silu());
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#endif  // once per target
