#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <vector>

#include "testing.h"

namespace foo_core::testing {
namespace {

using Values = std::vector<double>;
constexpr double kEps = 1e-6;

Values reference(const Values& x, const Values& weight, std::int64_t n,
                 double eps) {
  Values y(x.size());
  for (std::size_t row = 0; row < x.size(); row += n) {
    long double squares = 0;
    for (std::int64_t j = 0; j < n; ++j) {
      squares += static_cast<long double>(x[row + j]) * x[row + j];
    }
    const long double r = 1 / std::sqrt(squares / n + eps);
    for (std::int64_t j = 0; j < n; ++j) {
      y[row + j] = static_cast<double>(x[row + j] * r *
                                       (weight.empty() ? 1 : weight[j]));
    }
  }
  return y;
}

struct Gradients {
  Values x, weight;
  Values x_term;  // r * grad * weight, of which x is a difference
};

Gradients reference_backward(const Values& grad, const Values& x,
                             const Values& weight, std::int64_t n, double eps) {
  Gradients result{Values(x.size()), Values(n), Values(x.size())};
  for (std::size_t row = 0; row < x.size(); row += n) {
    long double squares = 0, products = 0;
    for (std::int64_t j = 0; j < n; ++j) {
      const long double g = grad[row + j] * (weight.empty() ? 1 : weight[j]);
      squares += static_cast<long double>(x[row + j]) * x[row + j];
      products += g * x[row + j];
    }
    const long double r = 1 / std::sqrt(squares / n + eps);
    for (std::int64_t j = 0; j < n; ++j) {
      const long double g = grad[row + j] * (weight.empty() ? 1 : weight[j]);
      result.x[row + j] =
          static_cast<double>(r * (g - x[row + j] * r * r * products / n));
      result.x_term[row + j] = static_cast<double>(r * g);
      result.weight[j] += static_cast<double>(grad[row + j] * x[row + j] * r);
    }
  }
  return result;
}

/// Of got - expected, relative to `scale`.
double relative_l2(const Values& got, const Values& expected,
                   const Values& scale) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    error += (got[i] - expected[i]) * (got[i] - expected[i]);
    size += scale[i] * scale[i];
  }
  return size == 0 ? error : std::sqrt(error / size);
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

class RmsNormTest : public KernelTest {
 protected:
  Tensor make(Shape sizes, Shape strides = {}) {
    return Tensor(dtype(), std::move(sizes), std::move(strides));
  }

  // The gate: 0.51 ulp for 16-bit types, 4 ulp for the others.
  void expect_close(const Tensor& out, const Values& expected) {
    const double gate = item_size(dtype()) == 2 ? 0.51 : 4;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      ASSERT_LE(std::fabs(out.get(static_cast<std::int64_t>(i)) - expected[i]),
                gate * ulp(dtype(), expected[i]))
          << "element " << i << " of " << expected.size();
    }
    EXPECT_TRUE(out.guards_intact());
  }

  void check(Tensor x, Tensor weight, Tensor out) {
    const std::int64_t n = x.sizes.back();
    x.randomize(1, 3);
    weight.randomize(2);
    const ConstTensorView weight_view = weight;
    rms_norm(x, &weight_view, kEps, out);
    expect_close(out, reference(x.values(), weight.values(), n, kEps));
    rms_norm(x, nullptr, kEps, out);
    expect_close(out, reference(x.values(), {}, n, kEps));
  }

  static std::unique_ptr<void, Free> scratch_for(const ConstTensorView& x) {
    const std::int64_t size = rms_norm_backward_scratch_size(x);
    void* p =
        std::aligned_alloc(64, static_cast<std::size_t>(size + 64) / 64 * 64);
    std::fill_n(static_cast<unsigned char*>(p), size, 0xA5);
    return std::unique_ptr<void, Free>(p);
  }

  // Relative L2 error that rounding once, and a sum over `rows`, may have.
  double tolerance(std::int64_t rows) const {
    const double unit = std::ldexp(1, -precision(dtype()));
    const double compute = dtype() == DType::kFloat64 ? unit : 0x1p-24;
    return unit + compute * (3 + std::log2(1 + static_cast<double>(rows)));
  }

