// A consumer of the headers, the library and its exceptions. Its exit status
// tells which of its checks failed.
#include <foo_core/foo_core.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>

int main() {
  const foo_core::BuildInfo info = foo_core::build_info();
  std::printf("foo_core %s (headers %s), cuda: %s, SIMD: %s of %s\n",
              info.version, FOO_CORE_VERSION, info.cuda ? "yes" : "no",
              info.simd_target, info.simd_targets);
  if (std::strcmp(info.version, FOO_CORE_VERSION) != 0) return 1;

  const float x[2][4] = {{1, 2, 3, 4}, {-1, 1, -1, 1}};
  float y[2][4] = {};
  const std::int64_t sizes[] = {2, 4};
  const std::int64_t strides[] = {4, 1};
  const auto dtype = foo_core::DType::kFloat32;
  foo_core::rms_norm({x, dtype, 2, sizes, strides}, nullptr, 0,
                     {y, dtype, 2, sizes, strides});
  for (int i = 0; i < 4; ++i) {
    if (std::fabs(y[0][i] - x[0][i] / std::sqrt(7.5f)) > 1e-6f) return 2;
    if (std::fabs(y[1][i] - x[1][i]) > 1e-6f) return 3;
  }

  foo_core::add({x, dtype, 2, sizes, strides}, {x, dtype, 2, sizes, strides},
                {y, dtype, 2, sizes, strides});
  for (int i = 0; i < 4; ++i) {
    if (y[0][i] != 2 * x[0][i] || y[1][i] != 2 * x[1][i]) return 4;
  }

  try {
    foo_core::add({x, dtype, 2, sizes, strides}, {x, dtype, 1, sizes, strides},
                  {y, dtype, 2, sizes, strides});
  } catch (const foo_core::InvalidArgument& error) {
    std::printf("refused: %s\n", error.what());
    return 0;
  }
  return 5;
}
