// The gated activations against long double. Errors are relative to the result
// itself, however small it is.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "testing.h"

namespace foo_core::testing {
namespace {

constexpr auto kNone = GeluApproximation::kNone;
constexpr auto kTanh = GeluApproximation::kTanh;
constexpr long double kPi = 3.14159265358979323846264338327950288L;

// Values and slopes are apart, because most tests need values alone, and long
// double is slow on processors without it.

/// x * sigmoid(z)
long double times_sigmoid(long double x, long double z) {
  return x / (1 + std::exp(-z));
}

/// The derivative of x * sigmoid(z), where z' = slope.
long double times_sigmoid_slope(long double x, long double z,
                                long double slope) {
  const long double sigmoid = 1 / (1 + std::exp(-z));
  const long double rest = 1 / (1 + std::exp(z));
  return sigmoid + x * sigmoid * rest * slope;
}

long double normal_distribution(long double x) {
  return std::erfc(-x / std::sqrt(2.0L)) / 2;
}

const long double kScale = std::sqrt(8 / kPi);

struct Operator {
  const char* name;
  void (*forward)(const ConstTensorView&, const ConstTensorView&,
                  const TensorView&, const Executor&);
  void (*backward)(const ConstTensorView&, const ConstTensorView&,
                   const ConstTensorView&, const TensorView*, const TensorView*,
                   const Executor&);
  long double (*value)(long double x);
  long double (*slope)(long double x);
};

template <GeluApproximation kApproximation>
Operator gelu_operator(const char* name, long double (*value)(long double),
                       long double (*slope)(long double)) {
  return {name,
          [](const auto& gate, const auto& up, const auto& out,
             const auto& executor) {
            gelu_mul(gate, up, kApproximation, out, executor);
          },
          [](const auto& grad, const auto& gate, const auto& up,
             auto* grad_gate, auto* grad_up, const auto& executor) {
            gelu_mul_backward(grad, gate, up, kApproximation, grad_gate,
                              grad_up, executor);
          },
          value, slope};
}

const Operator kOperators[] = {
    {"silu", silu_mul, silu_mul_backward,
     [](long double x) { return times_sigmoid(x, x); },
     [](long double x) { return times_sigmoid_slope(x, x, 1); }},
    gelu_operator<kNone>(
        "gelu", [](long double x) { return x * normal_distribution(x); },
        [](long double x) {
          const long double density = std::exp(-x * x / 2) / std::sqrt(2 * kPi);
          return normal_distribution(x) + x * density;
        }),
    gelu_operator<kTanh>(
        "gelu_tanh",
        [](long double x) {
          return times_sigmoid(x, kScale * (x + 0.044715L * x * x * x));
        },
        [](long double x) {
          return times_sigmoid_slope(x, kScale * (x + 0.044715L * x * x * x),
                                     kScale * (1 + 3 * 0.044715L * x * x));
        }),
};

class GluTest : public KernelTest {
 protected:
  /// The error in ulp; 0 for the same infinity, or for NaN twice.
  double error(double got, long double exact) const {
    const double expected = round_to(dtype(), static_cast<double>(exact));
    if (std::isnan(exact) || std::isinf(exact)) {
      const bool same = std::isnan(exact) ? std::isnan(got) : got == exact;
      return same ? 0 : INFINITY;
    }
    if (std::isinf(expected)) return got == expected ? 0 : INFINITY;
    const auto unit =
        static_cast<long double>(ulp(dtype(), static_cast<double>(exact)));
    return static_cast<double>(std::fabs(got - exact) / unit);
  }

  void expect_close(const Operator& op, const Values& gates, const Values& ups,
                    const Tensor& out) {
    for (std::size_t i = 0; i < gates.size(); ++i) {
      const double got = out.get(static_cast<std::int64_t>(i));
      const long double exact = op.value(gates[i]) * ups[i];
      ASSERT_LE(error(got, exact), gate())
          << op.name << " element " << i << ": " << gates[i] << ", " << ups[i];
    }
    EXPECT_TRUE(out.guards_intact()) << op.name;
  }

