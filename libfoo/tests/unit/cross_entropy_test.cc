// cross_entropy and its gradient against long double and against the plain
// formula in float32.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "testing.h"

namespace foo_core::testing {
namespace {

using Options = CrossEntropyOptions;
constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr std::int64_t kIgnore = -100;
constexpr auto kNone = Reduction::kNone;
constexpr auto kMean = Reduction::kMean;
constexpr auto kSum = Reduction::kSum;

Options options_of(Reduction reduction, double smoothing = 0) {
  Options options;
  options.reduction = reduction;
  options.label_smoothing = smoothing;
  return options;
}

struct Expected {
  Values losses, lse;  // of each row
  Values gradient;     // of each row's loss
};

Expected reference(const Values& logits, const Values& target, std::int64_t n,
                   const Options& options) {
  Expected result{{}, {}, Values(logits.size())};
  const long double s = options.label_smoothing;
  for (std::size_t row = 0; row < target.size(); ++row) {
    const auto label = static_cast<std::int64_t>(target[row]);
    if (label == options.ignore_index) {
      result.losses.push_back(0);
      result.lse.push_back(0);
      continue;
    }
    const double* x = logits.data() + row * n;
    const long double max = *std::max_element(x, x + n);
    long double sum = 0, differences = 0;
    for (std::int64_t j = 0; j < n; ++j) {
      sum += std::exp(x[j] - max);
      differences += max - x[j];
    }
    const long double log_sum = std::log(sum);
    result.lse.push_back(static_cast<double>(max + log_sum));
    const long double nll = log_sum + (max - x[label]);
    result.losses.push_back(static_cast<double>(
        s == 0 ? nll : (1 - s) * nll + s * (log_sum + differences / n)));
    for (std::int64_t j = 0; j < n; ++j) {
      const long double d = x[j] - max - log_sum;
      result.gradient[row * n + j] = static_cast<double>(
          (j == label ? std::expm1(d) + s : std::exp(d)) - s / n);
    }
  }
  return result;
}

class CrossEntropyTest : public KernelTest {
 protected:
  DType loss_dtype() const {
    return dtype() == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  }

  // A loss per row, or one loss if the rows are reduced.
  Tensor make_loss(const Options& options, Shape sizes,
                   Shape strides = {}) const {
    if (options.reduction != kNone) return Tensor(loss_dtype(), {});
    return Tensor(loss_dtype(), std::move(sizes), std::move(strides));
  }

  static Tensor make_lse(Shape sizes, Shape strides = {}) {
    return Tensor(DType::kFloat64, std::move(sizes), std::move(strides));
  }

  // Targets among n classes; every fifth row is ignored.
  static Tensor make_target(std::int64_t n, Shape sizes, Shape strides = {}) {
    Tensor target(DType::kInt64, std::move(sizes), std::move(strides));
    for (std::int64_t i = 0; i < target.numel(); ++i) {
      target.set(i, i % 5 == 4 ? kIgnore : static_cast<double>(i * 7919 % n));
    }
    return target;
  }

  static void forward(const Tensor& logits, const Tensor& target,
                      const Options& options, const Tensor& loss,
                      const Tensor& lse, const Executor& executor = {}) {
    const auto size = cross_entropy_scratch_size(logits, options, executor);
    const Memory scratch = size == 0 ? nullptr : aligned_memory(size);
    cross_entropy(logits, target, options, loss, lse, scratch.get(), executor);
  }

  static void backward(const Tensor& grad, const Tensor& logits,
                       const Tensor& target, const Tensor& lse,
                       const Options& options, const Tensor& grad_logits,
                       const Executor& executor = {}) {
    const auto size =
        cross_entropy_backward_scratch_size(logits, options, executor);
    const Memory scratch = size == 0 ? nullptr : aligned_memory(size);
    cross_entropy_backward(grad, logits, target, lse, options, grad_logits,
                           scratch.get(), executor);
  }

  // The losses of all rows.
  Values losses_of(const Tensor& logits, const Tensor& target,
                   double smoothing = 0) const {
    const Options options = options_of(kNone, smoothing);
    Tensor loss = make_loss(options, target.sizes),
           lse = make_lse(target.sizes);
    forward(logits, target, options, loss, lse);
    return loss.values();
  }

  // The loss is the logarithm of a sum with a relative error of 1e-6.
  double tolerance(double value) const {
    const double unit = dtype() == DType::kFloat64 ? 1e-14 : 1e-6;
    return unit * std::max(1.0, std::fabs(value));
  }

