// Rotary position embedding: a block for each token, a thread for a vector of
// pairs of one head. The token's cosines and sines come from the L1 cache for
// all heads but the first.
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace foo_core::cuda {
namespace {

template <class T, class S>
struct Arguments {
  const T* x;
  T* out;
  int64_t x_strides[4], out_strides[4];  // batch, seq, heads, head_dim
  const S* cos;
  const S* sin;
  int64_t cos_strides[2], sin_strides[2];  // position, pair
  const int64_t* positions;                // null: 0, 1, ..., seq - 1
  int64_t position_strides[2];             // batch, seq
  int64_t max_position;
  int64_t batch, seq;
  int64_t heads;
  int64_t half;  // pairs of a head
  int64_t rest;  // elements of a head that are copied
  bool inverse;
};

template <int kN, bool kInterleaved, class T, class S>
__global__ void rope_kernel(const Arguments<T, S> a) {
  using C = Compute<T>;
  // Neighbouring elements of a table that a thread needs.
  constexpr int kPairs = kInterleaved && kN > 1 ? kN / 2 : kN;
  const int64_t rotated = a.half / kPairs;
  const int64_t units = rotated + a.rest / kN;  // of a head
  for (int64_t token = blockIdx.x; token < a.batch * a.seq;
       token += gridDim.x) {
    const auto [batch, at] = divide(token, a.seq);
    int64_t position = at;
    if (a.positions != nullptr) {
      position = read_index(a.positions + batch * a.position_strides[0] +
                            at * a.position_strides[1]);
    }
    const bool known = position >= 0 && position < a.max_position;
    if (!known) position = 0;
    const T* x = a.x + batch * a.x_strides[0] + at * a.x_strides[1];
    T* out = a.out + batch * a.out_strides[0] + at * a.out_strides[1];
    const Line<const S> cos{a.cos + position * a.cos_strides[0],
                            a.cos_strides[1]};
    const Line<const S> sin{a.sin + position * a.sin_strides[0],
                            a.sin_strides[1]};
    for (int64_t i = threadIdx.x; i < a.heads * units; i += blockDim.x) {
      const auto [head, unit] = divide(i, units);
      const Line<const T> from{x + head * a.x_strides[2], a.x_strides[3]};
      const Line<T> to{out + head * a.out_strides[2], a.out_strides[3]};
      if (unit >= rotated) {
        const int64_t j = 2 * a.half + (unit - rotated) * kN;
        C y[kN];
        const auto v = from.template load<kN>(j);
        for (int k = 0; k < kN; ++k) y[k] = known ? v[k] : C(NAN);
        to.store(j, Vec<T, kN>::of(y));
        continue;
      }
      const int64_t pair = unit * kPairs;
      // Positions without a row of the tables may be the only ones.
      Vec<S, kPairs> cos_pairs = {}, sin_pairs = {};
      if (known) {
        cos_pairs = cos.template load<kPairs>(pair);
        sin_pairs = sin.template load<kPairs>(pair);
      }
      // The elements of each pair, which are two vectors, or neighbours in one.
      constexpr bool kOne = kInterleaved && kN > 1;
      const int64_t first = kInterleaved ? 2 * pair : pair;
      const int64_t second = kInterleaved ? first + 1 : first + a.half;
      const auto v = from.template load<kN>(first);
      Vec<T, kN> w;
      if constexpr (!kOne) w = from.template load<kN>(second);
      C y[kN], z[kN];
      for (int k = 0; k < kPairs; ++k) {
        const auto c = known ? static_cast<C>(cos_pairs[k]) : C(NAN);
        auto s = static_cast<C>(sin_pairs[k]);
        if (a.inverse) s = -s;
        const C x1 = kOne ? v[2 * k] : v[k];
        const C x2 = kOne ? v[2 * k + 1] : w[k];
        const C y1 = fma(-x2, s, x1 * c), y2 = fma(x1, s, x2 * c);
        y[kOne ? 2 * k : k] = y1;
        if constexpr (kOne) {
          y[2 * k + 1] = y2;
        } else {
          z[k] = y2;
        }
      }
      to.store(first, Vec<T, kN>::of(y));
      if constexpr (!kOne) to.store(second, Vec<T, kN>::of(z));
    }
  }
}

/// Calls f(T(), S()) with the types of x and of the tables.
template <class F>
void for_dtypes(DType x, DType table, const F& f) {
  for_dtype(x, [&](auto t) {
    if (table == DType::kFloat32) return f(t, float());
    f(t, t);
  });
}

}  // namespace

void rope(const ConstTensorView& x, const ConstTensorView& cos,
          const ConstTensorView& sin, const ConstTensorView* positions,
          const RopeOptions& options, const TensorView& out, void* stream) {
  if (numel(x) == 0) return;
  const int64_t half = last_size(cos), head = last_size(x);
  for_dtypes(x.dtype, cos.dtype, [&](auto t, auto s) {
    using T = decltype(t);
    using S = decltype(s);
    Arguments<T, S> arguments{};
    arguments.x = static_cast<const T*>(x.data);
    arguments.out = static_cast<T*>(out.data);
    std::copy_n(x.strides, 4, arguments.x_strides);
    std::copy_n(out.strides, 4, arguments.out_strides);
    arguments.cos = static_cast<const S*>(cos.data);
    arguments.sin = static_cast<const S*>(sin.data);
    std::copy_n(cos.strides, 2, arguments.cos_strides);
    std::copy_n(sin.strides, 2, arguments.sin_strides);
    if (positions != nullptr) {
      arguments.positions = static_cast<const int64_t*>(positions->data);
      arguments.position_strides[0] =
          positions->ndim == 2 ? positions->strides[0] : 0;
      arguments.position_strides[1] = last_stride(*positions);
    }
    arguments.max_position = cos.sizes[0];
    arguments.batch = x.sizes[0];
    arguments.seq = x.sizes[1];
    arguments.heads = x.sizes[2];
    arguments.half = half;
    arguments.rest = head - 2 * half;
    arguments.inverse = options.inverse;

    const auto run = [&](auto width, auto interleaved) {
      constexpr int kN = decltype(width)::value;
      constexpr bool kInterleaved = decltype(interleaved)::value;
      const int64_t work = x.sizes[2] * ceil_div(head, kN);
      const auto threads = static_cast<unsigned>(
          std::clamp<int64_t>(kWarp * ceil_div(work, kWarp), kWarp, 256));
      launch("rope", rope_kernel<kN, kInterleaved, T, S>,
             dim3(grid_size(x.sizes[0] * x.sizes[1])), dim3(threads), stream,
             arguments);
    };
    const auto choose = [&](auto width) {
      if (options.interleaved) return run(width, std::true_type());
      run(width, std::false_type());
    };
    constexpr int kN = kWidth<T>;
    const bool whole = (options.interleaved ? 2 * half : half) % kN == 0;
    const auto table_aligned = [&](const ConstTensorView& table) {
      return options.interleaved ? is_aligned<kN / 2>(&table, half)
                                 : is_aligned<kN>(&table, half);
    };
    if (whole && is_aligned<kN>(&x, head) && is_aligned<kN>(&out, head) &&
        table_aligned(cos) && table_aligned(sin)) {
      choose(std::integral_constant<int, kN>());
    } else {
      choose(std::integral_constant<int, 1>());
    }
  });
}

}  // namespace foo_core::cuda
