// Checks that all operators share, shown by the simplest ones: what they
// refuse, and the words of each error.
#include <limits>
#include <string>

#include "operators.h"
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

constexpr std::int64_t kMin = std::numeric_limits<std::int64_t>::min();
constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();

/// A call of an operator with valid tensors of float32, sizes of which may
/// be 1.
class ValidCall {
 public:
  explicit ValidCall(const Operator& op) : op_(op) {
    constexpr std::int64_t kSizesOf[kSizes] = {1, 3, 2, 6, 2, 4, 1, 32, 34};
    for (const Parameter& parameter : op.parameters) {
      Shape sizes;
      for (const Size size : parameter.shape) sizes.push_back(kSizesOf[size]);
      tensors_.emplace_back(parameter.dtype_in(kF32), sizes);
      for (std::int64_t i = 0; i < tensors_.back().numel(); ++i) {
        tensors_.back().set(i, 1);
      }
      views.push_back(tensors_.back().view());
    }
  }

  /// Calls the operator with the views.
  void run() {
    Call call;
    for (const TensorView& view : views) call.tensors.push_back(&view);
    call.executor = device_executor();
    call.inputs.resize(views.size());
    constexpr std::int64_t kBytes = 1 << 16;
    const Memory scratch = aligned_memory(kBytes);
    if (op_.scratch_size != nullptr) {
      EXPECT_LE(op_.scratch_size(call), kBytes);
      call.scratch = scratch.get();
    }
    op_.run(call);
    synchronize();
  }

  /// Expects the refusal of parameter i, with `problem`, and nothing written.
  void expect_refused(std::size_t i, const std::string& problem) {
    const auto memory = [this] {
      std::vector<Bytes> all;
      for (const Tensor& tensor : tensors_) all.push_back(tensor.memory());
      return all;
    };
    const auto before = memory();
    const std::string start =
        std::string(op_.name) + ": " + op_.parameters[i].name + problem;
    try {
      run();
      ADD_FAILURE() << "nothing thrown, expected " << start;
    } catch (const InvalidArgument& error) {
      EXPECT_EQ(std::string(error.what()).substr(0, start.size()), start);
    }
    EXPECT_EQ(memory(), before);
  }

  std::vector<TensorView> views;

 private:
  const Operator& op_;
  std::vector<Tensor> tensors_;
};

/// Calls f(op, i, view) for each parameter of each operator, where `view` is
/// the view of parameter i in `call`.
template <class F>
void for_each_parameter(const F& f) {
  for (const Operator& op : all_operators()) {
    for (std::size_t i = 0; i < op.parameters.size(); ++i) {
      ValidCall call(op);
      f(call, i, call.views[i]);
    }
  }
}

TEST(EveryOperator, AcceptsItsValidCall) {
  for (const Operator& op : all_operators()) ValidCall(op).run();
}

TEST(EveryOperator, RefusesNull) {
  for_each_parameter([](ValidCall& call, std::size_t i, TensorView& view) {
    const TensorView valid = view;
    view.data = nullptr;
    call.expect_refused(i, " has shape ");
    if (valid.ndim == 0) return;
    view = valid;
    view.sizes = nullptr;
    const std::string null = " has ndim " + std::to_string(valid.ndim) +
                             ", but its sizes or strides are null";
    call.expect_refused(i, null);
    view = valid;
    view.strides = nullptr;
    call.expect_refused(i, null);
  });
}

TEST(EveryOperator, RefusesMisalignedData) {
  for_each_parameter([](ValidCall& call, std::size_t i, TensorView& view) {
    const std::int64_t item = item_size(view.dtype);
    if (item == 1) return;
    view.data = static_cast<char*>(view.data) + item / 2;
    call.expect_refused(i, std::string(" is ") + name(view.dtype) +
                               ", but the address of its data is no multiple "
                               "of " +
                               std::to_string(item));
  });
}

TEST(EveryOperator, RefusesDimensions) {
  for_each_parameter([](ValidCall& call, std::size_t i, TensorView& view) {
    for (const std::int64_t ndim :
         {kMin, std::int64_t{-1}, std::int64_t{65}, std::int64_t{200}, kMax}) {
      view.ndim = ndim;
      call.expect_refused(
          i, " has " + std::to_string(ndim) + " dimensions, expected 0 to 64");
    }
  });
}

TEST(EveryOperator, RefusesDTypes) {
  for_each_parameter([](ValidCall& call, std::size_t i, TensorView& view) {
    for (const int number : {-1, 7, 1 << 30}) {
      view.dtype = static_cast<DType>(number);
      call.expect_refused(i, " has dtype number " + std::to_string(number));
    }
  });
}

TEST(EveryOperator, RefusesSizes) {
  for_each_parameter([](ValidCall& call, std::size_t i, TensorView& view) {
    Shape sizes(view.sizes, view.sizes + view.ndim);
    view.sizes = sizes.data();
    for (std::int64_t& size : sizes) {
      const std::int64_t valid = size;
      for (const std::int64_t negative : {std::int64_t{-1}, kMin}) {
        size = negative;
        call.expect_refused(i, " has size " + std::to_string(negative));
      }
      for (const std::int64_t large : {kMax, kMax / 2, kMaxBytes + 1}) {
        size = large;
        call.expect_refused(i, " has shape ");
      }
      size = valid;
    }
    // Products that are 0 or small if they overflow.
    if (view.ndim < 2) return;
    for (const std::int64_t first : {std::int64_t{1} << 32, kMax}) {
      sizes[0] = first;
      sizes[1] = std::int64_t{1} << 32;
      call.expect_refused(i, " has shape (" + std::to_string(first));
    }
  });
}

