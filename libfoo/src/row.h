// Rows of tensors: slices along the last dimension.
#pragma once

#include <cstdint>

#include "foo_core/tensor.h"

namespace foo_core {

/// One row, or null.
template <class Pointer>
struct BasicRow {
  Pointer data;
  std::int64_t stride;
};
using Row = BasicRow<const void*>;
using MutableRow = BasicRow<void*>;

inline std::int64_t last_size(const ConstTensorView& x) {
  return x.sizes[x.ndim - 1];
}

inline std::int64_t last_stride(const ConstTensorView& x) {
  return x.strides[x.ndim - 1];
}

inline std::int64_t count_rows(const ConstTensorView& x) {
  std::int64_t count = 1;
  for (std::int64_t d = 0; d < x.ndim - 1; ++d) count *= x.sizes[d];
  return count;
}

inline const void* element_at(const ConstTensorView& x, std::int64_t offset) {
  return static_cast<const char*>(x.data) + offset * item_size(x.dtype);
}

inline void* element_at(const TensorView& x, std::int64_t offset) {
  return static_cast<char*>(x.data) + offset * item_size(x.dtype);
}

/// The row of x that begins `offset` elements after its data; null for null.
inline Row row_at(const ConstTensorView* x, std::int64_t offset) {
  if (x == nullptr) return {nullptr, 1};
  return {element_at(*x, offset), last_stride(*x)};
}

inline MutableRow row_at(const TensorView* x, std::int64_t offset) {
  if (x == nullptr) return {nullptr, 1};
  return {element_at(*x, offset), last_stride(*x)};
}

}  // namespace foo_core
