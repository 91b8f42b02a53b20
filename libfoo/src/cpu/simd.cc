// The choice of a SIMD target: the best one that the CPU has, or the one that
// FOO_CORE_SIMD_TARGET or set_simd_target names. A kernel reads one relaxed
// atomic per call.
#define FOO_CORE_MORE_TARGETS (HWY_AVX3_ZEN4 | HWY_AVX3_DL)  // those of any
#include "cpu/simd.h"

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "foo_core/error.h"
#include "hwy/highway.h"

namespace foo_core::simd {
namespace {

// The targets in the order of FOO_CORE_DISPATCH's table, best first. Every CPU
// of an architecture has the last one: SSE2, NEON without AES.
constexpr std::int64_t kTargets[] = {HWY_AVX3_ZEN4,    HWY_AVX3_DL, HWY_AVX3,
                                     HWY_AVX2,         HWY_SSE4,    HWY_SSE2,
                                     HWY_STATIC_TARGET};
constexpr int kCount = sizeof(kTargets) / sizeof(kTargets[0]);

std::int64_t available() {
  static const std::int64_t targets = [] {
    std::int64_t all = hwy::SupportedTargets();
    // Highway keeps this target to AMD's CPUs for an instruction that we do not
    // use. AVX3_SPR has all of its instructions.
    if ((all & HWY_AVX3_SPR) != 0) all |= HWY_AVX3_ZEN4;
    return all & HWY_TARGETS;
  }();
  return targets;
}

// The index of the target called `name`, or of the best if that is null; -1 if
// there is none.
int find(const char* name) {
  for (int i = 0; i < kCount; ++i) {
    if ((available() & kTargets[i]) == 0) continue;
    if (name == nullptr || std::string(name) == hwy::TargetName(kTargets[i])) {
      return i;
    }
  }
  return name == nullptr ? kCount - 1 : -1;
}

int from_environment() {
  const char* name = std::getenv("FOO_CORE_SIMD_TARGET");
  if (name == nullptr || *name == '\0') return find(nullptr);
  const int index = find(name);
  if (index >= 0) return index;
  std::fprintf(stderr,
               "foo_core: FOO_CORE_SIMD_TARGET is %s, expected one of: %s; "
               "ignored\n",
               name, available_names());
  return find(nullptr);
}

std::atomic<int>& chosen() {
  static std::atomic<int> index{from_environment()};
  return index;
}

}  // namespace

int current() noexcept { return chosen().load(std::memory_order_relaxed); }

const char* current_name() noexcept {
  return hwy::TargetName(kTargets[current()]);
}

const char* available_names() noexcept {
  static const std::string names = [] {
    std::string text;
    std::int64_t seen = 0;
    for (const std::int64_t target : kTargets) {
      if ((available() & target) == 0 || (seen & target) != 0) continue;
      seen |= target;
      if (!text.empty()) text += ' ';
      text += hwy::TargetName(target);
    }
    return text;
  }();
  return names.c_str();
}

void set(const char* target) {
  const int index = find(target);
  if (index < 0) {
    throw InvalidArgument((std::string("set_simd_target: target is ") + target +
                           ", expected one of: " + available_names())
                              .c_str());
  }
  chosen().store(index, std::memory_order_relaxed);
}

}  // namespace foo_core::simd