  void expect_near(const Tensor& got, const Values& expected) const {
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const double value = got.get(static_cast<std::int64_t>(i));
      if (std::isnan(expected[i])) {
        ASSERT_TRUE(std::isnan(value)) << "element " << i;
      } else {
        ASSERT_NEAR(value, expected[i], tolerance(expected[i]))
            << "element " << i << " of " << expected.size();
      }
    }
    EXPECT_TRUE(got.guards_intact());
  }

  // The relative L2 error covers one rounding to the dtype, and the rounding of
  // differences of size 10 in the type of computation.
  void expect_gradient(const Tensor& got, const Values& expected) const {
    double error = 0, size = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const double difference =
          got.get(static_cast<std::int64_t>(i)) - expected[i];
      error += difference * difference;
      size += expected[i] * expected[i];
    }
    const double compute = dtype() == DType::kFloat64 ? 1e-15 : 4e-7;
    // Subnormal numbers of float16 have this spacing.
    const double spacing =
        ulp(dtype(), 0) * std::sqrt(static_cast<double>(expected.size()));
    EXPECT_LE(std::sqrt(error),
              std::sqrt(size) * (std::ldexp(1, -precision(dtype())) + compute) +
                  spacing);
    EXPECT_TRUE(got.guards_intact());
  }

  void check(Tensor logits, Tensor target, const Options& options, Tensor loss,
             Tensor lse, Tensor grad_logits) const {
    const std::int64_t n = logits.sizes.back();
    logits.randomize(1, 3);
    const Values labels = target.values();
    const Expected expected = reference(logits.values(), labels, n, options);
    forward(logits, target, options, loss, lse);
    expect_near(lse, expected.lse);
    Tensor grad = loss;
    grad.randomize(2);
    double count = 1;
    if (options.reduction == kNone) {
      expect_near(loss, expected.losses);
    } else {
      double sum = 0;
      for (const double row_loss : expected.losses) sum += row_loss;
      if (options.reduction == kMean) {
        count = static_cast<double>(labels.size()) -
                static_cast<double>(std::count(labels.begin(), labels.end(),
                                               options.ignore_index));
      }
      expect_near(loss, {sum / count});
    }
    backward(grad, logits, target, lse, options, grad_logits);
    Values gradient = expected.gradient;
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      const auto row = static_cast<std::int64_t>(i) / n;
      gradient[i] *= grad.get(options.reduction == kNone ? row : 0) / count;
    }
    expect_gradient(grad_logits, gradient);
  }

  void check(const Shape& rows, std::int64_t n, const Options& options) const {
    Shape sizes = rows;
    sizes.push_back(n);
    check(make(sizes), make_target(n, rows), options, make_loss(options, rows),
          make_lse(rows), make(sizes));
  }
};
FOO_CORE_KERNEL_TESTS(CrossEntropyTest);

TEST_P(CrossEntropyTest, EverySizeAroundTheVectors) {
  for (std::int64_t n = 1; n <= 140; ++n) {
    check({6}, n, options_of(kMean));
    check({3}, n, options_of(kNone, 0.25));
  }
  for (const std::int64_t n : {1023, 1024, 1025, 2047, 3072, 4100}) {
    check({2}, n, options_of(kSum));
    check({2}, n, options_of(kSum, 0.1));
  }
}

// On CUDA, a block computes these rows in several steps.
TEST_P(CrossEntropyTest, RowsLongerThanABlock) {
  const std::int64_t even = 80000 / item_size(dtype());
  for (const std::int64_t n : {even, even + 1}) {
    check({2}, n, options_of(kMean));
    check({2}, n, options_of(kNone, 0.1));
  }
}

TEST_P(CrossEntropyTest, MoreRowsThanThreads) {
  for (const Reduction reduction : {kMean, kSum}) {
    check({2500}, 3, options_of(reduction));
  }
}

TEST_P(CrossEntropyTest, ReductionsAndSmoothing) {
  for (const Reduction reduction : {kNone, kMean, kSum}) {
    for (const double smoothing : {0.0, 0.1, 1.0}) {
      const Options options = options_of(reduction, smoothing);
      check({}, 37, options);
      check({11}, 37, options);
      check({2, 1, 3, 4}, 40, options);
    }
  }
}

