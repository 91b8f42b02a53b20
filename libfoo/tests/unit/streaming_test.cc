// Results too large for the caches are streamed past them, in whole vectors at
// aligned addresses. They equal smaller results bit for bit, and nothing is
// written beside them.
#include <algorithm>
#include <cstring>
#include <functional>
#include <vector>

#include "testing.h"

namespace foo_core::testing {
namespace {

constexpr std::int64_t kBlock = 64;        // rows
constexpr std::int64_t kBytes = 25 << 20;  // of two tensors, to be streamed
constexpr std::int64_t kGuard = 64;        // bytes
constexpr unsigned char kUntouched = 0xA5;

/// A tensor that repeats the rows of another one and begins `offset` elements
/// after an aligned address.
class Repeated {
 public:
  Repeated(const Tensor& block, std::int64_t repeats, std::int64_t offset)
      : sizes_{repeats * block.sizes[0], block.sizes[1]},
        strides_{block.sizes[1], 1},
        dtype_(block.dtype),
        block_bytes_(block.numel() * item_size(block.dtype)),
        repeats_(repeats),
        memory_(static_cast<std::size_t>(repeats * block_bytes_ + 4 * kGuard),
                kUntouched) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.data());
    begin_ = memory_.data() + (kGuard - address % kGuard) + kGuard +
             offset * item_size(dtype_);
  }

  Repeated& fill(const Tensor& block) {
    for (std::int64_t i = 0; i < repeats_; ++i) {
      std::memcpy(begin_ + i * block_bytes_, block.view().data,
                  static_cast<std::size_t>(block_bytes_));
    }
    return *this;
  }

  TensorView view() const {
    return {begin_, dtype_, 2, sizes_.data(), strides_.data()};
  }

  bool repeats(const Tensor& block) const {
    for (std::int64_t i = 0; i < repeats_; ++i) {
      if (std::memcmp(begin_ + i * block_bytes_, block.view().data,
                      static_cast<std::size_t>(block_bytes_)) != 0) {
        return false;
      }
    }
    const auto untouched = [](unsigned char byte) {
      return byte == kUntouched;
    };
    const unsigned char* end = begin_ + repeats_ * block_bytes_;
    return std::all_of(memory_.data(),
                       static_cast<const unsigned char*>(begin_), untouched) &&
           std::all_of(end, memory_.data() + memory_.size(), untouched);
  }

 private:
  Shape sizes_, strides_;
  DType dtype_;
  std::int64_t block_bytes_, repeats_;
  std::vector<unsigned char> memory_;
  unsigned char* begin_;
};

using Inputs = std::vector<ConstTensorView>;
using Outputs = std::vector<TensorView>;

struct Operator {
  const char* name;
  std::size_t inputs, outputs;
  std::function<void(const Inputs&, const Outputs&)> call;
};

/// Calls rope on the rows of x as tokens that all have the same position.
void rotate(const ConstTensorView& x, const TensorView& out) {
  const std::int64_t tokens = x.sizes[0], n = x.sizes[1], half = n / 2;
  Tensor row(x.dtype, {1, half});
  row.randomize(9);
  const std::int64_t table_sizes[] = {tokens, half}, table_strides[] = {0, 1};
  const std::int64_t sizes[] = {1, tokens, 1, n}, strides[] = {0, n, n, 1};
  const ConstTensorView table{row.view().data, x.dtype, 2, table_sizes,
                              table_strides};
  rope({x.data, x.dtype, 4, sizes, strides}, table, table, nullptr, {},
       {out.data, out.dtype, 4, sizes, strides}, threads());
}

/// Calls cross_entropy_backward with the same target for every row.
void cross_entropy_gradient(const ConstTensorView& x, const TensorView& out) {
  const DType type = x.dtype == DType::kFloat64 ? x.dtype : DType::kFloat32;
  Tensor one(type, {}), lse(DType::kFloat64, {1});
  one.set(0, 1);
  lse.set(0, 8);
  const std::int64_t target = 5, stride = 0;
  CrossEntropyOptions options;
  options.reduction = Reduction::kSum;
  cross_entropy_backward(one, x, {&target, DType::kInt64, 1, x.sizes, &stride},
                         {lse.view().data, lse.dtype, 1, x.sizes, &stride},
                         options, out, nullptr, threads());
}

