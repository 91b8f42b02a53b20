// 16-bit types are encoded and decoded by their definition, independently of
// the conversions of compilers and of Highway.
#include "testing.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <thread>

namespace foo_core::testing {
namespace {

constexpr unsigned char kGuard = 0xA5;

// The smallest exponent e for which 2^e is a normal number.
int min_exponent(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return -1022;
    case DType::kFloat16:
      return -14;
    default:
      return -126;
  }
}

double largest(DType dtype) {
  const int max_exponent = 1 - min_exponent(dtype);
  return std::ldexp(2 - std::ldexp(1, 1 - precision(dtype)), max_exponent);
}

// The bits of a number that the 16-bit format holds exactly.
std::uint16_t bits16(DType dtype, double value) {
  const int mantissa_bits = precision(dtype) - 1;
  const int exponent_mask = (1 << (15 - mantissa_bits)) - 1;
  const int sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return 0x7FFF;
  if (std::isinf(value)) {
    return static_cast<std::uint16_t>(sign | exponent_mask << mantissa_bits);
  }
  if (value == 0) return static_cast<std::uint16_t>(sign);
  const int e = std::max(std::ilogb(value), min_exponent(dtype));
  const int mantissa =
      static_cast<int>(std::ldexp(std::fabs(value), mantissa_bits - e));
  const int biased = e - min_exponent(dtype);  // the hidden bit adds one
  return static_cast<std::uint16_t>(sign |
                                    ((biased << mantissa_bits) + mantissa));
}

double compute_from_bits16(DType dtype, int bits) {
  const int mantissa_bits = precision(dtype) - 1;
  const int exponent_mask = (1 << (15 - mantissa_bits)) - 1;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int exponent = (bits >> mantissa_bits) & exponent_mask;
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == exponent_mask) {
    return mantissa != 0 ? std::nan("") : sign * INFINITY;
  }
  const int hidden = exponent == 0 ? 0 : 1 << mantissa_bits;
  const int e = std::max(exponent, 1) - 1 + min_exponent(dtype);
  return sign * std::ldexp(hidden + mantissa, e - mantissa_bits);
}

// Tests decode millions of numbers, so all that there are come from a table.
double from_bits16(DType dtype, std::uint16_t bits) {
  const auto table_of = [](DType type) {
    Values table(65536);
    for (int i = 0; i < 65536; ++i) {
      table[static_cast<std::size_t>(i)] = compute_from_bits16(type, i);
    }
    return table;
  };
  static const Values float16 = table_of(DType::kFloat16);
  static const Values bfloat16 = table_of(DType::kBFloat16);
  return (dtype == DType::kFloat16 ? float16 : bfloat16)[bits];
}

class DeviceEnvironment : public ::testing::Environment {
  void SetUp() override {
    ASSERT_EQ(on_cuda(), build_info().cuda);
    if (has_device()) return;
    std::puts("skipped: there is no GPU here");
    std::exit(0);  // GoogleTest would call all tests passed
  }
};
const ::testing::Environment* const environment =
    ::testing::AddGlobalTestEnvironment(new DeviceEnvironment);

}  // namespace

int precision(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 53;
    case DType::kFloat16:
      return 11;
    case DType::kBFloat16:
      return 8;
    default:
      return 24;
  }
}

double ulp(DType dtype, double value) {
  const int e = value == 0 ? min_exponent(dtype)
                           : std::max(std::ilogb(value), min_exponent(dtype));
  return std::ldexp(1, e - precision(dtype) + 1);
}

double round_to(DType dtype, double value) {
  if (!std::isfinite(value) || dtype == DType::kFloat64) return value;
  const double unit = ulp(dtype, value);
  const double rounded = std::nearbyint(value / unit) * unit;
  if (std::fabs(rounded) > largest(dtype)) {
    return std::copysign(INFINITY, value);
  }
  return std::copysign(rounded, value);
}

double decode(DType dtype, const void* p) {
  if (dtype == DType::kInt8) return *static_cast<const std::int8_t*>(p);
  if (dtype == DType::kUInt8) return *static_cast<const std::uint8_t*>(p);
  if (dtype == DType::kInt64) {
    std::int64_t value;
    std::memcpy(&value, p, sizeof(value));
    return static_cast<double>(value);
  }
  if (dtype == DType::kFloat64) {
    double value;
    std::memcpy(&value, p, sizeof(value));
    return value;
  }
  if (dtype == DType::kFloat32) {
    float value;
    std::memcpy(&value, p, sizeof(value));
    return static_cast<double>(value);
  }
  std::uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return from_bits16(dtype, bits);
}

void encode(DType dtype, double value, void* p) {
  if (dtype == DType::kUInt8) {
    *static_cast<std::uint8_t*>(p) = static_cast<std::uint8_t>(value);
    return;
  }
  if (dtype == DType::kInt8) {
    *static_cast<std::int8_t*>(p) = static_cast<std::int8_t>(value);
    return;
  }
  if (dtype == DType::kInt64) {
    const auto integer = static_cast<std::int64_t>(value);
    std::memcpy(p, &integer, sizeof(integer));
    return;
  }
  if (dtype == DType::kFloat64) {
    std::memcpy(p, &value, sizeof(value));
  } else if (dtype == DType::kFloat32) {
    const auto narrow = static_cast<float>(value);
    std::memcpy(p, &narrow, sizeof(narrow));
  } else {
    const std::uint16_t bits = bits16(dtype, round_to(dtype, value));
    std::memcpy(p, &bits, sizeof(bits));
  }
}

