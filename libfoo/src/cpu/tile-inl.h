// Rows with any stride, a piece at a time, so that kernels see contiguous
// memory only and nothing is allocated. Included once per SIMD target.
#if defined(FOO_CORE_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOO_CORE_TILE_INL_H_
#undef FOO_CORE_TILE_INL_H_
#else
#define FOO_CORE_TILE_INL_H_
#endif

#include <cstdint>
#include <type_traits>

#include "cpu/stream.h"
#include "cpu/vec-inl.h"
#include "hwy/cache_control.h"

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {

/// Elements that are copied at a time where they are not contiguous.
constexpr int64_t kTile = 1024;

/// Elements [i, i + n) of a row, n <= kTile: in place if they are contiguous,
/// else copied to `tile`. To be called for i = 0 first.
template <class T>
HWY_INLINE const T* Gather(const T* row, int64_t stride, int64_t i, int64_t n,
                           T* tile) {
  if (stride == 1) return row + i;
  if (stride == 0 && i > 0) return tile;  // holds that element already
  for (int64_t j = 0; j < n; ++j) tile[j] = row[(i + j) * stride];
  return tile;
}

/// Asks for what Load(p + distance) will read; harmless for any distance. Where
/// rows have gaps, as halves of packed rows do, CPUs lose track at their ends,
/// and the more, the more is computed: without this for the row to come, a
/// bfloat16 silu_mul of such rows took 2.1 times as long (4096 x 4096, Zen 5).
template <class T>
HWY_INLINE void PrefetchLoad(const T* p, int64_t distance) {
  constexpr auto kBytes = static_cast<std::uintptr_t>(
      2 * hn::MaxLanes(hn::ScalableTag<Compute<T>>()) * sizeof(T));
  const auto at = reinterpret_cast<std::uintptr_t>(p) +
                  static_cast<std::uintptr_t>(distance) * sizeof(T);
  for (std::uintptr_t i = 0; i < kBytes; i += 64) {  // a cache line
    hwy::Prefetch(reinterpret_cast<const T*>(at + i));
  }
}

/// Where elements [i, i + n) of a row are to be written.
template <class T>
HWY_INLINE T* Target(T* row, int64_t stride, int64_t i, T* tile) {
  return stride == 1 ? row + i : tile;
}

/// To be called when they have been written there.
template <class T>
HWY_INLINE void Scatter(const T* tile, T* row, int64_t stride, int64_t i,
                        int64_t n) {
  if (stride == 1) return;
  for (int64_t j = 0; j < n; ++j) row[(i + j) * stride] = tile[j];
}

/// Calls f(whole, i, m) for elements [i, i + m) of n until all are done: whole
/// Pairs, with std::true_type, and fewer. If `stream`, the whole ones begin
/// where `out` can be streamed to.
template <class T, class F>
HWY_INLINE void ForPairs(const T* out, bool stream, int64_t n, F f) {
  const int64_t step = Lanes<Compute<T>>();
  const int64_t head = stream ? HWY_MIN(elements_to_alignment(out), n) : 0;
  int64_t i = 0;
  for (; i < head; i += step) f(std::false_type(), i, HWY_MIN(step, head - i));
  i = head;
  for (; i + step <= n; i += step) f(std::true_type(), i, step);
  if (i < n) f(std::false_type(), i, n - i);
}

}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#endif  // once per target
