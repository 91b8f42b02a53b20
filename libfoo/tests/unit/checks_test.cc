// The arguments that operators refuse, and the words of each error.
#include <cstdlib>
#include <vector>

#include "testing.h"

namespace foo_core::testing {
namespace {

constexpr auto kF32 = DType::kFloat32;

/// A fixture with views into one buffer.
class ChecksTest : public ::testing::Test {
 protected:
  struct View {
    float* data;
    Shape sizes, strides;
    operator TensorView() const& {
      return {data, kF32, static_cast<std::int64_t>(sizes.size()), sizes.data(),
              strides.data()};
    }
    operator ConstTensorView() const& { return TensorView(*this); }
  };

  View at(std::int64_t offset, Shape sizes, Shape strides) {
    return {buffer_.data() + offset, std::move(sizes), std::move(strides)};
  }

  void accept(const View& a, const View& b, const View& out) {
    EXPECT_NO_THROW(add(a, b, out));
  }

  void refuse(const View& a, const View& b, const View& out,
              const std::string& message) {
    const auto before = buffer_;
    EXPECT_INVALID(add(a, b, out), "add: " + message);
    EXPECT_EQ(buffer_, before) << "written before all checks passed";
  }

  std::vector<float> buffer_ = std::vector<float>(4096, 1.0f);
  View other_ = at(3000, {2, 4}, {4, 1});
};

TEST_F(ChecksTest, DTypes) {
  Tensor f32(kF32, {4}), f64(DType::kFloat64, {4}), bad(kF32, {4});
  EXPECT_INVALID(add(f32, f64, f32), "add: b is float64, but a is float32");
  EXPECT_INVALID(add(f32, f32, f64), "add: out is float64, but a is float32");
  TensorView view = bad;
  view.dtype = static_cast<DType>(7);
  EXPECT_INVALID(mul(view, f32, f32),
                 "mul: a has dtype number 7, which is none of DType's");
  EXPECT_INVALID(rms_norm(f64, nullptr, 0, f32),
                 "rms_norm: out is float32, but x is float64");
  Tensor i64(DType::kInt64, {4});
  EXPECT_INVALID(
      mul(f32, i64, f32),
      "mul: b is int64, expected float32, float64, float16 or bfloat16");
}

TEST_F(ChecksTest, Shapes) {
  Tensor a(kF32, {2, 3}), b(kF32, {4}), row(kF32, {3}), none(kF32, {0});
  EXPECT_INVALID(
      add(a, b, a),
      "add: a has shape (2, 3), b has shape (4,): they do not broadcast");
  EXPECT_INVALID(add(a, row, row), "add: out has shape (3,), expected (2, 3)");
  EXPECT_INVALID(muladd(row, row, 1, Tensor(kF32, {})),
                 "muladd: out has shape (), expected (3,)");
  EXPECT_INVALID(
      mul(row, none, row),
      "mul: a has shape (3,), b has shape (0,): they do not broadcast");
}

TEST_F(ChecksTest, BrokenViews) {
  Tensor ok(kF32, {2});
  TensorView view = ok;
  view.data = nullptr;
  EXPECT_INVALID(add(view, ok, ok),
                 "add: a has shape (2,), but its data is null");
  view = ok;
  view.ndim = 65;
  EXPECT_INVALID(add(ok, view, ok),
                 "add: b has 65 dimensions, expected 0 to 64");
  view.ndim = -1;
  EXPECT_INVALID(add(ok, ok, view),
                 "add: out has -1 dimensions, expected 0 to 64");
  view = ok;
  view.strides = nullptr;
  EXPECT_INVALID(add(ok, ok, view),
                 "add: out has ndim 1, but its sizes or strides are null");
  view = ok;
  const std::int64_t negative = -2;
  view.sizes = &negative;
  EXPECT_INVALID(add(view, ok, ok),
                 "add: a has size -2 in dimension 0, expected at least 0");
}

TEST_F(ChecksTest, NullDataOfNoElementsIsFine) {
  const std::int64_t zero = 0, one = 1;
  const TensorView empty{nullptr, kF32, 1, &zero, &one};
  EXPECT_NO_THROW(add(empty, empty, empty));
  EXPECT_NO_THROW(rms_norm(empty, nullptr, 0, empty));
}

TEST_F(ChecksTest, OverlapOfDisjointMemoryIsNone) {
  const View rows = at(0, {2, 4}, {8, 1});
  accept(rows, other_, at(4, {2, 4}, {8, 1}));    // x[:, :4], x[:, 4:]
  accept(rows, other_, at(100, {2, 4}, {4, 1}));  // after it
  accept(at(0, {2, 4}, {8, 2}), other_, at(1, {2, 4}, {8, 2}));  // x[:, ::2]
  accept(at(0, {2, 4}, {9, 2}), other_, at(1, {2, 4}, {9, 2}));
  accept(at(0, {4, 2, 3}, {60, 20, 5}), at(3000, {3}, {1}),
         at(64, {4, 2, 3}, {60, 20, 5}));
  accept(at(0, {4}, {1}), other_, at(8, {2, 4}, {8, 1}));
  accept(at(4, {4}, {1}), other_, at(0, {2, 4}, {8, 1}));  // between its rows
  accept(at(15, {2, 4}, {-8, -1}), other_, at(0, {2, 4}, {8, 1}));
}

TEST_F(ChecksTest, ExactlyAnInputIsFine) {
  const View x = at(0, {2, 4}, {8, 1});
  accept(x, x, x);
  accept(at(0, {4}, {1}), at(0, {1, 4}, {9, 1}), at(0, {1, 4}, {7, 1}));
}

TEST_F(ChecksTest, OverlapIsRefused) {
  const View x = at(0, {2, 4}, {4, 1});
  const std::string exactly = " without being exactly a";
  refuse(x, other_, at(1, {2, 4}, {4, 1}), "out overlaps a" + exactly);
  refuse(other_, x, at(7, {2, 4}, {4, 1}),
         "out overlaps b without being exactly b");
  refuse(at(0, {2, 4}, {8, 1}), other_, at(3, {2, 4}, {8, 1}),
         "out overlaps a" + exactly);
  refuse(at(0, {2, 4}, {8, 1}), other_, at(7, {2, 4}, {8, 1}),
         "out overlaps a" + exactly);
  refuse(at(0, {1, 4}, {4, 1}), other_, x, "out overlaps a" + exactly);
  refuse(at(0, {4, 4}, {4, 1}), at(3000, {1}, {1}), at(0, {4, 4}, {1, 4}),
         "out overlaps a" + exactly);
  refuse(at(0, {2, 4}, {9, 2}), other_, at(2, {2, 4}, {7, 1}),
         "out may overlap a" + exactly);
}

TEST_F(ChecksTest, OverlapWithItselfIsRefused) {
  const std::string why = " itself: two of its indices share memory";
  refuse(other_, other_, at(0, {2, 4}, {0, 1}), "out overlaps" + why);
  refuse(other_, other_, at(0, {2, 4}, {3, 1}), "out may overlap" + why);
  refuse(other_, other_, at(0, {2, 4}, {1, 1}), "out may overlap" + why);
  accept(other_, other_, at(0, {2, 4}, {1, 2}));
  accept(other_, other_, at(20, {2, 4}, {-4, -1}));
  accept(at(0, {1, 4}, {0, 1}), at(50, {4}, {1}), at(100, {1, 4}, {0, 1}));
}

TEST_F(ChecksTest, RmsNorm) {
  Tensor x(kF32, {2, 4}), weight(kF32, {4}), out(kF32, {2, 4});
  Tensor small(kF32, {3}), square(kF32, {4, 4}), scalar(kF32, {});
  Tensor half(DType::kFloat16, {4});
  const ConstTensorView w = weight, w3 = small, w2 = square, wh = half;
  EXPECT_INVALID(rms_norm(scalar, nullptr, 0, scalar),
                 "rms_norm: x has no dimensions, expected at least 1");
  EXPECT_INVALID(
      rms_norm(x, &w3, 0, out),
      "rms_norm: weight has 3 elements, but x's last dimension is 4");
  EXPECT_INVALID(rms_norm(x, &w2, 0, out),
                 "rms_norm: weight has 2 dimensions, expected 1");
  EXPECT_INVALID(rms_norm(x, &wh, 0, out),
                 "rms_norm: weight is float16, but x is float32");
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

TEST_F(ChecksTest, AddRmsNorm) {
  const View x = at(0, {2, 4}, {4, 1}), residual = at(16, {2, 4}, {4, 1});
  const View out = at(32, {2, 4}, {4, 1}), sum = at(48, {2, 4}, {4, 1});
  const View weight = at(64, {4}, {1}), moved = at(1, {2, 4}, {4, 1});
  const View moved_residual = at(17, {2, 4}, {4, 1});
  const View tall = at(100, {4, 2}, {2, 1}), on_weight = at(62, {2, 4}, {4, 1});
  const ConstTensorView w = weight;
  const std::string op = "add_rms_norm: ";
  const auto refuse_add = [&](const View& a, const View& b, const View& y,
                              const View& s, const std::string& message) {
    const auto before = buffer_;
    EXPECT_INVALID(add_rms_norm(a, b, &w, 0, y, s), op + message);
    EXPECT_EQ(buffer_, before) << "written before all checks passed";
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

TEST_F(ChecksTest, AddRmsNormBackward) {
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

TEST_F(ChecksTest, RmsNormBackward) {
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
  void* scratch = std::aligned_alloc(64, 4096);
  ASSERT_LE(needed, 4000);
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
  std::free(scratch);
}

}  // namespace
}  // namespace foo_core::testing