TEST_P(CrossEntropyTest, AnyStrides) {
  for (const Reduction reduction : {kNone, kMean}) {
    const Options options = options_of(reduction, 0.1);
    check(make({5, 70}, {1, 5}), make_target(70, {5}, {3}), options,
          make_loss(options, {5}, {-2}), make_lse({5}, {4}), make({5, 70}));
    check(make({5, 70}, {-100, 1}), make_target(70, {5}, {-1}), options,
          make_loss(options, {5}), make_lse({5}, {-1}),
          make({5, 70}, {150, 2}));
    check(make({5, 2500}, {2500, -1}), make_target(2500, {5}), options,
          make_loss(options, {5}), make_lse({5}), make({5, 2500}, {1, 5}));
    check(make({2, 3, 40}, {40, 80, 1}), make_target(40, {2, 3}, {1, 2}),
          options, make_loss(options, {2, 3}, {1, 7}), make_lse({2, 3}, {3, 1}),
          make({2, 3, 40}, {1, 2, 6}));
    check(make({4, 40}, {0, 1}), make_target(40, {4}, {0}), options,
          make_loss(options, {4}), make_lse({4}), make({4, 40}));
  }
  // With one logit for all classes, all are equally likely.
  Tensor logits = make({2, 2500}, {1, 0}).randomize(1);
  const Values losses = losses_of(logits, make_target(2500, {2}));
  for (const double loss : losses) {
    EXPECT_NEAR(loss, std::log(2500), tolerance(std::log(2500)));
  }
}

TEST_P(CrossEntropyTest, MisalignedArguments) {
  const Options options = options_of(kNone);
  for (int one = 0; one < 2; ++one) {
    check(make({3, 128}, {}, one == 0), make_target(128, {3}), options,
          make_loss(options, {3}), make_lse({3}), make({3, 128}, {}, one == 1));
  }
}

TEST_P(CrossEntropyTest, IgnoredRows) {
  Options options = options_of(kMean);
  Tensor logits = make({3, 40}).randomize(1),
         grad_logits = make({3, 40}, {1, 3});
  Tensor target(DType::kInt64, {3}), lse = make_lse({3});
  for (int i = 0; i < 3; ++i) target.set(i, 7);
  options.ignore_index = 7;  // a class
  logits.set(5, std::nan(""));
  for (const Reduction reduction : {kNone, kMean, kSum}) {
    options.reduction = reduction;
    Tensor loss = make_loss(options, {3});
    forward(logits, target, options, loss, lse);
    expect_near(loss, reduction == kMean ? Values{std::nan("")}
                                         : Values(loss.values().size(), 0.0));
    EXPECT_EQ(lse.values(), Values(3, 0.0));
    loss.randomize(1);
    backward(loss, logits, target, lse, options, grad_logits);
    EXPECT_EQ(grad_logits.values(), Values(120, 0.0));
    EXPECT_TRUE(grad_logits.guards_intact());
  }
  // With one row that is not ignored, the mean is its loss, whatever the others
  // hold.
  target.set(1, 8);
  Tensor loss = make_loss(options_of(kNone), {3});
  forward(logits, target, options_of(kNone), loss, lse);
  EXPECT_TRUE(std::isnan(loss.get(0)));
  Tensor row(dtype(), {40});
  for (int j = 0; j < 40; ++j) row.set(j, logits.get(40 + j));
  options.reduction = kMean;
  Tensor mean = make_loss(options, {});
  forward(logits, target, options, mean, lse);
  Tensor label(DType::kInt64, {});
  label.set(0, 8);
  EXPECT_EQ(mean.get(0), losses_of(row, label)[0]);
}

TEST_P(CrossEntropyTest, NoRows) {
  Tensor logits = make({0, 5}), target(DType::kInt64, {0}), lse = make_lse({0});
  Tensor loss = make_loss(options_of(kMean), {});
  forward(logits, target, options_of(kMean), loss, lse);
  EXPECT_TRUE(std::isnan(loss.get(0)));
  forward(logits, target, options_of(kSum), loss, lse);
  EXPECT_EQ(loss.get(0), 0);
  const Tensor none = make_loss(options_of(kNone), {0});
  forward(logits, target, options_of(kNone), none, lse);
  backward(none, logits, target, lse, options_of(kNone), logits);
  forward(make({0, 0}), target, options_of(kNone), none, lse);
}

// The maximum of a row comes early, late or repeatedly, and the logits are so
// far apart that one of them dominates.
TEST_P(CrossEntropyTest, MaximaThatRiseAndFall) {
  const std::int64_t n = 5000;
  Tensor logits = make({4, n});
  for (std::int64_t j = 0; j < n; ++j) {
    const double x = static_cast<double>(j) / 8;
    logits.set(j, x);
    logits.set(n + j, -x);
    logits.set(2 * n + j, std::sin(x) * 50);
    logits.set(3 * n + j, j == 3333 ? 300 : -300);
  }
  const Tensor target = make_target(n, {4});
  for (const double smoothing : {0.0, 0.5}) {
    const Options options = options_of(kNone, smoothing);
    Tensor loss = make_loss(options, {4}), lse = make_lse({4});
    forward(logits, target, options, loss, lse);
    const Expected expected =
        reference(logits.values(), target.values(), n, options);
    expect_near(loss, expected.losses);
    expect_near(lse, expected.lse);
  }
}

