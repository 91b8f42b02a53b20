// rms_norm, add_rms_norm and their gradients. The threads of a row keep its
// elements in registers between the sum of squares and the result, so memory is
// read once; what does not fit there is read again, from the L2 cache.
//
// grad_weight is a sum over rows. Each block adds up the rows that it computes
// in registers and writes one partial sum, a slice; a second kernel adds the
// slices. Their number and order depend on the shape alone.
#include <cmath>

#include "cuda/device.h"
#include "cuda/kernels.h"

namespace foo_core::cuda {
namespace {

/// 1 / n and eps rounded to the type of computation.
struct Mean {
  template <class C>
  static Mean of(int64_t n, double eps, C) {
    return {1 / static_cast<double>(n),
            static_cast<double>(static_cast<C>(eps))};
  }
  double inverse_n, eps;
};

/// 1 / sqrt(squares / n + eps), to be rounded to C. For float it is a step of
/// Newton's method, because a root and a division in double are slow, unless
/// the mean is too small for a float.
template <class C>
__device__ double inverse_rms(double squares, const Mean& mean) {
  const double m = fma(squares, mean.inverse_n, mean.eps);
  if (std::is_same_v<C, double> || m < 0x1p-126) return 1 / std::sqrt(m);
  const double r = static_cast<double>(rsqrtf(static_cast<float>(m)));
  if (!(r > 0 && r < INFINITY)) return r;
  return r * fma(-0.5 * m * r, r, 1.5);
}

template <class T>
struct ForwardArguments {
  Nest<4> rows;  // of x, residual, out and sum
  Line<const T> x, residual;
  AnyLine<const void*> weight;
  Line<T> out, sum;
  int64_t count;  // of rows
  int64_t n;
  Mean mean;
};

/// The vectors of a row that a thread keeps. add_rms_norm loads two for each.
template <bool kAdd>
constexpr int kForwardVectors = kAdd ? 2 : 4;

/// W is the type of weights if kN > 1: T or that of computation.
template <class T, int kN, bool kAdd, class W>
__global__ void __launch_bounds__(kMaxThreads)
    forward_kernel(const ForwardArguments<T> arguments) {
  using C = Compute<T>;
  using V = Vec<T, kN>;
  constexpr int kKept = kForwardVectors<kAdd>;
  const int64_t step = int64_t{blockDim.x} * kN;
  for (int64_t first = int64_t{blockIdx.x} * blockDim.y;
       first < arguments.count; first += int64_t{gridDim.x} * blockDim.y) {
    // All threads of the block take part in the sums.
    const int64_t row = first + threadIdx.y;
    const int64_t n = row < arguments.count ? arguments.n : 0;
    const Offsets<4> at(arguments.rows, n > 0 ? row : first);
    const auto x = moved(arguments.x, at.of[0]);
    const auto residual = moved(arguments.residual, at.of[1]);
    const auto out = moved(arguments.out, at.of[2]);
    const auto sum = moved(arguments.sum, at.of[3]);

    C squares = 0;
    const auto add_squares = [&](const V& v) {
      for (int j = 0; j < kN; ++j) {
        squares = fma(v[j], v[j], squares);
      }
    };
    const auto add_residual = [](const V& v, const V& r) {
      C y[kN];
      for (int j = 0; j < kN; ++j) y[j] = v[j] + r[j];
      return V::of(y);
    };
    const int64_t begin = int64_t{threadIdx.x} * kN;
    V kept[kKept], addend[kKept];
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      const int64_t i = begin + k * step;
      if (i < n) {
        kept[k] = x.template load<kN>(i);
        if constexpr (kAdd) addend[k] = residual.template load<kN>(i);
      }
    }
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      const int64_t i = begin + k * step;
      if (i < n) {
        if constexpr (kAdd) {
          kept[k] = add_residual(kept[k], addend[k]);
          sum.store(i, kept[k]);
        }
        add_squares(kept[k]);
      }
    }
    const C first_squares = squares;
    double rest = 0;
    for (int64_t i = begin + kKept * step; i < n; i += step) {
      V v = x.template load<kN>(i);
      if constexpr (kAdd) {
        v = add_residual(v, residual.template load<kN>(i));
        sum.store(i, v);
      }
      squares = 0;
      add_squares(v);
      rest += static_cast<double>(squares);
    }
    C sums[] = {first_squares + static_cast<C>(rest)};
    const auto totals = reduce_row(sums, Sum());
    const C r = static_cast<C>(inverse_rms<C>(totals.of[0], arguments.mean));

