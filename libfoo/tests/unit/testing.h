// Tensors and reference arithmetic for the tests: slow, plain, in double.
#pragma once

#include <foo_core/foo_core.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace foo_core::testing {

using Shape = std::vector<std::int64_t>;

/// Bits of a dtype's significand, the hidden one included.
int precision(DType dtype);

/// Distance between neighbouring numbers of the dtype at `value`.
double ulp(DType dtype, double value);

/// The nearest number of the dtype, ties to even.
double round_to(DType dtype, double value);

double decode(DType dtype, const void* p);
void encode(DType dtype, double value, void* p);

/// A tensor with memory of its own, larger than it needs; the rest is filled
/// with a pattern to notice stray writes.
class Tensor {
 public:
  /// Contiguous if no strides are given.
  Tensor(DType dtype, Shape sizes, Shape strides = {});

  TensorView view() const;
  operator TensorView() const { return view(); }
  operator ConstTensorView() const { return view(); }

  std::int64_t numel() const;
  /// Element number i in row-major order.
  double get(std::int64_t i) const { return decode(dtype, at(i)); }
  void set(std::int64_t i, double value) { encode(dtype, value, at(i)); }
  std::vector<double> values() const;

  /// Normally distributed, rounded to the dtype.
  Tensor& randomize(unsigned seed, double scale = 1);

  /// The whole memory, with what lies between and around the elements.
  const std::vector<unsigned char>& memory() const { return memory_; }
  /// Whether nothing but elements has been written since construction.
  bool guards_intact() const;

  DType dtype;
  Shape sizes;
  Shape strides;

 private:
  unsigned char* at(std::int64_t i) const;

  mutable std::vector<unsigned char> memory_;
  std::int64_t origin_ = 0;  // in bytes, of index (0, ..., 0)
};

/// A ParallelFor with 3 threads and ranges of uneven size.
ParallelFor threads();

/// All names that this machine's architecture may have.
std::vector<std::string> all_targets();
bool has_target(const std::string& name);

/// Those that operators compute in.
inline const DType kAllDTypes[] = {DType::kFloat32, DType::kFloat64,
                                   DType::kFloat16, DType::kBFloat16};

/// Runs once for each SIMD target and dtype.
class KernelTest
    : public ::testing::TestWithParam<std::tuple<std::string, DType>> {
 protected:
  void SetUp() override;
  void TearDown() override;
  DType dtype() const { return std::get<1>(GetParam()); }
};

std::string kernel_test_name(
    const ::testing::TestParamInfo<KernelTest::ParamType>& info);

#define FOO_CORE_KERNEL_TESTS(Fixture)                             \
  INSTANTIATE_TEST_SUITE_P(                                        \
      All, Fixture,                                                \
      ::testing::Combine(                                          \
          ::testing::ValuesIn(::foo_core::testing::all_targets()), \
          ::testing::ValuesIn(::foo_core::testing::kAllDTypes)),   \
      ::foo_core::testing::kernel_test_name)

/// `call` throws InvalidArgument with exactly that message.
#define EXPECT_INVALID(call, message)                        \
  try {                                                      \
    call;                                                    \
    ADD_FAILURE() << "nothing thrown, expected " << message; \
  } catch (const ::foo_core::InvalidArgument& error) {       \
    EXPECT_EQ(std::string(error.what()), message);           \
  }

}  // namespace foo_core::testing
