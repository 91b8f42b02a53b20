// The memory of the device "foo", which is memory of the host, so that a
// backend can be read and tested on any machine. On a real device, allocate
// and release call its driver, or better, a caching allocator over it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace torch_foo::device {

/// All numbers are bytes.
struct MemoryStatistics {
  std::int64_t allocated;
  std::int64_t peak;
  std::int64_t limit;
};

MemoryStatistics memory_statistics();
void reset_peak_memory();
void set_memory_limit(std::int64_t bytes);

/// Counts bytes as the device's; false, and nothing counted, beyond the limit.
bool reserve(std::int64_t bytes);
void unreserve(std::int64_t bytes);

/// Memory aligned to 64 bytes, uninitialized; null if there is not enough.
void* allocate(std::int64_t bytes);
void release(void* memory, std::int64_t bytes);

}  // namespace torch_foo::device
