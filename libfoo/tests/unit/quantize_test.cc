// quantize_int8_rowwise, bit for bit against its definition.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "testing.h"

namespace foo_core::testing {
namespace {

/// The definition, in the type of computation.
template <class C>
void reference(const double* x, std::int64_t n, double* q, double* scale) {
  C largest = 0;
  for (std::int64_t j = 0; j < n; ++j) {
    const C magnitude = std::fabs(static_cast<C>(x[j]));
    if (std::isnan(largest) || magnitude <= largest) continue;
    largest = magnitude;
  }
  auto s = static_cast<float>(largest / C{127});
  if (s == 0) s = 1;
  *scale = static_cast<double>(s);
  for (std::int64_t j = 0; j < n; ++j) {
    const C y = std::nearbyint(static_cast<C>(x[j]) / C{s});
    q[j] = std::isnan(y)
               ? 0
               : static_cast<double>(std::max(C{-127}, std::min(C{127}, y)));
  }
}

class QuantizeTest : public KernelTest {
 protected:
  static Tensor scale_of(const Tensor& x, Shape strides = {}) {
    Shape sizes = x.sizes;
    sizes.back() = 1;
    return Tensor(DType::kFloat32, sizes, std::move(strides));
  }

  void expect_quantized(const Tensor& x, const Tensor& q, const Tensor& scale) {
    const std::int64_t n = x.sizes.back();
    const auto values = x.values();
    std::vector<double> expected(static_cast<std::size_t>(n));
    for (std::int64_t row = 0; row < scale.numel(); ++row) {
      double s = 0;
      (dtype() == DType::kFloat64
           ? reference<double>
           : reference<float>)(values.data() + row * n, n, expected.data(), &s);
      if (std::isnan(s)) {
        ASSERT_TRUE(std::isnan(scale.get(row)));
      } else {
        ASSERT_EQ(scale.get(row), s) << "row " << row;
      }
      for (std::int64_t j = 0; j < n; ++j) {
        ASSERT_EQ(q.get(row * n + j), expected[static_cast<std::size_t>(j)])
            << x.get(row * n + j) << " / " << s;
      }
    }
    EXPECT_TRUE(q.guards_intact());
    EXPECT_TRUE(scale.guards_intact());
  }

