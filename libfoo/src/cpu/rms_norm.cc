#include "foo_core/rms_norm.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "checks.h"
#include "cpu/nest.h"
#include "cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/rms_norm.cc"
// These after HWY_TARGET_INCLUDE, which they read.
#include "hwy/foreach_target.h"
//
#include "cpu/vec-inl.h"

#ifndef FOO_CORE_RMS_NORM_ROW_
#define FOO_CORE_RMS_NORM_ROW_
namespace foo_core {

/// One row of a tensor, or null.
template <class Pointer>
struct RowOf {
  Pointer data;
  std::int64_t stride;
};
using Row = RowOf<const void*>;
using MutableRow = RowOf<void*>;

/// Sums over rows, which become grad_weight, are vectors in the type of
/// computation, padded to whole groups of this many elements. Within a group
/// they are in the order that Load leaves them in.
constexpr std::int64_t kGroup = 64;

struct RmsNormKernels {
  void (*forward)(Row x, Row weight, double eps, MutableRow out,
                  std::int64_t n);
  /// Adds this row's part to sum.
  void (*backward)(Row grad, Row x, Row weight, double eps, MutableRow grad_x,
                   void* sum, std::int64_t n);
  /// sum += addend
  void (*accumulate)(void* sum, const void* addend, std::int64_t n);
  /// out = sum, rounded
  void (*finish)(const void* sum, MutableRow out, std::int64_t n);
};

}  // namespace foo_core
#endif

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {

/// Elements whose squares are summed in float, in 4 vectors of partial sums,
/// before they go to a double. Like a float32 reference this overflows where
/// |x| > 1.8e19, and loses squares below 1e-38.
constexpr int64_t kSumBlock = 4 * kTile;

template <class T>
HWY_INLINE double SumSquares(const T* x, int64_t stride, int64_t n) {
  using C = Compute<T>;
  HWY_ALIGN T tile[kTile];
  const int64_t step = Lanes<C>();
  double sum = 0;
  auto s0 = Pair<C>::Set(0), s1 = s0;
  for (int64_t begin = 0; begin < n; begin += kTile) {
    const int64_t m = HWY_MIN(kTile, n - begin);
    const T* p = Gather(x, stride, begin, m, tile);
    int64_t i = 0;
    for (; i + 2 * step <= m; i += 2 * step) {
      const auto x0 = Load(p + i), x1 = Load(p + i + step);
      s0 = MulAdd(x0, x0, s0);
      s1 = MulAdd(x1, x1, s1);
    }
    for (; i < m; i += step) {
      const auto x0 = m - i < step ? LoadN(p + i, m - i) : Load(p + i);
      s0 = MulAdd(x0, x0, s0);
    }
    if ((begin + kTile) % kSumBlock == 0 || begin + kTile >= n) {
      sum += static_cast<double>(Sum(s0 + s1));
      s0 = s1 = Pair<C>::Set(0);
    }
  }
  return sum;
}

/// r = 1 / sqrt(mean(x^2) + eps)
template <class C>
HWY_INLINE double InverseRms(double sum_squares, double eps, int64_t n) {
  return 1 / std::sqrt(sum_squares / static_cast<double>(n) +
                       static_cast<double>(static_cast<C>(eps)));
}

/// out = x * r * weight
template <bool kWeight, class T>
HWY_INLINE void Scale(const T* x, Compute<T> r, const T* weight, T* out,
                      int64_t n) {
  using C = Compute<T>;
  const int64_t step = Lanes<C>();
  const auto vr = Pair<C>::Set(r);
  int64_t i = 0;
  for (; i + step <= n; i += step) {
    const auto y = Load(x + i) * vr;
    Store(kWeight ? y * Load(weight + i) : y, out + i);
  }
  if (i < n) {
    const auto y = LoadN(x + i, n - i) * vr;
    StoreN(kWeight ? y * LoadN(weight + i, n - i) : y, out + i, n - i);
  }
}

template <class T>
void Forward(Row x, Row weight, double eps, MutableRow out, int64_t n) {
  using C = Compute<T>;
  const auto* tx = static_cast<const T*>(x.data);
  const auto* tw = static_cast<const T*>(weight.data);
  auto* tout = static_cast<T*>(out.data);
  const auto r =
      static_cast<C>(InverseRms<C>(SumSquares(tx, x.stride, n), eps, n));
  HWY_ALIGN T x_tile[kTile], w_tile[kTile], out_tile[kTile];
  for (int64_t i = 0; i < n; i += kTile) {
    const int64_t m = HWY_MIN(kTile, n - i);
    const T* px = Gather(tx, x.stride, i, m, x_tile);
    T* pout = Target(tout, out.stride, i, out_tile);
    if (tw == nullptr) {
      Scale<false>(px, r, px, pout, m);
    } else {
      Scale<true>(px, r, Gather(tw, weight.stride, i, m, w_tile), pout, m);
    }
    Scatter(out_tile, tout, out.stride, i, m);
  }
}

template <class T>
HWY_INLINE Pair<Compute<T>> LoadUpTo(const T* p, int64_t n) {
  return n < Lanes<Compute<T>>() ? LoadN(p, n) : Load(p);
}

template <class T>
HWY_INLINE void StoreUpTo(Pair<Compute<T>> x, T* p, int64_t n) {
  n < Lanes<Compute<T>>() ? StoreN(x, p, n) : Store(x, p);
}

/// Adds x^2 to squares and g * x to products, g = grad * weight.
template <bool kWeight, class T>
HWY_INLINE void AddSums(const T* grad, const T* x, const T* weight, int64_t n,
                        Pair<Compute<T>>& squares, Pair<Compute<T>>& products) {
  const int64_t step = Lanes<Compute<T>>();
  for (int64_t i = 0; i < n; i += step) {
    const auto vx = LoadUpTo(x + i, n - i);
    auto g = LoadUpTo(grad + i, n - i);
    if (kWeight) g = g * LoadUpTo(weight + i, n - i);
    squares = MulAdd(vx, vx, squares);
    products = MulAdd(g, vx, products);
  }
}

/// With x' = x * r:  grad_x = r * (g - x' * mean(g * x')),  g = grad * weight,
/// and grad_weight += grad * x'.
template <bool kWeight, bool kGradX, bool kGradWeight, class T>
HWY_INLINE void Gradients(const T* grad, const T* x, const T* weight,
                          Compute<T> r, Compute<T> mean, T* grad_x,
                          Compute<T>* grad_weight, int64_t n) {
  using C = Compute<T>;
  const int64_t step = Lanes<C>();
  const auto vr = Pair<C>::Set(r), vmean = Pair<C>::Set(mean);
  for (int64_t i = 0; i < n; i += step) {
    const auto g = LoadUpTo(grad + i, n - i);
    const auto unit = LoadUpTo(x + i, n - i) * vr;
    if (kGradWeight) {
      Store(MulAdd(g, unit, Load(grad_weight + i)), grad_weight + i);
    }
    if (kGradX) {
      const auto gw = kWeight ? g * LoadUpTo(weight + i, n - i) : g;
      StoreUpTo(vr * NegMulAdd(unit, vmean, gw), grad_x + i, n - i);
    }
  }
}

template <bool kWeight, class T>
void BackwardRow(Row grad, Row x, Row weight, double eps, MutableRow grad_x,
                 void* grad_weight, int64_t n) {
  using C = Compute<T>;
  const auto* tgrad = static_cast<const T*>(grad.data);
  const auto* tx = static_cast<const T*>(x.data);
  const auto* tw = static_cast<const T*>(weight.data);
  auto* tgrad_x = static_cast<T*>(grad_x.data);
  auto* tgrad_weight = static_cast<C*>(grad_weight);
  HWY_ALIGN T g_tile[kTile], x_tile[kTile], w_tile[kTile], out_tile[kTile];

  double sum_squares = 0, sum_products = 0;
  auto squares = Pair<C>::Set(0), products = squares;
  for (int64_t i = 0; i < n; i += kTile) {
    const int64_t m = HWY_MIN(kTile, n - i);
    AddSums<kWeight>(
        Gather(tgrad, grad.stride, i, m, g_tile),
        Gather(tx, x.stride, i, m, x_tile),
        kWeight ? Gather(tw, weight.stride, i, m, w_tile) : nullptr, m, squares,
        products);
    if ((i + kTile) % kSumBlock == 0 || i + kTile >= n) {
      sum_squares += static_cast<double>(Sum(squares));
      sum_products += static_cast<double>(Sum(products));
      squares = products = Pair<C>::Set(0);
    }
  }
  const double r = InverseRms<C>(sum_squares, eps, n);
  const auto tr = static_cast<C>(r);
  const auto mean = static_cast<C>(r * sum_products / static_cast<double>(n));
  for (int64_t i = 0; i < n; i += kTile) {
    const int64_t m = HWY_MIN(kTile, n - i);
    const T* pg = Gather(tgrad, grad.stride, i, m, g_tile);
    const T* px = Gather(tx, x.stride, i, m, x_tile);
    const T* pw = kWeight ? Gather(tw, weight.stride, i, m, w_tile) : nullptr;
    if (tgrad_x == nullptr) {
      Gradients<kWeight, false, true, T>(pg, px, pw, tr, mean, nullptr,
                                         tgrad_weight + i, m);
      continue;
    }
    T* pout = Target(tgrad_x, grad_x.stride, i, out_tile);
    if (tgrad_weight == nullptr) {
      Gradients<kWeight, true, false, T>(pg, px, pw, tr, mean, pout, nullptr,
                                         m);
    } else {
      Gradients<kWeight, true, true, T>(pg, px, pw, tr, mean, pout,
                                        tgrad_weight + i, m);
    }
    Scatter(out_tile, tgrad_x, grad_x.stride, i, m);
  }
}

template <class T>
void Backward(Row grad, Row x, Row weight, double eps, MutableRow grad_x,
              void* grad_weight, int64_t n) {
  (weight.data == nullptr
       ? BackwardRow<false, T>
       : BackwardRow<true, T>)(grad, x, weight, eps, grad_x, grad_weight, n);
}

template <class C>
void Accumulate(void* sum, const void* addend, int64_t n) {
  auto* s = static_cast<C*>(sum);
  const auto* a = static_cast<const C*>(addend);
  for (int64_t i = 0; i < n; i += Lanes<C>()) {
    Store(Load(s + i) + Load(a + i), s + i);
  }
}

template <class T>
void Finish(const void* sum, MutableRow out, int64_t n) {
  const auto* s = static_cast<const Compute<T>*>(sum);
  auto* tout = static_cast<T*>(out.data);
  const int64_t step = Lanes<Compute<T>>();
  HWY_ALIGN T tile[kTile];
  for (int64_t i = 0; i < n; i += step) {
    const int64_t m = HWY_MIN(step, n - i);
    StoreUpTo(Load(s + i), Target(tout, out.stride, i, tile), m);
    Scatter(tile, tout, out.stride, i, m);
  }
}

struct KernelsOf {
  template <class T>
  HWY_INLINE RmsNormKernels operator()(T) const {
    return {Forward<T>, Backward<T>, Accumulate<Compute<T>>, Finish<T>};
  }
};

RmsNormKernels RmsNormKernelsOf(DType dtype) {
  return ForDType(dtype, KernelsOf());
}

}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foo_core {
namespace {

std::int64_t rows_of(const ConstTensorView& x) {
  return numel({x.data, x.dtype, x.ndim - 1, x.sizes, x.strides});
}

std::int64_t last_size(const ConstTensorView& x) { return x.sizes[x.ndim - 1]; }

std::int64_t last_stride(const ConstTensorView& x) {
  return x.strides[x.ndim - 1];
}

/// Row of x at an offset; null stays null.
Row row(const ConstTensorView* x, std::int64_t offset) {
  if (x == nullptr) return {nullptr, 0};
  return {static_cast<const char*>(x->data) + offset * item_size(x->dtype),
          last_stride(*x)};
}

MutableRow row(const TensorView* x, std::int64_t offset) {
  if (x == nullptr) return {nullptr, 0};
  return {static_cast<char*>(x->data) + offset * item_size(x->dtype),
          last_stride(*x)};
}

/// How rms_norm_backward sums over rows: running sums over kRun rows each are
/// added up to one sum per block of rows, and the blocks' sums pairwise. Blocks
/// depend on nothing but the shape.
struct Blocks {
  static constexpr std::int64_t kRun = 16;

  explicit Blocks(std::int64_t rows) {
    size = rows <= 256 ? std::clamp<std::int64_t>((rows + 15) / 16, 4, kRun)
                       : kRun * std::clamp<std::int64_t>(rows / 1024, 1, 16);
    count = (rows + size - 1) / size;
  }

  std::int64_t sums() const { return size > kRun ? 2 : 1; }  // per block

  std::int64_t size;
  std::int64_t count;
};

std::int64_t compute_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : 4;
}

std::int64_t groups_of(std::int64_t n) { return (n + kGroup - 1) / kGroup; }

struct BackwardLoop {
  RmsNormKernels kernels;
  const ConstTensorView* grad;
  const ConstTensorView* x;
  const ConstTensorView* weight;
  double eps;
  const TensorView* grad_x;
  const TensorView* grad_weight;
  char* scratch;
  std::int64_t rows;
  std::int64_t n;
  Blocks blocks;
  Nest<3> nest;

  std::int64_t sum_bytes() const {
    return groups_of(n) * kGroup * compute_size(x->dtype);
  }

  char* block_sum(std::int64_t block) const {
    return scratch + block * blocks.sums() * sum_bytes();
  }

  void run_rows(std::int64_t begin, std::int64_t end, void* sum) const {
    Walker<3> at(nest, nest.ndim, begin);
    for (; begin < end; ++begin, at.next()) {
      kernels.backward(row(grad, at.offset(0)), row(x, at.offset(1)),
                       row(weight, 0), eps, row(grad_x, at.offset(2)), sum, n);
    }
  }

  void run_block(std::int64_t block) const {
    const std::int64_t begin = block * blocks.size;
    const std::int64_t end = std::min(rows, begin + blocks.size);
    char* sum = block_sum(block);
    std::fill_n(sum, sum_bytes(), '\0');
    run_rows(begin, std::min(end, begin + Blocks::kRun), sum);
    for (std::int64_t i = begin + Blocks::kRun; i < end; i += Blocks::kRun) {
      char* run = sum + sum_bytes();
      std::fill_n(run, sum_bytes(), '\0');
      run_rows(i, std::min(end, i + Blocks::kRun), run);
      kernels.accumulate(sum, run, n);
    }
  }

  void zero(std::int64_t column) const {
    const std::int64_t item = item_size(x->dtype);
    auto* out = static_cast<char*>(grad_weight->data);
    std::fill_n(out + column * last_stride(*grad_weight) * item, item, '\0');
  }

  /// Groups [begin, end) of grad_weight from the blocks' sums.
  void combine(std::int64_t begin, std::int64_t end) const {
    const std::int64_t stride = last_stride(*grad_weight);
    auto* out = static_cast<char*>(grad_weight->data);
    for (std::int64_t column = begin * kGroup; column < end * kGroup;
         column += kGroup) {
      const std::int64_t at = column * compute_size(x->dtype);
      for (std::int64_t step = 1; step < blocks.count; step *= 2) {
        for (std::int64_t i = 0; i + step < blocks.count; i += 2 * step) {
          kernels.accumulate(block_sum(i) + at, block_sum(i + step) + at,
                             kGroup);
        }
      }
      kernels.finish(block_sum(0) + at,
                     {out + column * stride * item_size(x->dtype), stride},
                     std::min(n - column, kGroup));
    }
  }
};

void check_weight(const char* op, const Argument& weight, const Argument& x) {
  check_tensor(op, weight);
  check_same_dtype(op, x, weight);
  if (weight.view.ndim != 1) {
    fail(op, std::string(weight.name) + " has " +
                 std::to_string(weight.view.ndim) + " dimensions, expected 1");
  }
  if (last_size(weight.view) != last_size(x.view)) {
    fail(op, std::string(weight.name) + " has " +
                 std::to_string(last_size(weight.view)) +
                 " elements, but x's last dimension is " +
                 std::to_string(last_size(x.view)));
  }
}

void check_x(const char* op, const Argument& x) {
  check_tensor(op, x);
  if (x.view.ndim == 0) {
    fail(op, "x has no dimensions, expected at least 1");
  }
}

void check_like_x(const char* op, const Argument& y, const Argument& x) {
  check_tensor(op, y);
  check_same_dtype(op, x, y);
  check_shape(op, y, x.view.ndim, x.view.sizes);
}

}  // namespace