Tensor::Tensor(DType type, Shape shape, Shape steps, std::int64_t shift)
    : dtype(type), sizes(std::move(shape)), strides(std::move(steps)) {
  if (strides.empty()) {
    strides.resize(sizes.size());
    std::int64_t stride = 1;
    for (std::size_t d = sizes.size(); d-- > 0;) {
      strides[d] = stride;
      stride *= std::max<std::int64_t>(sizes[d], 1);
    }
  }
  std::int64_t low = 0, high = 0;
  for (std::size_t d = 0; d < sizes.size(); ++d) {
    const std::int64_t reach =
        std::max<std::int64_t>(sizes[d] - 1, 0) * strides[d];
    (reach < 0 ? low : high) += reach;
  }
  constexpr std::int64_t kMargin = 160;  // elements
  const std::int64_t item = item_size(dtype);
  const std::int64_t extent = numel() == 0 ? 0 : high - low + 1;
  // On CUDA, the end of the memory is what is aligned.
  const std::int64_t begin = kMargin + shift, end = on_cuda() ? shift : kMargin;
  origin_ = (begin - low) * item;
  memory_.assign(static_cast<std::size_t>((begin + extent + end) * item),
                 kGuard);
}

TensorView Tensor::view() const {
  return {memory_.data() + origin_, dtype,
          static_cast<std::int64_t>(sizes.size()), sizes.data(),
          strides.data()};
}

std::int64_t Tensor::numel() const {
  std::int64_t count = 1;
  for (const std::int64_t size : sizes) count *= size;
  return count;
}

unsigned char* Tensor::at(std::int64_t i) const {
  std::int64_t offset = 0;
  for (std::size_t d = sizes.size(); d-- > 0;) {
    offset += i % sizes[d] * strides[d];
    i /= sizes[d];
  }
  return memory_.data() + origin_ + offset * item_size(dtype);
}

Values Tensor::values() const {
  Values result(static_cast<std::size_t>(numel()));
  for (std::size_t i = 0; i < result.size(); ++i) {
    result[i] = get(static_cast<std::int64_t>(i));
  }
  return result;
}

Tensor& Tensor::randomize(unsigned seed, double scale) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal(0, scale);
  for (std::int64_t i = 0; i < numel(); ++i) set(i, normal(engine));
  return *this;
}

bool Tensor::guards_intact() const {
  std::vector<bool> used(memory_.size());
  for (std::int64_t i = 0; i < numel(); ++i) {
    const auto begin = used.begin() + (at(i) - memory_.data());
    std::fill(begin, begin + item_size(dtype), true);
  }
  for (std::size_t i = 0; i < memory_.size(); ++i) {
    if (!used[i] && memory_[i] != kGuard) return false;
  }
  return true;
}

TensorView moved_to(TensorView view, void* data) {
  view.data = data;
  return view;
}

double relative_l2(const Values& got, const Values& expected,
                   const Values& scale) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    error += (got[i] - expected[i]) * (got[i] - expected[i]);
    size += scale[i] * scale[i];
  }
  return size == 0 ? std::sqrt(error) : std::sqrt(error / size);
}

Memory aligned_memory(std::int64_t bytes) {
  const auto size = static_cast<std::size_t>(bytes + 63) / 64 * 64;
  Memory memory(allocate(size), {size});
  std::memset(memory.get(), kGuard, size);
  return memory;
}

Executor threads() {
  if (on_cuda()) return device_executor();
  return Executor::threads([](void*, std::int64_t begin, std::int64_t end,
                              std::int64_t, RangeBody body, void* context) {
    const std::int64_t cuts[] = {begin, begin + (end - begin) / 5,
                                 begin + (end - begin) / 2 + 1, end};
    std::vector<std::thread> workers;
    for (int i = 0; i < 3; ++i) {
      if (cuts[i] >= cuts[i + 1]) continue;
      workers.emplace_back(body, context, cuts[i], cuts[i + 1]);
    }
    for (std::thread& worker : workers) worker.join();
  });
}

Executor meanwhile(const std::function<void()>& change) {
  return Executor::threads(
      [](void* pool, std::int64_t begin, std::int64_t end, std::int64_t,
         RangeBody body, void* context) {
        (*static_cast<const std::function<void()>*>(pool))();
        body(context, begin, end);
      },
      const_cast<std::function<void()>*>(&change));
}

std::vector<std::string> all_targets([[maybe_unused]] const std::string& own) {
  if (on_cuda()) return {"CUDA"};
#if defined(__x86_64__) || defined(_M_X64)
  std::vector<std::string> all = {"AVX3", "AVX2", "SSE4", "SSE2"};
  if (has_target(own)) all.insert(all.begin(), own);
  return all;
#else
  std::istringstream names(build_info().simd_targets);
  return {std::istream_iterator<std::string>(names), {}};
#endif
}

bool has_target(const std::string& name) {
  std::istringstream names(build_info().simd_targets);
  for (std::string word; names >> word;) {
    if (word == name) return true;
  }
  return false;
}

void KernelTest::SetUp() {
  calls_before_ = device_calls;
  if (on_cuda()) return;
  const std::string& target = std::get<0>(GetParam());
  if (!has_target(target)) {
    GTEST_SKIP() << "this machine runs " << build_info().simd_targets
                 << ", but not " << target;
  }
  set_simd_target(target.c_str());
}

void KernelTest::TearDown() {
  set_simd_target(nullptr);
  if (IsSkipped() || device_calls != calls_before_) return;
  ADD_FAILURE() << "device.h has none of the operators that are tested here";
}

std::string kernel_test_name(
    const ::testing::TestParamInfo<KernelTest::ParamType>& info) {
  return std::get<0>(info.param) + "_" + name(std::get<1>(info.param));
}

}  // namespace foo_core::testing
