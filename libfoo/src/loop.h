// Parallel loops over rows, elements and plain ranges. Every kernel runs
// through one of them, so the executor is checked in one place.
#pragma once

#include <algorithm>
#include <cstdint>

#include "foo_core/executor.h"
#include "view.h"

namespace foo_core {

/// The number of elements that is worth a thread of its own.
constexpr std::int64_t kGrain = 32768;

/// Throws Unavailable for Device::kCuda, else InvalidArgument.
[[noreturn]] void refuse_device(const char* op, Device device);

/// Whether the executor is for CUDA and this build has the kernels of
/// cuda/kernels.h. An operator asks after it has checked its arguments:
///
///     if constexpr (cuda::kBuilt) {
///       if (on_cuda(executor)) return cuda::op(..., executor.stream);
///     }
///     const CpuThreads threads(op, executor);
///
inline bool on_cuda(const Executor& executor) {
  return executor.device == Device::kCuda;
}

/// The caller's threads. An operator constructs it before it reads or writes
/// any element.
class CpuThreads {
 public:
  /// Throws if the executor is for another device than the CPU.
  CpuThreads(const char* op, const Executor& executor)
      : parallel_for_(executor.parallel_for), pool_(executor.pool) {
    if (executor.device != Device::kCpu) refuse_device(op, executor.device);
  }

  /// Calls f(begin, end) on ranges that make up [0, count), where an index
  /// stands for `work` elements.
  template <class F>
  void for_ranges(std::int64_t count, std::int64_t work, const F& f) const {
    if (count == 0) return;
    // The product of three sizes may overflow, and work may be 0.
    if (count == 1 || work <= kGrain / count || parallel_for_ == nullptr) {
      f(std::int64_t{0}, count);
      return;
    }
    parallel_for_(
        pool_, 0, count, std::max<std::int64_t>(1, kGrain / work),
        [](void* context, std::int64_t begin, std::int64_t end) {
          (*static_cast<const F*>(context))(begin, end);
        },
        const_cast<F*>(&f));
  }

  /// Calls f(begin, end) on ranges of `count` elements.
  template <class F>
  void for_elements(std::int64_t count, const F& f) const {
    for_ranges(count, 1, f);
  }

  /// Calls f(begin, end) on ranges of x's rows, counted in row-major order.
  template <class F>
  void for_rows(const ConstTensorView& x, const F& f) const {
    for_ranges(count_rows(x), last_size(x), f);
  }

 private:
  ParallelFor parallel_for_;
  void* pool_;
};

}  // namespace foo_core
