// Whether two tensors share memory.
#pragma once

#include "foo_core/tensor.h"

namespace foo_core {

enum class Overlap { kNo, kMaybe, kYes };

/// Whether two indices of one tensor share memory. kMaybe if strides are so
/// interlocked that it is hard to tell.
Overlap self_overlap(const ConstTensorView& x) noexcept;

/// Whether x and y have memory in common. Exact if their strides are nested
/// (each spans what lies within it) and alike, as those of slices of one
/// tensor are; kMaybe where it is hard to tell.
Overlap overlap(const ConstTensorView& x, const ConstTensorView& y) noexcept;

/// The same elements at the same indices; x and y have the same dtype.
bool is_same(const ConstTensorView& x, const ConstTensorView& y) noexcept;

}  // namespace foo_core
