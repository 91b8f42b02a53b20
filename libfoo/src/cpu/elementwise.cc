#include "foo_core/elementwise.h"

#include <algorithm>
#include <string>

#include "checks.h"
#include "cpu/nest.h"
#include "cpu/simd.h"
#include "cpu/stream.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/elementwise.cc"
// These after HWY_TARGET_INCLUDE, which they read.
#include "hwy/foreach_target.h"
//
#include "cpu/tile-inl.h"
#include "hwy/cache_control.h"

#ifndef FOO_CORE_ELEMENTWISE_ROW_
#define FOO_CORE_ELEMENTWISE_ROW_
namespace foo_core {

enum class Op { kAdd, kMul, kMulAdd };

/// out[i] = op(a[i], b[i], c) for n elements at the given strides.
using RowFunction = void (*)(const void* a, std::int64_t a_stride,
                             const void* b, std::int64_t b_stride, double c,
                             void* out, std::int64_t out_stride, bool stream,
                             std::int64_t n);

}  // namespace foo_core
#endif

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {

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
    Contiguous<F>(Gather(a, a_stride, i, m, a_tile),
                  Gather(b, b_stride, i, m, b_tile), c,
                  Target(out, out_stride, i, out_tile), false, m);
    Scatter(out_tile, out, out_stride, i, m);
  }
}

