// Checks that all operators share, shown by the simplest ones: what they
// refuse, and the words of each error.
#include <string>

#include "testing.h"

namespace foo_core::testing {
namespace {

constexpr auto kF32 = DType::kFloat32;

class ChecksTest : public BufferTest {
 protected:
  void accept(const View& a, const View& b, const View& out) {
    EXPECT_NO_THROW(add(a, b, out));
  }

  void refuse(const View& a, const View& b, const View& out,
              const std::string& message) {
    expect_refused([&] { add(a, b, out); }, "add: " + message);
  }

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

}  // namespace
}  // namespace foo_core::testing
