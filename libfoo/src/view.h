// Geometry of tensor views: how many elements and rows they have, and where
// those are. A row is a slice along the last dimension.
#pragma once

#include <algorithm>
#include <cstdint>

#include "foo_core/tensor.h"

namespace foo_core {

/// item_size without a call, for operators on a few elements.
inline std::int64_t item_bytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return 4;
    case DType::kFloat64:
      return 8;
    case DType::kFloat16:
    case DType::kBFloat16:
      return 2;
    case DType::kInt8:
    case DType::kUInt8:
      return 1;
    case DType::kInt64:
      return 8;
  }
  return 0;
}

/// One row, or null.
template <class Pointer>
struct BasicRow {
  Pointer data;
  std::int64_t stride;
};
using Row = BasicRow<const void*>;
using MutableRow = BasicRow<void*>;

inline std::int64_t numel(const ConstTensorView& x) {
  std::int64_t count = 1;
  for (std::int64_t d = 0; d < x.ndim; ++d) count *= x.sizes[d];
  return count;
}

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

/// An index at `p`, in one read. The value that is checked is the one that is
/// used, even if another thread changes the tensor meanwhile.
inline std::int64_t read_index(const std::int64_t* p) {
#ifdef __GNUC__
  return __atomic_load_n(p, __ATOMIC_RELAXED);
#else
  return *static_cast<const volatile std::int64_t*>(p);
#endif
}

/// Whether 0 <= index < size, for size >= 0.
inline bool is_index(std::int64_t index, std::int64_t size) {
  return static_cast<std::uint64_t>(index) < static_cast<std::uint64_t>(size);
}

/// |stride|, which for a dimension of one element may be that of any number.
inline std::uint64_t magnitude(std::int64_t stride) {
  const auto bits = static_cast<std::uint64_t>(stride);
  return stride < 0 ? 0 - bits : bits;
}

/// The address of an element. The strides of an empty view may lead anywhere,
/// where C++ forbids a pointer even if nothing is read through it.
inline void* address(const void* data, std::int64_t offset, DType dtype) {
  return reinterpret_cast<void*>(
      reinterpret_cast<std::uintptr_t>(data) +
      static_cast<std::uintptr_t>(offset) *
          static_cast<std::uintptr_t>(item_bytes(dtype)));
}

inline const void* element_at(const ConstTensorView& x, std::int64_t offset) {
  return address(x.data, offset, x.dtype);
}

inline void* element_at(const TensorView& x, std::int64_t offset) {
  return address(x.data, offset, x.dtype);
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

/// Writes zeros to the n elements of a row, each of `item` bytes.
inline void fill_zeros(MutableRow row, std::int64_t n, std::int64_t item) {
  auto* p = static_cast<char*>(row.data);
  if (row.stride == 1) {
    std::fill_n(p, n * item, '\0');
    return;
  }
  for (std::int64_t i = 0; i < n; ++i) {
    std::fill_n(p + i * row.stride * item, item, '\0');
  }
}

}  // namespace foo_core
