// rms_norm, add_rms_norm and their gradients against long double.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "testing.h"

namespace foo_core::testing {
namespace {

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
  Values x_term;  // r * grad * weight, the minuend of x
};

Gradients reference_backward(const Values& grad, const Values& x,
                             const Values& weight, std::int64_t n, double eps) {
  Gradients result{Values(x.size()), Values(n), Values(x.size())};
  std::vector<long double> weight_sums(static_cast<std::size_t>(n));
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
      weight_sums[j] +=
          static_cast<long double>(grad[row + j]) * x[row + j] * r;
    }
  }
  std::copy(weight_sums.begin(), weight_sums.end(), result.weight.begin());
  return result;
}

class RmsNormTest : public KernelTest {
 protected:
  void expect_close(const Tensor& out, const Values& expected) {
    for (std::size_t i = 0; i < expected.size(); ++i) {
      ASSERT_LE(std::fabs(out.get(static_cast<std::int64_t>(i)) - expected[i]),
                gate() * ulp(dtype(), expected[i]))
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

  void check_add(Tensor x, Tensor residual, Tensor weight, Tensor out,
                 Tensor residual_out) {
    const std::int64_t n = x.sizes.back();
    x.randomize(1, 3);
    residual.randomize(2, 2);
    weight.randomize(3);
    const Values sums = rounded_sum(x, residual);
    const ConstTensorView w = weight;
    for (const ConstTensorView* pw : {&w, (const ConstTensorView*)nullptr}) {
      residual_out.randomize(4);
      add_rms_norm(x, residual, pw, kEps, out, residual_out);
      EXPECT_EQ(residual_out.values(), sums);
      EXPECT_TRUE(residual_out.guards_intact());
      expect_close(
          out,
          reference(sums, pw != nullptr ? weight.values() : Values(), n, kEps));
    }
  }

  Values rounded_sum(const Tensor& x, const Tensor& residual) const {
    Values sums = x.values();
    const Values addend = residual.values();
    for (std::size_t i = 0; i < sums.size(); ++i) {
      sums[i] = round_to(dtype(), sums[i] + addend[i]);
    }
    return sums;
  }

  static Memory scratch_for(const ConstTensorView& x) {
    return aligned_memory(rms_norm_backward_scratch_size(x));
  }

  // The relative L2 error of one rounding to `result` and of a sum over `rows`.
  double tolerance(std::int64_t rows, DType result) const {
    const double unit = std::ldexp(1, -precision(result));
    const double compute = dtype() == DType::kFloat64 ? 0x1p-53 : 0x1p-24;
    return unit + compute * (3 + std::log2(1 + static_cast<double>(rows)));
  }

  double tolerance(std::int64_t rows) const { return tolerance(rows, dtype()); }

  // Checks rms_norm's gradient, or add_rms_norm's if there is a grad_residual.
  void check_backward(Tensor grad, Tensor x, Tensor weight, Tensor grad_x,
                      Tensor grad_weight, Tensor* grad_residual = nullptr) {
    const std::int64_t n = x.sizes.back();
    const std::int64_t rows = n == 0 ? 0 : x.numel() / n;
    x.randomize(1, 3);
    grad.randomize(2);
    weight.randomize(3);
    const auto scratch = scratch_for(x);
    const ConstTensorView w = weight;
    const TensorView gx = grad_x, gw = grad_weight;
    const auto run = [&](const ConstTensorView* pw, const TensorView* pgx,
                         const TensorView* pgw) {
      void* p = pgw == nullptr ? nullptr : scratch.get();
      if (grad_residual == nullptr) {
        rms_norm_backward(grad, x, pw, kEps, pgx, pgw, p);
      } else {
        const ConstTensorView gr = *grad_residual;
        add_rms_norm_backward(grad, &gr, x, pw, kEps, pgx, pgw, p);
      }
    };
    for (const ConstTensorView* pw : {&w, (const ConstTensorView*)nullptr}) {
      if (pw == nullptr && weight.dtype != dtype()) continue;
      auto expected = reference_backward(
          grad.values(), x.values(), pw != nullptr ? weight.values() : Values(),
          n, kEps);
      if (grad_residual != nullptr) {
        grad_residual->randomize(5);
        const Values addend = grad_residual->values();
        for (std::size_t i = 0; i < addend.size(); ++i) {
          expected.x[i] += addend[i];
          expected.x_term[i] =
              std::fabs(expected.x_term[i]) + std::fabs(addend[i]);
        }
      }
      run(pw, &gx, &gw);
      const auto both_x = grad_x.memory(), both_weight = grad_weight.memory();
      EXPECT_LE(relative_l2(grad_x.values(), expected.x, expected.x_term),
                tolerance(1));
      EXPECT_LE(
          relative_l2(grad_weight.values(), expected.weight, expected.weight),
          tolerance(rows, grad_weight.dtype));
      EXPECT_TRUE(grad_x.guards_intact());
      EXPECT_TRUE(grad_weight.guards_intact());
      grad_x.randomize(4);
      run(pw, &gx, nullptr);
      EXPECT_EQ(grad_x.memory(), both_x);
      grad_weight.randomize(4);
      run(pw, nullptr, &gw);
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

TEST_P(RmsNormTest, WeightOfAnotherDtype) {
  for (const DType other : kAllDTypes) {
    if (other == dtype()) continue;
    SCOPED_TRACE(name(other));
    const auto check_all = [&](const Shape& rows, const Shape& strides,
                               const Shape& weight_strides) {
      const auto x = [&] { return make(rows, strides); };
      const auto weight = [&](std::int64_t shift) {
        return Tensor(other, {rows.back()}, weight_strides, shift);
      };
      Tensor addend = x(), grad_weight(other, {rows.back()}, {-2});
      check(x(), weight(0), x());
      check_add(x(), x(), weight(1), x(), x());
      check_backward(x(), x(), weight(1), x(), grad_weight);
      check_backward(x(), x(), weight(0), x(), grad_weight, &addend);
    };
    for (const std::int64_t n : {1, 7, 33, 64, 100, 1025, 2056, 4104}) {
      check_all({3, n}, {}, {});
    }
    for (const std::int64_t stride : {0, -1, 3}) {
      check_all({4, 70}, {1, 4}, {stride});
      check_all({2, 1500}, {}, {stride});
    }
    check_backward(make({19, 2100}), make({19, 2100}), Tensor(other, {2100}),
                   make({19, 2100}), Tensor(other, {2100}));
    Tensor none(other, {7});
    const TensorView gw = none.randomize(1);
    const Tensor weight(other, {7});
    const ConstTensorView w = weight;
    rms_norm_backward(make({0, 7}), make({0, 7}), &w, kEps, nullptr, &gw,
                      nullptr);
    EXPECT_EQ(none.values(), Values(7, 0.0));
    EXPECT_TRUE(none.guards_intact());
  }
}

// A sum of the bits of such a NaN and a rounding would be a zero.
TEST_P(RmsNormTest, WeightThatIsNaN) {
  for (const std::uint32_t bits : {0x7FFFFFFFu, 0xFFFFFFFFu, 0x7F800001u}) {
    const std::vector<std::uint32_t> nans(40, bits);
    Tensor weight(DType::kFloat32, {40});
    std::memcpy(weight.view().data, nans.data(), 160);
    Tensor x = make({2, 40}).randomize(1), out = make({2, 40});
    const ConstTensorView w = weight;
    const TensorView grad_x = out;
    rms_norm(x, &w, kEps, out);
    for (const double y : out.values()) EXPECT_TRUE(std::isnan(y));
    rms_norm_backward(x, x, &w, kEps, &grad_x, nullptr, nullptr);
    for (const double y : out.values()) EXPECT_TRUE(std::isnan(y));
  }
}

// On CUDA, a block cannot keep these rows in its registers. The larger stride
// aligns no two rows alike.
TEST_P(RmsNormTest, RowsLongerThanABlock) {
  const std::int64_t n = 80000 / item_size(dtype());
  for (const std::int64_t stride : {n, n + 1}) {
    const auto rows = [&] { return make({2, n}, {stride, 1}); };
    check(rows(), make({n}), rows());
    check_add(rows(), rows(), make({n}), rows(), rows());
  }
  check_backward(make({2, n}), make({2, n}), make({n}), make({2, n}),
                 make({n}));
}

TEST_P(RmsNormTest, MisalignedArguments) {
  for (int one = 0; one < 5; ++one) {
    const auto x = [&](int i) { return make({3, 128}, {}, i == one); };
    const auto weight = [&](int i) { return make({128}, {}, i == one); };
    check(x(0), weight(1), x(2));
    check_add(x(0), x(1), weight(2), x(3), x(4));
    Tensor addend = x(3);
    check_backward(x(0), x(1), weight(2), make({3, 128}), weight(4), &addend);
  }
  // On CUDA, a misaligned grad_x changes the order of grad_weight's sums.
  const Tensor grad = make({3, 128}).randomize(1);
  const Tensor x = make({3, 128}).randomize(2);
  Tensor aligned = make({3, 128}), misaligned = make({3, 128}, {}, 1);
  for (const TensorView grad_x : {aligned.view(), misaligned.view()}) {
    rms_norm_backward(grad, x, nullptr, kEps, &grad_x, nullptr, nullptr);
  }
  EXPECT_LE(relative_l2(misaligned.values(), aligned.values(), x.values()),
            tolerance(1));
  EXPECT_TRUE(misaligned.guards_intact());
}

TEST_P(RmsNormTest, InPlaceAndThreads) {
  Tensor x = make({301, 333}).randomize(1), weight = make({333}).randomize(2);
  const ConstTensorView w = weight;
  Tensor whole = make({301, 333});
  Tensor many = whole;
  rms_norm(x, &w, kEps, whole);
  rms_norm(x, &w, kEps, many, threads());
  EXPECT_EQ(many.memory(), whole.memory());
  rms_norm(x, &w, kEps, x);
  EXPECT_EQ(x.memory(), whole.memory());
}

// The squares are subnormal, so they have few bits.
TEST_P(RmsNormTest, MeansBelowTheNormalNumbers) {
  if (dtype() == DType::kFloat16) GTEST_SKIP() << "it has no such numbers";
  Tensor x = make({4096}), out = make({4096});
  for (std::int64_t i = 0; i < 4096; ++i) x.set(i, i == 0 ? 1e-22 : 0);
  rms_norm(x, nullptr, 0, out);
  EXPECT_NEAR(out.get(0), 64, 3);
  EXPECT_EQ(out.get(1), 0);
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

TEST_P(RmsNormTest, AddEverySizeAroundTheVectors) {
  for (std::int64_t n = 0; n <= 140; n += n < 70 ? 1 : 7) {
    check_add(make({3, n}), make({3, n}), make({n}), make({3, n}),
              make({3, n}));
  }
  for (const std::int64_t n : {1023, 1025, 4096, 8200}) {
    check_add(make({2, n}), make({2, n}), make({n}), make({2, n}),
              make({2, n}));
  }
  check_add(make({70}), make({70}), make({70}), make({70}), make({70}));
  check_add(make({0, 5}), make({0, 5}), make({5}), make({0, 5}), make({0, 5}));
}

TEST_P(RmsNormTest, AddAnyStrides) {
  check_add(make({5, 70}, {1, 5}), make({5, 70}, {-100, 1}), make({70}, {-2}),
            make({5, 70}), make({5, 70}, {1, 5}));
  check_add(make({5, 2500}, {0, 1}), make({5, 2500}, {1, 0}), make({2500}, {2}),
            make({5, 2500}, {-5000, -2}), make({5, 2500}));
  check_add(make({2, 3, 40}, {40, 80, 1}), make({2, 3, 40}, {0, 40, 1}),
            make({40}, {0}), make({2, 3, 40}, {1, 2, 6}),
            make({2, 3, 40}, {120, -40, -1}));
}

TEST_P(RmsNormTest, AddInPlaceAndThreads) {
  const Tensor x = make({301, 333}).randomize(1);
  const Tensor residual = make({301, 333}).randomize(2);
  Tensor weight = make({333}).randomize(3);
  const ConstTensorView w = weight;
  Tensor out = make({301, 333});
  Tensor sum = out, many = out, many_sums = out;
  add_rms_norm(x, residual, &w, kEps, out, sum);
  add_rms_norm(x, residual, &w, kEps, many, many_sums, threads());
  EXPECT_EQ(many.memory(), out.memory());
  EXPECT_EQ(many_sums.memory(), sum.memory());
  Tensor a = x, b = residual;
  add_rms_norm(a, b, &w, kEps, a, b, threads());  // as in decoding
  EXPECT_EQ(a.memory(), out.memory());
  EXPECT_EQ(b.memory(), sum.memory());
  a = x, b = residual;
  add_rms_norm(a, b, &w, kEps, b, a);
  EXPECT_EQ(b.memory(), out.memory());
  EXPECT_EQ(a.memory(), sum.memory());
}

TEST_P(RmsNormTest, AddNaNInfinityAndOverflow) {
  const double inf = INFINITY, nan = std::nan("");
  double largest = 1;  // the largest power of two
  while (std::isfinite(round_to(dtype(), 2 * largest))) largest *= 2;
  const double tiny = ulp(dtype(), 0);  // the smallest subnormal
  const double x[4][2] = {{nan, 1}, {inf, 1}, {largest, 1}, {tiny, 0}};
  const double residual[4][2] = {{1, 1}, {-inf, 1}, {largest, 1}, {tiny, 0}};
  Tensor a = make({4, 2}).randomize(0, 0), b = a, out = a, sum = a;
  for (int i = 0; i < 8; ++i) {
    a.set(i, x[i / 2][i % 2]);
    b.set(i, residual[i / 2][i % 2]);
  }
  add_rms_norm(a, b, nullptr, 1, out, sum);
  for (const int i : {0, 2}) EXPECT_TRUE(std::isnan(sum.get(i)));
  for (const int i : {1, 3, 5, 7}) EXPECT_EQ(sum.get(i), i == 7 ? 0 : 2);
  EXPECT_EQ(sum.get(4), inf);
  EXPECT_EQ(sum.get(6), 2 * tiny);
  for (const int i : {0, 1, 2, 3, 4}) EXPECT_TRUE(std::isnan(out.get(i)));
  EXPECT_EQ(out.get(5), 0);  // 2 / inf
  EXPECT_EQ(out.get(6), 2 * tiny);
}

TEST_P(RmsNormTest, BackwardEverySizeAroundTheVectors) {
  for (std::int64_t n = 1; n <= 140; n += n < 40 ? 1 : 7) {
    check_backward(make({3, n}), make({3, n}), make({n}), make({3, n}),
                   make({n}));
  }
  for (const std::int64_t n : {1025, 2056, 4096, 4104, 8200}) {
    check_backward(make({3, n}), make({3, n}), make({n}), make({3, n}),
                   make({n}));
  }
}

TEST_P(RmsNormTest, BackwardEveryNumberOfRowsAroundTheBlocks) {
  const std::int64_t most = on_cuda() ? 2500 : 5000;
  for (const std::int64_t rows : Shape{1, 2, 4, 5, 15, 16, 17, 63, 64, 65, 255,
                                       256, 257, 1023, 2049, most}) {
    check_backward(make({rows, 19}), make({rows, 19}), make({19}),
                   make({rows, 19}), make({19}));
  }
}

// On CUDA, 256 blocks compute these rows, of which each takes a whole block.
TEST_P(RmsNormTest, BackwardMoreRowsThanBlocks) {
  const std::int64_t n = 4112 / item_size(dtype());
  check_backward(make({300, n}), make({300, n}), make({n}), make({300, n}),
                 make({n}));
}

TEST_P(RmsNormTest, BackwardAnyStrides) {
  check_backward(make({5, 70}, {1, 5}), make({5, 70}), make({70}, {-2}),
                 make({5, 70}, {-100, 1}), make({70}, {3}));
  check_backward(make({2, 3, 40}, {40, 80, 1}), make({2, 3, 40}, {0, 40, 1}),
                 make({40}, {0}), make({2, 3, 40}, {1, 2, 6}),
                 make({40}, {-1}));
}

TEST_P(RmsNormTest, AddBackward) {
  for (std::int64_t n = 1; n <= 140; n += n < 40 ? 1 : 7) {
    Tensor addend = make({3, n});
    check_backward(make({3, n}), make({3, n}), make({n}), make({3, n}),
                   make({n}), &addend);
  }
  for (const std::int64_t rows : {1, 2, 5, 17, on_cuda() ? 31 : 257}) {
    Tensor addend = make({rows, 1100});
    check_backward(make({rows, 1100}), make({rows, 1100}), make({1100}),
                   make({rows, 1100}), make({1100}), &addend);
  }
  Tensor addend = make({5, 70}, {0, -1});
  check_backward(make({5, 70}), make({5, 70}, {1, 5}), make({70}, {-2}),
                 make({5, 70}, {-100, 1}), make({70}, {3}), &addend);
}

TEST_P(RmsNormTest, AddBackwardIsRoundedOnce) {
  constexpr std::int64_t kRows = 6, kN = 333;
  Tensor grad = make({kRows, kN}).randomize(1), x = make({kRows, kN});
  Tensor addend = make({kRows, kN}).randomize(2), weight = make({kN});
  x.randomize(3, 3);
  weight.randomize(4);
  Tensor grad_x = make({kRows, kN});
  const ConstTensorView w = weight, gr = addend;
  const TensorView gx = grad_x;
  const auto expected =
      reference_backward(grad.values(), x.values(), weight.values(), kN, kEps);
  add_rms_norm_backward(grad, &gr, x, &w, kEps, &gx, nullptr, nullptr);
  const double unit = dtype() == DType::kFloat64 ? 0x1p-53 : 0x1p-24;
  for (std::int64_t i = 0; i < kRows * kN; ++i) {
    const auto j = static_cast<std::size_t>(i);
    const double exact = expected.x[j] + addend.get(i);
    const double terms = std::fabs(expected.x_term[j]) +
                         std::fabs(expected.x_term[j] - expected.x[j]) +
                         std::fabs(addend.get(i));
    ASSERT_LE(std::fabs(grad_x.get(i) - exact),
              0.5 * ulp(dtype(), exact) + 8 * unit * terms);
  }
  // Without grad_residual the result is that of rms_norm_backward.
  add_rms_norm_backward(grad, nullptr, x, &w, kEps, &gx, nullptr, nullptr);
  const auto without = grad_x.memory();
  rms_norm_backward(grad, x, &w, kEps, &gx, nullptr, nullptr);
  EXPECT_EQ(grad_x.memory(), without);
}

TEST_P(RmsNormTest, AddBackwardInPlaceAndThreads) {
  const std::int64_t rows = on_cuda() ? 60 : 200;
  Tensor x = make({rows, 331}).randomize(1, 2), weight = make({331});
  Tensor grad = make({rows, 331}).randomize(2);
  Tensor addend = make({rows, 331}).randomize(3);
  weight.randomize(4);
  const auto scratch = scratch_for(x);
  const ConstTensorView w = weight;
  const auto run = [&](const Tensor& gr, const Tensor& out,
                       const Executor& executor) {
    Tensor grad_weight = make({331});
    const ConstTensorView gr_view = gr;
    const TensorView gx = out, gw = grad_weight;
    add_rms_norm_backward(grad, &gr_view, x, &w, kEps, &gx, &gw, scratch.get(),
                          executor);
    return grad_weight.memory();
  };
  Tensor one = make({rows, 331}), many = one;
  const auto expected = run(addend, one, {});
  EXPECT_EQ(run(addend, many, threads()), expected);
  EXPECT_EQ(many.memory(), one.memory());
  EXPECT_EQ(run(addend, addend, threads()), expected);
  EXPECT_EQ(addend.memory(), one.memory());
}

// Large results, which are streamed if their rows are aligned, equal those of a
// call for each row.
TEST_P(RmsNormTest, LargeResultsEqualSmallOnes) {
  FOO_CORE_SKIP_ON_CUDA("nothing is streamed");
  const std::int64_t n = 4096, item = item_size(dtype());
  const std::int64_t rows = (12 << 20) / (n * item) + 1;
  Tensor a = make({rows + n}).randomize(1), b = make({rows + n}).randomize(2);
  Tensor weight = make({n}).randomize(3), out = make({1, n}), sum = out;
  Tensor gradient = out;
  const ConstTensorView w = weight;
  const TensorView gx_one = gradient;
  const std::int64_t sizes[] = {rows, n}, one[] = {1, n};
  const std::int64_t windows[] = {1, 1}, strides[] = {n, 1};
  const auto window = [&](const Tensor& x, std::int64_t i,
                          const std::int64_t* shape) -> ConstTensorView {
    const auto* data = static_cast<const char*>(x.view().data);
    return {data + i * item, dtype(), 2, shape, windows};
  };
  const std::int64_t bytes = rows * n * item;
  const Memory memory = aligned_memory(bytes + 64);
  const Memory memory_2 = aligned_memory(bytes + 64);
  const Memory memory_3 = aligned_memory(bytes + 64);
  for (const std::int64_t offset : {std::int64_t{0}, item}) {
    const auto view = [&](const auto& p) -> TensorView {
      std::memset(p.get(), 0xA5, static_cast<std::size_t>(bytes + 64));
      return {static_cast<char*>(p.get()) + offset, dtype(), 2, sizes, strides};
    };
    const TensorView y = view(memory), y_2 = view(memory_2);
    const TensorView gx = view(memory_3);
    add_rms_norm(window(a, 0, sizes), window(b, 0, sizes), &w, kEps, y, y_2,
                 threads());
    rms_norm_backward(window(a, 0, sizes), window(b, 0, sizes), &w, kEps, &gx,
                      nullptr, nullptr, threads());
    const auto expect_row = [&](const TensorView& got, std::int64_t i,
                                const Tensor& expected) {
      const auto size = static_cast<std::size_t>(n * item);
      ASSERT_EQ(
          std::memcmp(static_cast<char*>(got.data) + i * n * item,
                      static_cast<const char*>(expected.view().data), size),
          0)
          << "row " << i;
    };
    for (std::int64_t i = 0; i < rows; ++i) {
      add_rms_norm(window(a, i, one), window(b, i, one), &w, kEps, out, sum);
      expect_row(y, i, out);
      expect_row(y_2, i, sum);
      rms_norm_backward(window(a, i, one), window(b, i, one), &w, kEps, &gx_one,
                        nullptr, nullptr);
      expect_row(gx, i, gradient);
    }
    rms_norm(window(a, 0, sizes), &w, kEps, y, threads());
    for (std::int64_t i = 0; i < rows; ++i) {
      rms_norm(window(a, i, one), &w, kEps, out);
      expect_row(y, i, out);
    }
    for (const TensorView& large : {y, y_2, gx}) {
      const auto* end = static_cast<unsigned char*>(large.data) + bytes;
      for (std::int64_t i = 0; i < 64 - offset; ++i) ASSERT_EQ(end[i], 0xA5);
    }
  }
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
  for (const std::int64_t rows :
       {on_cuda() ? 60 : 200, on_cuda() ? 90 : 1500}) {
    Tensor x = make({rows, 331}).randomize(1, 2);
    Tensor grad = make({rows, 331}).randomize(2);
    Tensor weight = make({331}).randomize(3);
    const ConstTensorView w = weight;
    const auto scratch = scratch_for(x);
    const auto run = [&](const Tensor& g, const Tensor& in, const Tensor& out,
                         const Executor& executor) {
      Tensor grad_weight = make({331});
      const TensorView gx = out, gw = grad_weight;
      rms_norm_backward(g, in, &w, kEps, &gx, &gw, scratch.get(), executor);
      return grad_weight.memory();
    };
    Tensor one = make({rows, 331}), many = one;
    const auto expected = run(grad, x, one, {});
    EXPECT_EQ(run(grad, x, many, threads()), expected);
    EXPECT_EQ(many.memory(), one.memory());
    Tensor grad_copy = grad, x_copy = x;
    EXPECT_EQ(run(grad_copy, x, grad_copy, threads()), expected);
    EXPECT_EQ(grad_copy.memory(), one.memory());
    EXPECT_EQ(run(grad, x_copy, x_copy, threads()), expected);
    EXPECT_EQ(x_copy.memory(), one.memory());
  }
}

// The error of a running sum over all rows, as in the simplest kernel, grows
// with the square root of their number.
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

class RmsNormChecksTest : public BufferTest {
 protected:
  static constexpr auto kF32 = DType::kFloat32;
};

TEST_F(RmsNormChecksTest, Forward) {
  Tensor x(kF32, {2, 4}), weight(kF32, {4}), out(kF32, {2, 4});
  Tensor small(kF32, {3}), square(kF32, {4, 4}), scalar(kF32, {});
  Tensor integers(DType::kInt64, {4});
  const ConstTensorView w = weight, w3 = small, w2 = square, wi = integers;
  EXPECT_INVALID(rms_norm(scalar, nullptr, 0, scalar),
                 "rms_norm: x has no dimensions, expected at least 1");
  EXPECT_INVALID(
      rms_norm(x, &w3, 0, out),
      "rms_norm: weight has 3 elements, but x's last dimension is 4");
  EXPECT_INVALID(rms_norm(x, &w2, 0, out),
                 "rms_norm: weight has 2 dimensions, expected 1");
  EXPECT_INVALID(rms_norm(x, &wi, 0, out),
                 "rms_norm: weight is int64, expected float32, float64, "
                 "float16 or bfloat16");
  EXPECT_INVALID(rms_norm(x, &w, 0, weight),
                 "rms_norm: out has shape (4,), expected (2, 4)");
  const View in = at(0, {2, 4}, {4, 1});
  const View inside_view = at(4, {4}, {1}), shifted = at(1, {2, 4}, {4, 1});
  const ConstTensorView inside = inside_view;
  EXPECT_INVALID(rms_norm(in, &inside, 0, in),
                 "rms_norm: out overlaps weight, expected memory of its own");
  EXPECT_INVALID(rms_norm(in, nullptr, 0, shifted),
                 "rms_norm: out overlaps x without being exactly x");
}

TEST_F(RmsNormChecksTest, AddForward) {
  const View x = at(0, {2, 4}, {4, 1}), residual = at(16, {2, 4}, {4, 1});
  const View out = at(32, {2, 4}, {4, 1}), sum = at(48, {2, 4}, {4, 1});
  const View weight = at(64, {4}, {1}), moved = at(1, {2, 4}, {4, 1});
  const View moved_residual = at(17, {2, 4}, {4, 1});
  const View tall = at(100, {4, 2}, {2, 1}), on_weight = at(62, {2, 4}, {4, 1});
  const ConstTensorView w = weight;
  const std::string op = "add_rms_norm: ";
  const auto refuse_add = [&](const View& a, const View& b, const View& y,
                              const View& s, const std::string& message) {
    expect_refused([&] { add_rms_norm(a, b, &w, 0, y, s); }, op + message);
  };
  EXPECT_NO_THROW(add_rms_norm(x, residual, &w, 0, out, sum));
  EXPECT_NO_THROW(add_rms_norm(x, residual, &w, 0, x, residual));
  EXPECT_NO_THROW(add_rms_norm(x, residual, &w, 0, residual, x));
  EXPECT_NO_THROW(add_rms_norm(x, x, nullptr, 0, out, x));
  refuse_add(x, residual, out, out,
             "out overlaps residual_out, expected memory of its own");
  refuse_add(x, residual, x, x,
             "out overlaps residual_out, expected memory of its own");
  refuse_add(x, residual, moved, sum, "out overlaps x without being exactly x");
  refuse_add(x, residual, out, moved_residual,
             "residual_out overlaps residual without being exactly residual");
  refuse_add(x, residual, out, on_weight,
             "residual_out overlaps weight, expected memory of its own");
  refuse_add(x, tall, out, sum, "residual has shape (4, 2), expected (2, 4)");
  refuse_add(x, residual, tall, sum, "out has shape (4, 2), expected (2, 4)");
  refuse_add(x, residual, out, tall,
             "residual_out has shape (4, 2), expected (2, 4)");
  refuse_add(x, residual, at(32, {2, 4}, {0, 1}), sum,
             "out overlaps itself: two of its indices share memory");
  Tensor half(DType::kFloat16, {2, 4}), scalar(kF32, {});
  EXPECT_INVALID(add_rms_norm(x, half, &w, 0, out, sum),
                 op + "residual is float16, but x is float32");
  EXPECT_INVALID(add_rms_norm(scalar, x, &w, 0, out, sum),
                 op + "x has no dimensions, expected at least 1");
}

TEST_F(RmsNormChecksTest, AddBackward) {
  const View sum = at(0, {2, 4}, {4, 1}), grad = at(16, {2, 4}, {4, 1});
  const View addend = at(32, {2, 4}, {4, 1}), out = at(48, {2, 4}, {4, 1});
  const View moved = at(33, {2, 4}, {4, 1}), tall = at(100, {4, 2}, {2, 1});
  const std::string op = "add_rms_norm_backward: ";
  const auto run = [&](const View& gr, const View& gx) {
    const ConstTensorView gr_view = gr;
    const TensorView gx_view = gx;
    add_rms_norm_backward(grad, &gr_view, sum, nullptr, 0, &gx_view, nullptr,
                          nullptr);
  };
  EXPECT_NO_THROW(run(addend, out));
  for (const View& input : {addend, grad, sum}) {
    EXPECT_NO_THROW(run(addend, input));
  }
  EXPECT_INVALID(run(addend, moved),
                 op + "grad_x overlaps grad_residual without being exactly "
                      "grad_residual");
  EXPECT_INVALID(run(tall, out),
                 op + "grad_residual has shape (4, 2), expected (2, 4)");
  EXPECT_INVALID(run(addend, at(1, {2, 4}, {4, 1})),
                 op + "grad_x overlaps residual_out without being exactly "
                      "residual_out");
}

TEST_F(RmsNormChecksTest, Backward) {
  const View x = at(0, {2, 4}, {4, 1}), grad = at(16, {2, 4}, {4, 1});
  const View weight = at(32, {4}, {1});
  const View second = at(48, {2, 4}, {4, 1}), third = at(64, {4}, {1});
  const View inner = at(50, {4}, {1}), moved = at(1, {2, 4}, {4, 1});
  const View tall = at(100, {4, 2}, {2, 1});
  const TensorView grad_x = second, on_x = x;
  const TensorView grad_weight = third, on_weight = weight;
  const ConstTensorView w = weight;
  const std::string op = "rms_norm_backward: ";
  const std::int64_t needed = rms_norm_backward_scratch_size(x);
  const Memory memory = aligned_memory(needed + 64);
  void* scratch = memory.get();
  const auto run = [&](const TensorView* gx, const TensorView* gw, void* p) {
    rms_norm_backward(grad, x, &w, 0, gx, gw, p);
  };
  EXPECT_NO_THROW(run(&grad_x, &grad_weight, scratch));
  EXPECT_NO_THROW(run(&on_x, &grad_weight, scratch));
  EXPECT_INVALID(
      run(&grad_x, &grad_weight, nullptr),
      op + "scratch is null, expected " + std::to_string(needed) + " bytes");
  EXPECT_INVALID(run(&grad_x, &grad_weight, static_cast<char*>(scratch) + 4),
                 op + "scratch is not aligned to 64 bytes");
  EXPECT_INVALID(
      run(&grad_x, &on_weight, scratch),
      op + "grad_weight overlaps weight, expected memory of its own");
  const TensorView in_grad_x = inner;
  EXPECT_INVALID(
      run(&grad_x, &in_grad_x, scratch),
      op + "grad_x overlaps grad_weight, expected memory of its own");
  const TensorView shifted = moved;
  EXPECT_INVALID(run(&shifted, &grad_weight, scratch),
                 op + "grad_x overlaps x without being exactly x");
  const TensorView wrong = tall;
  EXPECT_INVALID(run(&wrong, &grad_weight, scratch),
                 op + "grad_x has shape (4, 2), expected (2, 4)");
  EXPECT_INVALID(rms_norm_backward(weight, x, &w, 0, &grad_x, nullptr, nullptr),
                 op + "grad has shape (4,), expected (2, 4)");
  Tensor half(DType::kFloat16, {4});
  const TensorView half_gradient = half;
  const ConstTensorView half_weight = half;
  EXPECT_INVALID(run(&grad_x, &half_gradient, scratch),
                 op + "grad_weight is float16, but weight is float32");
  EXPECT_INVALID(rms_norm_backward(grad, x, &half_weight, 0, &grad_x,
                                   &grad_weight, scratch),
                 op + "grad_weight is float32, but weight is float16");
  EXPECT_INVALID(
      rms_norm_backward(grad, x, nullptr, 0, &grad_x, &half_gradient, scratch),
      op + "grad_weight is float16, but x is float32");
}

}  // namespace
}  // namespace foo_core::testing
