// A loop nest over N tensors of one shape, each with strides of its own.
#pragma once

#include <algorithm>
#include <cstdint>

#include "view.h"

namespace foo_core {

/// Dimensions that are contiguous with each other in every tensor are merged,
/// so that the innermost loop is as long as possible. There is at least one
/// dimension.
template <int N>
struct Nest {
  int ndim = 0;
  std::int64_t sizes[kMaxDims];
  std::int64_t strides[kMaxDims][N];

  std::int64_t inner_size() const { return sizes[ndim - 1]; }
  const std::int64_t* inner_strides() const { return strides[ndim - 1]; }

  /// The distance in tensor k, in elements, from one innermost loop to the next
  /// if prefetching that one pays: the elements are contiguous, and few enough
  /// to stay in a cache until then. Else 0.
  std::int64_t next_row(int k) const {
    constexpr std::int64_t kMost = 16384;
    const bool useful =
        ndim > 1 && strides[ndim - 1][k] == 1 && inner_size() <= kMost;
    return useful ? strides[ndim - 2][k] : 0;
  }

  /// Appends a dimension inside the existing ones.
  void append(std::int64_t size, const std::int64_t (&stride)[N]) {
    if (size == 1) return;
    bool merge = ndim > 0;
    for (int k = 0; merge && k < N; ++k) {
      merge = strides[ndim - 1][k] == size * stride[k];
    }
    if (merge) {
      sizes[ndim - 1] *= size;
    } else {
      sizes[ndim++] = size;
    }
    for (int k = 0; k < N; ++k) strides[ndim - 1][k] = stride[k];
  }

  /// Ends a sequence of append().
  void finish() {
    if (ndim > 0) return;
    ndim = 1;
    sizes[0] = 1;
    for (int k = 0; k < N; ++k) strides[0][k] = 1;
  }
};

/// Offsets of the N tensors at an index that advances by one. Indices are
/// counted in row-major order over the outermost `ndim` dimensions of a nest.
template <int N>
class Walker {
 public:
  Walker(const Nest<N>& nest, int ndim, std::int64_t at)
      : nest_(nest), ndim_(ndim) {
    for (int d = ndim - 1; d >= 0; --d) {
      index_[d] = at % nest.sizes[d];
      at /= nest.sizes[d];
      for (int k = 0; k < N; ++k) {
        offsets_[k] += index_[d] * nest.strides[d][k];
      }
    }
  }

  std::int64_t offset(int k) const { return offsets_[k]; }

  void next() {
    for (int d = ndim_ - 1; d >= 0; --d) {
      if (++index_[d] < nest_.sizes[d]) {
        for (int k = 0; k < N; ++k) offsets_[k] += nest_.strides[d][k];
        return;
      }
      index_[d] = 0;
      for (int k = 0; k < N; ++k) {
        offsets_[k] -= (nest_.sizes[d] - 1) * nest_.strides[d][k];
      }
    }
  }

 private:
  const Nest<N>& nest_;
  int ndim_;
  std::int64_t index_[kMaxDims];
  std::int64_t offsets_[N] = {};
};

/// Calls f(offsets, n) for each run of elements that together make up [begin,
/// end) of a nest: n elements of each tensor, which begin at its offset and are
/// inner_strides() apart.
template <int N, class F>
void for_each_run(const Nest<N>& nest, std::int64_t begin, std::int64_t end,
                  F f) {
  if (begin >= end) return;
  const std::int64_t size = nest.inner_size();
  std::int64_t i = begin % size;
  Walker<N> at(nest, nest.ndim - 1, begin / size);
  for (;; at.next(), i = 0) {
    const std::int64_t n = std::min(size - i, end - begin);
    std::int64_t offsets[N];
    for (int k = 0; k < N; ++k) {
      offsets[k] = at.offset(k) + i * nest.inner_strides()[k];
    }
    f(offsets, n);
    begin += n;
    if (begin == end) return;
  }
}

/// Sorts dimensions by descending stride, the order of x's memory.
inline void sort_dims(const ConstTensorView& x, int (&order)[kMaxDims]) {
  for (int d = 0; d < x.ndim; ++d) {
    const std::uint64_t stride = magnitude(x.strides[d]);
    int at = d;
    for (; at > 0 && magnitude(x.strides[order[at - 1]]) < stride; --at) {
      order[at] = order[at - 1];
    }
    order[at] = d;
  }
}

/// Stride d of a view or of a pointer to one; 0 in one that is null or has
/// fewer dimensions, so that all indices share an element.
template <class View>
std::int64_t stride_of(const View& x, std::int64_t d) {
  return d < x.ndim ? x.strides[d] : 0;
}

template <class View>
std::int64_t stride_of(const View* x, std::int64_t d) {
  return x == nullptr ? 0 : stride_of(*x, d);
}

/// The nest of the first `ndim` dimensions, in their order.
template <class... Tensors>
Nest<sizeof...(Tensors)> nest_of(const std::int64_t* sizes, std::int64_t ndim,
                                 const Tensors&... tensors) {
  Nest<sizeof...(Tensors)> nest;
  for (std::int64_t d = 0; d < ndim; ++d) {
    nest.append(sizes[d], {stride_of(tensors, d)...});
  }
  nest.finish();
  return nest;
}

/// The nest of all rows of x, which has at least one dimension.
template <class... Tensors>
Nest<sizeof...(Tensors)> nest_of_rows(const ConstTensorView& x,
                                      const Tensors&... tensors) {
  return nest_of(x.sizes, x.ndim - 1, tensors...);
}

/// The nest of all elements in the order of out's memory, so that transposed
/// tensors are contiguous.
template <class... Tensors>
Nest<sizeof...(Tensors)> nest_of_elements(const TensorView& out,
                                          const Tensors&... tensors) {
  int order[kMaxDims];
  sort_dims(out, order);
  Nest<sizeof...(Tensors)> nest;
  for (int i = 0; i < out.ndim; ++i) {
    nest.append(out.sizes[order[i]], {stride_of(tensors, order[i])...});
  }
  nest.finish();
  return nest;
}

}  // namespace foo_core
