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

/// The number of elements whose products are summed in the type of computation,
/// lane by lane, before the lanes are added to a double. It is smaller for
/// short vectors, whose few lanes would make the error of gradients 1.4× that
/// of eager PyTorch. As in a float32 reference, squares overflow for |x|
/// > 1.8e19 and vanish below 1e-38.
constexpr int64_t kSumBlock =
    hn::MaxLanes(hn::ScalableTag<float>()) < 8 ? kTile : 4 * kTile;

/// r = 1 / sqrt(mean(x^2) + eps), in double, with eps rounded to C.
template <class C>
HWY_INLINE double InverseRms(double sum_squares, double eps, int64_t n) {
  return 1 / std::sqrt(sum_squares / static_cast<double>(n) +
                       static_cast<double>(static_cast<C>(eps)));
}

}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#endif  // once per target
