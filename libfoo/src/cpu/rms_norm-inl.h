// What rms_norm and its gradient share. Included once per SIMD target.
#if defined(FOO_CORE_RMS_NORM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOO_CORE_RMS_NORM_INL_H_
#undef FOO_CORE_RMS_NORM_INL_H_
#else
#define FOO_CORE_RMS_NORM_INL_H_
#endif

#include <cmath>
#include <cstdint>

#include "cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {

/// Elements whose products are added up in the type of computation, in many
/// partial sums, before those go to a double: fewer where vectors are short and
/// partial sums few, or gradients would err 1.4 times as much as eager's. Like
/// a float32 reference this overflows where |x| > 1.8e19, and loses squares
/// below 1e-38.
constexpr int64_t kSumBlock =
    hn::MaxLanes(hn::ScalableTag<float>()) < 8 ? kTile : 4 * kTile;

/// r = 1 / sqrt(mean(x^2) + eps), in double but for eps.
template <class C>
HWY_INLINE double InverseRms(double sum_squares, double eps, int64_t n) {
  return 1 / std::sqrt(sum_squares / static_cast<double>(n) +
                       static_cast<double>(static_cast<C>(eps)));
}

}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#endif  // once per target
