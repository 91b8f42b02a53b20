// Counts what is allocated, so that a limit can be set and tested.
#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <mutex>

namespace torch_foo::device {
namespace {

std::mutex mutex;
MemoryStatistics statistics{0, 0, std::numeric_limits<std::int64_t>::max()};

}  // namespace

MemoryStatistics memory_statistics() {
  const std::lock_guard lock(mutex);
  return statistics;
}

void reset_peak_memory() {
  const std::lock_guard lock(mutex);
  statistics.peak = statistics.allocated;
}

void set_memory_limit(std::int64_t bytes) {
  const std::lock_guard lock(mutex);
  statistics.limit = bytes;
}

bool reserve(std::int64_t bytes) {
  const std::lock_guard lock(mutex);
  if (bytes > statistics.limit - statistics.allocated) return false;
  statistics.allocated += bytes;
  statistics.peak = std::max(statistics.peak, statistics.allocated);
  return true;
}

void unreserve(std::int64_t bytes) {
  const std::lock_guard lock(mutex);
  statistics.allocated -= bytes;
}

void* allocate(std::int64_t bytes) {
  constexpr std::size_t kAlignment = 64;
  if (!reserve(bytes)) return nullptr;
  // aligned_alloc wants a multiple of the alignment, and one for 0 bytes.
  const std::size_t size =
      (static_cast<std::size_t>(bytes) / kAlignment + 1) * kAlignment;
  void* memory = std::aligned_alloc(kAlignment, size);
  if (memory == nullptr) unreserve(bytes);
  return memory;
}

void release(void* memory, std::int64_t bytes) {
  std::free(memory);
  unreserve(bytes);
}

}  // namespace torch_foo::device