TEST_P(CrossEntropyTest, InfinityAndNaN) {
  const double nan = std::nan("");
  for (const std::int64_t n : {3, 70, 2100}) {
    Tensor logits = make({8, n}).randomize(1), target(DType::kInt64, {8});
    const auto at = [n](std::int64_t row, std::int64_t j) {
      return row * n + j;
    };
    logits.set(at(0, 1), kInf);
    logits.set(at(1, n - 1), nan);
    logits.set(at(2, 0), -kInf);  // the target
    logits.set(at(3, 1), -kInf);
    for (std::int64_t j = 0; j < n; ++j) {
      logits.set(at(4, j), -kInf);
      logits.set(at(5, j), j < n - 1 ? -kInf : -200);
      logits.set(at(6, j), j > 0 ? -kInf : 200);
    }
    logits.set(at(7, 2), -kInf);
    logits.set(at(7, 1), nan);
    for (int i = 0; i < 8; ++i) target.set(i, 0);
    target.set(5, static_cast<double>(n - 1));
    Options options = options_of(kNone);
    Tensor loss = make_loss(options, {8}), lse = make_lse({8});
    forward(logits, target, options, loss, lse);
    const Expected expected =
        reference(logits.values(), target.values(), n, options);
    for (const int row : {0, 1, 4, 7}) {
      EXPECT_TRUE(std::isnan(loss.get(row))) << row;
    }
    EXPECT_EQ(loss.get(2), kInf);
    EXPECT_NEAR(loss.get(3), expected.losses[3], tolerance(10));
    EXPECT_EQ(loss.get(5), 0);
    EXPECT_EQ(loss.get(6), 0);

    Tensor grad = make_loss(options, {8}), grad_logits = make({8, n});
    for (int i = 0; i < 8; ++i) grad.set(i, 1);
    backward(grad, logits, target, lse, options, grad_logits);
    for (const int row : {0, 1, 4, 7}) {
      for (std::int64_t j = 0; j < n; ++j) {
        ASSERT_TRUE(std::isnan(grad_logits.get(at(row, j)))) << row << " " << j;
      }
    }
    EXPECT_EQ(grad_logits.get(at(2, 0)), -1);
    EXPECT_EQ(grad_logits.get(at(3, 1)), 0);
    for (std::int64_t j = 0; j < n; ++j) {
      ASSERT_EQ(grad_logits.get(at(5, j)), 0);
      ASSERT_EQ(grad_logits.get(at(6, j)), 0);
    }
    const Values smooth = losses_of(logits, target, 0.1);
    for (const int row : {0, 1, 4, 7}) EXPECT_TRUE(std::isnan(smooth[row]));
    for (const int row : {2, 3, 5, 6}) EXPECT_EQ(smooth[row], kInf);
  }
}

TEST_P(CrossEntropyTest, LargeAndSmallLogits) {
  const double huge = dtype() == DType::kFloat16   ? 60000
                      : dtype() == DType::kFloat64 ? 1e308
                                                   : 3e38;
  Tensor logits = make({4, 3});
  const double tiny = ulp(dtype(), 0), large = round_to(dtype(), huge);
  const double rows[4][3] = {{huge, 0, 0},
                             {-huge, -huge, -huge},
                             {tiny, -tiny, 0},
                             {huge, -huge, huge}};
  for (int i = 0; i < 12; ++i) logits.set(i, rows[i / 3][i % 3]);
  Tensor target(DType::kInt64, {4});
  for (int i = 0; i < 4; ++i) target.set(i, 0);
  target.set(0, 1);
  const double relative = dtype() == DType::kFloat64 ? 1e-15 : 1e-7;
  const Values losses = losses_of(logits, target);
  EXPECT_NEAR(losses[0] / large, 1, relative);
  EXPECT_NEAR(losses[1], std::log(3), 3 * relative);
  EXPECT_NEAR(losses[2], std::log(3), 3 * relative);
  EXPECT_NEAR(losses[3], std::log(2), 3 * relative);
}

