#include "foo_core/parallel.h"

namespace foo_core {
namespace {

void run_serially(void*, std::int64_t begin, std::int64_t end, std::int64_t,
                  RangeBody body, void* context) {
  if (begin < end) body(context, begin, end);
}

}  // namespace

ParallelFor serial() noexcept { return {run_serially, nullptr}; }

}  // namespace foo_core
