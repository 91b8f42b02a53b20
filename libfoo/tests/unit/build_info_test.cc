// The library's version, and the devices and SIMD targets that it accepts.
#ifdef __linux__
#include <dlfcn.h>
#endif

#include <cstdlib>
#include <cstring>
#include <filesystem>
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

// All operators run through the loops of src/loop.h, which take no unchecked
// executor, so one operator stands for all.
TEST(ExecutorTest, RefusesADeviceWithoutKernels) {
  FOO_CORE_SKIP_ON_CUDA("there are kernels");
  const Tensor x(DType::kFloat32, {2}), empty(DType::kFloat32, {0});
  const Tensor out(DType::kFloat32, {2});
  const auto before = out.memory();
  for (const Tensor& in : {x, empty}) {
    try {
      add(in, in, in.numel() == 0 ? empty : out, Executor::cuda(nullptr));
      ADD_FAILURE() << "nothing thrown";
    } catch (const Unavailable& error) {
      EXPECT_STREQ(error.what(),
                   "add: this build of foo_core has no CUDA kernels; install "
                   "its cuda variant");
    }
  }
  Executor executor;
  executor.device = static_cast<Device>(2);
  EXPECT_INVALID(
      add(x, x, out, executor),
      "add: executor has device number 2, which is none of Device's");
  EXPECT_EQ(out.memory(), before);
}

TEST(ExecutorTest, CallsTheLoopOfTheCaller) {
  struct Call {
    std::int64_t begin, end, grain;
  };
  std::vector<Call> calls;
  const Executor executor = Executor::threads(
      [](void* pool, std::int64_t begin, std::int64_t end, std::int64_t grain,
         RangeBody body, void* context) {
        static_cast<std::vector<Call>*>(pool)->push_back({begin, end, grain});
        body(context, begin, end);
      },
      &calls);
  const Tensor small(DType::kFloat32, {32768}), row(DType::kFloat32, {65536});
  const Tensor rows(DType::kFloat32, {64, 2048});
  add(small, small, small, executor);        // not worth a second thread
  rms_norm(row, nullptr, 1, row, executor);  // a row is not divided
  EXPECT_EQ(calls.size(), 0u);
  add(row, row, row, executor);
  rms_norm(rows, nullptr, 1, rows, executor);
  ASSERT_EQ(calls.size(), 2u);
  EXPECT_EQ(calls[0].end, 65536);
  EXPECT_EQ(calls[0].grain, 32768);
  EXPECT_EQ(calls[1].end, 64);
  EXPECT_EQ(calls[1].grain, 16);
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

// ctest runs these with variables set.
TEST(Environment, Forced) {
  const char* forced = std::getenv("FOO_CORE_SIMD_TARGET");
  if (forced == nullptr) GTEST_SKIP() << "FOO_CORE_SIMD_TARGET is not set";
  if (!has_target(forced)) GTEST_SKIP() << "no " << forced << " here";
  EXPECT_STREQ(build_info().simd_target, forced);
}

#ifdef __linux__
TEST(Environment, Loaded) {
  const char* library = std::getenv("FOO_CORE_LIBRARY");
  if (library == nullptr) GTEST_SKIP() << "FOO_CORE_LIBRARY is not set";
  Dl_info loaded;
  ASSERT_NE(dladdr(build_info().version, &loaded), 0);
  EXPECT_TRUE(std::filesystem::equivalent(loaded.dli_fname, library))
      << loaded.dli_fname << " is tested, not " << library;
}
#endif

TEST(Environment, Unusable) {
  const std::string targets = build_info().simd_targets;
  const std::string target = build_info().simd_target;
  EXPECT_EQ(targets.compare(0, target.size(), target), 0);  // the first
}

TEST(DTypes, SizesAndNames) {
  EXPECT_EQ(item_size(DType::kFloat32), 4);
  EXPECT_EQ(item_size(DType::kFloat64), 8);
  EXPECT_EQ(item_size(DType::kFloat16), 2);
  EXPECT_EQ(item_size(DType::kBFloat16), 2);
  EXPECT_EQ(item_size(DType::kInt8), 1);
  EXPECT_EQ(item_size(DType::kInt64), 8);
  EXPECT_EQ(item_size(DType::kUInt8), 1);
  EXPECT_EQ(item_size(static_cast<DType>(7)), 0);
  EXPECT_STREQ(name(DType::kFloat32), "float32");
  EXPECT_STREQ(name(DType::kFloat64), "float64");
  EXPECT_STREQ(name(DType::kFloat16), "float16");
  EXPECT_STREQ(name(DType::kBFloat16), "bfloat16");
  EXPECT_STREQ(name(DType::kUInt8), "uint8");
  EXPECT_STREQ(name(static_cast<DType>(-1)), "invalid");
}

}  // namespace
}  // namespace foo_core::testing
