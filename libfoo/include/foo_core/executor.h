/// @file
/// Where an operator runs: on the caller's threads or on a CUDA stream.
/// foo_core starts no threads and creates no streams of its own.
#pragma once

#include <cstdint>

namespace foo_core {

/// Does the work on indices [begin, end). It never throws.
using RangeBody = void (*)(void* context, std::int64_t begin, std::int64_t end);

/// Runs a parallel loop of the caller's: it calls `body(context, b, e)` on
/// disjoint ranges [b, e) that together cover [begin, end), and returns when
/// all calls have returned. A range shorter than `grain` is not worth a thread
/// of its own. `pool` is Executor::pool.
using ParallelFor = void (*)(void* pool, std::int64_t begin, std::int64_t end,
                             std::int64_t grain, RangeBody body, void* context);

/// A kind of device. The numbers are part of the ABI.
enum class Device : std::int32_t { kCpu = 0, kCuda = 1 };

/// The last argument of every operator. By default the operator runs on the
/// calling thread; its result never depends on the number of threads.
///
/// With Executor::cuda, all tensors and scratch are memory of the current CUDA
/// device, and the kernel is queued on the stream. Indices that are held in
/// tensors (positions, targets) are not known to the caller's thread then:
/// where one is out of range, the results of its row are NaN. A build without
/// CUDA kernels throws Unavailable (build_info().cuda tells), a failed launch
/// DeviceError, and an unknown device InvalidArgument.
struct Executor {
  Device device = Device::kCpu;        ///< where tensors are and kernels run
  ParallelFor parallel_for = nullptr;  ///< null: the calling thread
  void* pool = nullptr;    ///< the first argument of each parallel_for call
  void* stream = nullptr;  ///< a cudaStream_t

  /// The CPU, with the caller's threads.
  static Executor threads(ParallelFor parallel_for,
                          void* pool = nullptr) noexcept {
    return {Device::kCpu, parallel_for, pool, nullptr};
  }

  /// The current CUDA device; `stream` is a cudaStream_t.
  static Executor cuda(void* stream) noexcept {
    return {Device::kCuda, nullptr, nullptr, stream};
  }
};

}  // namespace foo_core