template <class F, class T>
void Row(const void* a, int64_t a_stride, const void* b, int64_t b_stride,
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
struct RowOf {
  template <class T>
  HWY_INLINE RowFunction operator()(T) const {
    return Row<F, T>;
  }
};

RowFunction ElementwiseRow(Op op, DType dtype) {
  switch (op) {
    case Op::kAdd:
      return ForDType(dtype, RowOf<Add>());
    case Op::kMul:
      return ForDType(dtype, RowOf<Mul>());
    default:
      return ForDType(dtype, RowOf<MultiplyAdd>());
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foo_core {
namespace {

/// Elements [begin, end) of the nest's iteration space.
struct Loop {
  RowFunction row;
  double c;
  std::int64_t item_size;
  const char* a;
  const char* b;
  char* out;
  bool stream;
  Nest<3> nest;

  void run(std::int64_t begin, std::int64_t end) const {
    const std::int64_t* strides = nest.inner_strides();
    for_each_run(nest, begin, end, [&](const auto& at, std::int64_t n) {
      row(a + at[0] * item_size, strides[0], b + at[1] * item_size, strides[1],
          c, out + at[2] * item_size, strides[2], stream, n);
    });
    if (stream) hwy::FlushStream();
  }

  static void body(void* self, std::int64_t begin, std::int64_t end) {
    static_cast<const Loop*>(self)->run(begin, end);
  }
};

Loop make_loop(Op op, const ConstTensorView& a, const ConstTensorView& b,
               double c, const TensorView& out) {
  Loop loop;
  loop.row = FOO_CORE_DISPATCH(ElementwiseRow)(op, out.dtype);
  loop.c = c;
  loop.item_size = item_size(out.dtype);
  loop.a = static_cast<const char*>(a.data);
  loop.b = static_cast<const char*>(b.data);
  loop.out = static_cast<char*>(out.data);
  loop.stream = worth_streaming(out, {a.data, b.data});
  return loop;
}

/// The dimensions in the given order, which out may be walked in because every
/// element is computed on its own.
void run_range(Op op, const ConstTensorView& a, const ConstTensorView& b,
               double c, const TensorView& out, std::int64_t begin,
               std::int64_t end) {
  Loop loop = make_loop(op, a, b, c, out);
  for (std::int64_t d = 0; d < out.ndim; ++d) {
    loop.nest.append(out.sizes[d],
                     {a.strides[d], b.strides[d], out.strides[d]});
  }
  loop.nest.finish();
  loop.run(begin, end);
}

/// Size of x in dimension d of a broadcast shape with ndim dimensions.
std::int64_t broadcast_size(const ConstTensorView& x, std::int64_t ndim,
                            std::int64_t d) {
  d -= ndim - x.ndim;
  return d < 0 ? 1 : x.sizes[d];
}

std::int64_t broadcast_stride(const ConstTensorView& x, std::int64_t ndim,
                              std::int64_t d) {
  d -= ndim - x.ndim;
  return d < 0 || x.sizes[d] == 1 ? 0 : x.strides[d];
}

void check(const char* op, const Argument& a, const Argument& b,
           const Argument& out) {
  check_tensor(op, a);
  check_tensor(op, b);
  check_tensor(op, out);
  check_same_dtype(op, a, b);
  check_same_dtype(op, a, out);

  const std::int64_t ndim = std::max(a.view.ndim, b.view.ndim);
  std::int64_t sizes[kMaxDims];
  for (std::int64_t d = 0; d < ndim; ++d) {
    const std::int64_t size_a = broadcast_size(a.view, ndim, d);
    const std::int64_t size_b = broadcast_size(b.view, ndim, d);
    if (size_a != size_b && size_a != 1 && size_b != 1) {
      fail(op, "a has shape " + shape_text(a.view.ndim, a.view.sizes) +
                   ", b has shape " + shape_text(b.view.ndim, b.view.sizes) +
                   ": they do not broadcast");
    }
    sizes[d] = size_a == 1 ? size_b : size_a;
  }
  check_shape(op, out, ndim, sizes);
}

void run(const char* name, Op op, const ConstTensorView& a,
         const ConstTensorView& b, double c, const TensorView& out,
         const ParallelFor& parallel_for) {
  check(name, {"a", a}, {"b", b}, {"out", out});
  const std::int64_t count = numel(out);
  if (count == 0) return;

  std::int64_t a_strides[kMaxDims];
  std::int64_t b_strides[kMaxDims];
  for (std::int64_t d = 0; d < out.ndim; ++d) {
    a_strides[d] = broadcast_stride(a, out.ndim, d);
    b_strides[d] = broadcast_stride(b, out.ndim, d);
  }
  const Argument wide_a{"a", {a.data, a.dtype, out.ndim, out.sizes, a_strides}};
  const Argument wide_b{"b", {b.data, b.dtype, out.ndim, out.sizes, b_strides}};
  check_no_self_overlap(name, {"out", out});
  check_overlap(name, {"out", out}, wide_a, true);
  check_overlap(name, {"out", out}, wide_b, true);

  // In the order of out's memory, so that transposed tensors are contiguous.
  int order[kMaxDims];
  sort_dims(out, order);
  Loop loop = make_loop(op, a, b, c, out);
  for (int i = 0; i < out.ndim; ++i) {
    const int d = order[i];
    loop.nest.append(out.sizes[d],
                     {a_strides[d], b_strides[d], out.strides[d]});
  }
  loop.nest.finish();
  if (count < kGrain) {
    loop.run(0, count);
  } else {
    parallel_for.run(parallel_for.self, 0, count, kGrain, Loop::body, &loop);
  }
}

}  // namespace

void add(const ConstTensorView& a, const ConstTensorView& b,
         const TensorView& out, const ParallelFor& parallel_for) {
  run("add", Op::kAdd, a, b, 0, out, parallel_for);
}

void mul(const ConstTensorView& a, const ConstTensorView& b,
         const TensorView& out, const ParallelFor& parallel_for) {
  run("mul", Op::kMul, a, b, 0, out, parallel_for);
}

void muladd(const ConstTensorView& a, const ConstTensorView& b, double c,
            const TensorView& out, const ParallelFor& parallel_for) {
  run("muladd", Op::kMulAdd, a, b, c, out, parallel_for);
}

namespace cpu {

void add(const ConstTensorView& a, const ConstTensorView& b,
         const TensorView& out, std::int64_t begin, std::int64_t end) noexcept {
  run_range(Op::kAdd, a, b, 0, out, begin, end);
}

void mul(const ConstTensorView& a, const ConstTensorView& b,
         const TensorView& out, std::int64_t begin, std::int64_t end) noexcept {
  run_range(Op::kMul, a, b, 0, out, begin, end);
}

void muladd(const ConstTensorView& a, const ConstTensorView& b, double c,
            const TensorView& out, std::int64_t begin,
            std::int64_t end) noexcept {
  run_range(Op::kMulAdd, a, b, c, out, begin, end);
}

}  // namespace cpu
}  // namespace foo_core
#endif  // HWY_ONCE