  void check(const Tensor& x, Shape q_strides = {}, Shape scale_strides = {},
             std::int64_t q_shift = 0) {
    Tensor q(DType::kInt8, x.sizes, std::move(q_strides), q_shift);
    Tensor scale = scale_of(x, std::move(scale_strides));
    quantize_int8_rowwise(x, q, scale);
    expect_quantized(x, q, scale);
  }
};
FOO_CORE_KERNEL_TESTS(QuantizeTest);

TEST_P(QuantizeTest, EverySizeAroundTheVectors) {
  for (std::int64_t n = 0; n <= 200; ++n) check(make({3, n}).randomize(1));
  for (const std::int64_t n : {1023, 1024, 1025, 4096, 5000}) {
    check(make({3, n}).randomize(2, 100));
  }
}

// On CUDA, a block cannot keep these rows in its registers. The second stride
// aligns no two rows alike.
TEST_P(QuantizeTest, RowsLongerThanABlock) {
  const std::int64_t even = 80000 / item_size(dtype());
  for (const std::int64_t n : {even, even + 1}) {
    check(make({2, n}).randomize(1), {n + 1, 1});
    check(make({2, n}, {n + 1, 1}).randomize(2));
    check(make({2, n}).randomize(3));
  }
}

TEST_P(QuantizeTest, MisalignedArguments) {
  check(make({3, 128}, {}, 1).randomize(1));
  check(make({3, 128}).randomize(1), {}, {}, 1);
}

// The largest number is found at any position of a row.
TEST_P(QuantizeTest, TheLargestIsFound) {
  constexpr std::int64_t kN = 150;
  Tensor x = make({2 * kN, kN}).randomize(1, 0.01);
  for (std::int64_t j = 0; j < kN; ++j) {
    x.set(2 * j * kN + j, 7);
    x.set((2 * j + 1) * kN + j, -7);
  }
  check(x);
}

TEST_P(QuantizeTest, OneDimensionAndMany) {
  check(make({70}).randomize(1));
  check(make({2, 3, 1, 4, 40}).randomize(1));
  for (const Shape& sizes :
       {Shape{0, 5}, Shape{5, 0}, Shape{0}, Shape{3, 0, 5}, Shape{0, 0}}) {
    check(make(sizes));
  }
  Tensor x = make({2, 0}), q(DType::kInt8, {2, 0}), scale = scale_of(x);
  TensorView x_view = x, q_view = q;
  x_view.data = q_view.data = nullptr;
  quantize_int8_rowwise(x_view, q_view, scale);
  EXPECT_EQ(scale.values(), std::vector<double>(2, 1.0));
}

TEST_P(QuantizeTest, AnyStrides) {
  check(make({5, 70}, {1, 5}).randomize(1), {70, 1}, {3, 1});
  check(make({5, 70}, {-100, 1}).randomize(1), {1, 5}, {-2, 1});
  check(make({5, 2500}, {2500, -1}).randomize(1), {-5000, 2}, {1, 9});
  check(make({4, 2500}, {1, 0}).randomize(1), {2500, -1}, {1, 0});
  check(make({2, 3, 40}, {40, 80, 1}).randomize(1), {1, 2, 6}, {1, 2, 0});
  check(make({5, 40}, {0, 1}).randomize(1));
}

TEST_P(QuantizeTest, EveryMagnitude) {
  const bool half = dtype() == DType::kFloat16;
  const int low = dtype() == DType::kFloat64 ? -330 : half ? -25 : -150;
  const int high = dtype() == DType::kFloat64 ? 330 : half ? 14 : 126;
  Tensor x = make({high - low + 1, 77});
  for (int e = low; e <= high; ++e) {
    const Tensor row = make({77}).randomize(static_cast<unsigned>(e - low));
    for (int j = 0; j < 77; ++j) {
      x.set((e - low) * 77 + j, std::ldexp(row.get(j), e));
    }
  }
  check(x);
}

TEST_P(QuantizeTest, ZeroNaNAndInfinity) {
  const double inf = INFINITY, nan = std::nan("");
  const double tiny = ulp(dtype(), 0);
  const double rows[][4] = {{0, -0.0, 0, 0},        {1, nan, -2, 3},
                            {1, -inf, 2, 0},        {inf, 1, nan, 2},
                            {tiny, -tiny, 0, tiny}, {-nan, nan, nan, nan}};
  for (const std::int64_t n : {4, 333}) {
    Tensor x = make({6, n}).randomize(1, 0);
    for (int i = 0; i < 6; ++i) {
      for (int j = 0; j < 4; ++j) x.set((i + 1) * n - 4 + j, rows[i][j]);
    }
    check(x);
  }
}

// scale leaves the range of float32 long before x leaves that of float64.
TEST_P(QuantizeTest, LargeAndSmallFloat64) {
  if (dtype() != DType::kFloat64) GTEST_SKIP() << "for float64";
  Tensor x = make({4, 3}).randomize(1, 1);
  const double largest[] = {1e300, 1e40, 1e-44, 1e-300};
  for (int i = 0; i < 4; ++i) x.set(3 * i + 1, largest[i]);
  for (int i = 2; i < 4; ++i) {
    x.set(3 * i, -0.3 * largest[i]);
    x.set(3 * i + 2, 0.51 * largest[i]);
  }
  check(x);
}

TEST_P(QuantizeTest, EveryNumberOf16Bits) {
  if (item_size(dtype()) != 2) GTEST_SKIP() << "for 16-bit types";
  // Each row holds all numbers up to a largest one.
  for (unsigned largest = 1; largest <= 0x8000; largest += 977) {
    const unsigned bits = std::min(largest, 0x7FFFu);
    Tensor x = make({2, bits + 1});
    auto* p = static_cast<std::uint16_t*>(x.view().data);
    for (unsigned i = 0; i <= bits; ++i) {
      p[i] = static_cast<std::uint16_t>(i);
      p[bits + 1 + i] = static_cast<std::uint16_t>(0x8000 | i);
    }
    check(x);
  }
}

TEST_P(QuantizeTest, Ties) {
  Tensor x = make({3, 509});
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 509; ++j) {
      x.set(i * 509 + j, std::ldexp(j - 254, i - 1));  // scale 1, 2, 4
    }
  }
  check(x);
}