// The small loss and gradient of a nearly right row must not suffer from
// cancellation.
TEST_P(CrossEntropyTest, NearlyRightRows) {
  const std::int64_t n = 300;
  Tensor logits = make({8, n}).randomize(1);
  Tensor target(DType::kInt64, {8});
  for (int row = 0; row < 8; ++row) {
    target.set(row, row * 9);
    logits.set(row * n + row * 9, 8 + row * 0.5);
    for (std::int64_t j = 0; j < n; ++j) {
      logits.set(row * n + j, logits.get(row * n + j) + 1000);
    }
  }
  const Options options = options_of(kNone);
  Tensor loss = make_loss(options, {8}), lse = make_lse({8}), grad = loss;
  Tensor grad_logits = make({8, n});
  forward(logits, target, options, loss, lse);
  const Expected expected =
      reference(logits.values(), target.values(), n, options);
  expect_near(loss, expected.losses);
  for (int row = 0; row < 8; ++row) grad.set(row, 1);
  backward(grad, logits, target, lse, options, grad_logits);
  for (int row = 0; row < 8; ++row) {
    const std::size_t at = static_cast<std::size_t>(row * n + row * 9);
    const double bound = dtype() == DType::kFloat64 ? 1e-13 : 1e-6;
    EXPECT_NEAR(grad_logits.get(static_cast<std::int64_t>(at)),
                expected.gradient[at],
                bound + ulp(dtype(), expected.gradient[at]) / 2);
  }
}

// Two classes, of which the second becomes less and less likely, show the error
// of the exponential alone.
TEST_P(CrossEntropyTest, TwoClasses) {
  const std::int64_t rows = 2000;
  Tensor logits = make({rows, 2}), target(DType::kInt64, {rows});
  for (std::int64_t row = 0; row < rows; ++row) {
    logits.set(2 * row, 0);
    logits.set(2 * row + 1, -static_cast<double>(row) / 256);
    target.set(row, 0);
  }
  const Options options = options_of(kNone);
  Tensor loss = make_loss(options, {rows}), lse = make_lse({rows});
  Tensor grad = loss, grad_logits = make({rows, 2});
  for (std::int64_t row = 0; row < rows; ++row) grad.set(row, 1);
  forward(logits, target, options, loss, lse);
  backward(grad, logits, target, lse, options, grad_logits);
  const Expected expected =
      reference(logits.values(), target.values(), 2, options);
  const bool wide = dtype() == DType::kFloat64;
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto i = static_cast<std::size_t>(row);
    ASSERT_NEAR(loss.get(row), expected.losses[i], wide ? 1e-15 : 1.5e-7);
    const double p = expected.gradient[2 * i + 1];
    // 16-bit types are rounded once; without FMA float32 is off by 10 ulp.
    const double gate = item_size(dtype()) == 2 ? 0.51 : 12;
    ASSERT_NEAR(grad_logits.get(2 * row + 1), p, gate * ulp(dtype(), p)) << row;
  }
}

/// The gradient from log-probabilities in float32, with exponentials summed in
/// 8 lanes as in PyTorch.
Values plain_gradient(const Values& logits, const Values& target,
                      std::size_t n) {
  Values result(logits.size());
  for (std::size_t row = 0; row < target.size(); ++row) {
    const std::vector<float> x(logits.begin() + row * n,
                               logits.begin() + (row + 1) * n);
    const float max = *std::max_element(x.begin(), x.end());
    float sums[8] = {}, sum = 0;
    for (std::size_t j = 0; j < n; ++j) sums[j % 8] += std::exp(x[j] - max);
    for (const float part : sums) sum += part;
    for (std::size_t j = 0; j < n; ++j) {
      const float p = std::exp(x[j] - max - std::log(sum));
      const bool is_target = static_cast<double>(j) == target[row];
      result[row * n + j] = static_cast<double>(is_target ? p - 1 : p);
    }
  }
  return result;
}

double distance(const Values& x, const Values& y) {
  double squares = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    squares += (x[i] - y[i]) * (x[i] - y[i]);
  }
  return std::sqrt(squares);
}