  void check(Tensor gate, Tensor up, Tensor out) {
    gate.randomize(1, 3);
    up.randomize(2);
    for (const Operator& op : kOperators) {
      op.forward(gate, up, out, {});
      expect_close(op, gate.values(), up.values(), out);
    }
  }

  // The relative error of a few operations and one rounding.
  double tolerance() const {
    const double unit = std::ldexp(1, -precision(dtype()));
    return item_size(dtype()) == 2 ? unit : 3 * unit;
  }

  struct Gradients {
    Values gate, up;
  };

  static Gradients expected_gradients(const Operator& op, const Values& grads,
                                      const Values& gates, const Values& ups) {
    Gradients result;
    for (std::size_t i = 0; i < grads.size(); ++i) {
      result.gate.push_back(
          static_cast<double>(grads[i] * ups[i] * op.slope(gates[i])));
      result.up.push_back(static_cast<double>(grads[i] * op.value(gates[i])));
    }
    return result;
  }

  void check_backward(Tensor grad, Tensor gate, Tensor up, Tensor grad_gate,
                      Tensor grad_up) {
    grad.randomize(1);
    gate.randomize(2, 3);
    up.randomize(3);
    const TensorView gx = grad_gate, gu = grad_up;
    for (const Operator& op : kOperators) {
      op.backward(grad, gate, up, &gx, &gu, {});
      const auto expected =
          expected_gradients(op, grad.values(), gate.values(), up.values());
      EXPECT_LE(relative_l2(grad_gate.values(), expected.gate, expected.gate),
                tolerance())
          << op.name;
      EXPECT_LE(relative_l2(grad_up.values(), expected.up, expected.up),
                tolerance())
          << op.name;
      EXPECT_TRUE(grad_gate.guards_intact()) << op.name;
      EXPECT_TRUE(grad_up.guards_intact()) << op.name;
      const auto both_gate = grad_gate.memory(), both_up = grad_up.memory();
      grad_gate.randomize(4);
      op.backward(grad, gate, up, &gx, nullptr, {});
      EXPECT_EQ(grad_gate.memory(), both_gate) << op.name;
      grad_up.randomize(4);
      op.backward(grad, gate, up, nullptr, &gu, {});
      EXPECT_EQ(grad_up.memory(), both_up) << op.name;
    }
  }
};
FOO_CORE_KERNEL_TESTS(GluTest);

TEST_P(GluTest, EverySizeAroundTheVectors) {
  for (std::int64_t n = 0; n <= 70; ++n) check(make({n}), make({n}), make({n}));
  for (const std::int64_t n : {1023, 1024, 1025, 3000}) {
    check(make({n}), make({n}), make({n}));
  }
}

TEST_P(GluTest, AnyShapeAndStrides) {
  check(make({}), make({}), make({}));
  check(make({0, 3}), make({0, 3}), make({0, 3}));
  check(make({5, 70}, {1, 5}), make({5, 70}), make({5, 70}));
  check(make({5, 70}, {1, 5}), make({5, 70}, {1, 5}), make({5, 70}, {1, 5}));
  check(make({5, 70}), make({5, 70}, {140, 2}), make({5, 70}, {1, 5}));
  check(make({5, 70}, {-70, 1}), make({5, 70}, {70, -1}),
        make({5, 70}, {-210, -3}));
  check(make({2500}, {0}), make({2500}, {3}), make({2500}, {-2}));
  check(make({2, 3, 40}, {40, 0, 1}), make({2, 3, 40}, {0, 0, 1}),
        make({2, 3, 40}));
  check(make({2, 3, 4, 5}, {60, 1, 15, 3}), make({2, 3, 4, 5}),
        make({2, 3, 4, 5}, {60, 20, 1, 4}));
}

TEST_P(GluTest, MisalignedArguments) {
  for (int one = 0; one < 5; ++one) {
    const auto x = [&](int i) { return make({128}, {}, i == one); };
    check(x(0), x(1), x(2));
    check_backward(x(0), x(1), x(2), x(3), x(4));
  }
}

// Results keep their bits where the exponential has few left, or underflows.
TEST_P(GluTest, GatesOfAllSizes) {
  Values gates;
  const double end = dtype() == DType::kFloat64 ? 800 : 120;
  for (int i = 0; i <= 40000; ++i) gates.push_back(end * (i / 20000.0 - 1));
  for (int i = 0; i <= 40000; ++i) gates.push_back(-40 + i / 800.0);
  for (double x = 1e300; x > 0; x /= 8) {
    gates.insert(gates.end(), {x, -x});
  }
  if (dtype() == DType::kFloat32) {  // where errors come closest to the gate
    for (double x = 16; x > 1e-4; x *= 0.99998) {
      gates.insert(gates.end(), {x, -x});
    }
  }
  Tensor gate = make({static_cast<std::int64_t>(gates.size())}), up = gate,
         out = gate;
  for (std::size_t i = 0; i < gates.size(); ++i) {
    gate.set(static_cast<std::int64_t>(i), gates[i]);
    up.set(static_cast<std::int64_t>(i), 1);
  }
  // The float64 gelu alone uses up its gate of 4 ulp.
  if (dtype() != DType::kFloat64) up.randomize(1);
  for (const Operator& op : kOperators) {
    op.forward(gate, up, out, {});
    double worst = 0;
    for (std::int64_t i = 0; i < gate.numel(); ++i) {
      const double x = gate.get(i);
      if (std::isinf(x)) continue;
      const double e = error(out.get(i), op.value(x) * up.get(i));
      ASSERT_LE(e, this->gate()) << op.name << " of " << x << ", " << up.get(i)
                                 << " is " << out.get(i);
      worst = std::fmax(worst, e);
    }
    RecordProperty(op.name, std::to_string(worst));
  }
}

TEST_P(GluTest, ZeroNaNAndInfinity) {
  const double inf = INFINITY, nan = std::nan("");
  const double pairs[][2] = {{0., 1},   {-0., 1},  {inf, 1},  {nan, 1},
                             {-nan, 1}, {-inf, 1}, {1, nan},  {1, inf},
                             {-1, inf}, {0, inf},  {inf, -1}, {-inf, 0}};
  constexpr int kCount = sizeof(pairs) / sizeof(pairs[0]);
  Tensor gate = make({70}).randomize(1), up = make({70}).randomize(2);
  Tensor grad = make({70}).randomize(3), out = make({70}), other = out;
  for (int i = 0; i < kCount; ++i) {
    gate.set(29 + i, pairs[i][0]);
    up.set(29 + i, pairs[i][1]);
    grad.set(29 + i, 1);
  }
  const TensorView gx = out, gu = other;
  for (const Operator& op : kOperators) {
    op.forward(gate, up, out, {});
    for (int i = 0; i < kCount; ++i) {
      const long double x = pairs[i][0];
      const long double exact = std::isinf(x) && x > 0 ? x * pairs[i][1]
                                : std::isinf(x) ? nan
                                                : op.value(x) * pairs[i][1];
      EXPECT_LE(error(out.get(29 + i), exact), this->gate())
          << op.name << " of " << pairs[i][0] << ", " << pairs[i][1];
      if (x == 0 && pairs[i][1] == 1) {
        EXPECT_EQ(std::signbit(out.get(29 + i)), std::signbit(x)) << op.name;
      }
    }
    op.backward(grad, gate, up, &gx, &gu, {});
    for (int i = 0; i < kCount; ++i) {
      if (std::isfinite(pairs[i][0])) continue;
      EXPECT_TRUE(std::isnan(out.get(29 + i))) << op.name << pairs[i][0];
      EXPECT_EQ(std::isnan(other.get(29 + i)), pairs[i][0] != inf) << op.name;
    }
  }
}

TEST_P(GluTest, BackwardEverySizeAroundTheVectors) {
  for (const std::int64_t n :
       {0,  1,  2,  7,  8,  9,   15,   16,   17,   31,
        32, 33, 63, 64, 65, 140, 1023, 1024, 1025, 3000}) {
    check_backward(make({n}), make({n}), make({n}), make({n}), make({n}));
  }
}

TEST_P(GluTest, BackwardAnyShapeAndStrides) {
  check_backward(make({}), make({}), make({}), make({}), make({}));
  check_backward(make({5, 70}, {1, 5}), make({5, 70}), make({5, 70}, {80, 1}),
                 make({5, 70}, {1, 5}), make({5, 70}, {210, -3}));
  check_backward(make({5, 700}, {0, 0}), make({5, 700}, {-700, 1}),
                 make({5, 700}, {1, 5}), make({5, 700}, {-700, -1}),
                 make({5, 700}));
  check_backward(make({2, 3, 40}), make({2, 3, 40}, {40, 0, 1}),
                 make({2, 3, 40}, {1, 2, 6}), make({2, 3, 40}, {1, 2, 6}),
                 make({2, 3, 40}, {40, 80, 1}));
}

// Gradients are accurate relative to tiny results, too.
TEST_P(GluTest, BackwardOfTinyResults) {
  Tensor gate = make({3000}), ones = gate, grad_gate = gate, grad_up = gate;
  const double low = dtype() == DType::kFloat16 ? -8 : -12;
  for (int i = 0; i < 3000; ++i) {
    gate.set(i, low + 4 * i / 3000.0);
    ones.set(i, 1);
  }
  const TensorView gx = grad_gate, gu = grad_up;
  for (const Operator& op : kOperators) {
    op.backward(ones, gate, ones, &gx, &gu, {});
    const double unit = std::ldexp(1, -precision(dtype()));
    for (int i = 0; i < 3000; ++i) {
      const long double value = op.value(gate.get(i));
      const long double slope = op.slope(gate.get(i));
      const double least = 16 * ulp(dtype(), 0) / unit;  // not subnormal
      if (std::fabs(value) > least) {
        EXPECT_NEAR(static_cast<double>(grad_up.get(i) / value), 1, 9 * unit)
            << op.name << " at " << gate.get(i);
      }
      if (std::fabs(slope) > least) {
        EXPECT_NEAR(static_cast<double>(grad_gate.get(i) / slope), 1, 40 * unit)
            << op.name << " at " << gate.get(i);
      }
    }
  }
}

/// A tensor whose rows hold two halves.
struct Packed {
  Tensor whole;
  Shape sizes, strides;