// A quotient is rounded to a float and then to an integer. The first rounding
// decides only if x / scale is within 2^-44 of the midpoint between a tie and
// the next float, for which the last bits of scale must be nearly 0 or nearly
// 2^k. The kernel relies on the result for all of these.
TEST_P(QuantizeTest, QuotientsNextToATie) {
  if (dtype() != DType::kFloat32) GTEST_SKIP() << "for float32";
  std::int64_t tried = 0;
  std::vector<double> rows;
  for (int k = 0; k < 127; ++k) {
    const float tie = static_cast<float>(k) + 0.5f;
    for (const float next :
         {std::nextafter(tie, 0.0f), std::nextafter(tie, 256.0f)}) {
      const double border = (static_cast<double>(tie) + next) / 2;
      const int period = 1 << (24 - std::max(1, std::ilogb(tie) + 2));
      for (int base = 1 << 23; base <= 1 << 24; base += period) {
        for (int s = std::max(1 << 23, base - 40);
             s <= std::min((1 << 24) - 1, base + 40); ++s) {
          const double product = border * s;
          const auto x = static_cast<float>(product);
          if (std::fabs(x - product) > product * 0x1p-44) continue;
          const float largest = 127 * static_cast<float>(s);
          if (largest / 127 != static_cast<float>(s)) continue;
          ++tried;
          for (const double e : {0.0, -123.0, -130.0, 90.0}) {
            rows.push_back(std::ldexp(largest, static_cast<int>(e)));
            rows.push_back(std::ldexp(x, static_cast<int>(e)));
          }
        }
      }
    }
  }
  RecordProperty("tried", std::to_string(tried));
  EXPECT_GT(tried, 1000);
  const auto count = static_cast<std::int64_t>(rows.size() / 2);
  Tensor x = make({count, 2});
  for (std::size_t i = 0; i < rows.size(); ++i) {
    x.set(static_cast<std::int64_t>(i), rows[i]);
  }
  check(x);
}

TEST_P(QuantizeTest, ManyRows) {
  check(make({500, 1000}).randomize(3, 5));
  check(make({3000, 33}).randomize(4, 1e-3));
}

TEST_P(QuantizeTest, ThreadsChangeNothing) {
  const Tensor x = make({301, 333}).randomize(1);
  Tensor q(DType::kInt8, {301, 333}), scale = scale_of(x);
  Tensor many_q = q, many_scale = scale;
  quantize_int8_rowwise(x, q, scale);
  quantize_int8_rowwise(x, many_q, many_scale, threads());
  EXPECT_EQ(many_q.memory(), q.memory());
  EXPECT_EQ(many_scale.memory(), scale.memory());
}

TEST(QuantizeChecksTest, Refuses) {
  constexpr auto kF32 = DType::kFloat32;
  const std::string op = "quantize_int8_rowwise: ";
  Tensor x(kF32, {2, 4}), q(DType::kInt8, {2, 4}), scale(kF32, {2, 1});
  Tensor scalar(kF32, {}), flat(DType::kInt8, {8}), row(kF32, {2});
  Tensor half(DType::kFloat16, {2, 1});
  const auto before = q.memory();
  EXPECT_INVALID(quantize_int8_rowwise(scalar, q, scale),
                 op + "x has no dimensions, expected at least 1");
  EXPECT_INVALID(
      quantize_int8_rowwise(q, q, scale),
      op + "x is int8, expected float32, float64, float16 or bfloat16");
  EXPECT_INVALID(quantize_int8_rowwise(x, x, scale),
                 op + "q is float32, expected int8");
  EXPECT_INVALID(quantize_int8_rowwise(x, flat, scale),
                 op + "q has shape (8,), expected (2, 4)");
  EXPECT_INVALID(quantize_int8_rowwise(x, q, half),
                 op + "scale is float16, expected float32");
  EXPECT_INVALID(quantize_int8_rowwise(x, q, row),
                 op + "scale has shape (2,), expected (2, 1)");
  const std::string own = ", expected memory of its own";
  EXPECT_INVALID(quantize_int8_rowwise(x, moved_to(q, x.view().data), scale),
                 op + "q may overlap x" + own);
  EXPECT_INVALID(quantize_int8_rowwise(x, q, moved_to(scale, x.view().data)),
                 op + "scale overlaps x" + own);
  EXPECT_INVALID(
      quantize_int8_rowwise(x, moved_to(q, scale.view().data), scale),
      op + "scale may overlap q" + own);
  const std::int64_t zeros[] = {0, 1};
  TensorView repeated = q;
  repeated.strides = zeros;
  EXPECT_INVALID(quantize_int8_rowwise(x, repeated, scale),
                 op + "q overlaps itself: two of its indices share memory");
  EXPECT_EQ(q.memory(), before);
}

}  // namespace
}  // namespace foo_core::testing
