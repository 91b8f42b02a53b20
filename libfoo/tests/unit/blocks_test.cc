// quantize and dequantize, bit for bit against PyPI's gguf, and their errors.
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "testing.h"

namespace foo_core::testing {
namespace {

struct Format {
  BlockFormat format;
  /// Bytes in which a block's float16 numbers end.
  std::vector<std::size_t> halves;
  /// FNV-1a of the bytes that gguf 0.19 makes of numbers(), and of the numbers
  /// that it makes of bytes(). It does not make blocks of the last two.
  std::uint64_t quantized, dequantized;
};

const Format kFormats[] = {
    {BlockFormat::kQ8_0, {1}, 0xc47a093783178b9c, 0x8aebd1ba4f028eb7},
    {BlockFormat::kQ4_0, {1}, 0x363f0c35946c8e72, 0x7757a7802f8b7ad2},
    {BlockFormat::kQ4_1, {1, 3}, 0x51d19525ff7a2252, 0xc78da6f113b1ad61},
    {BlockFormat::kQ4_K, {1, 3}, 0, 0x79bf084fa0147bbd},
    {BlockFormat::kQ6_K, {209}, 0, 0xf1924d59eecf53ed},
};

/// Numbers from 0 to 65535.
class Generator {
 public:
  unsigned next() {
    state_ = state_ * 1664525 + 1013904223;
    return state_ >> 16;
  }