  Packed(DType dtype, std::int64_t rows, std::int64_t n)
      : whole(dtype, {rows, 2 * n}), sizes{rows, n}, strides{2 * n, 1} {}

  TensorView half(int k) const {
    const TensorView view = whole;
    return {
        static_cast<char*>(view.data) + k * sizes[1] * item_size(view.dtype),
        view.dtype, 2, sizes.data(), strides.data()};
  }
};

TEST_P(GluTest, HalvesOfOneTensor) {
  constexpr std::int64_t kRows = 9, kN = 75;
  Packed x(dtype(), kRows, kN), grad_x(dtype(), kRows, kN);
  x.whole.randomize(1);
  Tensor gate = make({kRows, kN}), up = gate, out = gate, expected = gate;
  Tensor grad = make({kRows, kN}).randomize(2), grad_gate = gate, grad_up = up;
  for (std::int64_t i = 0; i < kRows * kN; ++i) {
    gate.set(i, x.whole.get(i / kN * 2 * kN + i % kN));
    up.set(i, x.whole.get(i / kN * 2 * kN + kN + i % kN));
  }
  const TensorView gx = grad_gate, gu = grad_up;
  const TensorView half_gx = grad_x.half(0), half_gu = grad_x.half(1);
  const TensorView half_gate = x.half(0), half_up = x.half(1);
  const auto expect_halves = [&](const Packed& got) {
    for (std::int64_t i = 0; i < kRows * kN; ++i) {
      const std::int64_t at = i / kN * 2 * kN + i % kN;
      EXPECT_EQ(got.whole.get(at), grad_gate.get(i));
      EXPECT_EQ(got.whole.get(at + kN), grad_up.get(i));
    }
    EXPECT_TRUE(got.whole.guards_intact());
  };
  for (const Operator& op : kOperators) {
    op.forward(gate, up, expected, {});
    op.forward(half_gate, half_up, out, {});
    EXPECT_EQ(out.memory(), expected.memory()) << op.name;
    op.backward(grad, gate, up, &gx, &gu, {});
    op.backward(grad, half_gate, half_up, &half_gx, &half_gu, threads());
    expect_halves(grad_x);
  }
  // The gradients may also overwrite gate and up.
  kOperators[2].backward(grad, half_gate, half_up, &half_gate, &half_up, {});
  expect_halves(x);
}

TEST_P(GluTest, InPlace) {
  for (const Shape& strides : {Shape{40, 1}, Shape{1, 3}, Shape{90, 2}}) {
    const Tensor gate = make({3, 40}, strides).randomize(1);
    const Tensor up = make({3, 40}, strides).randomize(2);
    const Tensor grad = make({3, 40}, strides).randomize(3);
    for (const Operator& op : kOperators) {
      Tensor out = make({3, 40}, strides), a = gate, b = up, c = grad;
      op.forward(gate, up, out, {});
      op.forward(a, b, a, {});
      EXPECT_EQ(a.values(), out.values()) << op.name;
      a = gate;
      op.forward(a, b, b, {});
      EXPECT_EQ(b.values(), out.values()) << op.name;
      op.forward(a, a, a, {});
      expect_close(op, gate.values(), gate.values(), a);

      Tensor grad_gate = out, grad_up = out;
      const TensorView gx = grad_gate, gu = grad_up;
      op.backward(grad, gate, up, &gx, &gu, {});
      const auto expect_same = [&](const Tensor& got_gate,
                                   const Tensor& got_up) {
        EXPECT_EQ(got_gate.values(), grad_gate.values()) << op.name;
        EXPECT_EQ(got_up.values(), grad_up.values()) << op.name;
      };
      a = gate, b = up;
      const TensorView va = a, vb = b, vc = c;
      op.backward(c, a, b, &va, &vb, {});
      expect_same(a, b);
      a = gate, b = up;
      op.backward(c, a, b, &vb, &va, {});
      expect_same(b, a);
      a = gate, b = up;
      op.backward(c, a, b, &vc, &vb, {});
      expect_same(c, b);
      b = up, c = grad;
      op.backward(c, a, b, &vb, &vc, {});
      expect_same(b, c);
    }
  }
}

TEST_P(GluTest, ThreadsChangeNothing) {
  Tensor gate = make({300, 333}).randomize(1, 3);
  Tensor up = make({300, 333}, {1, 300}).randomize(2);
  Tensor grad = make({300, 333}).randomize(3);
  for (const Operator& op : kOperators) {
    Tensor one = make({300, 333}), many = one;
    op.forward(gate, up, one, {});
    op.forward(gate, up, many, threads());
    EXPECT_EQ(one.memory(), many.memory()) << op.name;
    Tensor one_up = one, many_up = one;
    const TensorView gx = one, gu = one_up, many_gx = many, many_gu = many_up;
    op.backward(grad, gate, up, &gx, &gu, {});
    op.backward(grad, gate, up, &many_gx, &many_gu, threads());
    EXPECT_EQ(one.memory(), many.memory()) << op.name;
    EXPECT_EQ(one_up.memory(), many_up.memory()) << op.name;
  }
}

TEST(GluChecks, Arguments) {
  const auto f32 = DType::kFloat32;
  const Tensor x(f32, {3}), y(f32, {3}), z(f32, {3}), two(f32, {2});
  const Tensor half(DType::kFloat16, {3}), bytes(DType::kInt8, {3});
  const TensorView vx = x, vy = y, vtwo = two, vhalf = half;
  EXPECT_INVALID(silu_mul(bytes, x, y),
                 "silu_mul: gate is int8, expected float32, float64, float16 "
                 "or bfloat16");
  EXPECT_INVALID(silu_mul(x, two, y),
                 "silu_mul: up has shape (2,), expected (3,)");
  EXPECT_INVALID(silu_mul(x, half, y),
                 "silu_mul: up is float16, but gate is float32");
  EXPECT_INVALID(gelu_mul(x, y, kNone, two),
                 "gelu_mul: out has shape (2,), expected (3,)");
  EXPECT_INVALID(gelu_mul(x, y, kNone, half),
                 "gelu_mul: out is float16, but gate is float32");
  const auto wrong = static_cast<GeluApproximation>(7);
  EXPECT_INVALID(gelu_mul(x, y, wrong, z),
                 "gelu_mul: approximation is number 7, which is none of "
                 "GeluApproximation's");
  EXPECT_INVALID(gelu_mul_backward(x, y, z, wrong, &vx, nullptr),
                 "gelu_mul_backward: approximation is number 7, which is none "
                 "of GeluApproximation's");
  EXPECT_INVALID(silu_mul_backward(two, x, y, &vx, &vy),
                 "silu_mul_backward: grad has shape (2,), expected (3,)");
  EXPECT_INVALID(silu_mul_backward(z, x, two, &vx, &vy),
                 "silu_mul_backward: up has shape (2,), expected (3,)");
  EXPECT_INVALID(silu_mul_backward(z, x, y, &vtwo, &vy),
                 "silu_mul_backward: grad_gate has shape (2,), expected (3,)");
  EXPECT_INVALID(silu_mul_backward(z, x, y, &vx, &vhalf),
                 "silu_mul_backward: grad_up is float16, but gate is float32");
  EXPECT_INVALID(silu_mul_backward(z, x, y, &vx, &vx),
                 "silu_mul_backward: grad_up overlaps grad_gate, expected "
                 "memory of its own");
}

TEST(GluChecks, Overlaps) {
  const Tensor x(DType::kFloat32, {8}), y(DType::kFloat32, {3});
  const std::int64_t three = 3, one = 1, none = 0;
  const TensorView view = x;
  auto* data = static_cast<float*>(view.data);
  const TensorView first{data, view.dtype, 1, &three, &one};
  const TensorView second{data + 1, view.dtype, 1, &three, &one};
  const TensorView repeated{data, view.dtype, 1, &three, &none};
  const TensorView vy = y;
  EXPECT_INVALID(silu_mul(first, y, second),
                 "silu_mul: out overlaps gate without being exactly gate");
  EXPECT_INVALID(silu_mul(y, first, second),
                 "silu_mul: out overlaps up without being exactly up");
  EXPECT_INVALID(silu_mul(y, y, repeated),
                 "silu_mul: out overlaps itself: two of its indices share "
                 "memory");
  EXPECT_INVALID(silu_mul_backward(first, y, y, &second, nullptr),
                 "silu_mul_backward: grad_gate overlaps grad without being "
                 "exactly grad");
  EXPECT_INVALID(silu_mul_backward(y, first, y, nullptr, &second),
                 "silu_mul_backward: grad_up overlaps gate without being "
                 "exactly gate");
  EXPECT_INVALID(silu_mul_backward(y, y, y, &first, &second),
                 "silu_mul_backward: grad_up overlaps grad_gate, expected "
                 "memory of its own");
  EXPECT_INVALID(gelu_mul_backward(y, y, y, kTanh, &repeated, &vy),
                 "gelu_mul_backward: grad_gate overlaps itself: two of its "
                 "indices share memory");
}

}  // namespace
}  // namespace foo_core::testing
