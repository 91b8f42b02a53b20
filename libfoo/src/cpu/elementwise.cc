// Element-wise operators, which are bound by memory. The host walks the tensors
// in the order of out's memory and merges contiguous dimensions, so that the
// kernel runs over long rows; rows with other strides are copied tile by tile.
#include "foo_core/elementwise.h"

#include <algorithm>
#include <cstdint>

#include "checks.h"
#include "cpu/simd.h"
#include "cpu/stream.h"
#include "cuda/kernels.h"
#include "loop.h"
#include "nest.h"
#include "view.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/elementwise.cc"
// These read HWY_TARGET_INCLUDE, so they come after it.
#include "hwy/foreach_target.h"
//
#include "cpu/tile-inl.h"
#include "hwy/cache_control.h"

#ifndef FOO_CORE_ELEMENTWISE_
#define FOO_CORE_ELEMENTWISE_
namespace foo_core {
namespace {

/// Computes out[i] = f(a[i], b[i], c) for n elements at the given
/// strides.
using RowKernel = void (*)(const void* a, std::int64_t a_stride, const void* b,
                           std::int64_t b_stride, double c, void* out,
                           std::int64_t out_stride, bool stream,
                           std::int64_t n);

}  // namespace
}  // namespace foo_core
#endif

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {
namespace {

struct Add {
  template <class V>
  HWY_INLINE V operator()(V a, V b, V) const {
    return a + b;
  }
};

struct Mul {
  template <class V>
  HWY_INLINE V operator()(V a, V b, V) const {
    return a * b;
  }
};

struct MultiplyAdd {
  template <class V>
  HWY_INLINE V operator()(V a, V b, V c) const {
    return MulAdd(a, b, c);
  }
};

template <class F, class T>
HWY_INLINE void Contiguous(const T* a, const T* b, Compute<T> c, T* out,
                           bool stream, int64_t n) {
  const auto vc = Pair<Compute<T>>::Set(c);
  ForPairs(out, stream, n, [&](auto whole, int64_t i, int64_t m) HWY_ATTR {
    constexpr bool kAll = decltype(whole)::value;
    const auto y = F()(LoadSome<kAll>(a + i, m), LoadSome<kAll>(b + i, m), vc);
    if constexpr (kAll) return Store(y, out + i, stream);
    StoreN(y, out + i, m);
  });
}

template <class F, class T>
HWY_NOINLINE void Strided(const T* a, int64_t a_stride, const T* b,
                          int64_t b_stride, Compute<T> c, T* out,
                          int64_t out_stride, int64_t n) {
  HWY_ALIGN T a_tile[kTile];
  HWY_ALIGN T b_tile[kTile];
  HWY_ALIGN T out_tile[kTile];
  for (int64_t i = 0; i < n; i += kTile) {
    const int64_t m = HWY_MIN(kTile, n - i);
    Contiguous<F>(InputTile(a, a_stride, i, m, a_tile),
                  InputTile(b, b_stride, i, m, b_tile), c,
                  OutputTile(out, out_stride, i, out_tile), false, m);
    FinishTile(out_tile, out, out_stride, i, m);
  }
}

template <class F, class T>
void AnyRow(const void* a, int64_t a_stride, const void* b, int64_t b_stride,
            double c, void* out, int64_t out_stride, bool stream, int64_t n) {
  const auto* ta = static_cast<const T*>(a);
  const auto* tb = static_cast<const T*>(b);
  const auto tc = static_cast<Compute<T>>(c);
  auto* tout = static_cast<T*>(out);
  if (a_stride == 1 && b_stride == 1 && out_stride == 1) {
    Contiguous<F>(ta, tb, tc, tout, stream, n);
  } else {
    Strided<F>(ta, a_stride, tb, b_stride, tc, tout, out_stride, n);
  }
}

template <class F>
struct KernelsOf {
  template <class T>
  HWY_INLINE RowKernel operator()(T) const {
    return AnyRow<F, T>;
  }
};

RowKernel AddKernel(DType dtype) { return ForDType(dtype, KernelsOf<Add>()); }

RowKernel MulKernel(DType dtype) { return ForDType(dtype, KernelsOf<Mul>()); }

RowKernel MulAddKernel(DType dtype) {
  return ForDType(dtype, KernelsOf<MultiplyAdd>());
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foo_core {
namespace {

/// x as if it had out's shape: its stride is 0 where it broadcasts. Borrows
/// `strides`.
ConstTensorView broadcast(const ConstTensorView& x, const TensorView& out,
                          std::int64_t (&strides)[kMaxDims]) {
  const std::int64_t added = out.ndim - x.ndim;
  for (std::int64_t d = 0; d < out.ndim; ++d) {
    const bool repeats = d < added || x.sizes[d - added] == 1;
    strides[d] = repeats ? 0 : x.strides[d - added];
  }
  return {x.data, x.dtype, out.ndim, out.sizes, strides};
}

/// Size of x in dimension d of a broadcast shape with ndim dimensions.
std::int64_t broadcast_size(const ConstTensorView& x, std::int64_t ndim,
                            std::int64_t d) {
  d -= ndim - x.ndim;
  return d < 0 ? 1 : x.sizes[d];
}

/// out has the shape to which a and b broadcast.
void check_broadcast(const char* op, const ConstTensorView& a,
                     const ConstTensorView& b, const Argument& out) {
  const std::int64_t ndim = std::max(a.ndim, b.ndim);
  std::int64_t sizes[kMaxDims];
  for (std::int64_t d = 0; d < ndim; ++d) {
    const std::int64_t size_a = broadcast_size(a, ndim, d);
    const std::int64_t size_b = broadcast_size(b, ndim, d);
    if (size_a != size_b && size_a != 1 && size_b != 1) {
      fail(op, "a has shape " + shape_text(a.ndim, a.sizes) + ", b has shape " +
                   shape_text(b.ndim, b.sizes) + ": they do not broadcast");
    }
    sizes[d] = size_a == 1 ? size_b : size_a;
  }
  check_shape(op, out, ndim, sizes);
}

void elementwise(const char* op, [[maybe_unused]] cuda::Elementwise function,
                 RowKernel (*kernel_of)(DType), const ConstTensorView& a,
                 const ConstTensorView& b, double c, const TensorView& out,
                 const Executor& executor) {
  const Argument arg_a{"a", a}, arg_b{"b", b}, arg_out{"out", out};
  check_tensor(op, arg_a);
  check_tensor(op, arg_b);
  check_tensor(op, arg_out);
  check_same_dtype(op, arg_a, arg_b);
  check_same_dtype(op, arg_a, arg_out);
  check_broadcast(op, a, b, arg_out);
  std::int64_t a_strides[kMaxDims], b_strides[kMaxDims];
  const Argument wide_a{"a", broadcast(a, out, a_strides)};
  const Argument wide_b{"b", broadcast(b, out, b_strides)};
  check_output(op, arg_out, {&wide_a, &wide_b}, {});
  if constexpr (cuda::kBuilt) {
    if (on_cuda(executor)) {
      return cuda::elementwise(function, wide_a.view, wide_b.view, c, out,
                               executor.stream);
    }
  }
  const CpuThreads threads(op, executor);

  const RowKernel kernel = kernel_of(out.dtype);
  const auto nest = nest_of_elements(out, wide_a.view, wide_b.view, out);
  const std::int64_t* strides = nest.inner_strides();
  const auto* a_data = static_cast<const char*>(a.data);
  const auto* b_data = static_cast<const char*>(b.data);
  auto* out_data = static_cast<char*>(out.data);
  const std::int64_t item = item_bytes(out.dtype);
  const bool stream = worth_streaming(out, {a.data, b.data});
  const auto run = [&](std::int64_t begin, std::int64_t end) {
    for_each_run(nest, begin, end, [&](const auto& at, std::int64_t n) {
      kernel(a_data + at[0] * item, strides[0], b_data + at[1] * item,
             strides[1], c, out_data + at[2] * item, strides[2], stream, n);
    });
    if (stream) hwy::FlushStream();
  };
  threads.for_elements(numel(out), run);
}

}  // namespace

void add(const ConstTensorView& a, const ConstTensorView& b,
         const TensorView& out, const Executor& executor) {
  elementwise("add", cuda::Elementwise::kAdd, FOO_CORE_DISPATCH(AddKernel), a,
              b, 0, out, executor);
}

void mul(const ConstTensorView& a, const ConstTensorView& b,
         const TensorView& out, const Executor& executor) {
  elementwise("mul", cuda::Elementwise::kMul, FOO_CORE_DISPATCH(MulKernel), a,
              b, 0, out, executor);
}

void muladd(const ConstTensorView& a, const ConstTensorView& b, double c,
            const TensorView& out, const Executor& executor) {
  elementwise("muladd", cuda::Elementwise::kMulAdd,
              FOO_CORE_DISPATCH(MulAddKernel), a, b, c, out, executor);
}

}  // namespace foo_core
#endif  // HWY_ONCE
