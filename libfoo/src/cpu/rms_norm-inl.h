// What rms_norm and its gradient share. Included once per SIMD target.
#if defined(FOO_CORE_RMS_NORM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOO_CORE_RMS_NORM_INL_H_
#undef FOO_CORE_RMS_NORM_INL_H_
#else
#define FOO_CORE_RMS_NORM_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/tile-inl.h"
#include "view.h"

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

/// Stores Lanes() elements of T that Load returned, in their own order.
template <class T, class C>
HWY_INLINE void StoreInOrder(Pair<C> x, C* p) {
  const hn::ScalableTag<C> d;
  if constexpr (hwy::IsSame<T, hwy::bfloat16_t>()) {
    return hn::StoreInterleaved2(x.a, x.b, d, p);
  }
  Store(x, p);
}

/// Copies n elements to another dtype.
template <class From, class To>
HWY_NOINLINE void Convert(const From* from, int64_t n, To* to) {
  if constexpr (hwy::IsSame<To, Compute<From>>()) {
    const int64_t step = Lanes<To>();
    int64_t i = 0;
    for (; i + step <= n; i += step) {
      StoreInOrder<From>(Load(from + i), to + i);
    }
    HWY_ALIGN To rest[2 * hn::MaxLanes(hn::ScalableTag<To>())];
    StoreInOrder<From>(LoadN(from + i, n - i), rest);
    std::copy_n(rest, n - i, to + i);
  } else if constexpr (hwy::IsSame<From, Compute<To>>()) {
    const int64_t step = Lanes<From>();
    for (int64_t i = 0; i < n; i += step) {
      const int64_t m = HWY_MIN(step, n - i);
      StoreN(LoadSomeAs<To, false>(from + i, m), to + i, m);
    }
  } else if constexpr (sizeof(From) + sizeof(To) == 12) {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(from[i]);
  } else {  // between double and 16 bits
    float wide[64];
    for (int64_t i = 0; i < n; i += 64) {
      const int64_t m = HWY_MIN(int64_t{64}, n - i);
      Convert(from + i, m, wide);
      Convert(wide, m, to + i);
    }
  }
}

/// Copies elements [i, i + n) of a weight of another dtype to `tile`.
template <class C>
HWY_NOINLINE void ConvertWeight(const ConstTensorView& weight, int64_t i,
                                int64_t n, C* tile) {
  const int64_t stride = last_stride(weight);
  if (stride == 0 && i > 0) return;  // already filled with the element
  ForDType(weight.dtype, [&](auto own) HWY_ATTR {
    using Own = decltype(own);
    if constexpr (!hwy::IsSame<Own, C>()) {
      HWY_ALIGN Own row[kTile];
      const auto* data = static_cast<const Own*>(weight.data);
      Convert(InputTile(data, stride, i, n, row), n, tile);
    }
  });
}

/// Elements [i, i + n) of a weight as contiguous memory, n <= kTile: in place,
/// or copied to `tile`. Unless W is the weight's own type, it is the type of
/// computation. The first call for a row has i = 0.
template <class W>
HWY_INLINE const W* WeightTile(const ConstTensorView& weight, int64_t i,
                               int64_t n, W* tile) {
  if constexpr (hwy::IsSame<W, Compute<W>>()) {
    if (weight.dtype != kDType<W>) {
      ConvertWeight(weight, i, n, tile);
      return tile;
    }
  }
  const auto* data = static_cast<const W*>(weight.data);
  return InputTile(data, last_stride(weight), i, n, tile);
}

}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#endif  // once per target