TEST_P(CrossEntropyTest, GradientIsAsAccurateAsThatOfLogProbabilities) {
  if (dtype() != DType::kFloat32) GTEST_SKIP() << "measured in float32";
  for (const std::int64_t n : {2, 10, 100, 3000}) {
    for (const double scale : {1.0, 5.0}) {
      const std::int64_t rows = 60000 / n;
      Tensor logits = make({rows, n}).randomize(1, scale);
      Tensor target(DType::kInt64, {rows});
      for (std::int64_t row = 0; row < rows; ++row) target.set(row, row % n);
      const Options options = options_of(kSum);
      Tensor loss = make_loss(options, {}), lse = make_lse({rows});
      Tensor grad_logits = make({rows, n});
      forward(logits, target, options, loss, lse);
      loss.set(0, 1);
      backward(loss, logits, target, lse, options, grad_logits);
      const Values x = logits.values(), labels = target.values();
      const Values expected = reference(x, labels, n, options).gradient;
      const double plain = distance(
          plain_gradient(x, labels, static_cast<std::size_t>(n)), expected);
      EXPECT_LE(distance(grad_logits.values(), expected), 1.1 * plain)
          << n << " classes, scale " << scale;
    }
  }
}

TEST_P(CrossEntropyTest, InPlaceAndThreads) {
  for (const double smoothing : {0.0, 0.1}) {
    for (const Reduction reduction : {kNone, kMean}) {
      const Options options = options_of(reduction, smoothing);
      Tensor logits = make({301, 333}).randomize(1);
      const Tensor target = make_target(333, {301});
      Tensor loss = make_loss(options, {301}), lse = make_lse({301});
      Tensor many_loss = loss, many_lse = lse, one = make({301, 333});
      Tensor many = one;
      forward(logits, target, options, loss, lse);
      forward(logits, target, options, many_loss, many_lse, threads());
      EXPECT_EQ(many_loss.memory(), loss.memory());
      EXPECT_EQ(many_lse.memory(), lse.memory());
      loss.randomize(2);
      backward(loss, logits, target, lse, options, one);
      backward(loss, logits, target, lse, options, many, threads());
      EXPECT_EQ(many.memory(), one.memory());
      backward(loss, logits, target, lse, options, logits, threads());
      EXPECT_EQ(logits.memory(), one.memory());
    }
  }
}

// A gradient of infinity or NaN is multiplied like any other.
TEST_P(CrossEntropyTest, GradientThatIsNotFinite) {
  Tensor logits = make({2, 40}).randomize(1), grad_logits = make({2, 40});
  const Tensor target = make_target(40, {2});
  Tensor loss = make_loss(options_of(kNone), {2}), lse = make_lse({2});
  forward(logits, target, options_of(kNone), loss, lse);
  loss.set(0, kInf);
  loss.set(1, std::nan(""));
  backward(loss, logits, target, lse, options_of(kNone), grad_logits);
  for (int j = 0; j < 40; ++j) {
    EXPECT_EQ(grad_logits.get(j), j == target.get(0) ? -kInf : kInf);
    EXPECT_TRUE(std::isnan(grad_logits.get(40 + j)));
  }
}

// They cannot be checked before the kernel runs.
TEST_P(CrossEntropyTest, TargetsThatAreNoClassesOnCuda) {
  if (!on_cuda()) GTEST_SKIP() << "the CPU refuses them";
  constexpr std::int64_t kN = 40;
  const double far = 0x1p40;
  const double labels[] = {-1, 7, kN, kIgnore, far, -far};
  Tensor logits = make({6, kN}).randomize(1), grad_logits = make({6, kN});
  Tensor target(DType::kInt64, {6}), lse = make_lse({6});
  for (int i = 0; i < 6; ++i) target.set(i, labels[i]);
  for (const Reduction reduction : {kNone, kMean, kSum}) {
    const Options options = options_of(reduction);
    Tensor loss = make_loss(options, {6});
    forward(logits, target, options, loss, lse);
    const Tensor grad = Tensor(loss).randomize(2);
    backward(grad, logits, target, lse, options, grad_logits);
    if (reduction != kNone) {
      EXPECT_TRUE(std::isnan(loss.get(0)));
    }
    for (int row = 0; row < 6; ++row) {
      const bool wrong = row != 1 && row != 3;
      if (reduction == kNone) {
        EXPECT_EQ(std::isnan(loss.get(row)), wrong) << row;
      }
      EXPECT_EQ(std::isnan(lse.get(row)), wrong) << row;
      for (int j = 0; j < kN; ++j) {
        ASSERT_EQ(std::isnan(grad_logits.get(row * kN + j)), wrong) << row;
      }
    }
  }
}

class CrossEntropyChecksTest : public ::testing::Test {
 protected:
  CrossEntropyChecksTest() {
    for (int i = 0; i < 6; ++i) target_.set(i, i % 5);
  }