void rms_norm(const ConstTensorView& x, const ConstTensorView* weight,
              double eps, const TensorView& out,
              const ParallelFor& parallel_for) {
  constexpr const char* kOp = "rms_norm";
  const Argument arg_x{"x", x}, arg_out{"out", out};
  check_x(kOp, arg_x);
  if (weight != nullptr) check_weight(kOp, {"weight", *weight}, arg_x);
  check_like_x(kOp, arg_out, arg_x);
  const std::int64_t count = numel(x);
  if (count == 0) return;
  check_no_self_overlap(kOp, arg_out);
  check_overlap(kOp, arg_out, arg_x, true);
  if (weight != nullptr) {
    check_overlap(kOp, arg_out, {"weight", *weight}, false);
  }

  const std::int64_t rows = rows_of(x);
  if (count < kGrain || rows == 1) {
    cpu::rms_norm(x, weight, eps, out, 0, rows);
    return;
  }
  struct Context {
    const ConstTensorView& x;
    const ConstTensorView* weight;
    double eps;
    const TensorView& out;
  } context{x, weight, eps, out};
  parallel_for.run(
      parallel_for.self, 0, rows,
      std::max<std::int64_t>(1, kGrain * rows / count),
      [](void* self, std::int64_t begin, std::int64_t end) {
        const auto& c = *static_cast<const Context*>(self);
        cpu::rms_norm(c.x, c.weight, c.eps, c.out, begin, end);
      },
      &context);
}

