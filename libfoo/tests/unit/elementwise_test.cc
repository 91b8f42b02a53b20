// Element-wise operators against long double, for every shape, stride and
// alias.
#include <cmath>
#include <limits>

#include "testing.h"

namespace foo_core::testing {
namespace {

using Function = void (*)(const ConstTensorView&, const ConstTensorView&,
                          const TensorView&, const Executor&);
constexpr double kC = 0.625;

struct Operator {
  const char* name;
  Function call;
  long double (*reference)(long double a, long double b);
  bool adds_to_product = false;  // which may cancel it
};

const Operator kOperators[] = {
    {"add", OnDevice<&foo_core::add>(),
     [](long double a, long double b) { return a + b; }},
    {"mul", OnDevice<&foo_core::mul>(),
     [](long double a, long double b) { return a * b; }},
    {"muladd",
     [](const ConstTensorView& a, const ConstTensorView& b,
        const TensorView& out,
        const Executor& executor) { muladd(a, b, kC, out, executor); },
     [](long double a, long double b) { return a * b + kC; }, true},
};

/// The index in x of element i of a broadcast shape.
std::int64_t source(const Tensor& x, const Shape& sizes, std::int64_t i) {
  std::int64_t result = 0, scale = 1;
  for (std::size_t d = 0; d < sizes.size(); ++d) {
    const std::size_t back = sizes.size() - 1 - d;
    const std::int64_t index = i % sizes[back];
    i /= sizes[back];
    if (d >= x.sizes.size()) continue;
    const std::int64_t size = x.sizes[x.sizes.size() - 1 - d];
    result += (size == 1 ? 0 : index) * scale;
    scale *= size;
  }
  return result;
}

/// Expects out to be within the numerics gate: 0.51 ulp for 16-bit types, else
/// 4 ulp of |a * b| + |c|.
void expect_close(const Operator& op, const std::vector<double>& a,
                  const Tensor& a_like, const std::vector<double>& b,
                  const Tensor& b_like, const Tensor& out) {
  for (std::int64_t i = 0; i < out.numel(); ++i) {
    const double x = a[static_cast<std::size_t>(source(a_like, out.sizes, i))];
    const double y = b[static_cast<std::size_t>(source(b_like, out.sizes, i))];
    const long double expected = op.reference(x, y);
    const bool wide = item_size(out.dtype) > 2;
    const double size = wide && op.adds_to_product
                            ? std::fabs(x * y) + kC
                            : static_cast<double>(expected);
    const double tolerance = (wide ? 4 : 0.51) * ulp(out.dtype, size);
    ASSERT_LE(std::fabs(static_cast<double>(out.get(i) - expected)), tolerance)
        << op.name << " element " << i << ": " << x << ", " << y;
  }
  EXPECT_TRUE(out.guards_intact()) << op.name;
}

class ElementwiseTest : public KernelTest {
 protected:
  void check(Tensor a, Tensor b, Tensor out) {
    a.randomize(1);
    b.randomize(2);
    for (const Operator& op : kOperators) {
      op.call(a, b, out, {});
      expect_close(op, a.values(), a, b.values(), b, out);
    }
  }
};
FOO_CORE_KERNEL_TESTS(ElementwiseTest);

TEST_P(ElementwiseTest, EverySizeAroundTheVectors) {
  for (std::int64_t n = 0; n <= 140; ++n)
    check(make({n}), make({n}), make({n}));
  for (const std::int64_t n : {1023, 1024, 1025, 3000}) {
    check(make({n}), make({n}), make({n}));
  }
}

TEST_P(ElementwiseTest, NoDimensions) { check(make({}), make({}), make({})); }

TEST_P(ElementwiseTest, Broadcasts) {
  check(make({3, 1, 5}), make({4, 1}), make({3, 4, 5}));
  check(make({1}), make({2, 70}), make({2, 70}));
  check(make({}), make({7}), make({7}));
  check(make({2, 70}), make({70}), make({2, 70}));
  check(make({70, 1}), make({1, 70}), make({70, 70}));
  check(make({0, 1}), make({1, 3}), make({0, 3}));
}

TEST_P(ElementwiseTest, AnyStrides) {
  check(make({5, 70}, {1, 5}), make({5, 70}), make({5, 70}));
  check(make({5, 70}, {1, 5}), make({5, 70}, {1, 5}), make({5, 70}, {1, 5}));
  check(make({5, 70}), make({5, 70}), make({5, 70}, {1, 5}));
  check(make({5, 70}, {80, 1}), make({5, 70}, {150, 2}),
        make({5, 70}, {100, 1}));
  check(make({5, 70}, {-70, 1}), make({5, 70}, {70, -1}),
        make({5, 70}, {-210, -3}));
  check(make({2500}, {0}), make({2500}, {3}), make({2500}, {-2}));
  check(make({2, 3, 4, 5}, {60, 1, 15, 3}), make({2, 3, 4, 5}),
        make({2, 3, 4, 5}, {60, 20, 1, 4}));
  check(make({1, 33, 1}, {0, 1, 9}), make({1, 33, 1}, {7, 1, 0}),
        make({1, 33, 1}, {5, 1, 5}));
}

TEST_P(ElementwiseTest, MisalignedArguments) {
  for (int one = 0; one < 3; ++one) {
    check(make({128}, {}, one == 0), make({128}, {}, one == 1),
          make({128}, {}, one == 2));
  }
}

TEST_P(ElementwiseTest, SixtyFourDimensions) {
  Shape sizes(64, 1), gaps(64, 0);
  sizes[0] = sizes[20] = sizes[63] = 3;
  gaps[0] = 50, gaps[20] = 10, gaps[63] = 2;
  check(make(sizes), make({3}), make(sizes, gaps));
}

TEST_P(ElementwiseTest, InPlace) {
  for (const Shape& strides : {Shape{40, 1}, Shape{1, 3}, Shape{90, 2}}) {
    for (const Operator& op : kOperators) {
      Tensor a = make({3, 40}, strides), b = make({3, 40});
      a.randomize(1);
      b.randomize(2);
      const auto before = a.values();
      op.call(a, b, a, {});
      expect_close(op, before, a, b.values(), b, a);
      const auto both = b.values();
      op.call(b, b, b, {});
      expect_close(op, both, b, both, b, b);
    }
  }
}

TEST_P(ElementwiseTest, ThreadsChangeNothing) {
  const auto expect_same = [](const Tensor& a, const Tensor& b, Tensor one) {
    for (const Operator& op : kOperators) {
      Tensor many = one;
      op.call(a, b, one, {});
      op.call(a, b, many, threads());
      EXPECT_EQ(one.memory(), many.memory()) << op.name;
    }
  };
  expect_same(make({300, 333}).randomize(1),
              make({300, 333}, {1, 300}).randomize(2), make({300, 333}));
  // Ranges begin and end within runs of a nest of three dimensions.
  expect_same(make({60, 70, 11}).randomize(1), make({60, 1, 11}).randomize(2),
              make({60, 70, 11}, {1400, 1, 100}));
}

TEST_P(ElementwiseTest, NaNInfinityAndSubnormals) {
  const double inf = INFINITY, nan = std::nan(""), tiny = ulp(dtype(), 0);
  Tensor a = make({40}).randomize(0, 0), b = make({40}).randomize(0, 0);
  Tensor out = make({40});
  const double pairs[][2] = {{inf, -inf}, {inf, 1},  {nan, 1},     {1, nan},
                             {0, inf},    {-0., 0.}, {tiny, tiny}, {tiny, 1}};
  for (int i = 0; i < 8; ++i) {
    a.set(i + 29, pairs[i][0]);
    b.set(i + 29, pairs[i][1]);
  }
  for (const Operator& op : kOperators) {
    op.call(a, b, out, {});
    for (int i = 0; i < 8; ++i) {
      const double expected = round_to(
          dtype(), static_cast<double>(op.reference(pairs[i][0], pairs[i][1])));
      const double got = out.get(i + 29);
      if (std::isnan(expected)) {
        EXPECT_TRUE(std::isnan(got)) << op.name << i;
      } else {
        EXPECT_EQ(got, expected) << op.name << i;
        EXPECT_EQ(std::signbit(got), std::signbit(expected)) << op.name << i;
      }
    }
  }
}

}  // namespace
}  // namespace foo_core::testing