    const auto write = [&](int64_t i, const V& v) {
      C y[kN];
      for (int j = 0; j < kN; ++j) y[j] = v[j] * r;
      if (arguments.weight.data != nullptr) {
        if constexpr (kN == 1) {
          y[0] *= arguments.weight.template get<T>(i);
        } else {
          const auto w = arguments.weight.template as<W>().template load<kN>(i);
          for (int j = 0; j < kN; ++j) y[j] *= w[j];
        }
      }
      out.store(i, V::of(y));
    };
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      const int64_t i = begin + k * step;
      if (i < n) write(i, kept[k]);
    }
    for (int64_t i = begin + kKept * step; i < n; i += step) {
      // This thread wrote these elements of sum.
      const auto from = kAdd ? Line<const T>{sum.data, sum.stride} : x;
      write(i, from.template load<kN>(i));
    }
  }
}

/// The gradient of rows that fit in registers. Its kBlocks blocks are two for
/// each multiprocessor of an H100; there are more where a sum over rows would
/// have more than kMostRows terms, whose errors add up. A block has as many
/// rows as fit in kFewThreads threads, or one that needs up to kThreads.
constexpr int64_t kBlocks = 256;
constexpr int64_t kMostRows = 64;
constexpr int kFewThreads = 256;
constexpr int kThreads = 512;
constexpr int kMostVectors = 4;  // of a row, per thread

/// The shape of a block for rows of n elements, and the vectors of a thread.
template <class T>
struct BackwardShape {
  explicit BackwardShape(int64_t n) {
    const int64_t count = ceil_div(n, kWidth<T>);
    vectors = 1;
    while (vectors < kMostVectors && vectors * kFewThreads < count) {
      vectors *= 2;
    }
    fits = count <= vectors * kThreads;
    const int64_t warps = ceil_div(count, int64_t{vectors} * kWarp);
    const auto x = static_cast<unsigned>(
        kWarp * std::clamp<int64_t>(warps, 1, kThreads / kWarp));
    block = dim3(x, std::max(1u, kFewThreads / x));
  }
  int vectors;
  bool fits;
  dim3 block;
};

int64_t blocks_for(int64_t rows, dim3 block) {
  const int64_t most = std::max(kBlocks, ceil_div(rows, kMostRows * block.y));
  return std::min(most, ceil_div(rows, block.y));
}

/// The partial sums of grad_weight, each of n elements.
template <class T>
int64_t slices_of(int64_t rows, int64_t n) {
  const dim3 block = BackwardShape<T>(n).block;
  return std::min(rows, blocks_for(rows, block) * block.y);
}

/// What a row's gradient needs besides its elements.
template <class C>
struct Stats {
  C r;      // 1 / sqrt(mean(x^2) + eps)
  C slope;  // r^3 * mean(grad * weight * x)
};

template <class C>
__device__ Stats<C> stats_of(double squares, double products,
                             const Mean& mean) {
  const double r = inverse_rms<C>(squares, mean);
  return {static_cast<C>(r),
          static_cast<C>(r * r * r * (products * mean.inverse_n))};
}

template <class T>
struct BackwardArguments {
  Nest<4> rows;  // of grad, x, addend and grad_x
  Line<const T> grad, x, addend;
  AnyLine<const void*> weight;
  Line<T> grad_x;
  int64_t count;  // of rows
  int64_t n;
  Mean mean;
  Stats<Compute<T>>* stats;  // one for each row, or null
  Compute<T>* slices;        // null without grad_weight
};

