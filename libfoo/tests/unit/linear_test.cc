// linear against sums in long double, for every number of rows and columns.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "testing.h"

namespace foo_core::testing {
namespace {

class LinearTest : public KernelTest {
 protected:
  /// Expects sums as in long double, up to the rounding of the result and of
  /// the additions in the type of computation, at most k / 4 per element.
  void expect_product(const Tensor& x, const Tensor& weight, const Tensor* bias,
                      const Tensor& got) {
    const std::int64_t k = x.sizes.back(), n = weight.sizes[0];
    const double step = dtype() == DType::kFloat64 ? 0x1p-53 : 0x1p-24;
    const double most =
        step * (8 + static_cast<double>(std::min<std::int64_t>(k, 1024)) / 4);
    const auto vx = x.values(), vw = weight.values();
    for (std::int64_t i = 0; i < got.numel(); ++i) {
      const double* px = vx.data() + i / n * k;
      const double* pw = vw.data() + i % n * k;
      long double sum = 0;
      double magnitude = 0;
      for (std::int64_t j = 0; j < k; ++j) {
        sum += static_cast<long double>(px[j]) * pw[j];
        magnitude += std::fabs(px[j] * pw[j]);
      }
      if (bias != nullptr) {
        sum += bias->get(i % n);
        magnitude += std::fabs(bias->get(i % n));
      }
      const auto expected = static_cast<double>(sum);
      ASSERT_NEAR(got.get(i), expected,
                  most * magnitude + 0.501 * ulp(dtype(), expected))
          << "element " << i << ", k = " << k << ", n = " << n;
    }
    EXPECT_TRUE(got.guards_intact());
  }

  Tensor product(const Tensor& x, const Tensor& weight,
                 const Tensor* bias = nullptr, Shape out_strides = {}) {
    Shape sizes = x.sizes;
    sizes.back() = weight.sizes[0];
    Tensor out = make(sizes, std::move(out_strides));
    if (bias == nullptr) {
      linear(x, weight, nullptr, out);
    } else {
      const ConstTensorView view = *bias;
      linear(x, weight, &view, out);
    }
    return out;
  }