TEST(EveryOperator, RefusesStrides) {
  for_each_parameter([](ValidCall& call, std::size_t i, TensorView& view) {
    Shape strides(view.strides, view.strides + view.ndim);
    view.strides = strides.data();
    for (std::size_t d = 0; d < strides.size(); ++d) {
      if (view.sizes[d] == 1) continue;
      const std::int64_t valid = strides[d];
      for (const std::int64_t stride :
           {kMin, kMin / 2, -kMaxBytes - 1, kMaxBytes + 1, kMax / 2, kMax}) {
        strides[d] = stride;
        call.expect_refused(i, " has shape ");
      }
      strides[d] = valid;
    }
  });
}

TEST(EveryOperator, IgnoresTheStridesOfSingleElements) {
  for_each_parameter([](ValidCall& call, std::size_t, TensorView& view) {
    Shape strides(view.strides, view.strides + view.ndim);
    view.strides = strides.data();
    for (const std::int64_t stride : {kMin, std::int64_t{-1}, kMax}) {
      for (std::size_t d = 0; d < strides.size(); ++d) {
        if (view.sizes[d] == 1) strides[d] = stride;
      }
      EXPECT_NO_THROW(call.run());
    }
  });
}

TEST_F(ChecksTest, SizesThatOverflow) {
  const Tensor ok(kF32, {2, 3});
  TensorView view = ok;
  std::int64_t sizes[] = {std::int64_t{1} << 32, std::int64_t{1} << 32};
  std::int64_t strides[] = {0, 0};
  view.sizes = sizes;
  EXPECT_INVALID(add(view, ok, ok),
                 "add: a has shape (4294967296, 4294967296) and is float32, "
                 "expected at most 2^56 bytes");
  sizes[0] = 2;
  sizes[1] = 3;
  strides[0] = kMax;
  view.strides = strides;
  EXPECT_INVALID(add(view, ok, ok),
                 "add: a has shape (2, 3) and strides (9223372036854775807, 0) "
                 "and is float32, expected elements at most 2^56 bytes apart");
  sizes[0] = std::int64_t{1} << 40;
  strides[0] = 0;
  std::int64_t more[] = {sizes[0], sizes[0], 0};
  std::int64_t steps[] = {0, 0, 0};
  EXPECT_INVALID(
      add(TensorView{nullptr, kF32, 3, more, steps}, ok, ok),
      "add: a has shape (1099511627776, 1099511627776, 0), expected a "
      "product of at most 2^61 for the sizes that are not 0");
  // As far apart as they may be.
  sizes[0] = 2;
  sizes[1] = 1;
  for (const std::int64_t stride : {kMaxBytes / 4, -kMaxBytes / 4}) {
    strides[0] = stride;
    EXPECT_INVALID(add(view, ok, view),
                   "add: out has shape (2, 1), expected (2, 3)");
  }
}

TEST_F(ChecksTest, ScratchSizesOfRefusedShapes) {
  const Tensor x(kF32, {2, 3});
  const auto expect_none = [](const TensorView& view) {
    EXPECT_EQ(rms_norm_backward_scratch_size(view), 0);
    EXPECT_EQ(cross_entropy_scratch_size(view, {}), 0);
  };
  TensorView view = x;
  view.data = nullptr;  // which they do not use
  EXPECT_EQ(cross_entropy_scratch_size(view, {}), 16);
  EXPECT_GT(rms_norm_backward_scratch_size(view), 0);
  const std::int64_t large[] = {std::int64_t{1} << 61, 8};
  const std::int64_t no_classes[] = {std::int64_t{1} << 61, 0};
  const std::int64_t zeros[] = {0, 0}, negative[] = {-1, 3};
  view.strides = zeros;
  for (const auto* sizes : {large, no_classes, negative}) {
    view.sizes = sizes;
    expect_none(view);
  }
  for (const std::int64_t ndim : {-1, 0, 65}) {
    view = x;
    view.ndim = ndim;
    expect_none(view);
  }
  view = x;
  view.sizes = nullptr;
  expect_none(view);
  view = x;
  view.dtype = static_cast<DType>(9);
  expect_none(view);
}

TEST_F(ChecksTest, ShapesWithoutElementsMayBeLarge) {
  const std::int64_t sizes[] = {std::int64_t{1} << 58, 0, 2, 4};
  const std::int64_t strides[] = {1, 1, 4, 1};
  const TensorView x{nullptr, kF32, 4, sizes, strides};
  EXPECT_NO_THROW(add(x, x, x));
  EXPECT_NO_THROW(rms_norm(x, nullptr, 0, x));
  Tensor table(kF32, {2, 2});
  const TensorView positions{nullptr, DType::kInt64, 2, sizes, strides};
  const ConstTensorView of_rope = positions;
  EXPECT_NO_THROW(rope(x, table, table, &of_rope, {}, x));
}

TEST_F(ChecksTest, ExecutorWithoutALoopRunsOnTheCallingThread) {
  FOO_CORE_SKIP_ON_CUDA("there is no loop");
  const Tensor x(kF32, {kMostSerial + 1});
  EXPECT_NO_THROW(foo_core::add(x, x, x, Executor::threads(nullptr)));
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
