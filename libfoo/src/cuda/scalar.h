// The words of Highway that math-inl.h and glu-inl.h use, for one number: both
// devices compile the same formulas. A V is a float or a double here, and D is
// its type. Only for CUDA sources, which do not include Highway.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#define FOO_CORE_CUDA_SCALAR
#define HWY_ARCH_X86 0
#define HWY_NATIVE_FMA 1
#define HWY_TARGET 0
#define HWY_AVX3 1
#define HWY_NAMESPACE N_CUDA
#define HWY_ATTR
#define HWY_INLINE __device__ __forceinline__
#define HWY_BEFORE_NAMESPACE() static_assert(true, "")
#define HWY_AFTER_NAMESPACE() static_assert(true, "")

namespace foo_core {
namespace HWY_NAMESPACE {

namespace hwy {
using bfloat16_t = __nv_bfloat16;
template <bool kCondition, class A, class B>
using If = std::conditional_t<kCondition, A, B>;
template <class A, class B>
HWY_INLINE constexpr bool IsSame() {
  return std::is_same_v<A, B>;
}
}  // namespace hwy

namespace hn {

template <class T>
struct Number {
  using Self = T;
  using Unsigned = hwy::If<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
};
template <class V>
using DFromV = Number<V>;
template <class V>
using TFromV = typename Number<V>::Self;
template <class D>
using TFromD = typename D::Self;
template <class D>
using RebindToUnsigned = Number<typename D::Unsigned>;
template <class T, class D>
using Rebind = Number<T>;
template <class T>
using ScalableTag = Number<T>;
template <class D>
using Vec = TFromD<D>;

template <class D>
HWY_INLINE TFromD<D> Set(D, TFromD<D> x) {
  return x;
}
template <class T>
HWY_INLINE T Zero(Number<T>) {
  return 0;
}
template <class V>
HWY_INLINE V Add(V x, V y) {
  return x + y;
}
template <class V>
HWY_INLINE V Sub(V x, V y) {
  return x - y;
}
template <class V>
HWY_INLINE V Mul(V x, V y) {
  return x * y;
}
template <class V>
HWY_INLINE V Div(V x, V y) {
  return x / y;
}
template <class V>
HWY_INLINE V MulAdd(V x, V y, V z) {
  return fma(x, y, z);
}
template <class V>
HWY_INLINE V MulSub(V x, V y, V z) {
  return fma(x, y, -z);
}
template <class V>
HWY_INLINE V NegMulAdd(V x, V y, V z) {
  return fma(-x, y, z);
}
template <class V>
HWY_INLINE V Abs(V x) {
  return fabs(x);  // also of -0
}
template <class V>
HWY_INLINE V Min(V x, V y) {
  return x < y ? x : y;
}
template <class V>
HWY_INLINE V Max(V x, V y) {
  return x > y ? x : y;
}
template <class V>
HWY_INLINE bool Lt(V x, V y) {
  return x < y;
}
template <class V>
HWY_INLINE bool Gt(V x, V y) {
  return x > y;
}
template <class V>
HWY_INLINE V IfThenElse(bool condition, V yes, V no) {
  return condition ? yes : no;
}
template <class V>
HWY_INLINE V IfNegativeThenElse(V x, V yes, V no) {
  return x < 0 ? yes : no;
}
template <int kBits, class V>
HWY_INLINE V ShiftLeft(V x) {
  return x << kBits;
}
template <int kBits, class V>
HWY_INLINE V ShiftRight(V x) {
  return x >> kBits;
}

HWY_INLINE std::uint32_t BitCast(Number<std::uint32_t>, float x) {
  return __float_as_uint(x);
}
HWY_INLINE float BitCast(Number<float>, std::uint32_t x) {
  return __uint_as_float(x);
}
HWY_INLINE std::uint64_t BitCast(Number<std::uint64_t>, double x) {
  return static_cast<std::uint64_t>(__double_as_longlong(x));
}
HWY_INLINE double BitCast(Number<double>, std::uint64_t x) {
  return __longlong_as_double(static_cast<long long>(x));
}

}  // namespace hn

/// x / y with a relative error below 2^-21; 0 for y from 2^126 to 2^128.
HWY_INLINE float DivideApproximately(float x, float y) {
  return __fdividef(x, y);
}

/// 2^x with a relative error below 2^-21, and 0 instead of a subnormal number.
HWY_INLINE float Exp2Approximately(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0 : y;
#endif
}

/// Two numbers, like the two vectors of vec-inl.h.
template <class C>
struct Pair {
  C a, b;
};

}  // namespace HWY_NAMESPACE
}  // namespace foo_core
