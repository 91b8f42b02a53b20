// The gradients of rms_norm and add_rms_norm, in one pass over memory. Two rows
// at a time share the reads of weight and of the sums that become grad_weight.
// These are running sums over few rows, added pairwise, so that the error does
// not grow with the number of rows. Their order depends on the shape alone.
#include <algorithm>
#include <cstdint>
#include <string>

#include "checks.h"
#include "cpu/simd.h"
#include "cpu/stream.h"
#include "cuda/kernels.h"
#include "foo_core/rms_norm.h"
#include "loop.h"
#include "nest.h"
#include "view.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/rms_norm_backward.cc"
// These read HWY_TARGET_INCLUDE, so they come after it.
#include "hwy/foreach_target.h"
//
#include "cpu/rms_norm-inl.h"
#include "hwy/cache_control.h"

#ifndef FOO_CORE_RMS_NORM_BACKWARD_
#define FOO_CORE_RMS_NORM_BACKWARD_
namespace foo_core {
namespace {

/// Rows that are computed together, so that weight and the sums over rows are
/// read and written once for all of them.
constexpr int kRows = 2;

/// Up to kRows rows of each tensor; null for a tensor that is not given.
struct BackwardRows {
  int count = 0;
  const void* grad[kRows];
  const void* x[kRows];
  const void* addend[kRows];
  void* grad_x[kRows];
  std::int64_t grad_stride, x_stride, addend_stride, grad_x_stride;
  bool stream;  // whether grad_x is streamed
};

/// The sums over rows that become grad_weight are vectors in the type of
/// computation, padded to groups of this many elements. Within a group the
/// order is that of Load.
constexpr std::int64_t kGroup = 64;

/// The number of elements of these sums that are combined at a time.
constexpr std::int64_t kColumns = 16 * kGroup;

struct BackwardKernels {
  /// Computes grad_x of the rows and adds their part of grad_weight to sum.
  void (*rows)(const BackwardRows& rows, const ConstTensorView* weight,
               double eps, void* sum, std::int64_t n);
  /// Computes sum += addend.
  void (*accumulate)(void* sum, const void* addend, std::int64_t n);
  /// Computes out = sum, rounded to the dtype, for n <= kColumns.
  void (*finish)(const void* sum, MutableRow out, DType dtype, std::int64_t n);
};

}  // namespace
}  // namespace foo_core
#endif

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {
namespace {

/// Statistics of a row that each element of its gradient needs.
template <class C>
struct RowStats {
  C r;      // 1 / sqrt(mean(x^2) + eps)
  C slope;  // r^3 * mean(grad * weight * x)
};

/// Adds x^2 to squares and g * x to products, g = grad * weight, for n
/// elements.
template <bool kWeight, bool kAll, class W, class T>
HWY_INLINE void AddProducts(const T* grad, const T* x, const W* weight,
                            int64_t n, Pair<Compute<T>>& squares,
                            Pair<Compute<T>>& products) {
  const auto vx = LoadSome<kAll>(x, n);
  auto g = LoadSome<kAll>(grad, n);
  if constexpr (kWeight) g = g * LoadSomeAs<T, kAll>(weight, n);
  squares = MulAdd(vx, vx, squares);
  products = MulAdd(g, vx, products);
}

// Not inlined, because every instance of Rows would compile it.
template <bool kWeight, class W, class T>
HWY_NOINLINE RowStats<Compute<T>> Stats(Row grad, Row x,
                                        const ConstTensorView* weight,
                                        double eps, int64_t n) {
  using C = Compute<T>;
  const auto* tgrad = static_cast<const T*>(grad.data);
  const auto* tx = static_cast<const T*>(x.data);
  HWY_ALIGN T g_tile[kTile], x_tile[kTile];
  HWY_ALIGN W w_tile[kTile];
  const int64_t step = Lanes<C>();
  double squares = 0, products = 0;
  const auto zero = Pair<C>::Set(0);
  auto s0 = zero, s1 = zero, p0 = zero, p1 = zero;
  for (int64_t begin = 0; begin < n; begin += kTile) {
    const int64_t m = HWY_MIN(kTile, n - begin);
    const T* pg = InputTile(tgrad, grad.stride, begin, m, g_tile);
    const T* px = InputTile(tx, x.stride, begin, m, x_tile);
    const W* pw = kWeight ? WeightTile(*weight, begin, m, w_tile) : nullptr;
    int64_t i = 0;
    for (; i + 2 * step <= m; i += 2 * step) {
      const int64_t j = i + step;
      AddProducts<kWeight, true>(pg + i, px + i, pw + i, step, s0, p0);
      AddProducts<kWeight, true>(pg + j, px + j, pw + j, step, s1, p1);
    }
    for (; i + step <= m; i += step) {
      AddProducts<kWeight, true>(pg + i, px + i, pw + i, step, s0, p0);
    }
    if (i < m) {
      AddProducts<kWeight, false>(pg + i, px + i, pw + i, m - i, s0, p0);
    }
    if ((begin + kTile) % kSumBlock == 0 || begin + kTile >= n) {
      squares += static_cast<double>(Sum(s0 + s1));
      products += static_cast<double>(Sum(p0 + p1));
      s0 = s1 = p0 = p1 = zero;
    }
  }
  const double r = InverseRms<C>(squares, eps, n);
  const double mean = products / static_cast<double>(n);
  return {static_cast<C>(r), static_cast<C>(r * mean * r * r)};
}

/// One row of Gradients.
template <class T>
struct GradientRow {
  const T* grad;
  const T* x;
  const T* addend;
  T* grad_x;
  RowStats<Compute<T>> stats;
};

/// What of a gradient is wanted or given, known when it runs.
struct AnyParts {
  bool grad_x, addend;
  static constexpr bool stream = false;
};

/// The same, known when it is compiled.
template <bool kAddend, bool kStream>
struct Parts {
  static constexpr bool grad_x = true, addend = kAddend, stream = kStream;
};

/// Computes elements [i, i + n) of one row of Gradients.
template <bool kWeight, bool kSum, bool kAll, class P, class T>
HWY_INLINE void GradientAt(P parts, const GradientRow<T>& row,
                           Pair<Compute<T>> r, Pair<Compute<T>> slope,
                           Pair<Compute<T>> weight, Pair<Compute<T>>& sum,
                           int64_t i, int64_t n) {
  const auto x = LoadSome<kAll>(row.x + i, n);
  const auto grad = LoadSome<kAll>(row.grad + i, n);
  const auto g = grad * r;
  if constexpr (kSum) sum = MulAdd(g, x, sum);
  if (!parts.grad_x) return;
  auto y = g;
  if (parts.addend) {
    const auto addend = LoadSome<kAll>(row.addend + i, n);
    // An explicit MulAdd, because compilers may fuse g + addend or not.
    y = kWeight ? MulAdd(g, weight, addend) : MulAdd(grad, r, addend);
  } else if constexpr (kWeight) {
    y = g * weight;
  }
  y = NegMulAdd(x, slope, y);
  if constexpr (kAll) return Store<P::stream>(y, row.grad_x + i);
  StoreN(y, row.grad_x + i, n);
}

/// Computes grad_x = r * grad * weight - x * slope + addend and
/// sum += r * grad * x for each of kCount rows, for whole Pairs. Returns the
/// number of elements without the rest.
template <bool kWeight, bool kSum, int kCount, class P, class W, class T>
HWY_INLINE int64_t Gradients(P parts, const GradientRow<T>* rows,
                             const W* weight, Compute<T>* sum, int64_t n) {
  using V = Pair<Compute<T>>;
  const int64_t step = Lanes<Compute<T>>();
  GradientRow<T> row[kCount];
  V r[kCount], slope[kCount];
  for (int k = 0; k < kCount; ++k) {
    row[k] = rows[k];
    r[k] = V::Set(row[k].stats.r);
    slope[k] = V::Set(row[k].stats.slope);
  }
  int64_t i = 0;
  for (; i + step <= n; i += step) {
    V w, total;
    if constexpr (kWeight) w = LoadSomeAs<T, true>(weight + i, step);
    if constexpr (kSum) total = Load(sum + i);
    HWY_UNROLL(kRows)
    for (int k = 0; k < kCount; ++k) {
      GradientAt<kWeight, kSum, true>(parts, row[k], r[k], slope[k], w, total,
                                      i, step);
    }
    if constexpr (kSum) Store(total, sum + i);
  }
  return i;
}

/// Computes elements from i on of one contiguous row. It has the branches that
/// the kernels of kRows rows do not, which would be many more otherwise.
template <bool kWeight, bool kSum, class W, class T>
HWY_NOINLINE void AnyGradient(GradientRow<T> row, const W* weight,
                              Compute<T>* sum, int64_t i, int64_t n) {
  using V = Pair<Compute<T>>;
  const AnyParts parts{row.grad_x != nullptr, row.addend != nullptr};
  if (i == 0) i = Gradients<kWeight, kSum, 1>(parts, &row, weight, sum, n);
  if (i == n) return;
  V w, total;
  if constexpr (kWeight) w = LoadSomeAs<T, false>(weight + i, n - i);
  if constexpr (kSum) total = Load(sum + i);
  GradientAt<kWeight, kSum, false>(parts, row, V::Set(row.stats.r),
                                   V::Set(row.stats.slope), w, total, i, n - i);
  if constexpr (kSum) Store(total, sum + i);
}

/// Computes kRows contiguous rows.
template <bool kWeight, bool kSum, class W, class T>
HWY_INLINE void ContiguousRows(const GradientRow<T>* rows, const W* weight,
                               Compute<T>* sum, bool stream, int64_t n) {
  const auto gradients = [&](auto parts) HWY_ATTR {
    return Gradients<kWeight, kSum, kRows>(parts, rows, weight, sum, n);
  };
  int64_t i = 0;
  if (rows->grad_x == nullptr || (kSum && !kWeight)) {
    // rare, so AnyGradient does it
  } else if (rows->addend == nullptr) {
    i = stream ? gradients(Parts<false, true>())
               : gradients(Parts<false, false>());
  } else {
    i = stream ? gradients(Parts<true, true>())
               : gradients(Parts<true, false>());
  }
  if (i == n) return;
  for (int k = 0; k < kRows; ++k) {
    AnyGradient<kWeight, kSum>(rows[k], weight, sum, i, n);
  }
}

/// Calls AnyGradient for one row with any strides, tile by tile.
template <class W, class T>
HWY_NOINLINE void StridedRow(decltype(&AnyGradient<true, true, W, T>) gradient,
                             Row grad, Row x, const ConstTensorView* weight,
                             Row addend, const RowStats<Compute<T>>& stats,
                             MutableRow grad_x, Compute<T>* sum, int64_t n) {
  HWY_ALIGN T g_tile[kTile], x_tile[kTile], a_tile[kTile], out_tile[kTile];
  HWY_ALIGN W w_tile[kTile];
  const auto* tgrad = static_cast<const T*>(grad.data);
  const auto* tx = static_cast<const T*>(x.data);
  const auto* ta = static_cast<const T*>(addend.data);
  auto* out = static_cast<T*>(grad_x.data);
  for (int64_t i = 0; i < n; i += kTile) {
    const int64_t m = HWY_MIN(kTile, n - i);
    const W* pw =
        weight == nullptr ? nullptr : WeightTile(*weight, i, m, w_tile);
    const GradientRow<T> row{
        InputTile(tgrad, grad.stride, i, m, g_tile),
        InputTile(tx, x.stride, i, m, x_tile),
        ta == nullptr ? nullptr : InputTile(ta, addend.stride, i, m, a_tile),
        out == nullptr ? nullptr : OutputTile(out, grad_x.stride, i, out_tile),
        stats};
    gradient(row, pw, sum == nullptr ? nullptr : sum + i, 0, m);
    if (out != nullptr) FinishTile(out_tile, out, grad_x.stride, i, m);
  }
}

template <bool kWeight, bool kSum, class W, class T>
void Rows(const BackwardRows& rows, const ConstTensorView* weight, double eps,
          void* sum, int64_t n) {
  GradientRow<T> row[kRows];
  bool stream = rows.stream;
  for (int k = 0; k < rows.count; ++k) {
    stream = stream && can_stream(rows.grad_x[k]);
    row[k] = {
        static_cast<const T*>(rows.grad[k]), static_cast<const T*>(rows.x[k]),
        static_cast<const T*>(rows.addend[k]), static_cast<T*>(rows.grad_x[k]),
        Stats<kWeight, W, T>({rows.grad[k], rows.grad_stride},
                             {rows.x[k], rows.x_stride}, weight, eps, n)};
  }
  auto* tsum = static_cast<Compute<T>*>(sum);
  bool contiguous = rows.count == kRows && rows.grad_stride == 1 &&
                    rows.x_stride == 1 && rows.addend_stride == 1 &&
                    rows.grad_x_stride == 1;
  const W* tw = nullptr;
  if constexpr (kWeight) {
    tw = static_cast<const W*>(weight->data);
    contiguous =
        contiguous && weight->dtype == kDType<W> && last_stride(*weight) == 1;
  }
  // With a weight of another dtype, only training is worth the code.
  if constexpr (kSum || hwy::IsSame<W, T>()) {
    if (contiguous) {
      return ContiguousRows<kWeight, kSum>(row, tw, tsum, stream, n);
    }
  }
  for (int k = 0; k < rows.count; ++k) {
    StridedRow<W, T>(AnyGradient<kWeight, kSum, W, T>,
                     {rows.grad[k], rows.grad_stride},
                     {rows.x[k], rows.x_stride}, weight,
                     {rows.addend[k], rows.addend_stride}, row[k].stats,
                     {rows.grad_x[k], rows.grad_x_stride}, tsum, n);
  }
}

template <class T>
void AnyRows(const BackwardRows& rows, const ConstTensorView* weight,
             double eps, void* sum, int64_t n) {
  const auto choose = [&](auto has_weight, auto w) HWY_ATTR {
    using W = decltype(w);
    constexpr bool kWeight = decltype(has_weight)::value;
    return sum == nullptr ? Rows<kWeight, false, W, T>
                          : Rows<kWeight, true, W, T>;
  };
  const auto function = weight == nullptr ? choose(std::false_type(), T())
                        : weight->dtype == kDType<T>
                            ? choose(std::true_type(), T())
                            : choose(std::true_type(), Compute<T>());
  function(rows, weight, eps, sum, n);
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
void Finish(const void* sum, MutableRow out, DType dtype, int64_t n) {
  using C = Compute<T>;
  const auto* s = static_cast<const C*>(sum);
  const int64_t step = Lanes<C>();
  ForDType(dtype, [&](auto w) HWY_ATTR {
    using W = decltype(w);
    auto* tout = static_cast<W*>(out.data);
    HWY_ALIGN W tile[kColumns];
    W* p = OutputTile(tout, out.stride, 0, tile);
    if constexpr (hwy::IsSame<T, W>()) {
      int64_t i = 0;
      for (; i + step <= n; i += step) Store(Load(s + i), p + i);
      if (i < n) StoreN(Load(s + i), p + i, n - i);
    } else {
      HWY_ALIGN C in_order[kColumns];
      for (int64_t i = 0; i < n; i += step) {
        StoreInOrder<T>(Load(s + i), in_order + i);
      }
      Convert(in_order, n, p);
    }
    FinishTile(tile, tout, out.stride, 0, n);
  });
}

struct KernelsOf {
  template <class T>
  HWY_INLINE BackwardKernels operator()(T) const {
    return {AnyRows<T>, Accumulate<Compute<T>>, Finish<T>};
  }
};

BackwardKernels RmsNormBackward(DType dtype) {
  return ForDType(dtype, KernelsOf());
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foo_core {
namespace {

/// How grad_weight is summed over rows. Running sums over kRun rows each are
/// added up to one sum per block of rows, and the blocks' sums are added
/// pairwise. The blocks depend on the shape alone, not on the number of
/// threads.
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

/// One call: its arguments, and the parts of its work.
struct Backward {
  BackwardKernels kernels;
  const ConstTensorView& grad;
  const ConstTensorView& x;
  const ConstTensorView* weight;
  double eps;
  const ConstTensorView* addend;
  const TensorView* grad_x;
  const TensorView* grad_weight;
  char* scratch;
  std::int64_t rows;
  std::int64_t n;
  Blocks blocks;
  Nest<4> nest;

  std::int64_t sum_bytes() const {
    return groups_of(n) * kGroup * compute_size(x.dtype);
  }

  char* block_sum(std::int64_t block) const {
    return scratch + block * blocks.sums() * sum_bytes();
  }

  /// Computes grad_x of rows [begin, end) and adds their part to sum, unless
  /// that is null.
  void do_rows(std::int64_t begin, std::int64_t end, void* sum) const {
    BackwardRows group;
    group.grad_stride = last_stride(grad);
    group.x_stride = last_stride(x);
    group.addend_stride = addend == nullptr ? 1 : last_stride(*addend);
    group.grad_x_stride = grad_x == nullptr ? 1 : last_stride(*grad_x);
    group.stream = grad_x != nullptr &&
                   (addend == nullptr || addend->data != grad_x->data) &&
                   worth_streaming(*grad_x, {grad.data, x.data});
    Walker<4> at(nest, nest.ndim, begin);
    for (; begin < end; begin += group.count) {
      group.count =
          static_cast<int>(std::min<std::int64_t>(kRows, end - begin));
      for (int k = 0; k < group.count; ++k, at.next()) {
        group.grad[k] = row_at(&grad, at.offset(0)).data;
        group.x[k] = row_at(&x, at.offset(1)).data;
        group.addend[k] = row_at(addend, at.offset(2)).data;
        group.grad_x[k] = row_at(grad_x, at.offset(3)).data;
      }
      kernels.rows(group, weight, eps, sum, n);
    }
    if (group.stream) hwy::FlushStream();
  }

  /// Computes grad_x of a block and its sum.
  void do_block(std::int64_t block) const {
    const std::int64_t begin = block * blocks.size;
    const std::int64_t end = std::min(rows, begin + blocks.size);
    char* sum = block_sum(block);
    std::fill_n(sum, sum_bytes(), '\0');
    do_rows(begin, std::min(end, begin + Blocks::kRun), sum);
    for (std::int64_t i = begin + Blocks::kRun; i < end; i += Blocks::kRun) {
      char* run = sum + sum_bytes();
      std::fill_n(run, sum_bytes(), '\0');
      do_rows(i, std::min(end, i + Blocks::kRun), run);
      kernels.accumulate(sum, run, n);
    }
  }

  /// Computes groups [begin, end) of grad_weight from the blocks' sums.
  void combine(std::int64_t begin, std::int64_t end) const {
    const std::int64_t stride = last_stride(*grad_weight);
    const DType dtype = grad_weight->dtype;
    auto* out = static_cast<char*>(grad_weight->data);
    for (std::int64_t column = begin * kGroup; column < end * kGroup;
         column += kColumns) {
      const std::int64_t width = std::min(end * kGroup - column, kColumns);
      const std::int64_t at = column * compute_size(x.dtype);
      for (std::int64_t step = 1; step < blocks.count; step *= 2) {
        for (std::int64_t i = 0; i + step < blocks.count; i += 2 * step) {
          kernels.accumulate(block_sum(i) + at, block_sum(i + step) + at,
                             width);
        }
      }
      kernels.finish(block_sum(0) + at,
                     {out + column * stride * item_bytes(dtype), stride}, dtype,
                     std::min(n - column, width));
    }
  }
};

/// Both operators. x_name is x's name in messages; addend, which may be null,
/// is added to grad_x.
void backward(const char* op, const ConstTensorView& grad,
              const ConstTensorView* addend, const char* x_name,
              const ConstTensorView& x, const ConstTensorView* weight,
              double eps, const TensorView* grad_x,
              const TensorView* grad_weight, void* scratch,
              const Executor& executor) {
  const Argument arg_x{x_name, x}, arg_grad{"grad", grad},
      arg_addend{"grad_residual", addend}, arg_weight{"weight", weight},
      arg_grad_x{"grad_x", grad_x}, arg_grad_weight{"grad_weight", grad_weight};
  check_has_rows(op, arg_x);
  check_like(op, arg_grad, arg_x);
  check_like(op, arg_addend, arg_x);
  check_last_size(op, arg_weight, arg_x);
  check_like(op, arg_grad_x, arg_x);
  check_last_size(op, arg_grad_weight, arg_x);
  check_same_dtype(op, weight == nullptr ? arg_x : arg_weight, arg_grad_weight);
  const Scratch sums(
      op, scratch,
      grad_weight == nullptr ? 0 : rms_norm_backward_scratch_size(x, executor));
  const Argument& arg_sums = sums.argument();
  check_output(op, arg_sums, {}, {&arg_grad, &arg_x, &arg_addend, &arg_weight});
  check_output(op, arg_grad_weight, {},
               {&arg_grad, &arg_x, &arg_addend, &arg_weight, &arg_sums});
  check_output(op, arg_grad_x, {&arg_grad, &arg_x, &arg_addend},
               {&arg_weight, &arg_sums, &arg_grad_weight});
  if constexpr (cuda::kBuilt) {
    if (on_cuda(executor)) {
      return cuda::rms_norm_backward(grad, addend, x, weight, eps, grad_x,
                                     grad_weight, scratch, executor.stream);
    }
  }
  const CpuThreads threads(op, executor);

  const std::int64_t n = last_size(x);
  const std::int64_t rows = count_rows(x);
  if (n == 0) return;
  const Backward work{FOO_CORE_DISPATCH(RmsNormBackward)(x.dtype),
                      grad,
                      x,
                      weight,
                      eps,
                      addend,
                      grad_x,
                      grad_weight,
                      static_cast<char*>(scratch),
                      rows,
                      n,
                      Blocks(rows),
                      nest_of_rows(x, grad, x, addend, grad_x)};
  if (grad_weight == nullptr) {
    if (grad_x == nullptr) return;
    threads.for_ranges(rows, n, [&](std::int64_t begin, std::int64_t end) {
      work.do_rows(begin, end, nullptr);
    });
    return;
  }
  if (rows == 0) {
    fill_zeros(row_at(grad_weight, 0), n, item_bytes(grad_weight->dtype));
    return;
  }
  threads.for_ranges(work.blocks.count, n * std::min(rows, work.blocks.size),
                     [&](std::int64_t begin, std::int64_t end) {
                       for (; begin < end; ++begin) work.do_block(begin);
                     });
  threads.for_ranges(
      groups_of(n), kGroup * work.blocks.count,
      [&](std::int64_t begin, std::int64_t end) { work.combine(begin, end); });
}

}  // namespace

std::int64_t rms_norm_backward_scratch_size(const ConstTensorView& x,
                                            const Executor& executor) noexcept {
  if (!has_rows(x)) return 0;
  if constexpr (cuda::kBuilt) {
    if (on_cuda(executor)) return cuda::rms_norm_backward_scratch_size(x);
  }
  const Blocks blocks(count_rows(x));
  return blocks.count * blocks.sums() * groups_of(last_size(x)) * kGroup *
         compute_size(x.dtype);
}

void rms_norm_backward(const ConstTensorView& grad, const ConstTensorView& x,
                       const ConstTensorView* weight, double eps,
                       const TensorView* grad_x, const TensorView* grad_weight,
                       void* scratch, const Executor& executor) {
  backward("rms_norm_backward", grad, nullptr, "x", x, weight, eps, grad_x,
           grad_weight, scratch, executor);
}

void add_rms_norm_backward(const ConstTensorView& grad,
                           const ConstTensorView* grad_residual,
                           const ConstTensorView& residual_out,
                           const ConstTensorView* weight, double eps,
                           const TensorView* grad_x,
                           const TensorView* grad_weight, void* scratch,
                           const Executor& executor) {
  backward("add_rms_norm_backward", grad, grad_residual, "residual_out",
           residual_out, weight, eps, grad_x, grad_weight, scratch, executor);
}

}  // namespace foo_core
#endif  // HWY_ONCE
