/// @file
/// Views, by which a caller describes its memory to foo_core.
#pragma once

#include <cstdint>

#include "foo_core/export.h"

namespace foo_core {

/// Element type. The numbers are part of the ABI.
enum class DType : std::int32_t {
  kFloat32 = 0,
  kFloat64 = 1,
  kFloat16 = 2,   ///< IEEE 754 binary16
  kBFloat16 = 3,  ///< the upper half of a binary32
  kInt8 = 4,
  kInt64 = 5,
  kUInt8 = 6,
};

/// Bytes per element; 0 if `dtype` is not a DType.
FOO_CORE_EXPORT std::int64_t item_size(DType dtype) noexcept;

/// The name, such as "float32", "bfloat16" or "int64"; "invalid" if `dtype` is
/// not a DType.
FOO_CORE_EXPORT const char* name(DType dtype) noexcept;

/// The most dimensions that a view may have, as in NumPy and PyTorch.
inline constexpr std::int64_t kMaxDims = 64;

/// The most bytes that the elements of a view may take, and that may lie
/// between two of them: more than a process can address, and so few that no
/// offset overflows.
inline constexpr std::int64_t kMaxBytes = std::int64_t{1} << 56;

/// Read-only memory of the caller's, of up to kMaxDims dimensions and
/// kMaxBytes, with any strides. A stride of 0 repeats an element; a negative
/// one walks backwards; that of a dimension with one element is not used.
///
/// Every operator checks its views before it reads or writes through them, and
/// throws InvalidArgument for one that breaks these rules. The sizes and
/// strides must not change during the call. If elements do, the results are
/// unspecified, but no other memory is accessed.
struct ConstTensorView {
  /// The element at index (0, ..., 0), at a multiple of item_size(dtype);
  /// unused if a size is 0.
  const void* data;
  DType dtype;                  ///< of each element
  std::int64_t ndim;            ///< 0 is one element
  const std::int64_t* sizes;    ///< [ndim], elements, each >= 0
  const std::int64_t* strides;  ///< [ndim], in elements, not bytes
};

/// Writable memory of the caller's. No two indices may share an element.
struct TensorView {
  void* data;                   ///< as in ConstTensorView, and so are the rest
  DType dtype;                  ///< of each element
  std::int64_t ndim;            ///< 0 is one element
  const std::int64_t* sizes;    ///< [ndim], elements, each >= 0
  const std::int64_t* strides;  ///< [ndim], in elements, not bytes

  /// The same memory, read-only.
  operator ConstTensorView() const noexcept {
    return {data, dtype, ndim, sizes, strides};
  }
};

}  // namespace foo_core