  void refuse(const ConstTensorView& logits, const ConstTensorView& target,
              const Options& options, const TensorView& loss,
              const TensorView& lse, void* scratch,
              const std::string& message) {
    const auto before = loss_.memory();
    EXPECT_INVALID(cross_entropy(logits, target, options, loss, lse, scratch),
                   "cross_entropy: " + message);
    EXPECT_EQ(loss_.memory(), before) << "written before all checks passed";
  }

  void refuse_backward(const ConstTensorView& grad, const ConstTensorView& lse,
                       const TensorView& grad_logits,
                       const std::string& message) {
    EXPECT_INVALID(cross_entropy_backward(grad, logits_, target_, lse, none_,
                                          grad_logits, nullptr),
                   "cross_entropy_backward: " + message);
  }

  static constexpr auto kF32 = DType::kFloat32, kF64 = DType::kFloat64,
                        kI64 = DType::kInt64;
  const Options none_ = options_of(kNone), mean_ = options_of(kMean);
  Tensor logits_{kF32, {2, 3, 5}}, target_{kI64, {2, 3}};
  Tensor loss_{kF32, {2, 3}}, lse_{kF64, {2, 3}}, grad_logits_{kF32, {2, 3, 5}};
};

TEST_F(CrossEntropyChecksTest, DTypesAndShapes) {
  const Tensor scalar(kF32, {}), flat(kI64, {6});
  refuse(scalar, target_, none_, loss_, lse_, nullptr,
         "logits has no dimensions, expected at least 1");
  refuse(target_, target_, none_, loss_, lse_, nullptr,
         "logits is int64, expected float32, float64, float16 or bfloat16");
  refuse(logits_, loss_, none_, loss_, lse_, nullptr,
         "target is float32, expected int64");
  refuse(logits_, flat, none_, loss_, lse_, nullptr,
         "target has shape (6,), expected (2, 3)");
  refuse(logits_, target_, none_, lse_, lse_, nullptr,
         "loss is float64, expected float32");
  refuse(Tensor(kF64, {2, 3, 5}), target_, none_, loss_, lse_, nullptr,
         "loss is float32, expected float64");
  refuse(logits_, target_, none_, scalar, lse_, nullptr,
         "loss has shape (), expected (2, 3)");
  refuse(logits_, target_, mean_, loss_, lse_, nullptr,
         "loss has shape (2, 3), expected ()");
  refuse(logits_, target_, none_, loss_, loss_, nullptr,
         "lse is float32, expected float64");
  refuse(logits_, target_, none_, loss_, Tensor(kF64, {6}), nullptr,
         "lse has shape (6,), expected (2, 3)");
  refuse(Tensor(kF32, {2, 3, 0}), target_, none_, loss_, lse_, nullptr,
         "logits has shape (2, 3, 0), expected at least 1 class");
}

TEST_F(CrossEntropyChecksTest, Options) {
  Options options = none_;
  options.label_smoothing = 1.5;
  refuse(logits_, target_, options, loss_, lse_, nullptr,
         "label_smoothing is 1.5, expected 0 to 1");
  options.label_smoothing = std::nan("");
  refuse(logits_, target_, options, loss_, lse_, nullptr,
         "label_smoothing is nan, expected 0 to 1");
  options = none_;
  options.reduction = static_cast<Reduction>(3);
  refuse(logits_, target_, options, loss_, lse_, nullptr,
         "reduction is number 3, which is none of Reduction's");
}

TEST_F(CrossEntropyChecksTest, Targets) {
  FOO_CORE_SKIP_ON_CUDA("targets are not checked");
  target_.set(5, 7);
  refuse(logits_, target_, none_, loss_, lse_, nullptr,
         "target is 7 at index (1, 2), expected 0 to 4 or ignore_index (-100)");
  EXPECT_INVALID(
      cross_entropy_backward(loss_, logits_, target_, lse_, none_, logits_,
                             nullptr),
      "cross_entropy_backward: target is 7 at index (1, 2), expected 0 to 4 or "
      "ignore_index (-100)");
  target_.set(5, kIgnore);
  target_.set(1, -1);
  Options options = none_;
  options.ignore_index = 2;
  refuse(logits_, target_, options, loss_, lse_, nullptr,
         "target is -1 at index (0, 1), expected 0 to 4 or ignore_index (2)");
  Tensor one(kI64, {});
  one.set(0, 5);
  refuse(Tensor(kF32, {5}), one, none_, Tensor(kF32, {}), Tensor(kF64, {}),
         nullptr,
         "target is 5 at index (), expected 0 to 4 or ignore_index (-100)");
}

