// Rows with any stride, a piece at a time, so that kernels see contiguous
// memory only and nothing is allocated. Included once per SIMD target.
#if defined(FOO_CORE_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOO_CORE_TILE_INL_H_
#undef FOO_CORE_TILE_INL_H_
#else
#define FOO_CORE_TILE_INL_H_
#endif

#include <cstdint>

#include "cpu/vec-inl.h"

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

}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#endif  // once per target
