// linear_quantized against sums in long double of x as it is rounded, and its
// distance from x as it is.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "testing.h"

namespace foo_core::testing {
namespace {

constexpr BlockFormat kFormats[] = {BlockFormat::kQ8_0, BlockFormat::kQ4_0,
                                    BlockFormat::kQ4_1, BlockFormat::kQ4_K,
                                    BlockFormat::kQ6_K};

class LinearQuantizedTest : public KernelTest {
 protected:
  Tensor blocks_of(BlockFormat format, std::int64_t n, std::int64_t k) {
    const std::int64_t count = k / block_elements(format);
    Tensor weight(DType::kUInt8, {n, count * block_bytes(format)});
    quantize(Tensor(DType::kFloat32, {n, k}).randomize(2), format, weight);
    return weight;
  }

  /// Row by row, the numbers that a product takes for x, and half the distance
  /// between them.
  std::pair<Values, Values> rounded(const Tensor& x) {
    const auto all = x.values();
    Values near = all, half(all.size());
    if (dtype() == DType::kFloat64) return {near, half};
    for (std::size_t i = 0; i < all.size(); i += 32) {
      float most = 0;
      for (std::size_t j = i; j < i + 32; ++j) {
        most = std::max(most, std::fabs(static_cast<float>(all[j])));
      }
      const float inverse = 127 / most;
      for (std::size_t j = i; j < i + 32; ++j) {
        half[j] = static_cast<double>(most) / 254;
        const float q = std::nearbyint(static_cast<float>(all[j]) * inverse);
        near[j] = most == 0 ? 0
                            : static_cast<double>(q) *
                                  static_cast<double>(most / 127);
      }
    }
    return {near, half};
  }

  Tensor product(const Tensor& x, const Tensor& weight, BlockFormat format,
                 const Tensor* bias = nullptr, Shape out_strides = {},
                 const Executor& executor = {}) {
    Shape sizes = x.sizes;
    sizes.back() = weight.sizes[0];
    Tensor out = make(sizes, std::move(out_strides));
    const Memory scratch =
        aligned_memory(linear_quantized_scratch_size(x, executor));
    ConstTensorView view;
    if (bias != nullptr) view = *bias;
    linear_quantized(x, weight, format, bias == nullptr ? nullptr : &view, out,
                     scratch.get(), executor);
    EXPECT_TRUE(out.guards_intact());
    return out;
  }

