// The exponentials of math-inl.h against long double. The library does not
// export them, so this program compiles the header.
#include <cmath>
#include <string>
#include <vector>

#include "cpu/simd.h"
#include "testing.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "math_test.cc"
// These read HWY_TARGET_INCLUDE, so they come after it.
#include "hwy/foreach_target.h"
//
#include "math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {
namespace {

struct ExpOp {
  template <class C>
  HWY_INLINE Pair<C> operator()(Pair<C> x) const {
    return Exp(x);
  }
};

struct ExpNegativeOp {
  template <class C>
  HWY_INLINE Pair<C> operator()(Pair<C> x) const {
    return ExpNegative(x);
  }
};

template <class F, class C>
void Map(const C* x, C* out, int64_t n) {
  for (int64_t i = 0; i < n; i += Lanes<C>()) {
    const int64_t m = HWY_MIN(n - i, Lanes<C>());
    StoreN(F()(LoadN(x + i, m)), out + i, m);
  }
}

void ExpFloat(const float* x, float* out, int64_t n) { Map<ExpOp>(x, out, n); }
void ExpDouble(const double* x, double* out, int64_t n) {
  Map<ExpOp>(x, out, n);
}
void ExpNegativeFloat(const float* x, float* out, int64_t n) {
  Map<ExpNegativeOp>(x, out, n);
}
void ExpNegativeDouble(const double* x, double* out, int64_t n) {
  Map<ExpNegativeOp>(x, out, n);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foo_core::testing {
namespace {

/// A fixture whose tests run once for each SIMD target, in this program's copy
/// of simd.cc.
class MathTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!has_target(GetParam())) GTEST_SKIP() << "not on this machine";
    simd::set(GetParam().c_str());
  }
  void TearDown() override { simd::set(nullptr); }
};
INSTANTIATE_TEST_SUITE_P(All, MathTest, ::testing::ValuesIn(all_targets()),
                         [](const auto& target) { return target.param; });

/// Numbers in [low, high], zeros, infinity and NaN.
template <class C>
std::vector<C> arguments(C low, C high) {
  std::vector<C> x = {0, C(-0.0), -INFINITY, C(NAN), low, high};
  constexpr int kCount = 1000003;
  for (int i = 0; i <= kCount; ++i) {
    x.push_back(low + (high - low) * static_cast<C>(i) / kCount);
  }
  for (C tiny = std::numeric_limits<C>::denorm_min(); tiny < 1; tiny *= 2) {
    x.push_back(-tiny);
    if (high > 0) x.push_back(tiny);
  }
  return x;
}

/// The largest error of f in ulp. Where the exact result is below `from`, f may
/// also return 0.
template <class C>
double error_of_exp(void (*f)(const C*, C*, int64_t), const std::vector<C>& x,
                    C from) {
  const DType dtype = sizeof(C) == 4 ? DType::kFloat32 : DType::kFloat64;
  std::vector<C> out(x.size());
  f(x.data(), out.data(), static_cast<int64_t>(x.size()));
  double worst = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const long double exact = std::exp(static_cast<long double>(x[i]));
    const auto nearest = static_cast<C>(exact);
    if (std::isnan(x[i])) {
      EXPECT_TRUE(std::isnan(out[i]));
    } else if (std::isinf(nearest) || nearest == 0) {
      EXPECT_EQ(out[i], nearest) << "exp " << x[i];
    } else {
      const long double unit = ulp(dtype, static_cast<double>(exact));
      const auto error = static_cast<double>(std::fabs(out[i] - exact) / unit);
      if (out[i] == 0 && exact < from) continue;
      if (error > 1) ADD_FAILURE() << "exp " << x[i] << " is " << out[i];
      worst = std::fmax(worst, error);
    }
  }
  return worst;
}

TEST_P(MathTest, Exp) {
  const auto f = FOO_CORE_DISPATCH(ExpFloat);
  EXPECT_LE(error_of_exp<float>(f, arguments(-110.0f, 95.0f), 0), 1);
  EXPECT_LE(error_of_exp<float>(f, arguments(-1.0f, 1.0f), 0), 1);
  EXPECT_LE(error_of_exp<float>(f, {INFINITY, 3e38f, -3e38f}, 0), 1);
  const auto d = FOO_CORE_DISPATCH(ExpDouble);
  EXPECT_LE(error_of_exp<double>(d, arguments(-760.0, 720.0), 0), 1);
  EXPECT_LE(error_of_exp<double>(d, arguments(-1.0, 1.0), 0), 1);
  EXPECT_LE(error_of_exp<double>(d, {INFINITY, 1e308, -1e308}, 0), 1);
}

TEST_P(MathTest, ExpNegative) {
  const auto f = FOO_CORE_DISPATCH(ExpNegativeFloat);
  EXPECT_LE(error_of_exp<float>(f, arguments(-110.0f, 0.0f), 0x1p-126f), 1);
  EXPECT_LE(error_of_exp<float>(f, {-3e38f}, 0), 1);
  const auto d = FOO_CORE_DISPATCH(ExpNegativeDouble);
  EXPECT_LE(error_of_exp<double>(d, arguments(-760.0, 0.0), 0x1p-1022), 1);
  EXPECT_LE(error_of_exp<double>(d, {-1e308}, 0), 1);
}

}  // namespace
}  // namespace foo_core::testing
#endif  // HWY_ONCE