const Operator kOperators[] = {
    {"mul", 2, 1,
     [](const Inputs& in, const Outputs& out) {
       mul(in[0], in[1], out[0], threads());
     }},
    {"silu_mul", 2, 1,
     [](const Inputs& in, const Outputs& out) {
       silu_mul(in[0], in[1], out[0], threads());
     }},
    {"silu_mul_backward", 3, 2,
     [](const Inputs& in, const Outputs& out) {
       silu_mul_backward(in[0], in[1], in[2], &out[0], &out[1], threads());
     }},
    {"rms_norm", 1, 1,
     [](const Inputs& in, const Outputs& out) {
       rms_norm(in[0], nullptr, 1e-6, out[0], threads());
     }},
    {"rms_norm with float32 weight", 1, 1,
     [](const Inputs& in, const Outputs& out) {
       Tensor weight(DType::kFloat32, {in[0].sizes[1]});
       const ConstTensorView w = weight.randomize(9);
       rms_norm(in[0], &w, 1e-6, out[0], threads());
     }},
    {"add_rms_norm", 2, 2,
     [](const Inputs& in, const Outputs& out) {
       add_rms_norm(in[0], in[1], nullptr, 1e-6, out[0], out[1], threads());
     }},
    {"rms_norm_backward", 2, 1,
     [](const Inputs& in, const Outputs& out) {
       rms_norm_backward(in[0], in[1], nullptr, 1e-6, &out[0], nullptr, nullptr,
                         threads());
     }},
    {"rms_norm_backward with float32 weight", 2, 1,
     [](const Inputs& in, const Outputs& out) {
       Tensor weight(DType::kFloat32, {in[0].sizes[1]}), sums = weight;
       const ConstTensorView w = weight.randomize(9);
       const TensorView grad_weight = sums;
       const Memory scratch =
           aligned_memory(rms_norm_backward_scratch_size(in[1]));
       rms_norm_backward(in[0], in[1], &w, 1e-6, &out[0], &grad_weight,
                         scratch.get(), threads());
     }},
    {"rope", 1, 1,
     [](const Inputs& in, const Outputs& out) { rotate(in[0], out[0]); }},
    {"cross_entropy_backward", 1, 1,
     [](const Inputs& in, const Outputs& out) {
       cross_entropy_gradient(in[0], out[0]);
     }},
};

class StreamingTest : public KernelTest {
 protected:
  void SetUp() override {
    FOO_CORE_SKIP_ON_CUDA("nothing is streamed");
    KernelTest::SetUp();
  }

  void check(std::int64_t columns, std::int64_t offset) {
    const std::int64_t repeats =
        kBytes / (2 * kBlock * columns * item_size(dtype())) + 1;
    std::vector<Tensor> blocks;
    std::vector<Repeated> inputs;
    for (unsigned seed = 0; seed < 3; ++seed) {
      blocks.emplace_back(dtype(), Shape{kBlock, columns});
      blocks.back().randomize(seed);
      inputs.emplace_back(blocks.back(), repeats, offset).fill(blocks.back());
    }
    for (const Operator& op : kOperators) {
      SCOPED_TRACE(op.name);
      Inputs small, large;
      for (std::size_t i = 0; i < op.inputs; ++i) {
        small.push_back(blocks[i]);
        large.push_back(inputs[i].view());
      }
      std::vector<Tensor> expected(op.outputs, blocks[0]);
      std::vector<Repeated> got;
      Outputs small_out, large_out;
      for (std::size_t i = 0; i < op.outputs; ++i) {
        small_out.push_back(expected[i]);
        got.emplace_back(blocks[0], repeats, offset);
      }
      for (const Repeated& x : got) large_out.push_back(x.view());
      op.call(small, small_out);
      op.call(large, large_out);
      for (std::size_t i = 0; i < op.outputs; ++i) {
        EXPECT_TRUE(got[i].repeats(expected[i])) << "result " << i;
      }
    }
  }
};

TEST_P(StreamingTest, Aligned) { check(4096, 0); }

TEST_P(StreamingTest, RowsOfAllAlignments) { check(4006, 1); }

FOO_CORE_KERNEL_TESTS(StreamingTest);

}  // namespace
}  // namespace foo_core::testing
