// Whether two tensors share memory.
#pragma once

#include "foo_core/tensor.h"

namespace foo_core {

enum class Overlap { kNo, kMaybe, kYes };

/// Whether two indices of one tensor share memory; kMaybe if the strides are
/// not nested.
Overlap self_overlap(const ConstTensorView& x) noexcept;

/// Whether x and y share memory. The answer is exact if their strides are
/// nested (each spans all dimensions inside it) and alike, as in slices of one
/// tensor; else it may be kMaybe.
Overlap overlap(const ConstTensorView& x, const ConstTensorView& y) noexcept;

/// Whether x and y, of one dtype, have the same elements at the same indices.
bool is_same(const ConstTensorView& x, const ConstTensorView& y) noexcept;

}  // namespace foo_core