  void check_backward(Tensor grad, Tensor x, Tensor weight, Tensor grad_x,
                      Tensor grad_weight) {
    const std::int64_t n = x.sizes.back();
    const std::int64_t rows = n == 0 ? 0 : x.numel() / n;
    x.randomize(1, 3);
    grad.randomize(2);
    weight.randomize(3);
    const auto scratch = scratch_for(x);
    const ConstTensorView w = weight;
    const TensorView gx = grad_x, gw = grad_weight;
    for (const ConstTensorView* pw : {&w, (const ConstTensorView*)nullptr}) {
      const auto expected = reference_backward(
          grad.values(), x.values(), pw != nullptr ? weight.values() : Values(),
          n, kEps);
      rms_norm_backward(grad, x, pw, kEps, &gx, &gw, scratch.get());
      const auto both_x = grad_x.memory(), both_weight = grad_weight.memory();
      EXPECT_LE(relative_l2(grad_x.values(), expected.x, expected.x_term),
                tolerance(1));
      EXPECT_LE(
          relative_l2(grad_weight.values(), expected.weight, expected.weight),
          tolerance(rows));
      EXPECT_TRUE(grad_x.guards_intact());
      EXPECT_TRUE(grad_weight.guards_intact());
      grad_x.randomize(4);
      rms_norm_backward(grad, x, pw, kEps, &gx, nullptr, nullptr);
      EXPECT_EQ(grad_x.memory(), both_x);
      grad_weight.randomize(4);
      rms_norm_backward(grad, x, pw, kEps, nullptr, &gw, scratch.get());
      EXPECT_EQ(grad_weight.memory(), both_weight);
    }
  }
};
FOO_CORE_KERNEL_TESTS(RmsNormTest);

TEST_P(RmsNormTest, EverySizeAroundTheVectors) {
  for (std::int64_t n = 0; n <= 140; ++n) {
    check(make({3, n}), make({n}), make({3, n}));
  }
  for (const std::int64_t n : {1023, 1024, 1025, 4095, 4096, 4097, 8200}) {
    check(make({2, n}), make({n}), make({2, n}));
  }
}

TEST_P(RmsNormTest, OneDimensionAndMany) {
  check(make({70}), make({70}), make({70}));
  check(make({2, 3, 1, 4, 40}), make({40}), make({2, 3, 1, 4, 40}));
  check(make({0, 5}), make({5}), make({0, 5}));
}

TEST_P(RmsNormTest, AnyStrides) {
  check(make({5, 70}, {1, 5}), make({70}), make({5, 70}));
  check(make({5, 70}), make({70}, {3}), make({5, 70}, {1, 5}));
  check(make({5, 70}, {-100, 1}), make({70}, {-1}), make({5, 70}, {150, 2}));
  check(make({5, 2500}, {2500, -1}), make({2500}, {2}),
        make({5, 2500}, {-5000, -2}));
  check(make({2, 3, 40}, {40, 80, 1}), make({40}, {0}),
        make({2, 3, 40}, {1, 2, 6}));
}

TEST_P(RmsNormTest, LongRowsAreSummedInBlocks) {
  check(make({1, 300001}), make({300001}), make({1, 300001}));
}

TEST_P(RmsNormTest, InPlaceAndRangesAndThreads) {
  Tensor x = make({301, 333}).randomize(1), weight = make({333}).randomize(2);
  const ConstTensorView w = weight;
  Tensor whole = make({301, 333});
  Tensor parts = whole, many = whole;
  rms_norm(x, &w, kEps, whole);
  for (const auto& range : {std::pair{300, 301}, {0, 1}, {1, 1}, {1, 300}}) {
    cpu::rms_norm(x, &w, kEps, parts, range.first, range.second);
  }
  EXPECT_EQ(parts.memory(), whole.memory());
  rms_norm(x, &w, kEps, many, threads());
  EXPECT_EQ(many.memory(), whole.memory());
  rms_norm(x, &w, kEps, x);
  EXPECT_EQ(x.memory(), whole.memory());
}

TEST_P(RmsNormTest, EpsNaNAndInfinity) {
  Tensor x = make({4, 3}).randomize(0, 0), out = make({4, 3});
  const double inf = INFINITY, nan = std::nan("");
  const double rows[4][3] = {{0, 0, 0}, {1, nan, 2}, {1, inf, 2}, {3, 4, 5}};
  for (int i = 0; i < 12; ++i) x.set(i, rows[i / 3][i % 3]);
  rms_norm(x, nullptr, 0.25, out);
  for (int j = 0; j < 3; ++j) {
    EXPECT_EQ(out.get(j), 0);
    EXPECT_TRUE(std::isnan(out.get(3 + j)));
  }
  EXPECT_EQ(out.get(6), 0);  // 1 / inf
  EXPECT_TRUE(std::isnan(out.get(7)));
  EXPECT_EQ(out.get(8), 0);
  EXPECT_NEAR(out.get(9), 3 / std::sqrt(50 / 3.0 + 0.25), 0.01);
  rms_norm(x, nullptr, 0, out);
  EXPECT_TRUE(std::isnan(out.get(0)));  // 0 * inf
}

TEST_P(RmsNormTest, BackwardEverySizeAroundTheVectors) {
  for (std::int64_t n = 1; n <= 140; n += n < 40 ? 1 : 7) {
    check_backward(make({3, n}), make({3, n}), make({n}), make({3, n}),
                   make({n}));
  }
  for (const std::int64_t n : {1025, 4096, 8200}) {
    check_backward(make({3, n}), make({3, n}), make({n}), make({3, n}),
                   make({n}));
  }
}

