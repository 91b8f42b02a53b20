// softmax(scale query key^T + mask) value. The kernel is plain: a block has a
// row of query and up to kThreads columns of out, one for each thread, and
// computes the scores of kThreads keys at a time, one in each thread.
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace foo_core::cuda {
namespace {

constexpr int kThreads = 128;

/// S is the type of keys and values: T, or one of 16 bits if T is float.
template <class T, class S>
struct Arguments {
  Nest<5> rows;  // of query, keys, values, the mask and out
  Line<const T> query;
  Line<const S> key, value;
  AnyLine<const void*> mask;  // of T or of bytes
  Line<T> out;
  int64_t key_step, value_step;  // between keys
  int64_t count;                 // of blocks
  int64_t each;                  // blocks per row
  int64_t keys, size, value_size;
  Compute<T> scale;
};

template <class T, class S>
__device__ Compute<T> score(const Arguments<T, S>& a, const Offsets<5>& at,
                            int64_t j) {
  using C = Compute<T>;
  const auto query = moved(a.query, at.of[0]);
  const auto key = moved(a.key, at.of[1] + j * a.key_step);
  C sum = 0;
  for (int64_t i = 0; i < a.size; ++i) {
    sum = fma(widen(query.data[i * query.stride]),
              widen(key.data[i * key.stride]), sum);
  }
  const int64_t mask = at.of[3] + j * a.mask.stride;
  if (a.mask.data == nullptr) {
    sum *= a.scale;
  } else if (a.mask.dtype == DType::kUInt8) {
    const auto* bytes = static_cast<const std::uint8_t*>(a.mask.data);
    sum = sum * a.scale + (bytes[mask] != 0 ? C{0} : -C{INFINITY});
  } else {
    sum = fma(sum, a.scale, widen(static_cast<const T*>(a.mask.data)[mask]));
  }
  return sum;
}

template <class T, class S>
__global__ void __launch_bounds__(kThreads)
    attention_kernel(const Arguments<T, S> a) {
  using C = Compute<T>;
  __shared__ C weights[kThreads];
  for (int64_t block = blockIdx.x; block < a.count; block += gridDim.x) {
    const Division index = divide(block, a.each);
    const Offsets<5> at(a.rows, index.quotient);
    const int64_t column = index.remainder * kThreads + threadIdx.x;
    C most = -C{INFINITY}, total = 0, sum = 0;
    for (int64_t first = 0; first < a.keys; first += kThreads) {
      const int64_t j = first + threadIdx.x;
      const C x = j < a.keys ? score(a, at, j) : -C{INFINITY};
      C highest[] = {x};
      const C tile = static_cast<C>(reduce_row(highest, Largest()).of[0]);
      const C after = tile > most ? tile : most;
      const C base = after == -C{INFINITY} ? C{0} : after;
      C weight[] = {std::exp(x - base)};
      const C rescale = std::exp(most - base);
      weights[threadIdx.x] = weight[0];
      const C sums = static_cast<C>(reduce_row(weight, Sum()).of[0]);
      __syncthreads();
      most = after;
      total = total * rescale + sums;
      sum *= rescale;
      if (column < a.value_size) {
        const auto value = moved(a.value, at.of[2] + first * a.value_step);
        const int64_t n = a.keys - first < kThreads ? a.keys - first : kThreads;
        for (int64_t k = 0; k < n; ++k) {
          sum = fma(widen(value.data[k * a.value_step + column * value.stride]),
                    weights[k], sum);
        }
      }
      __syncthreads();  // the weights have been read
    }
    if (column < a.value_size) {
      a.out.data[at.of[4] + column * a.out.stride] =
          narrow<T>(total == 0 ? sum : sum / total);
    }
  }
}

}  // namespace

void attention(const ConstTensorView& query, const ConstTensorView& key,
               const ConstTensorView& value, const ConstTensorView* mask,
               double scale, const TensorView& out, void* stream) {
  if (numel(out) == 0) return;
  const int64_t columns = last_size(out);
  const int64_t each = ceil_div(columns, kThreads);
  const int64_t key_heads = key.sizes[1];
  const int64_t group = query.sizes[1] / key_heads;
  const auto run = [&](auto t, auto narrow) {
    using T = decltype(t);
    using S = decltype(narrow);
    Arguments<T, S> a{{},
                      line_of<T>(query),
                      line_of<S>(key),
                      line_of<S>(value),
                      any_line_of(mask),
                      line_of<T>(out),
                      key.strides[2],
                      value.strides[2],
                      count_rows(out) * each,
                      each,
                      key.sizes[2],
                      key.sizes[3],
                      columns,
                      static_cast<Compute<T>>(scale)};
    const auto append = [&](int64_t size, int64_t q, int64_t kv, int64_t m,
                            int64_t o, int d) {
      a.rows.append(size, {query.strides[d] * q, key.strides[d] * kv,
                           value.strides[d] * kv, stride_of(mask, d) * m,
                           out.strides[d] * o});
    };
    append(query.sizes[0], 1, 1, 1, 1, 0);
    append(key_heads, group, 1, group, group, 1);
    append(group, 1, 0, 1, 1, 1);
    append(query.sizes[2], 1, 0, 1, 1, 2);
    a.rows.finish();
    launch("attention", attention_kernel<T, S>, dim3(grid_size(a.count)),
           dim3(kThreads), stream, a);
  };
  for_dtype(key.dtype, [&](auto s) {
    if constexpr (sizeof(s) == 2) {
      if (query.dtype == DType::kFloat32) return run(float(), s);
    }
    run(s, s);
  });
}

}  // namespace foo_core::cuda