  void check(const Tensor& x, const Tensor& weight,
             const Tensor* bias = nullptr, Shape out_strides = {}) {
    expect_product(x, weight, bias,
                   product(x, weight, bias, std::move(out_strides)));
  }
};
FOO_CORE_KERNEL_TESTS_AT(LinearTest, all_targets("AVX3_ZEN4"));

TEST_P(LinearTest, EverySizeAroundTheVectors) {
  for (std::int64_t k = 0; k <= 140; ++k) {
    check(make({2, k}).randomize(1), make({5, k}).randomize(2));
  }
  for (const std::int64_t k : {1023, 1024, 1025, 2500, 4096}) {
    check(make({2, k}).randomize(1), make({6, k}).randomize(2));
  }
}

TEST_P(LinearTest, EveryCountOfRowsAndColumns) {
  const Tensor weight = make({19, 37}).randomize(2);
  const Tensor bias = make({19}).randomize(3);
  for (std::int64_t rows = 0; rows <= 40; ++rows) {
    check(make({rows, 37}).randomize(1), weight, &bias);
  }
  const Tensor x = make({3, 37}).randomize(1);
  for (std::int64_t n = 0; n <= 19; ++n) {
    const Tensor some = make({n}).randomize(3);
    check(x, make({n, 37}).randomize(2), &some);
  }
}

// On CUDA, a grid has 65535 tiles of 8 rows.
TEST_P(LinearTest, MoreRowsThanAGrid) {
  if (dtype() != DType::kFloat32)
    GTEST_SKIP() << "for one dtype, as it is slow";
  check(make({65536 * 8 + 1, 1}).randomize(1), make({1, 1}).randomize(2));
}

TEST_P(LinearTest, OneDimensionAndMany) {
  const Tensor weight = make({6, 40}).randomize(2);
  const Tensor bias = make({6}).randomize(3);
  check(make({40}).randomize(1), weight, &bias);
  check(make({2, 1, 3, 5, 40}).randomize(1), weight, &bias);
  for (const Shape& sizes : {Shape{0, 40}, Shape{2, 0, 40}}) {
    check(make(sizes), weight, &bias);
  }
  // Without products the result is the bias, or zeros.
  Tensor x = make({2, 0}), none = make({6, 0});
  TensorView x_view = x, none_view = none;
  x_view.data = none_view.data = nullptr;
  const ConstTensorView bias_view = bias;
  Tensor out = make({2, 6});
  linear(x_view, none_view, &bias_view, out);
  for (int i = 0; i < 12; ++i) EXPECT_EQ(out.get(i), bias.get(i % 6));
  linear(x_view, none_view, nullptr, out);
  EXPECT_EQ(out.values(), std::vector<double>(12, 0.0));
}

TEST_P(LinearTest, AnyStrides) {
  const auto x = [&](Shape sizes, Shape strides = {}) {
    return make(std::move(sizes), std::move(strides)).randomize(1);
  };
  const auto weight = [&](Shape strides, std::int64_t k) {
    return make({7, k}, std::move(strides)).randomize(2);
  };
  const Tensor bias = make({7}, {-3}).randomize(3), same = make({7}, {0});
  check(x({5, 70}, {1, 5}), weight({1, 7}, 70), &bias, {7, 1});
  check(x({5, 70}, {-100, 1}), weight({-70, 1}, 70), &same, {1, 5});
  check(x({20, 2500}, {2500, -1}), weight({5000, 2}, 2500), &bias, {-14, 2});
  check(x({20, 2500}, {1, 0}), weight({1, 0}, 2500), nullptr, {7, 1});
  check(x({2, 3, 40}, {40, 80, 1}), weight({0, 1}, 40), &bias, {7, 14, 1});
  check(x({5, 40}, {0, 1}), weight({40, -1}, 40));
}

TEST_P(LinearTest, MisalignedArguments) {
  for (const std::int64_t rows : {1, 3}) {
    for (int one = 0; one < 2; ++one) {
      check(make({rows, 128}, {}, one == 0).randomize(1),
            make({5, 128}, {}, one == 1).randomize(2));
    }
  }
}

TEST_P(LinearTest, NaNAndInfinityStayInTheirPlaces) {
  const double inf = INFINITY;
  Tensor x = make({3, 50}).randomize(1), weight = make({6, 50}).randomize(2);
  x.set(50 + 49, std::nan(""));
  weight.set(2 * 50 + 7, inf);
  x.set(2 * 50 + 7, 0);
  const Tensor out = product(x, weight);
  for (int i = 0; i < 18; ++i) {
    const int row = i / 6, column = i % 6;
    if (row == 1 || (row == 2 && column == 2)) {
      EXPECT_TRUE(std::isnan(out.get(i))) << i;
    } else if (column == 2) {
      EXPECT_EQ(out.get(i), std::copysign(inf, x.get(7))) << i;
    } else {
      EXPECT_TRUE(std::isfinite(out.get(i))) << i;
    }
  }
}

// The bias is added before the sum is rounded to the dtype.
TEST_P(LinearTest, RoundedOnce) {
  if (item_size(dtype()) != 2) GTEST_SKIP() << "for 16-bit types";
  const double tie = ulp(dtype(), 1) / 2;
  Tensor x = make({1, 2}), weight = make({1, 2}), bias = make({1});
  x.set(0, 1);
  x.set(1, tie);
  weight.set(0, 1);
  weight.set(1, 1);
  bias.set(0, tie / 4);
  EXPECT_EQ(product(x, weight).get(0), 1);
  EXPECT_EQ(product(x, weight, &bias).get(0), 1 + 2 * tie);
}

// A column does not depend on the thread that computes it, nor on the number of
// columns that are computed with it.
TEST_P(LinearTest, ThreadsChangeNothing) {
  const Tensor weight = make({101, 1300}).randomize(2);
  const Tensor bias = make({101}).randomize(3);
  const ConstTensorView bias_view = bias;
  for (const std::int64_t rows : {3, 16, 20}) {
    const Tensor x = make({rows, 1300}).randomize(1);
    const Tensor out = product(x, weight, &bias);
    Tensor many = make({rows, 101});
    linear(x, weight, &bias_view, many, threads());
    EXPECT_EQ(many.memory(), out.memory());
    expect_product(x, weight, &bias, out);
  }
}

// A row does not depend on the number of rows that are computed with it, also
// where an instruction for bfloat16 would take numbers for 0, and just above.
TEST_P(LinearTest, RowsChangeNothing) {
  const std::int64_t k = 1104, n = 21;
  for (const double x_scale : {1.0, 0x1p-45, 0x1p-56, 0x1p-63, 0x1p-125}) {
    for (const double scale : {1.0, 0x1p-45, 0x1p-56, 0x1p-63, 0x1p-125}) {
      Tensor x = make({16, k}).randomize(1), weight = make({n, k}).randomize(2);
      for (std::int64_t i = 0; i < x.numel(); ++i) {
        const auto less = static_cast<int>(i % 13);
        x.set(i, i % 3 == 0 ? 0 : std::ldexp(x.get(i) * x_scale, -less));
      }
      for (std::int64_t i = 0; i < weight.numel(); ++i) {
        const auto less = static_cast<int>(i % 11);
        weight.set(i,
                   i % 5 == 0 ? 0 : std::ldexp(weight.get(i) * scale, -less));
      }
      // This bias leaves the bits that are rounded away in the first row.
      Tensor bias = make({n});
      const Tensor rounded = product(x, weight);
      for (std::int64_t j = 0; j < n; ++j) bias.set(j, -rounded.get(j));
      const Tensor all = product(x, weight, &bias);
      for (std::int64_t row = 0; row < 16; ++row) {
        Tensor one = make({1, k});
        for (std::int64_t i = 0; i < k; ++i) one.set(i, x.get(row * k + i));
        const Tensor alone = product(one, weight, &bias);
        for (std::int64_t j = 0; j < n; ++j) {
          ASSERT_EQ(all.get(row * n + j), alone.get(j))
              << x_scale << " " << scale << " at " << row << ", " << j;
        }
      }
    }
  }
}

// Subnormal numbers, products and sums count.
TEST_P(LinearTest, Subnormals) {
  const auto expect_sum = [&](const std::vector<std::pair<double, double>>& of,
                              double expected) {
    for (const std::int64_t rows : {1, 5, 16}) {
      Tensor x = make({rows, 70}), weight = make({18, 70});
      for (Tensor* tensor : {&x, &weight}) {
        for (std::int64_t i = 0; i < tensor->numel(); ++i) {
          const auto term = static_cast<std::size_t>(i % 70 - 32);
          tensor->set(i, term >= of.size() ? 0
                         : tensor == &x    ? of[term].first
                                           : of[term].second);
        }
      }
      EXPECT_EQ(product(x, weight).values(),
                Values(static_cast<std::size_t>(rows) * 18, expected));
    }
  };
  const double tiny = ulp(dtype(), 0);  // the least number
  expect_sum({{3 * tiny, 5}}, 15 * tiny);
  expect_sum({{5, 3 * tiny}}, 15 * tiny);
  const double root = std::ldexp(1, std::ilogb(tiny) / 2);
  expect_sum({{root, 4 * tiny / root}}, 4 * tiny);
  if (dtype() != DType::kBFloat16) return;
  const double b = 0x1p-57, c = b * (1 + 0x1p-7), d = b * (1 + 0x1p-6);
  expect_sum({{c, c}, {b, -d}}, 0x1p-128);
  expect_sum({{2 * c, 2 * c}, {2 * b, -2 * d}}, 0x1p-126);
}

TEST(LinearChecksTest, Refuses) {
  constexpr auto kF32 = DType::kFloat32;
  const std::string op = "linear: ";
  Tensor x(kF32, {2, 4}), weight(kF32, {3, 4}), bias(kF32, {3});
  Tensor out(kF32, {2, 3}), scalar(kF32, {}), half(DType::kFloat16, {3, 4});
  Tensor cube(kF32, {1, 3, 4}), whole(DType::kInt8, {2, 4});
  const auto before = out.memory();
  EXPECT_INVALID(linear(scalar, weight, nullptr, out),
                 op + "x has no dimensions, expected at least 1");
  EXPECT_INVALID(
      linear(whole, weight, nullptr, out),
      op + "x is int8, expected float32, float64, float16 or bfloat16");
  EXPECT_INVALID(linear(x, half, nullptr, out),
                 op + "weight is float16, but x is float32");
  const std::string expected = ", expected (n, 4), as x's last dimension is 4";
  EXPECT_INVALID(linear(x, out, nullptr, out),
                 op + "weight has shape (2, 3)" + expected);
  EXPECT_INVALID(linear(x, cube, nullptr, out),
                 op + "weight has shape (1, 3, 4)" + expected);
  EXPECT_INVALID(linear(x, weight, nullptr, x),
                 op + "out has shape (2, 4), expected (2, 3)");
  const ConstTensorView vx = x, vhalf = half;
  EXPECT_INVALID(linear(x, weight, &vx, out),
                 op + "bias has shape (2, 4), expected (3,)");
  EXPECT_INVALID(linear(x, weight, &vhalf, out),
                 op + "bias is float16, but x is float32");
  const auto at = [&](const Tensor& tensor) {
    return moved_to(out, tensor.view().data);
  };
  const std::string own = ", expected memory of its own";
  EXPECT_INVALID(linear(x, weight, nullptr, at(x)),
                 op + "out may overlap x" + own);
  EXPECT_INVALID(linear(x, weight, nullptr, at(weight)),
                 op + "out may overlap weight" + own);
  const ConstTensorView vbias = bias;
  EXPECT_INVALID(linear(x, weight, &vbias, at(bias)),
                 op + "out overlaps bias" + own);
  const std::int64_t zeros[] = {0, 1};
  TensorView repeated = out;
  repeated.strides = zeros;
  EXPECT_INVALID(linear(x, weight, nullptr, repeated),
                 op + "out overlaps itself: two of its indices share memory");
  EXPECT_EQ(out.memory(), before);
}

}  // namespace
}  // namespace foo_core::testing
