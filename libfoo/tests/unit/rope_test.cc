// rope against double, for every option, table dtype and order of dimensions.
#include <algorithm>
#include <cmath>
#include <vector>

#include "testing.h"

namespace foo_core::testing {
namespace {

const RopeOptions kOptions[] = {
    {false, false}, {true, false}, {false, true}, {true, true}};

class RopeTest : public KernelTest {
 protected:
  // Fills the tables with the cosines and sines of random angles.
  static void make_angles(Tensor& cos, Tensor& sin) {
    std::mt19937 engine(5);
    std::uniform_real_distribution<double> angle(-3.15, 3.15);
    for (std::int64_t i = 0; i < cos.numel(); ++i) {
      const double a = angle(engine);
      cos.set(i, std::cos(a));
      sin.set(i, std::sin(a));
    }
  }

  // The gate is 0.51 ulp for 16-bit types, whose products are exact unless the
  // table is float32. For the others it is 4 ulp of the larger product, because
  // the products may cancel.
  void expect_rotated(double got, double x1, double c1, double x2, double c2,
                      bool wide_table) {
    const double y = x1 * c1 + x2 * c2;
    const double product = std::max(std::fabs(x1 * c1), std::fabs(x2 * c2));
    double gate = 4 * ulp(dtype(), product);
    if (item_size(dtype()) == 2) {
      gate = 0.51 * ulp(dtype(), y);
      if (wide_table) gate += ulp(DType::kFloat32, product);
    }
    ASSERT_LE(std::fabs(got - y), gate)
        << x1 << " * " << c1 << " + " << x2 << " * " << c2;
  }

  void expect_rope(const std::vector<double>& x, const Tensor& cos,
                   const Tensor& sin, const Tensor* positions,
                   const RopeOptions& options, const Tensor& out) {
    const std::int64_t seq = out.sizes[1], heads = out.sizes[2],
                       n = out.sizes[3], half = cos.sizes[1];
    const bool wide_table = cos.dtype != dtype();
    for (std::int64_t row = 0; row < out.numel() / n; ++row) {
      const std::int64_t token = row / heads;
      std::int64_t position = token % seq;
      if (positions != nullptr) {
        position = static_cast<std::int64_t>(
            positions->get(positions->sizes.size() == 1 ? position : token));
      }
      for (std::int64_t j = 0; j < half; ++j) {
        const std::int64_t i1 = row * n + (options.interleaved ? 2 * j : j);
        const std::int64_t i2 = options.interleaved ? i1 + 1 : i1 + half;
        const double x1 = x[static_cast<std::size_t>(i1)];
        const double x2 = x[static_cast<std::size_t>(i2)];
        const double c = cos.get(position * half + j);
        const double s =
            sin.get(position * half + j) * (options.inverse ? -1 : 1);
        expect_rotated(out.get(i1), x1, c, x2, -s, wide_table);
        expect_rotated(out.get(i2), x2, c, x1, s, wide_table);
      }
      for (std::int64_t j = 2 * half; j < n; ++j) {
        const std::int64_t i = row * n + j;
        ASSERT_EQ(out.get(i), x[static_cast<std::size_t>(i)]);
      }
    }
    EXPECT_TRUE(out.guards_intact());
  }