std::int64_t rms_norm_backward_scratch_size(const ConstTensorView& x) noexcept {
  if (x.ndim < 1) return 0;
  const Blocks blocks(rows_of(x));
  return blocks.count * blocks.sums() * groups_of(last_size(x)) * kGroup *
         compute_size(x.dtype);
}

void rms_norm_backward(const ConstTensorView& grad, const ConstTensorView& x,
                       const ConstTensorView* weight, double eps,
                       const TensorView* grad_x, const TensorView* grad_weight,
                       void* scratch, const ParallelFor& parallel_for) {
  constexpr const char* kOp = "rms_norm_backward";
  const Argument arg_x{"x", x}, arg_grad{"grad", grad};
  check_x(kOp, arg_x);
  check_like_x(kOp, arg_grad, arg_x);
  if (weight != nullptr) check_weight(kOp, {"weight", *weight}, arg_x);
  if (grad_x != nullptr) check_like_x(kOp, {"grad_x", *grad_x}, arg_x);
  if (grad_weight != nullptr) {
    check_weight(kOp, {"grad_weight", *grad_weight}, arg_x);
  }
  const std::int64_t needed =
      grad_weight == nullptr ? 0 : rms_norm_backward_scratch_size(x);
  if (needed > 0 && scratch == nullptr) {
    fail(kOp, "scratch is null, expected " + std::to_string(needed) + " bytes");
  }
  if (needed > 0 && reinterpret_cast<std::uintptr_t>(scratch) % 64 != 0) {
    fail(kOp, "scratch is not aligned to 64 bytes");
  }
  const std::int64_t scratch_stride = 1;
  const std::int64_t scratch_size = needed / 4;
  const TensorView scratch_view{scratch, DType::kFloat32, 1, &scratch_size,
                                &scratch_stride};
  const auto check_output = [&](const Argument& out, bool alias_rows) {
    check_no_self_overlap(kOp, out);
    check_overlap(kOp, out, arg_grad, alias_rows);
    check_overlap(kOp, out, arg_x, alias_rows);
    if (weight != nullptr) check_overlap(kOp, out, {"weight", *weight}, false);
  };
  if (needed > 0) check_output({"scratch", scratch_view}, false);
  if (grad_weight != nullptr) {
    check_output({"grad_weight", *grad_weight}, false);
    check_overlap(kOp, {"grad_weight", *grad_weight}, {"scratch", scratch_view},
                  false);
  }
  if (grad_x != nullptr) {
    check_output({"grad_x", *grad_x}, true);
    check_overlap(kOp, {"grad_x", *grad_x}, {"scratch", scratch_view}, false);
    if (grad_weight != nullptr) {
      check_overlap(kOp, {"grad_x", *grad_x}, {"grad_weight", *grad_weight},
                    false);
    }
  }

  const std::int64_t n = last_size(x);
  const std::int64_t rows = rows_of(x);
  if (n == 0) return;
  BackwardLoop loop{FOO_CORE_DISPATCH(RmsNormKernelsOf)(x.dtype),
                    &grad,
                    &x,
                    weight,
                    eps,
                    grad_x,
                    grad_weight,
                    static_cast<char*>(scratch),
                    rows,
                    n,
                    Blocks(rows),
                    {}};
  for (std::int64_t d = 0; d < x.ndim - 1; ++d) {
    loop.nest.append(x.sizes[d], {grad.strides[d], x.strides[d],
                                  grad_x == nullptr ? 0 : grad_x->strides[d]});
  }
  loop.nest.finish();
  const ParallelFor& run = rows * n < kGrain ? serial() : parallel_for;
  if (grad_weight == nullptr) {
    if (grad_x == nullptr || rows == 0) return;
    run.run(
        run.self, 0, rows, std::max<std::int64_t>(1, kGrain / n),
        [](void* self, std::int64_t begin, std::int64_t end) {
          static_cast<const BackwardLoop*>(self)->run_rows(begin, end, nullptr);
        },
        &loop);
    return;
  }
  if (rows == 0) {
    for (std::int64_t j = 0; j < n; ++j) loop.zero(j);
    return;
  }
  run.run(
      run.self, 0, loop.blocks.count,
      std::max<std::int64_t>(1, kGrain / n / loop.blocks.size),
      [](void* self, std::int64_t begin, std::int64_t end) {
        for (; begin < end; ++begin) {
          static_cast<const BackwardLoop*>(self)->run_block(begin);
        }
      },
      &loop);
  run.run(
      run.self, 0, groups_of(n),
      std::max<std::int64_t>(1, kGrain / kGroup / loop.blocks.count),
      [](void* self, std::int64_t begin, std::int64_t end) {
        static_cast<const BackwardLoop*>(self)->combine(begin, end);
      },
      &loop);
}

namespace cpu {

void rms_norm(const ConstTensorView& x, const ConstTensorView* weight,
              double eps, const TensorView& out, std::int64_t begin,
              std::int64_t end) noexcept {
  const auto forward = FOO_CORE_DISPATCH(RmsNormKernelsOf)(x.dtype).forward;
  Nest<2> nest;
  for (std::int64_t d = 0; d < x.ndim - 1; ++d) {
    nest.append(x.sizes[d], {x.strides[d], out.strides[d]});
  }
  nest.finish();
  Walker<2> at(nest, nest.ndim, begin);
  for (; begin < end; ++begin, at.next()) {
    forward(row(&x, at.offset(0)), row(weight, 0), eps, row(&out, at.offset(1)),
            last_size(x));
  }
}

}  // namespace cpu
}  // namespace foo_core
#endif  // HWY_ONCE
