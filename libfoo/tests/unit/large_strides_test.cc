// Rows that are more than 2^31 elements apart: results are those of near rows,
// so all offsets are computed in 64 bits.
#include <cstring>
#include <functional>
#include <vector>

#include "testing.h"

namespace foo_core::testing {
namespace {

constexpr std::int64_t kN = 3;  // so small that no row is aligned
constexpr std::int64_t kFar = (std::int64_t{1} << 31) + 2;

/// Two rows, near or far from each other.
class TwoRows {
 public:
  TwoRows(DType dtype, std::int64_t stride, std::int64_t n = kN)
      : sizes_{2, n},
        strides_{stride, 1},
        dtype_(dtype),
        bytes_(static_cast<std::size_t>((stride + n) * item_size(dtype))),
        memory_(allocate(bytes_), {bytes_}) {}

  TwoRows& randomize(unsigned seed) {
    const Tensor values = Tensor(dtype_, sizes_).randomize(seed);
    const auto size = static_cast<std::size_t>(row_bytes());
    const auto* from = static_cast<const char*>(values.view().data);
    std::memcpy(row(0), from, size);
    std::memcpy(row(1), from + size, size);
    return *this;
  }

  TensorView view() const {
    return {memory_.get(), dtype_, 2, sizes_.data(), strides_.data()};
  }
  operator TensorView() const { return view(); }
  operator ConstTensorView() const { return view(); }

  bool operator==(const TwoRows& other) const {
    const auto size = static_cast<std::size_t>(row_bytes());
    return std::memcmp(row(0), other.row(0), size) == 0 &&
           std::memcmp(row(1), other.row(1), size) == 0;
  }

  std::int64_t stride() const { return strides_[0]; }

 private:
  char* row(std::int64_t i) const {
    return static_cast<char*>(memory_.get()) +
           i * strides_[0] * item_size(dtype_);
  }
  std::int64_t row_bytes() const { return sizes_[1] * item_size(dtype_); }

  Shape sizes_, strides_;
  DType dtype_;
  std::size_t bytes_;
  Memory memory_;
};

/// The rows as tokens of one head.
struct Tokens {
  explicit Tokens(const TwoRows& rows)
      : sizes{1, 2, 1, kN}, strides{0, rows.stride(), 0, 1}, view(rows) {
    view.ndim = 4;
    view.sizes = sizes.data();
    view.strides = strides.data();
  }
  Shape sizes, strides;
  TensorView view;
};

class LargeStridesTest : public KernelTest {
 protected:
  void SetUp() override {
    KernelTest::SetUp();
    if (!has_lazy_memory()) GTEST_SKIP() << "it would take 8 GB";
    if (item_size(dtype()) != 2) GTEST_SKIP() << "for 16-bit types";
  }

  /// Expects the same of call(x, y, out) for near and far rows.
  void check(const std::function<void(const TwoRows&, const TwoRows&,
                                      const TwoRows&)>& call,
             DType out = DType::kInt64) {
    if (out == DType::kInt64) out = dtype();
    TwoRows near(dtype(), kN), near_out(out, kN);
    TwoRows far(dtype(), kFar), far_out(out, kFar);
    near.randomize(1);
    far.randomize(1);
    call(near, near, near_out.randomize(2));
    call(far, near, far_out.randomize(2));
    EXPECT_TRUE(far_out == near_out) << "far in first argument and result";
    call(near, far, far_out.randomize(2));
    EXPECT_TRUE(far_out == near_out) << "far in second argument and result";
  }
};
FOO_CORE_KERNEL_TESTS(LargeStridesTest);

TEST_P(LargeStridesTest, Elementwise) {
  check([](const TwoRows& x, const TwoRows& y, const TwoRows& out) {
    mul(x, y, out);
  });
  check([](const TwoRows& x, const TwoRows& y, const TwoRows& out) {
    const TensorView gradient = out;
    silu_mul_backward(x, y, x, &gradient, nullptr);
  });
}

TEST_P(LargeStridesTest, RmsNorm) {
  check([](const TwoRows& x, const TwoRows& y, const TwoRows& out) {
    const Tensor sum(x.view().dtype, {2, kN});
    add_rms_norm(x, y, nullptr, 1e-6, out, sum);
  });
  check([](const TwoRows& x, const TwoRows& y, const TwoRows& out) {
    const TensorView gradient = out;
    rms_norm_backward(x, y, nullptr, 1e-6, &gradient, nullptr, nullptr);
  });
}

TEST_P(LargeStridesTest, Rope) {
  check([](const TwoRows& x, const TwoRows& y, const TwoRows& out) {
    const std::int64_t sizes[] = {2, 1}, strides[] = {y.stride(), 1};
    const ConstTensorView table{y.view().data, y.view().dtype, 2, sizes,
                                strides};
    rope(Tokens(x).view, table, table, nullptr, {}, Tokens(out).view);
  });
}

TEST_P(LargeStridesTest, Linear) {
  check([](const TwoRows& x, const TwoRows& y, const TwoRows& out) {
    const std::int64_t sizes[] = {2, 2}, strides[] = {out.stride(), 1};
    linear(x, y, nullptr,
           {out.view().data, out.view().dtype, 2, sizes, strides});
  });
}

TEST_P(LargeStridesTest, QuantizeInt8Rowwise) {
  check(
      [](const TwoRows& x, const TwoRows&, const TwoRows& q) {
        const Tensor scale(DType::kFloat32, {2, 1});
        quantize_int8_rowwise(x, q, scale);
      },
      DType::kInt8);
}

TEST_P(LargeStridesTest, CrossEntropyBackward) {
  check([](const TwoRows& x, const TwoRows&, const TwoRows& out) {
    Tensor target(DType::kInt64, {2}), grad(DType::kFloat32, {2});
    Tensor loss = grad, lse(DType::kFloat64, {2});
    target.set(0, 1);
    target.set(1, 2);
    grad.randomize(3);
    CrossEntropyOptions options;
    options.reduction = Reduction::kNone;
    cross_entropy(x, target, options, loss, lse, nullptr);
    cross_entropy_backward(grad, x, target, lse, options, out, nullptr);
  });
}

}  // namespace
}  // namespace foo_core::testing
