// Conversions from and to the 16-bit types, by muladd. With a = b = 0 it rounds
// c; with b = 1 and c = -0 it copies a.
#include <cmath>
#include <cstring>
#include <vector>

#include "testing.h"

namespace foo_core::testing {
namespace {

class RoundingTest : public KernelTest {
 protected:
  double rounded(double c) {
    muladd(zero_, zero_, c, out_);
    return out_.get(0);
  }

  Tensor zero_ = Tensor(dtype(), {1}).randomize(0, 0);
  Tensor out_{dtype(), {1}};
};
FOO_CORE_KERNEL_TESTS(RoundingTest);

TEST_P(RoundingTest, EveryNumberAndTheTiesAndNeighboursBetween) {
  if (item_size(dtype()) != 2) GTEST_SKIP() << "for 16-bit types";
  const int step = on_cuda() ? 37 : 1;  // a launch takes its time
  for (int bits = 0; bits < 0x7FFF; bits += step) {
    const auto lower = static_cast<std::uint16_t>(bits);
    const auto upper = static_cast<std::uint16_t>(bits + 1);
    const double x = decode(dtype(), &lower);
    const double y = decode(dtype(), &upper);
    if (!std::isfinite(x)) continue;
    const auto tie = static_cast<float>(
        std::isfinite(y) ? (x + y) / 2 : x + ulp(dtype(), x) / 2);
    for (const float c : {static_cast<float>(x), std::nextafter(tie, 0.0f), tie,
                          std::nextafter(tie, INFINITY)}) {
      for (const float sign : {1.0f, -1.0f}) {
        const auto wide = static_cast<double>(sign * c);
        ASSERT_EQ(rounded(wide), round_to(dtype(), wide)) << "of " << wide;
      }
    }
  }
}

TEST_P(RoundingTest, NaNAndInfinity) {
  EXPECT_TRUE(std::isnan(rounded(std::nan(""))));
  // The upper half of the first NaN is infinity; the others would round over.
  for (const std::uint32_t bits : {0x7F800001u, 0x7FFFFFFFu, 0xFFFFFFFFu}) {
    float c;
    std::memcpy(&c, &bits, sizeof(c));
    EXPECT_TRUE(std::isnan(rounded(static_cast<double>(c))));
  }
  EXPECT_EQ(rounded(INFINITY), INFINITY);
  EXPECT_EQ(rounded(-INFINITY), -INFINITY);
}

TEST_P(RoundingTest, EveryBitPatternIsCopied) {
  if (item_size(dtype()) != 2) GTEST_SKIP() << "for 16-bit types";
  Tensor x(dtype(), {0x10000}), one(dtype(), {1}), out(dtype(), {0x10000});
  one.set(0, 1);
  auto* bits = static_cast<std::uint16_t*>(x.view().data);
  for (int i = 0; i < 0x10000; ++i) bits[i] = static_cast<std::uint16_t>(i);
  muladd(x, one, -0.0, out);
  const auto* copy = static_cast<const std::uint16_t*>(out.view().data);
  for (int i = 0; i < 0x10000; ++i) {
    if (std::isnan(x.get(i))) {
      ASSERT_TRUE(std::isnan(out.get(i))) << i;
    } else {
      ASSERT_EQ(copy[i], bits[i]);
    }
  }
}

// The reference itself is checked on known numbers.
TEST(Reference, Rounds) {
  EXPECT_EQ(round_to(DType::kBFloat16, 1 + 1 / 256.0), 1);
  EXPECT_EQ(round_to(DType::kBFloat16, 1 + 3 / 256.0), 1 + 1 / 64.0);
  EXPECT_EQ(round_to(DType::kFloat16, 65519.99), 65504);
  EXPECT_EQ(round_to(DType::kFloat16, 65520), INFINITY);
  EXPECT_EQ(round_to(DType::kFloat16, std::ldexp(1, -25)), 0);
  EXPECT_EQ(round_to(DType::kFloat16, std::ldexp(1.1, -25)),
            std::ldexp(1, -24));
  const std::uint16_t half[] = {0x3C00, 0x0001, 0xFBFF, 0x7C00};
  const double values[] = {1, std::ldexp(1, -24), -65504, INFINITY};
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(decode(DType::kFloat16, &half[i]), values[i]);
    std::uint16_t bits = 0;
    encode(DType::kFloat16, values[i], &bits);
    EXPECT_EQ(bits, half[i]);
  }
}

}  // namespace
}  // namespace foo_core::testing
