/// @file
/// How a caller lends its threads to foo_core, which starts none of its own.
#pragma once

#include <cstdint>

#include "foo_core/export.h"

namespace foo_core {

/// The work on indices [begin, end). Never throws.
using RangeBody = void (*)(void* context, std::int64_t begin, std::int64_t end);

/// A parallel loop of the caller's.
struct ParallelFor {
  /// Calls `body(context, b, e)` on disjoint ranges [b, e) that together cover
  /// [begin, end), and returns when all of them are done. A range shorter than
  /// `grain` is not worth a thread of its own. `self` is the member below.
  void (*run)(void* self, std::int64_t begin, std::int64_t end,
              std::int64_t grain, RangeBody body, void* context);
  void* self;  ///< what run is called with
};

/// The loop that calls `body` once, on the calling thread.
FOO_CORE_EXPORT ParallelFor serial() noexcept;

}  // namespace foo_core