 private:
  std::uint32_t state_ = 1;
};

/// Blocks of 32 numbers of two magnitudes, and one of zeros.
Tensor numbers() {
  Tensor x(DType::kFloat32, {2048});
  Generator generator;
  for (std::int64_t i = 0; i < 2048; ++i) {
    const double value = (generator.next() - 32768.0) / 4096;
    x.set(i, i / 32 == 5 ? 0 : i / 32 % 3 == 0 ? value / 4 : value);
  }
  return x;
}

/// 8 blocks of any numbers and modest scales.
Tensor bytes(const Format& format) {
  const std::int64_t size = block_bytes(format.format);
  Tensor blocks(DType::kUInt8, {8 * size});
  Generator generator;
  auto* data = static_cast<unsigned char*>(blocks.view().data);
  for (std::int64_t i = 0; i < 8 * size; ++i) {
    data[i] = static_cast<unsigned char>(generator.next());
  }
  for (std::int64_t i = 0; i < 8 * size; i += size) {
    for (const std::size_t half : format.halves) {
      unsigned char& byte = data[static_cast<std::size_t>(i) + half];
      byte = static_cast<unsigned char>((byte & 0x83) | 0x2C);
    }
  }
  return blocks;
}

std::uint64_t hash(const Tensor& x) {
  std::uint64_t result = 0xcbf29ce484222325;
  const auto* data = static_cast<const unsigned char*>(x.view().data);
  for (std::int64_t i = 0; i < x.numel() * item_size(x.dtype); ++i) {
    result = (result ^ data[i]) * 0x100000001b3;
  }
  return result;
}

Tensor quantized(const Tensor& x, BlockFormat format,
                 const Executor& executor = {}) {
  Shape sizes = x.sizes;
  sizes.back() = sizes.back() / block_elements(format) * block_bytes(format);
  Tensor blocks(DType::kUInt8, sizes);
  quantize(x, format, blocks, executor);
  EXPECT_TRUE(blocks.guards_intact());
  return blocks;
}

Tensor dequantized(const Tensor& blocks, BlockFormat format, Shape strides = {},
                   const Executor& executor = {}) {
  Shape sizes = blocks.sizes;
  sizes.back() = sizes.back() / block_bytes(format) * block_elements(format);
  Tensor out(DType::kFloat32, sizes, std::move(strides));
  dequantize(blocks, format, out, executor);
  EXPECT_TRUE(out.guards_intact());
  return out;
}

class BlocksTest : public KernelTest {};
FOO_CORE_KERNEL_TESTS(BlocksTest);

TEST_P(BlocksTest, AreThoseOfGguf) {
  if (dtype() != DType::kFloat32) GTEST_SKIP() << "for one dtype";
  for (const Format& format : kFormats) {
    SCOPED_TRACE(name(format.format));
    if (format.quantized != 0) {
      EXPECT_EQ(hash(quantized(numbers(), format.format)), format.quantized);
    }
    EXPECT_EQ(hash(dequantized(bytes(format), format.format)),
              format.dequantized);
  }
}

// Half a step of the range of each group, and what its rounded scale costs.
TEST_P(BlocksTest, AreNearTheNumbers) {
  for (const auto& [format, halves, _, __] : kFormats) {
    const Tensor x = make({3, 512}).randomize(1);
    const Tensor y = dequantized(quantized(x, format), format);
    const double bits = format == BlockFormat::kQ8_0   ? 8
                        : format == BlockFormat::kQ6_K ? 6
                                                       : 4;
    for (std::int64_t group = 0; group < x.numel(); group += 32) {
      double most = 0;
      for (std::int64_t i = group; i < group + 32; ++i) {
        most = std::max(most, std::fabs(x.get(i)));
      }
      for (std::int64_t i = group; i < group + 32; ++i) {
        ASSERT_NEAR(y.get(i), x.get(i), 1.4 * most / std::exp2(bits - 1))
            << name(format) << " " << i;
      }
    }
  }
}

TEST_P(BlocksTest, AnyStridesAndThreads) {
  for (const auto& [format, halves, _, __] : kFormats) {
    const Tensor plain = make({2, 3, 512}).randomize(1);
    const Tensor blocks = quantized(plain, format);
    EXPECT_EQ(quantized(plain, format, threads()).memory(), blocks.memory());
    Tensor strided = make({2, 3, 512}, {2, -2048, 4});
    for (std::int64_t i = 0; i < plain.numel(); ++i) {
      strided.set(i, plain.get(i));
    }
    EXPECT_EQ(quantized(strided, format).memory(), blocks.memory());
    const Tensor x = dequantized(blocks, format);
    EXPECT_EQ(dequantized(blocks, format, {}, threads()).memory(), x.memory());
    const Tensor far = dequantized(blocks, format, {3072, -1024, 2});
    EXPECT_EQ(far.values(), x.values());
  }
}

TEST_P(BlocksTest, NumbersThatAreNotFinite) {
  for (const auto& [format, halves, _, __] : kFormats) {
    const std::int64_t n = block_elements(format);
    Tensor x = make({3 * n}).randomize(1);
    x.set(3, std::nan(""));
    x.set(n + 3, INFINITY);
    const Tensor blocks = quantized(x, format);
    const Tensor y = dequantized(blocks, format);
    EXPECT_TRUE(std::isnan(y.get(3))) << name(format);
    EXPECT_FALSE(std::isfinite(y.get(n + 3))) << name(format);
    for (std::int64_t i = 2 * n; i < 3 * n; ++i) {
      ASSERT_TRUE(std::isfinite(y.get(i)));
    }
  }
}

TEST(BlocksChecksTest, Properties) {
  constexpr auto kNone = static_cast<BlockFormat>(5);
  EXPECT_STREQ(name(BlockFormat::kQ4_K), "q4_k");
  EXPECT_STREQ(name(kNone), "invalid");
  EXPECT_EQ(block_elements(kNone), 0);
  EXPECT_EQ(block_bytes(kNone), 0);
}

TEST(BlocksChecksTest, Refuses) {
  Tensor x(DType::kFloat32, {2, 64}), odd(DType::kFloat32, {2, 48});
  Tensor blocks(DType::kUInt8, {2, 68}), wrong(DType::kUInt8, {2, 67});
  Tensor gaps(DType::kUInt8, {2, 68}, {200, 2});
  Tensor whole(DType::kInt8, {2, 68}), scalar(DType::kFloat32, {});
  constexpr auto kQ8_0 = BlockFormat::kQ8_0;
  const std::string multiple = "'s last dimension is 48, expected a multiple ";
  EXPECT_INVALID(quantize(odd, kQ8_0, blocks),
                 "quantize: x" + multiple + "of 32 for q8_0");
  EXPECT_INVALID(quantize(x, BlockFormat::kQ6_K, blocks),
                 "quantize: x's last dimension is 64, expected a multiple of "
                 "256 for q6_k");
  EXPECT_INVALID(quantize(x, static_cast<BlockFormat>(9), blocks),
                 "quantize: format is number 9, which is none of "
                 "BlockFormat's");
  EXPECT_INVALID(quantize(x, kQ8_0, wrong),
                 "quantize: blocks has shape (2, 67), expected (2, 68)");
  EXPECT_INVALID(quantize(x, kQ8_0, whole),
                 "quantize: blocks is int8, expected uint8");
  EXPECT_INVALID(
      quantize(x, kQ8_0, gaps),
      "quantize: blocks has stride 2 in its last dimension, expected 1");
  EXPECT_INVALID(quantize(scalar, kQ8_0, blocks),
                 "quantize: x has no dimensions, expected at least 1");
  EXPECT_INVALID(quantize(x, kQ8_0, moved_to(blocks, x.view().data)),
                 "quantize: blocks may overlap x, expected memory of its own");
  EXPECT_INVALID(dequantize(blocks, kQ8_0, odd),
                 "dequantize: out" + multiple + "of 32 for q8_0");
  EXPECT_INVALID(dequantize(wrong, kQ8_0, x),
                 "dequantize: blocks has shape (2, 67), expected (2, 68)");
  EXPECT_INVALID(dequantize(blocks, kQ8_0, Tensor(DType::kFloat64, {2, 64})),
                 "dequantize: out is float64, expected float32");
}

}  // namespace
}  // namespace foo_core::testing