  void check(const Tensor& x, const Tensor& weight, BlockFormat format,
             const Tensor* bias = nullptr, Shape out_strides = {}) {
    const Tensor got = product(x, weight, format, bias, std::move(out_strides));
    const std::int64_t k = x.sizes.back(), n = weight.sizes[0];
    Tensor numbers(DType::kFloat32, {n, k});
    dequantize(weight, format, numbers);
    const auto vw = numbers.values(), vx = x.values();
    const auto [near, half] = rounded(x);
    const double step = dtype() == DType::kFloat64 ? 0x1p-45 : 0x1p-21;
    for (std::int64_t i = 0; i < got.numel(); ++i) {
      const std::int64_t row = i / n * k, column = i % n * k;
      long double sum = 0, exact = 0;
      double magnitude = 0, bound = 0;
      for (std::int64_t j = 0; j < k; ++j) {
        const auto a = static_cast<std::size_t>(row + j);
        const auto b = static_cast<std::size_t>(column + j);
        sum += static_cast<long double>(near[a]) * vw[b];
        exact += static_cast<long double>(vx[a]) * vw[b];
        // A minimum is added to each.
        magnitude += std::fabs(near[a]) * (std::fabs(vw[b]) + 3);
        bound += half[a] * std::fabs(vw[b]);
      }
      if (bias != nullptr) {
        sum += bias->get(i % n);
        exact += bias->get(i % n);
        magnitude += std::fabs(bias->get(i % n));
      }
      const double error =
          step * magnitude + 0.501 * ulp(dtype(), static_cast<double>(sum));
      ASSERT_NEAR(got.get(i), static_cast<double>(sum), error)
          << name(format) << ", element " << i << ", k = " << k
          << ", n = " << n;
      ASSERT_NEAR(got.get(i), static_cast<double>(exact),
                  error + bound * 1.0001);
    }
  }
};
INSTANTIATE_TEST_SUITE_P(
    All, LinearQuantizedTest,
    ::testing::Combine(::testing::ValuesIn(all_targets("AVX3_DL")),
                       ::testing::ValuesIn(kAllDTypes)),
    kernel_test_name);

TEST_P(LinearQuantizedTest, EveryCountOfBlocks) {
  for (const BlockFormat format : kFormats) {
    const std::int64_t elements = block_elements(format);
    for (std::int64_t count = 0; count <= (elements == 32 ? 18 : 9); ++count) {
      const std::int64_t k = count * elements;
      check(make({2, k}).randomize(1), blocks_of(format, 5, k), format);
    }
    const std::int64_t k = 66 * 32 / elements * elements + 256;
    check(make({9, k}).randomize(1), blocks_of(format, 17, k), format);
  }
}

TEST_P(LinearQuantizedTest, EveryCountOfRowsAndColumns) {
  for (const BlockFormat format : kFormats) {
    const Tensor weight = blocks_of(format, 19, 256);
    const Tensor bias = make({19}).randomize(3);
    for (const std::int64_t rows :
         {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 63, 65, 130}) {
      check(make({rows, 256}).randomize(1), weight, format, &bias);
    }
    // A tile has up to 32 columns.
    for (std::int64_t n = 0; n <= 37; ++n) {
      const Tensor some = make({n}).randomize(3);
      for (const std::int64_t rows : {1, 9}) {
        check(make({rows, 256}).randomize(1), blocks_of(format, n, 256), format,
              &some);
      }
    }
  }
}

TEST_P(LinearQuantizedTest, AnyStrides) {
  for (const BlockFormat format : kFormats) {
    const Tensor weight = blocks_of(format, 7, 512);
    const Tensor bias = make({7}, {-3}).randomize(3);
    const auto x = [&](Shape sizes, Shape strides) {
      return make(std::move(sizes), std::move(strides)).randomize(1);
    };
    check(x({5, 512}, {1, 5}), weight, format, &bias, {1, 5});
    check(x({10, 512}, {-512, 1}), weight, format, &bias, {-14, 2});
    check(x({2, 3, 512}, {512, 1024, 1}), weight, format, nullptr, {7, 14, 1});
    check(x({512}, {-1}), weight, format, &bias);
    Tensor upward(DType::kUInt8, weight.sizes, {-weight.sizes[1] - 3, 1});
    for (std::int64_t i = 0; i < weight.numel(); ++i) {
      upward.set(i, weight.get(i));
    }
    const Tensor plain = x({3, 512}, {512, 1});
    EXPECT_EQ(product(plain, upward, format).memory(),
              product(plain, weight, format).memory());
  }
}

// The largest sums of integers that bytes can make, at each of their ends.
TEST_P(LinearQuantizedTest, LargestIntegers) {
  for (const BlockFormat format : kFormats) {
    for (const int byte : {0x00, 0x80, 0xFF, 0x7F}) {
      Tensor weight = blocks_of(format, 4, 256);
      const auto size = static_cast<std::size_t>(block_bytes(format));
      auto* data = static_cast<unsigned char*>(weight.view().data);
      for (std::int64_t i = 0; i < weight.numel(); ++i) {
        const auto at = static_cast<std::size_t>(i) % size;
        const bool of_k = format == BlockFormat::kQ4_K;
        const bool is_half = format == BlockFormat::kQ6_K ? at >= 208
                             : of_k                       ? at < 16
                                                          : at < size % 16;
        if (!is_half) data[i] = static_cast<unsigned char>(byte);
      }
      for (const double sign : {-1.0, 1.0}) {
        Tensor x = make({9, 256});
        for (std::int64_t i = 0; i < x.numel(); ++i) x.set(i, sign * 2);
        check(x, weight, format);
      }
    }
  }
}

TEST_P(LinearQuantizedTest, ThreadsChangeNothing) {
  for (const BlockFormat format : kFormats) {
    for (const std::int64_t rows : {3, 70}) {
      const Tensor x = make({rows, 1280}).randomize(1);
      const Tensor weight = blocks_of(format, 101, 1280);
      EXPECT_EQ(product(x, weight, format, nullptr, {}, threads()).memory(),
                product(x, weight, format).memory());
    }
  }
}

TEST_P(LinearQuantizedTest, NaNAndInfinityStayInTheirRows) {
  for (const BlockFormat format : kFormats) {
    Tensor x = make({4, 512}).randomize(1);
    x.set(512 + 7, std::nan(""));
    x.set(2 * 512 + 300, INFINITY);
    for (int i = 0; i < 32; ++i) x.set(3 * 512 + i, i % 2 * 1e-42);
    const Tensor out = product(x, blocks_of(format, 6, 512), format);
    for (int i = 0; i < 24; ++i) {
      const bool exact = dtype() == DType::kFloat64;
      if (i / 6 == 1 || (i / 6 == 2 && !exact)) {
        EXPECT_TRUE(std::isnan(out.get(i))) << i;
      } else if (i / 6 == 2) {
        EXPECT_FALSE(std::isfinite(out.get(i))) << i;
      } else {
        EXPECT_TRUE(std::isfinite(out.get(i))) << i;
      }
    }
  }
}

TEST(LinearQuantizedChecksTest, Refuses) {
  constexpr auto kF32 = DType::kFloat32;
  const std::string op = "linear_quantized: ";
  Tensor x(kF32, {2, 64}), weight(DType::kUInt8, {3, 68}), bias(kF32, {3});
  Tensor out(kF32, {2, 3}), half(DType::kFloat16, {3});
  Tensor gaps(DType::kUInt8, {3, 68}, {200, 2});
  // These calls are on the CPU.
  const std::int64_t bytes =
      foo_core::linear_quantized_scratch_size(x, Executor());
  const Memory scratch = aligned_memory(bytes);
  constexpr auto kQ8_0 = BlockFormat::kQ8_0;
  const auto before = out.memory();
  const auto call = [&](const ConstTensorView& vx, const ConstTensorView& vw,
                        BlockFormat format, const Tensor* b,
                        const TensorView& vout, void* memory) {
    ConstTensorView vb;
    if (b != nullptr) vb = *b;
    foo_core::linear_quantized(vx, vw, format, b == nullptr ? nullptr : &vb,
                               vout, memory);
  };
  void* const memory = scratch.get();
  EXPECT_INVALID(call(x, weight, BlockFormat::kQ4_0, nullptr, out, memory),
                 op + "weight has shape (3, 68), expected (n, 36), as x's last "
                      "dimension is 64 and the format is q4_0");
  EXPECT_INVALID(call(x, x, kQ8_0, nullptr, out, memory),
                 op + "weight is float32, expected uint8");
  EXPECT_INVALID(call(x, weight, BlockFormat::kQ4_K, nullptr, out, memory),
                 op + "x's last dimension is 64, expected a multiple of 256 "
                      "for q4_k");
  EXPECT_INVALID(call(x, gaps, kQ8_0, nullptr, out, memory),
                 op + "weight has stride 2 in its last dimension, expected 1");
  EXPECT_INVALID(call(x, weight, kQ8_0, &half, out, memory),
                 op + "bias is float16, but x is float32");
  EXPECT_INVALID(call(x, weight, kQ8_0, &bias, x, memory),
                 op + "out has shape (2, 64), expected (2, 3)");
  EXPECT_INVALID(
      call(x, weight, kQ8_0, &bias, out, nullptr),
      op + "scratch is null, expected " + std::to_string(bytes) + " bytes");
  EXPECT_INVALID(call(x, weight, kQ8_0, nullptr,
                      moved_to(out, weight.view().data), memory),
                 op + "out may overlap weight, expected memory of its own");
  EXPECT_INVALID(call(x, weight, kQ8_0, nullptr, moved_to(out, memory), memory),
                 op + "out may overlap scratch, expected memory of its own");
  EXPECT_EQ(out.memory(), before);
}

}  // namespace
}  // namespace foo_core::testing