  // Checks all options, with tables of both dtypes, out of place and in place.
  void check(const Tensor& x_like, std::int64_t half, const Tensor& out_like,
             const Tensor* positions = nullptr, bool odd_tables = false,
             std::int64_t cos_shift = 0, std::int64_t sin_shift = 0) {
    const std::int64_t rows = x_like.sizes[1] + 3;
    const Shape strides = odd_tables ? Shape{-2, 3 * rows} : Shape{half, 1};
    for (const DType table : {dtype(), DType::kFloat32}) {
      Tensor cos(table, {rows, half}, strides, cos_shift);
      Tensor sin(table, {rows, half}, strides, sin_shift);
      make_angles(cos, sin);
      const ConstTensorView view = positions != nullptr ? *positions : cos;
      const auto* p = positions != nullptr ? &view : nullptr;
      for (const RopeOptions& options : kOptions) {
        Tensor x = x_like, out = out_like;
        x.randomize(1, 3);
        const auto before = x.values();
        rope(x, cos, sin, p, options, out);
        expect_rope(before, cos, sin, positions, options, out);
        EXPECT_EQ(x.values(), before);
        rope(x, cos, sin, p, options, x);
        EXPECT_EQ(x.values(), out.values());
        EXPECT_TRUE(x.guards_intact());
      }
    }
  }
};
FOO_CORE_KERNEL_TESTS(RopeTest);

TEST_P(RopeTest, EverySizeAroundTheVectors) {
  for (std::int64_t half = 0; half <= 70; ++half) {
    const std::int64_t n = std::max<std::int64_t>(1, 2 * half);
    check(make({1, 2, 3, n}), half, make({1, 2, 3, n}));
  }
  for (const std::int64_t half : {128, 511, 512, 513, 1024, 1025, 2500}) {
    check(make({1, 2, 1, 2 * half}), half, make({1, 2, 1, 2 * half}));
  }
}

TEST_P(RopeTest, TheRestIsCopied) {
  for (const std::int64_t half : {0, 1, 16, 20, 32, 1030}) {
    check(make({2, 3, 2, 2 * half + 37}), half, make({2, 3, 2, 2 * half + 37}));
  }
}

TEST_P(RopeTest, AnyStrides) {
  const Shape sizes = {2, 5, 3, 70};
  // The first is (batch, heads, seq, head_dim) in memory.
  const Shape orders[] = {{1050, 70, 350, 1},
                          {1050, 210, -70, 1},
                          {-1, 2, 10, 30},
                          {2100, -420, 140, 2},
                          {1050, 210, 70, -1}};
  for (const Shape& order : orders) {
    check(make(sizes, order), 33, make(sizes));
    check(make(sizes), 35, make(sizes, order), nullptr, true);
    check(make(sizes, order), 20, make(sizes, order));
  }
  check(make({1, 2, 2, 3000}, {1, 12000, 6000, 2}), 1400,
        make({1, 2, 2, 3000}));
}

TEST_P(RopeTest, MisalignedArguments) {
  const Shape sizes = {2, 3, 2, 96};
  for (int one = 0; one < 4; ++one) {
    check(make(sizes, {}, one == 0), 32, make(sizes, {}, one == 1), nullptr,
          false, one == 2, one == 3);
  }
}

TEST_P(RopeTest, BroadcastInput) {
  Tensor x = make({2, 3, 4, 2100}, {0, 0, 0, 0}).randomize(1);
  Tensor cos = make({3, 1050}, {0, 1}), sin = cos;
  make_angles(cos, sin);
  for (const RopeOptions& options : kOptions) {
    Tensor out = make({2, 3, 4, 2100});
    rope(x, cos, sin, nullptr, options, out);
    expect_rope(x.values(), cos, sin, nullptr, options, out);
  }
}

TEST_P(RopeTest, Positions) {
  const auto fill = [](Tensor positions) {
    for (std::int64_t i = 0; i < positions.numel(); ++i) {
      positions.set(i, static_cast<double>(i * 5 % 8));
    }
    return positions;
  };
  const Tensor like = make({3, 5, 2, 40});
  for (const Tensor& positions :
       {Tensor(DType::kInt64, {5}), Tensor(DType::kInt64, {5}, {-3}),
        Tensor(DType::kInt64, {3, 5}), Tensor(DType::kInt64, {3, 5}, {2, -7}),
        Tensor(DType::kInt64, {3, 5}, {0, 0})}) {
    const Tensor filled = fill(positions);
    check(like, 20, like, &filled);
  }
}

TEST_P(RopeTest, ManyTokens) {
  check(make({2, 301, 1, 8}), 4, make({2, 301, 1, 8}));
  check(make({2, 301, 2, 8}, {4816, 8, 2408, 1}), 3, make({2, 301, 2, 8}));
}

TEST_P(RopeTest, Nothing) {
  Tensor none = make({4, 0}), tables = make({4, 2}).randomize(1);
  for (const Shape& sizes : {Shape{0, 3, 2, 4}, Shape{2, 0, 2, 4},
                             Shape{2, 3, 0, 4}, Shape{2, 3, 2, 0}}) {
    Tensor x = make(sizes);
    const Tensor& table = sizes[3] == 0 ? none : tables;
    rope(x, table, table, nullptr, {}, x, threads());
    EXPECT_TRUE(x.guards_intact());
  }
  Tensor x = make({2, 0, 1, 4}), empty = make({0, 2});
  rope(x, empty, empty, nullptr, {}, x);
  ConstTensorView no_columns = none;
  no_columns.data = nullptr;
  Tensor in = make({2, 3, 2, 4}).randomize(1), out = make({2, 3, 2, 4});
  rope(in, no_columns, no_columns, nullptr, {}, out);
  EXPECT_EQ(out.memory(), in.memory());
}

TEST_P(RopeTest, InPlaceAndThreads) {
  Tensor x = make({3, 67, 5, 80}).randomize(1);
  Tensor cos = make({67, 36}), sin = cos;
  make_angles(cos, sin);
  Tensor positions(DType::kInt64, {3, 67});
  for (std::int64_t i = 0; i < 201; ++i) {
    positions.set(i, static_cast<double>(i * 7 % 67));
  }
  const ConstTensorView p = positions;
  for (const RopeOptions& options : kOptions) {
    Tensor whole = make({3, 67, 5, 80});
    Tensor many = whole, in_place = x;
    rope(x, cos, sin, &p, options, whole);
    rope(x, cos, sin, &p, options, many, threads());
    EXPECT_EQ(many.memory(), whole.memory());
    rope(x, cos, sin, &p, options, in_place, threads());
    EXPECT_EQ(in_place.memory(), whole.memory());
  }
}

TEST_P(RopeTest, InverseUndoesIt) {
  Tensor x = make({1, 4, 2, 64}).randomize(1), out = x;
  Tensor cos = make({4, 32}).randomize(0, 0), sin = cos;
  for (std::int64_t i = 0; i < cos.numel(); ++i) (i % 3 ? cos : sin).set(i, 1);
  for (const bool interleaved : {false, true}) {
    rope(x, cos, sin, nullptr, {interleaved, false}, out);
    EXPECT_NE(x.values(), out.values());
    rope(out, cos, sin, nullptr, {interleaved, true}, out);
    EXPECT_EQ(x.values(), out.values());
  }
}

TEST_P(RopeTest, NaNInfinityAndExtremes) {
  const double inf = INFINITY, nan = std::nan("");
  const double tiny = ulp(dtype(), 0),
               large = dtype() == DType::kFloat16 ? 65504 : 0x1.FEp127;
  const double x[] = {nan, inf, -inf, 1, tiny, large, -large, 0, inf, 2};
  const double c[] = {1, 0.5, nan, inf, 1};
  for (const DType table : {dtype(), DType::kFloat32}) {
    Tensor cos(table, {1, 5}), sin(table, {1, 5});
    for (int j = 0; j < 5; ++j) {
      cos.set(j, c[j]);
      sin.set(j, c[(j + 1) % 5]);
    }
    if (table == DType::kFloat32) {  // a NaN with all bits set
      std::fill_n(static_cast<std::uint32_t*>(sin.view().data) + 1, 1,
                  0xFFFFFFFFu);
    }
    for (const RopeOptions& options : kOptions) {
      Tensor in = make({1, 1, 1, 10}), out = in;
      for (int j = 0; j < 10; ++j) in.set(j, x[j]);
      rope(in, cos, sin, nullptr, options, out);
      for (int j = 0; j < 5; ++j) {
        const int i1 = options.interleaved ? 2 * j : j;
        const int i2 = options.interleaved ? i1 + 1 : i1 + 5;
        const double s = sin.get(j) * (options.inverse ? -1 : 1);
        const double y[] = {x[i1] * cos.get(j) - x[i2] * s,
                            x[i2] * cos.get(j) + x[i1] * s};
        const double got[] = {out.get(i1), out.get(i2)};
        for (int k = 0; k < 2; ++k) {
          const double want = round_to(dtype(), y[k]);
          if (std::isnan(want)) {
            EXPECT_TRUE(std::isnan(got[k])) << "pair " << j;
          } else if (std::isinf(want)) {
            EXPECT_EQ(got[k], want) << "pair " << j;
          } else {
            EXPECT_NEAR(got[k], want, ulp(dtype(), want)) << "pair " << j;
          }
        }
      }
    }
  }
}

// They cannot be checked before the kernel runs.
TEST_P(RopeTest, PositionsWithoutARowOnCuda) {
  if (!on_cuda()) GTEST_SKIP() << "the CPU refuses them";
  const double far = 0x1p40;
  const double at[] = {0, -1, 3, 4, far, -far};
  Tensor positions(DType::kInt64, {6});
  for (int i = 0; i < 6; ++i) positions.set(i, at[i]);
  const ConstTensorView p = positions;
  for (const std::int64_t rest : {0, 8, 5}) {  // the last is not aligned
    const std::int64_t n = 32 + rest;
    Tensor x = make({1, 6, 2, n}).randomize(1), out = make({1, 6, 2, n});
    Tensor cos = make({4, 16}), sin = cos;
    make_angles(cos, sin);
    for (const RopeOptions& options : kOptions) {
      rope(x, cos, sin, &p, options, out);
      for (std::int64_t i = 0; i < out.numel(); ++i) {
        const std::int64_t token = i / (2 * n);
        ASSERT_EQ(std::isnan(out.get(i)), token != 0 && token != 2) << i;
      }
    }
  }
}

class RopeChecksTest : public ::testing::Test {
 protected:
  void refuse(const ConstTensorView& x, const ConstTensorView& cos,
              const ConstTensorView& sin, const ConstTensorView* positions,
              const TensorView& out, const std::string& message) {
    EXPECT_INVALID(rope(x, cos, sin, positions, {}, out), "rope: " + message);
    EXPECT_EQ(out_.memory(), before_) << "written before all checks passed";
  }