/// grad_x and the slices of grad_weight, for rows of up to kV vectors a thread.
/// W is the type of weights: T or that of computation.
template <class T, int kN, int kV, class W>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const BackwardArguments<T> arguments) {
  using C = Compute<T>;
  using V = Vec<T, kN>;
  const int64_t step = int64_t{blockDim.x} * kN;
  const int64_t begin = int64_t{threadIdx.x} * kN;
  const bool weighted = arguments.weight.data != nullptr;
  Vec<W, kN> weight[kV];
  C slice[kV][kN] = {};
#pragma unroll
  for (int k = 0; k < kV; ++k) {
    const int64_t i = begin + k * step;
    if (weighted && i < arguments.n) {
      weight[k] = arguments.weight.template as<W>().template load<kN>(i);
    }
  }

  struct Row {
    V grad[kV], x[kV];
  };
  const auto load = [&](Row& v, int64_t row) {
    if (row >= arguments.count) return;
    const Offsets<4> at(arguments.rows, row);
    const auto grad = moved(arguments.grad, at.of[0]);
    const auto x = moved(arguments.x, at.of[1]);
#pragma unroll
    for (int k = 0; k < kV; ++k) {
      const int64_t i = begin + k * step;
      if (i < arguments.n) {
        v.grad[k] = grad.template load<kN>(i);
        v.x[k] = x.template load<kN>(i);
      }
    }
  };

  // The next row is on its way while one is computed, if registers allow it.
  constexpr bool kAhead = kV <= 2;
  const int64_t start = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const int64_t stride = int64_t{gridDim.x} * blockDim.y;
  Row now, next;
  if constexpr (kAhead) load(next, start);
  // All threads of the block take part in the sums.
  for (int64_t row = start; row - threadIdx.y < arguments.count;
       row += stride) {
    if constexpr (kAhead) now = next;
    load(kAhead ? next : now, row + (kAhead ? stride : 0));
    const int64_t n = row < arguments.count ? arguments.n : 0;
    C sums[] = {0, 0};  // of x^2 and of grad * weight * x
#pragma unroll
    for (int k = 0; k < kV; ++k) {
      if (begin + k * step >= n) continue;
      for (int j = 0; j < kN; ++j) {
        const C x = now.x[k][j];
        C g = now.grad[k][j];
        if (weighted) g *= weight[k][j];
        sums[0] = fma(x, x, sums[0]);
        sums[1] = fma(g, x, sums[1]);
      }
    }
    const auto totals = reduce_row(sums, Sum());
    if (n == 0) continue;
    const auto stats = stats_of<C>(totals.of[0], totals.of[1], arguments.mean);
    const Offsets<4> at(arguments.rows, row);
    const auto addend = moved(arguments.addend, at.of[2]);
    const auto grad_x = moved(arguments.grad_x, at.of[3]);
#pragma unroll
    for (int k = 0; k < kV; ++k) {
      const int64_t i = begin + k * step;
      if (i >= n) continue;
      C y[kN];
      for (int j = 0; j < kN; ++j) {
        const C x = now.x[k][j], grad = now.grad[k][j];
        slice[k][j] = fma(grad * x, stats.r, slice[k][j]);
        const C g = weighted ? grad * weight[k][j] : grad;
        y[j] = fma(-x, stats.slope, g * stats.r);
      }
      if (arguments.addend.data != nullptr) {
        const V added = addend.template load<kN>(i);
        for (int j = 0; j < kN; ++j) y[j] += added[j];
      }
      if (arguments.grad_x.data != nullptr) grad_x.store(i, V::of(y));
    }
  }
  if (arguments.slices == nullptr || start >= arguments.count) return;
#pragma unroll
  for (int k = 0; k < kV; ++k) {
    const int64_t i = begin + k * step;
    if (i >= arguments.n) continue;
    for (int j = 0; j < kN; ++j) {
      arguments.slices[start * arguments.n + i + j] = slice[k][j];
    }
  }
}

/// Rows of any length and strides: their stats, if `stats` is not null, and
/// grad_x, if that is not.
template <class T>
__global__ void __launch_bounds__(kThreads)
    any_rows_kernel(const BackwardArguments<T> arguments) {
  using C = Compute<T>;
  const bool weighted = arguments.weight.data != nullptr;
  const auto one = [](const Line<const T>& line, int64_t i) {
    return widen(line.data[i * line.stride]);
  };
  for (int64_t row = blockIdx.x; row < arguments.count; row += gridDim.x) {
    const Offsets<4> at(arguments.rows, row);
    const auto grad = moved(arguments.grad, at.of[0]);
    const auto x = moved(arguments.x, at.of[1]);
    double squares = 0, products = 0;
    for (int64_t i = threadIdx.x; i < arguments.n; i += blockDim.x) {
      const C v = one(x, i);
      C g = one(grad, i);
      if (weighted) g *= arguments.weight.template get<T>(i);
      squares += static_cast<double>(v * v);
      products += static_cast<double>(g * v);
    }
    C sums[] = {static_cast<C>(squares), static_cast<C>(products)};
    const auto totals = reduce_row(sums, Sum());
    const auto stats = stats_of<C>(totals.of[0], totals.of[1], arguments.mean);
    if (arguments.stats != nullptr && threadIdx.x == 0) {
      arguments.stats[row] = stats;
    }
    if (arguments.grad_x.data == nullptr) continue;
    const auto addend = moved(arguments.addend, at.of[2]);
    const auto grad_x = moved(arguments.grad_x, at.of[3]);
    for (int64_t i = threadIdx.x; i < arguments.n; i += blockDim.x) {
      C g = one(grad, i);
      if (weighted) g *= arguments.weight.template get<T>(i);
      C y = fma(-one(x, i), stats.slope, g * stats.r);
      if (arguments.addend.data != nullptr) y += one(addend, i);
      grad_x.data[i * grad_x.stride] = narrow<T>(y);
    }
  }
}

