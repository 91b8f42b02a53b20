// Tensors, reference arithmetic and fixtures of the unit tests. The arithmetic
// is in double, slow and plainly right.
#pragma once

#include <foo_core/foo_core.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "device.h"

namespace foo_core::testing {

using Shape = std::vector<std::int64_t>;
using Values = std::vector<double>;

/// Bits of a dtype's significand, including the hidden bit.
int precision(DType dtype);

/// The distance between neighbouring numbers of the dtype at `value`.
double ulp(DType dtype, double value);

/// The nearest number of the dtype, ties to even.
double round_to(DType dtype, double value);

double decode(DType dtype, const void* p);
void encode(DType dtype, double value, void* p);

/// A tensor that owns more memory than it needs. A pattern in the rest reveals
/// stray writes. On CUDA there is none behind the last element, where an access
/// would be outside of all memory.
class Tensor {
 public:
  /// Contiguous if no strides are given. It begins `shift` elements after an
  /// aligned address.
  Tensor(DType dtype, Shape sizes, Shape strides = {}, std::int64_t shift = 0);

  TensorView view() const;
  operator TensorView() const { return view(); }
  operator ConstTensorView() const { return view(); }

  std::int64_t numel() const;
  /// Element i in row-major order.
  double get(std::int64_t i) const { return decode(dtype, at(i)); }
  void set(std::int64_t i, double value) { encode(dtype, value, at(i)); }
  Values values() const;

  /// Fills it with normally distributed numbers, rounded to the dtype.
  Tensor& randomize(unsigned seed, double scale = 1);

  /// The whole memory, including what lies between and around the elements.
  const Bytes& memory() const { return memory_; }
  /// Whether only elements have been written since construction.
  bool guards_intact() const;

  DType dtype;
  Shape sizes;
  Shape strides;

 private:
  unsigned char* at(std::int64_t i) const;

  mutable Bytes memory_;
  std::int64_t origin_ = 0;  // in bytes, of index (0, ..., 0)
};

/// The same tensor, at `data`.
TensorView moved_to(TensorView view, void* data);

/// The norm of got - expected, relative to that of `scale`; the norm itself if
/// that is 0.
double relative_l2(const Values& got, const Values& expected,
                   const Values& scale);

struct Release {
  void operator()(void* p) const { release(p, bytes); }
  std::size_t bytes = 0;
};
using Memory = std::unique_ptr<void, Release>;

/// Memory aligned to 64 bytes and filled with a pattern.
Memory aligned_memory(std::int64_t bytes);

/// An Executor with 3 threads and ranges of uneven size; on CUDA, a stream.
Executor threads();

/// An Executor on the calling thread that calls `change` when all arguments
/// have been checked, as another thread may do. It needs more than kMostSerial
/// elements.
Executor meanwhile(const std::function<void()>& change);
constexpr std::int64_t kMostSerial = 32768;

/// The names of all targets that this machine's architecture may have, or CUDA,
/// and `own`, which few kernels are compiled for, if this machine has it.
std::vector<std::string> all_targets(const std::string& own = "");
bool has_target(const std::string& name);

/// The dtypes that all operators take.
inline const DType kAllDTypes[] = {DType::kFloat32, DType::kFloat64,
                                   DType::kFloat16, DType::kBFloat16};

/// A fixture whose tests run once for each SIMD target, or CUDA, and dtype.
class KernelTest
    : public ::testing::TestWithParam<std::tuple<std::string, DType>> {
 protected:
  void SetUp() override;
  void TearDown() override;
  DType dtype() const { return std::get<1>(GetParam()); }

  /// A tensor of the dtype.
  Tensor make(Shape sizes, Shape strides = {}, std::int64_t shift = 0) const {
    return Tensor(dtype(), std::move(sizes), std::move(strides), shift);
  }

  /// The error that an element may have, in ulp: 0.51 for the 16-bit types,
  /// which are rounded once, and 4 for the others.
  double gate() const { return item_size(dtype()) == 2 ? 0.51 : 4; }

 private:
  int calls_before_ = 0;
};

std::string kernel_test_name(
    const ::testing::TestParamInfo<KernelTest::ParamType>& info);

#define FOO_CORE_KERNEL_TESTS(Fixture) \
  FOO_CORE_KERNEL_TESTS_AT(Fixture, ::foo_core::testing::all_targets())

#define FOO_CORE_KERNEL_TESTS_AT(Fixture, targets)               \
  INSTANTIATE_TEST_SUITE_P(                                      \
      All, Fixture,                                              \
      ::testing::Combine(                                        \
          ::testing::ValuesIn(targets),                          \
          ::testing::ValuesIn(::foo_core::testing::kAllDTypes)), \
      ::foo_core::testing::kernel_test_name)

/// Skips a test of what CUDA does not do.
#define FOO_CORE_SKIP_ON_CUDA(reason) \
  if (::foo_core::testing::on_cuda()) GTEST_SKIP() << "on CUDA " << reason

/// Expects `call` to throw InvalidArgument with exactly that message.
#define EXPECT_INVALID(call, message)                        \
  try {                                                      \
    call;                                                    \
    ADD_FAILURE() << "nothing thrown, expected " << message; \
  } catch (const ::foo_core::InvalidArgument& error) {       \
    EXPECT_EQ(std::string(error.what()), message);           \
  }

/// A fixture with float32 views into one buffer of ones.
class BufferTest : public ::testing::Test {
 protected:
  struct View {
    float* data;
    Shape sizes, strides;
    operator TensorView() const& {
      return {data, DType::kFloat32, static_cast<std::int64_t>(sizes.size()),
              sizes.data(), strides.data()};
    }
    operator ConstTensorView() const& { return TensorView(*this); }
  };

  View at(std::int64_t offset, Shape sizes, Shape strides) {
    return {buffer_.data() + offset, std::move(sizes), std::move(strides)};
  }

  /// Expects that `call` throws InvalidArgument and writes nothing before.
  template <class Call>
  void expect_refused(const Call& call, const std::string& message) {
    const auto before = buffer_;
    EXPECT_INVALID(call(), message);
    EXPECT_EQ(buffer_, before) << "written before all checks passed";
  }

 private:
  Vector<float> buffer_ = Vector<float>(4096, 1);
};

}  // namespace foo_core::testing