  static constexpr auto kF32 = DType::kFloat32;
  Tensor x_{kF32, {2, 5, 3, 8}}, out_{kF32, {2, 5, 3, 8}};
  Tensor cos_{kF32, {16, 4}}, sin_{kF32, {16, 4}};
  const Bytes before_ = out_.memory();
};

TEST_F(RopeChecksTest, Shapes) {
  Tensor flat(kF32, {30, 8}), wide(kF32, {16, 6}), row(kF32, {4});
  Tensor few(kF32, {4, 4});
  refuse(flat, cos_, sin_, nullptr, out_,
         "x has shape (30, 8), expected (batch, seq, heads, head_dim)");
  refuse(x_, row, sin_, nullptr, out_,
         "cos has shape (4,), expected (max_position, rotary_dim / 2)");
  refuse(x_, cos_, few, nullptr, out_,
         "sin has shape (4, 4), expected (16, 4)");
  refuse(x_, wide, wide, nullptr, out_,
         "cos has 6 columns, which rotate 12 elements, but x's last dimension "
         "is 8");
  refuse(x_, cos_, sin_, nullptr, flat,
         "out has shape (30, 8), expected (2, 5, 3, 8)");
  refuse(x_, few, few, nullptr, out_, "x has 5 positions, but cos has 4 rows");
}

TEST_F(RopeChecksTest, DTypes) {
  Tensor half(DType::kFloat16, {16, 4}), wide(DType::kFloat64, {2, 5, 3, 8});
  refuse(x_, half, half, nullptr, out_, "cos is float16, but x is float32");
  refuse(x_, cos_, half, nullptr, out_, "sin is float16, but cos is float32");
  refuse(x_, cos_, sin_, nullptr, wide, "out is float64, but x is float32");
  Tensor p(kF32, {5});
  const ConstTensorView view = p;
  refuse(x_, cos_, sin_, &view, out_, "positions is float32, expected int64");
}

TEST_F(RopeChecksTest, Positions) {
  Tensor positions(DType::kInt64, {2, 5}), flat(DType::kInt64, {5});
  Tensor wrong(DType::kInt64, {2, 4}), cube(DType::kInt64, {1, 2, 5});
  const ConstTensorView p = positions, f = flat, w = wrong, c = cube;
  for (int i = 0; i < 10; ++i) positions.set(i, i);
  for (int i = 0; i < 5; ++i) flat.set(i, i);
  refuse(x_, cos_, sin_, &w, out_,
         "positions has shape (2, 4), expected (5,) or (2, 5)");
  refuse(x_, cos_, sin_, &c, out_,
         "positions has shape (1, 2, 5), expected (5,) or (2, 5)");
  FOO_CORE_SKIP_ON_CUDA("positions are not checked");
  positions.set(8, 16);
  refuse(x_, cos_, sin_, &p, out_,
         "positions holds 16 at (1, 3), but cos has 16 rows");
  flat.set(2, -1);
  refuse(x_, cos_, sin_, &f, out_,
         "positions holds -1 at (2,), but cos has 16 rows");
}

TEST_F(RopeChecksTest, Overlap) {
  TensorView out = out_;
  const std::string own = ", expected memory of its own";
  auto* data = static_cast<float*>(out.data);
  const std::int64_t sizes[] = {16, 4}, strides[] = {4, 1}, p_sizes[] = {5};
  const ConstTensorView table{data + 200, kF32, 2, sizes, strides};
  refuse(x_, table, sin_, nullptr, out, "out may overlap cos" + own);
  refuse(x_, cos_, table, nullptr, out, "out may overlap sin" + own);
  out.data = data + 8;
  refuse(out_, cos_, sin_, nullptr, out,
         "out overlaps x without being exactly x");
  const std::int64_t zeros[] = {0, 0, 0, 1};
  refuse(x_, cos_, sin_, nullptr, {data, kF32, 4, out.sizes, zeros},
         "out overlaps itself: two of its indices share memory");
  Tensor zero(DType::kInt64, {60});  // positions in as many bytes as out
  for (int i = 0; i < 60; ++i) zero.set(i, 0);
  const ConstTensorView p{zero.view().data, DType::kInt64, 1, p_sizes,
                          strides + 1};
  EXPECT_INVALID(rope(x_, cos_, sin_, &p, {},
                      {zero.view().data, kF32, 4, out.sizes, out.strides}),
                 "rope: out may overlap positions" + own);
}

TEST_P(RopeTest, PositionsChangedDuringTheCall) {
  FOO_CORE_SKIP_ON_CUDA("a kernel cannot be met while it runs");
  constexpr std::int64_t kRows = 16, kSeq = 64, kHead = kMostSerial / kSeq + 1;
  const Tensor x = make({1, kSeq, 1, kHead}).randomize(1);
  const Tensor out = make({1, kSeq, 1, kHead});
  const Tensor table = make({kRows, kHead / 2}).randomize(2);
  for (const double value : {16.0, -1.0, 0x1p40, -0x1p63}) {
    for (const RopeOptions& options : kOptions) {
      Tensor positions(DType::kInt64, {kSeq});
      for (std::int64_t i = 0; i < kSeq; ++i) positions.set(i, 15);
      const ConstTensorView view = positions;
      EXPECT_INVALID(
          rope(x, table, table, &view, options, out,
               meanwhile([&] { positions.set(kSeq - 1, value); })),
          "rope: positions was changed during the call: an index that had been "
          "checked is out of range now");
      EXPECT_TRUE(out.guards_intact());
    }
  }
}

}  // namespace
}  // namespace foo_core::testing