/// The slices of any rows, from their stats: a thread for each column, a
/// blockIdx.y for each slice.
template <class T>
__global__ void any_slices_kernel(const BackwardArguments<T> arguments,
                                  int64_t slices) {
  using C = Compute<T>;
  for (int64_t slice = blockIdx.y; slice < slices; slice += gridDim.y) {
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
         i < arguments.n; i += int64_t{gridDim.x} * blockDim.x) {
      C sum = 0;
      for (int64_t row = slice; row < arguments.count; row += slices) {
        const Offsets<4> at(arguments.rows, row);
        const auto grad = moved(arguments.grad, at.of[0]);
        const auto x = moved(arguments.x, at.of[1]);
        const C product =
            widen(grad.data[i * grad.stride]) * widen(x.data[i * x.stride]);
        sum = fma(product, arguments.stats[row].r, sum);
      }
      arguments.slices[slice * arguments.n + i] = sum;
    }
  }
}

/// grad_weight from `count` slices: a column for each threadIdx.x, and the
/// slices divided among the threadIdx.y, of which there are 2^i.
template <class C>
__global__ void add_slices_kernel(const C* slices, int64_t count,
                                  AnyLine<void*> grad_weight, int64_t n) {
  __shared__ double parts[kWarp][kWarp];
  for (int64_t first = int64_t{blockIdx.x} * kWarp; first < n;
       first += int64_t{gridDim.x} * kWarp) {
    const int64_t i = first + threadIdx.x;
    double sum = 0;
    if (i < n) {
      for (int64_t k = threadIdx.y; k < count; k += blockDim.y) {
        sum += static_cast<double>(slices[k * n + i]);
      }
    }
    parts[threadIdx.y][threadIdx.x] = sum;
    for (unsigned half = blockDim.y / 2; half > 0; half /= 2) {
      __syncthreads();
      if (threadIdx.y < half) {
        parts[threadIdx.y][threadIdx.x] +=
            parts[threadIdx.y + half][threadIdx.x];
      }
    }
    if (threadIdx.y == 0 && i < n) {
      grad_weight.set(i, parts[0][threadIdx.x]);
    }
    __syncthreads();  // before the next columns' parts
  }
}

/// Whether T is the type of the weights, if there are any.
template <class T>
bool has_dtype(const ConstTensorView* weight) {
  return weight == nullptr || weight->dtype == kDType<T>;
}

}  // namespace

void rms_norm(const ConstTensorView& x, const ConstTensorView* residual,
              const ConstTensorView* weight, double eps, const TensorView& out,
              const TensorView* residual_out, void* stream) {
  const int64_t rows = count_rows(x), n = last_size(x);
  if (rows == 0 || n == 0) return;
  for_dtype(x.dtype, [&](auto t) {
    using T = decltype(t);
    const ForwardArguments<T> arguments{
        nest_of_rows(x, x, residual, out, residual_out),
        line_of<T>(x),
        line_of<T>(residual),
        any_line_of(weight),
        line_of<T>(out),
        line_of<T>(residual_out),
        rows,
        n,
        Mean::of(n, eps, Compute<T>())};
    const auto run = [&](auto width, auto w) {
      constexpr int kN = decltype(width)::value;
      const auto launch_it = [&](auto adds) {
        constexpr bool kAdd = decltype(adds)::value;
        const dim3 block =
            row_block(ceil_div(n, kN), kForwardVectors<kAdd>, kMaxThreads);
        launch(kAdd ? "add_rms_norm" : "rms_norm",
               forward_kernel<T, kN, kAdd, decltype(w)>,
               dim3(grid_size(ceil_div(rows, block.y))), block, stream,
               arguments);
      };
      if (residual == nullptr) return launch_it(std::false_type());
      launch_it(std::true_type());
    };
    constexpr int kN = kWidth<T>;
    const std::integral_constant<int, kN> wide;
    const bool aligned = is_aligned<kN>(&x, n) && is_aligned<kN>(residual, n) &&
                         is_aligned<kN>(weight, n) && is_aligned<kN>(&out, n) &&
                         is_aligned<kN>(residual_out, n);
    if (aligned && has_dtype<T>(weight)) {
      run(wide, T());
    } else if (aligned && has_dtype<Compute<T>>(weight)) {
      run(wide, Compute<T>());
    } else {
      run(std::integral_constant<int, 1>(), T());
    }
  });
}