TEST_F(CrossEntropyChecksTest, ScratchAndOverlap) {
  const Tensor scalar(kF32, {});
  EXPECT_EQ(cross_entropy_scratch_size(logits_, none_), 0);
  EXPECT_EQ(cross_entropy_scratch_size(logits_, mean_), 48);
  refuse(logits_, target_, mean_, scalar, lse_, nullptr,
         "scratch is null, expected 48 bytes");
  alignas(64) char scratch[128];
  refuse(logits_, target_, mean_, scalar, lse_, scratch + 8,
         "scratch is not aligned to 64 bytes");
  TensorView loss = loss_, lse = lse_;
  loss.data = logits_.view().data;
  refuse(logits_, target_, none_, loss, lse_, nullptr,
         "loss may overlap logits, expected memory of its own");
  loss.data = target_.view().data;
  refuse(logits_, target_, none_, loss, lse_, nullptr,
         "loss may overlap target, expected memory of its own");
  lse.data = target_.view().data;
  refuse(logits_, target_, none_, loss_, lse, nullptr,
         "lse overlaps target, expected memory of its own");
  lse.data = loss_.view().data;
  refuse(logits_, target_, none_, loss_, lse, nullptr,
         "lse may overlap loss, expected memory of its own");
  lse.data = scratch;
  refuse(logits_, target_, mean_, scalar, lse, scratch,
         "scratch may overlap lse, expected memory of its own");
  const std::int64_t zeros[] = {0, 0};
  loss = loss_;
  loss.strides = zeros;
  refuse(logits_, target_, none_, loss, lse_, nullptr,
         "loss overlaps itself: two of its indices share memory");
}

TEST_F(CrossEntropyChecksTest, Backward) {
  refuse_backward(lse_, lse_, grad_logits_,
                  "grad is float64, expected float32");
  refuse_backward(Tensor(kF32, {}), lse_, grad_logits_,
                  "grad has shape (), expected (2, 3)");
  refuse_backward(loss_, loss_, grad_logits_,
                  "lse is float32, expected float64");
  refuse_backward(loss_, lse_, loss_,
                  "grad_logits has shape (2, 3), expected (2, 3, 5)");
  refuse_backward(loss_, lse_, Tensor(kF64, {2, 3, 5}),
                  "grad_logits is float64, but logits is float32");
  TensorView moved = logits_;
  moved.data = static_cast<float*>(moved.data) + 1;
  refuse_backward(loss_, lse_, moved,
                  "grad_logits overlaps logits without being exactly logits");
  moved.data = lse_.view().data;
  refuse_backward(loss_, lse_, moved,
                  "grad_logits may overlap lse, expected memory of its own");
}

TEST_P(CrossEntropyTest, TargetsChangedDuringTheCall) {
  FOO_CORE_SKIP_ON_CUDA("a kernel cannot be met while it runs");
  constexpr std::int64_t kRows = 4, kClasses = kMostSerial / kRows + 1;
  const Tensor logits = make({kRows, kClasses}).randomize(1);
  const Tensor gradient = make({kRows, kClasses});
  const DType dtype_of_loss =
      dtype() == DType::kFloat64 ? dtype() : DType::kFloat32;
  const Tensor loss(dtype_of_loss, {}), losses(dtype_of_loss, {kRows});
  const Tensor lse = Tensor(DType::kFloat64, {kRows}).randomize(2);
  const std::string message =
      ": target was changed during the call: an index that had been checked is "
      "out of range now";
  for (const std::int64_t value :
       {kClasses, std::int64_t{-1}, std::int64_t{1} << 40,
        std::numeric_limits<std::int64_t>::min()}) {
    for (const Reduction reduction : {kNone, kMean, kSum}) {
      Tensor target(DType::kInt64, {kRows});
      const auto reset = [&] {
        for (std::int64_t i = 0; i < kRows; ++i) target.set(i, 0);
      };
      const auto change = [&] { target.set(2, static_cast<double>(value)); };
      const Options options = options_of(reduction);
      const Memory scratch =
          aligned_memory(foo_core::cross_entropy_scratch_size(logits, options));
      reset();
      EXPECT_INVALID(cross_entropy(logits, target, options,
                                   reduction == kNone ? losses : loss, lse,
                                   scratch.get(), meanwhile(change)),
                     "cross_entropy" + message);
      reset();
      EXPECT_INVALID(cross_entropy_backward(
                         reduction == kNone ? losses : loss, logits, target,
                         lse, options, gradient, nullptr, meanwhile(change)),
                     "cross_entropy_backward" + message);
      EXPECT_TRUE(gradient.guards_intact());
    }
  }
}

}  // namespace
}  // namespace foo_core::testing
