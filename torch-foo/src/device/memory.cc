// Counts what is allocated, so that a limit can be set and tested. The counts
// are atomic and there is no lock, because a process that forks would leave it
// locked for its child if another thread held it.
#include "memory.h"

#include <atomic>
#include <cstdlib>
#include <limits>

namespace torch_foo::device {
namespace {

std::atomic<std::int64_t> allocated{0}, peak{0};
std::atomic<std::int64_t> limit{std::numeric_limits<std::int64_t>::max()};

bool count(std::int64_t bytes) {
  std::int64_t before = allocated;
  do {
    if (bytes > limit - before) return false;
  } while (!allocated.compare_exchange_weak(before, before + bytes));
  return true;
}

void count_peak() {
  const std::int64_t now = allocated;
  std::int64_t highest = peak;
  while (highest < now && !peak.compare_exchange_weak(highest, now)) {
  }
}

}  // namespace

MemoryStatistics memory_statistics() { return {allocated, peak, limit}; }

void reset_peak_memory() { peak = allocated.load(); }

void set_memory_limit(std::int64_t bytes) { limit = bytes; }

bool reserve(std::int64_t bytes) {
  if (!count(bytes)) return false;
  count_peak();
  return true;
}

void unreserve(std::int64_t bytes) { allocated -= bytes; }

void* allocate(std::int64_t bytes) {
  constexpr std::size_t kAlignment = 64;
  if (!count(bytes)) return nullptr;
  // aligned_alloc wants a multiple of the alignment, and one for 0 bytes.
  const std::size_t size =
      (static_cast<std::size_t>(bytes) / kAlignment + 1) * kAlignment;
  void* memory = std::aligned_alloc(kAlignment, size);
  if (memory == nullptr) {
    unreserve(bytes);
  } else {
    count_peak();
  }
  return memory;
}

void release(void* memory, std::int64_t bytes) {
  std::free(memory);
  unreserve(bytes);
}

}  // namespace torch_foo::device
