#include <cstdlib>
#include <cstring>
#include <sstream>

#include "testing.h"

namespace foo_core::testing {
namespace {

TEST(BuildInfo, VersionIsThatOfTheHeaders) {
  EXPECT_STREQ(version(), FOO_CORE_VERSION);
  EXPECT_STREQ(build_info().version, FOO_CORE_VERSION);
  std::ostringstream text;
  text << FOO_CORE_VERSION_MAJOR << '.' << FOO_CORE_VERSION_MINOR << '.'
       << FOO_CORE_VERSION_PATCH;
  EXPECT_EQ(text.str(), FOO_CORE_VERSION);
}

TEST(BuildInfo, HasNoCuda) {
  EXPECT_FALSE(build_info().cuda);
  const Tensor x(DType::kFloat32, {2});
  const TensorView out = x;
  const auto expect_unavailable = [](const char* op, auto&& call) {
    try {
      call();
      ADD_FAILURE() << op << " threw nothing";
    } catch (const Unavailable& error) {
      EXPECT_EQ(std::string(error.what()),
                std::string(op) +
                    ": this build of foo_core has no CUDA kernels; install "
                    "its cuda variant");
    }
  };
  expect_unavailable("add", [&] { cuda::add(x, x, out, nullptr); });
  expect_unavailable("mul", [&] { cuda::mul(x, x, out, nullptr); });
  expect_unavailable("muladd", [&] { cuda::muladd(x, x, 1, out, nullptr); });
  expect_unavailable("linear",
                     [&] { cuda::linear(x, x, nullptr, out, nullptr); });
  expect_unavailable("rms_norm",
                     [&] { cuda::rms_norm(x, nullptr, 0, out, nullptr); });
  expect_unavailable("rms_norm_backward", [&] {
    cuda::rms_norm_backward(x, x, nullptr, 0, &out, nullptr, nullptr, nullptr);
  });
}

TEST(SimdTarget, CanBeForcedToEachAndReset) {
  std::istringstream names(build_info().simd_targets);
  std::string best;
  for (std::string name; names >> name;) {
    if (best.empty()) best = name;
    set_simd_target(name.c_str());
    EXPECT_EQ(build_info().simd_target, name);
  }
  set_simd_target(nullptr);
  EXPECT_EQ(build_info().simd_target, best);
}

TEST(SimdTarget, RefusesOtherNames) {
  const std::string before = build_info().simd_target;
  EXPECT_INVALID(
      set_simd_target("MMX"),
      std::string("set_simd_target: target is MMX, expected one of: ") +
          build_info().simd_targets);
  EXPECT_INVALID(set_simd_target(""),
                 std::string("set_simd_target: target is , expected one of: ") +
                     build_info().simd_targets);
  EXPECT_EQ(build_info().simd_target, before);
}

// Run by ctest with FOO_CORE_SIMD_TARGET set.
TEST(Environment, Forced) {
  const char* forced = std::getenv("FOO_CORE_SIMD_TARGET");
  if (forced == nullptr) GTEST_SKIP() << "FOO_CORE_SIMD_TARGET is not set";
  if (!has_target(forced)) GTEST_SKIP() << "no " << forced << " here";
  EXPECT_STREQ(build_info().simd_target, forced);
}

TEST(Environment, Unusable) {
  const std::string targets = build_info().simd_targets;
  const std::string target = build_info().simd_target;
  EXPECT_EQ(targets.compare(0, target.size(), target), 0);  // the best
}

TEST(DTypes, SizesAndNames) {
  EXPECT_EQ(item_size(DType::kFloat32), 4);
  EXPECT_EQ(item_size(DType::kFloat64), 8);
  EXPECT_EQ(item_size(DType::kFloat16), 2);
  EXPECT_EQ(item_size(DType::kBFloat16), 2);
  EXPECT_EQ(item_size(DType::kInt8), 1);
  EXPECT_EQ(item_size(DType::kInt64), 8);
  EXPECT_EQ(item_size(static_cast<DType>(6)), 0);
  EXPECT_STREQ(name(DType::kFloat32), "float32");
  EXPECT_STREQ(name(DType::kFloat64), "float64");
  EXPECT_STREQ(name(DType::kFloat16), "float16");
  EXPECT_STREQ(name(DType::kBFloat16), "bfloat16");
  EXPECT_STREQ(name(static_cast<DType>(-1)), "invalid");
}

}  // namespace
}  // namespace foo_core::testing