TEST_P(RmsNormTest, BackwardEveryNumberOfRowsAroundTheBlocks) {
  for (const std::int64_t rows :
       {1, 2, 4, 5, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1023, 2049, 5000}) {
    check_backward(make({rows, 19}), make({rows, 19}), make({19}),
                   make({rows, 19}), make({19}));
  }
}

TEST_P(RmsNormTest, BackwardAnyStrides) {
  check_backward(make({5, 70}, {1, 5}), make({5, 70}), make({70}, {-2}),
                 make({5, 70}, {-100, 1}), make({70}, {3}));
  check_backward(make({2, 3, 40}, {40, 80, 1}), make({2, 3, 40}, {0, 40, 1}),
                 make({40}, {0}), make({2, 3, 40}, {1, 2, 6}),
                 make({40}, {-1}));
}

TEST_P(RmsNormTest, BackwardOfNothing) {
  Tensor x = make({0, 7}), grad_x = make({0, 7});
  Tensor grad_weight = make({7}).randomize(1);
  const TensorView gx = grad_x, gw = grad_weight;
  EXPECT_EQ(rms_norm_backward_scratch_size(x), 0);
  rms_norm_backward(x, x, nullptr, kEps, &gx, &gw, nullptr);
  EXPECT_EQ(grad_weight.values(), Values(7, 0.0));
  EXPECT_TRUE(grad_weight.guards_intact());
  Tensor flat = make({7, 0}), none = make({0});
  const TensorView flat_view = flat, none_view = none;
  rms_norm_backward(flat, flat, nullptr, kEps, &flat_view, &none_view, nullptr);
  rms_norm_backward(x, x, nullptr, kEps, nullptr, nullptr, nullptr);
}

TEST_P(RmsNormTest, BackwardInPlaceAndThreads) {
  for (const std::int64_t rows : {200, 1500}) {
    Tensor x = make({rows, 331}).randomize(1, 2);
    Tensor grad = make({rows, 331}).randomize(2);
    Tensor weight = make({331}).randomize(3);
    const ConstTensorView w = weight;
    const auto scratch = scratch_for(x);
    const auto run = [&](const Tensor& g, const Tensor& in, const Tensor& out,
                         const ParallelFor& parallel_for) {
      Tensor grad_weight = make({331});
      const TensorView gx = out, gw = grad_weight;
      rms_norm_backward(g, in, &w, kEps, &gx, &gw, scratch.get(), parallel_for);
      return grad_weight.memory();
    };
    Tensor one = make({rows, 331}), many = one;
    const auto expected = run(grad, x, one, serial());
    EXPECT_EQ(run(grad, x, many, threads()), expected);
    EXPECT_EQ(many.memory(), one.memory());
    Tensor grad_copy = grad, x_copy = x;
    EXPECT_EQ(run(grad_copy, x, grad_copy, threads()), expected);
    EXPECT_EQ(grad_copy.memory(), one.memory());
    EXPECT_EQ(run(grad, x_copy, x_copy, threads()), expected);
    EXPECT_EQ(x_copy.memory(), one.memory());
  }
}

// A running sum over all rows, as in the simplest kernel, has an error that
// grows with the square root of their number.
TEST_P(RmsNormTest, WeightGradientIsMoreAccurateThanARunningSum) {
  if (dtype() != DType::kFloat32) GTEST_SKIP() << "measured in float32";
  constexpr std::int64_t kRows = 20000, kN = 16;
  Tensor x = make({kRows, kN}).randomize(1);
  Tensor grad = make({kRows, kN}).randomize(2);
  for (std::int64_t i = 0; i < kRows * kN; ++i) grad.set(i, grad.get(i) + 1);
  Tensor grad_weight = make({kN});
  const TensorView gw = grad_weight;
  const auto scratch = scratch_for(x);
  rms_norm_backward(grad, x, nullptr, kEps, nullptr, &gw, scratch.get());
  const auto xs = x.values(), grads = grad.values();
  const auto expected = reference_backward(grads, xs, {}, kN, kEps);
  const auto normed = reference(xs, {}, kN, kEps);
  std::vector<float> running(kN);
  for (std::size_t i = 0; i < xs.size(); ++i) {
    running[i % kN] += static_cast<float>(grads[i] * normed[i]);
  }
  const double plain = relative_l2(Values(running.begin(), running.end()),
                                   expected.weight, expected.weight);
  const double ours =
      relative_l2(grad_weight.values(), expected.weight, expected.weight);
  EXPECT_LT(ours, plain / 3);
  RecordProperty("ratio", std::to_string(plain / ours));
}

}  // namespace
}  // namespace foo_core::testing