std::int64_t rms_norm_backward_scratch_size(const ConstTensorView& x) noexcept {
  const int64_t rows = count_rows(x), n = last_size(x);
  if (n == 0) return 0;
  int64_t bytes = 0;
  for_dtype(x.dtype, [&](auto t) {
    using T = decltype(t);
    bytes = slices_of<T>(rows, n) * n * int64_t{sizeof(Compute<T>)} +
            rows * int64_t{sizeof(Stats<Compute<T>>)};
  });
  return bytes;
}

void rms_norm_backward(const ConstTensorView& grad,
                       const ConstTensorView* addend, const ConstTensorView& x,
                       const ConstTensorView* weight, double eps,
                       const TensorView* grad_x, const TensorView* grad_weight,
                       void* scratch, void* stream) {
  const char* op =
      addend == nullptr ? "rms_norm_backward" : "add_rms_norm_backward";
  const int64_t rows = count_rows(x), n = last_size(x);
  if (n == 0 || (grad_x == nullptr && grad_weight == nullptr)) return;
  for_dtype(x.dtype, [&](auto t) {
    using T = decltype(t);
    using C = Compute<T>;
    const int64_t slices = slices_of<T>(rows, n);
    auto* const memory =
        grad_weight == nullptr ? nullptr : static_cast<C*>(scratch);
    const bool own = has_dtype<T>(weight);
    BackwardArguments<T> arguments{nest_of_rows(x, grad, x, addend, grad_x),
                                   line_of<T>(grad),
                                   line_of<T>(x),
                                   line_of<T>(addend),
                                   any_line_of(weight),
                                   line_of<T>(grad_x),
                                   rows,
                                   n,
                                   Mean::of(n, eps, C()),
                                   nullptr,
                                   memory};
    const BackwardShape<T> shape(n);
    constexpr int kN = kWidth<T>;
    if (rows == 0) {
      // grad_weight is a sum of no slices
    } else if (shape.fits && (own || has_dtype<C>(weight)) &&
               is_aligned<kN>(&grad, n) && is_aligned<kN>(&x, n) &&
               is_aligned<kN>(addend, n) && is_aligned<kN>(weight, n) &&
               is_aligned<kN>(grad_x, n)) {
      const int64_t blocks = ceil_div(rows, shape.block.y);
      const auto grid = dim3(grid_size(
          grad_weight == nullptr ? blocks : blocks_for(rows, shape.block)));
      const auto kernel = !own ? shape.vectors <= 2
                                     ? backward_kernel<T, kN, 2, C>
                                     : backward_kernel<T, kN, 4, C>
                          : shape.vectors == 1 ? backward_kernel<T, kN, 1, T>
                          : shape.vectors == 2 ? backward_kernel<T, kN, 2, T>
                                               : backward_kernel<T, kN, 4, T>;
      launch(op, kernel, grid, shape.block, stream, arguments);
    } else {
      const auto threads = static_cast<unsigned>(
          std::min<int64_t>(kThreads, kWarp * ceil_div(n, kWarp)));
      const auto do_rows = [&] {
        launch(op, any_rows_kernel<T>, dim3(grid_size(rows)), dim3(threads),
               stream, arguments);
      };
      if (grad_weight != nullptr) {
        // The slices come first, because grad_x may be grad or x.
        const BackwardArguments<T> given = arguments;
        arguments.stats =
            reinterpret_cast<Stats<C>*>(arguments.slices + slices * n);
        arguments.grad_x.data = nullptr;
        do_rows();
        launch(op, any_slices_kernel<T>,
               dim3(grid_size(ceil_div(n, threads)),
                    static_cast<unsigned>(std::min(slices, kMostBlocksY))),
               dim3(threads), stream, arguments, slices);
        arguments = given;
      }
      if (grad_x != nullptr) do_rows();
    }
    if (grad_weight == nullptr) return;
    unsigned parts = 1;
    while (parts < kWarp && parts < slices) parts *= 2;
    const AnyLine<void*> sums{grad_weight->data, last_stride(*grad_weight),
                              grad_weight->dtype};
    launch(op, add_slices_kernel<C>, dim3(grid_size(ceil_div(n, kWarp))),
           dim3(kWarp, parts), stream, arguments.slices, slices, sums, n);
  });
}

}  // namespace foo_core::cuda
