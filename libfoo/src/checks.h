// What the checked entry points have in common. Each check throws
// InvalidArgument with a sentence that begins with the operator's name.
#pragma once

#include <cstdint>
#include <string>

#include "foo_core/tensor.h"

namespace foo_core {

constexpr int kMaxDims = 64;  // as NumPy's and PyTorch's

/// Elements below which work is not worth sharing among threads.
constexpr std::int64_t kGrain = 32768;

/// A tensor with the name it goes by in messages.
struct Argument {
  const char* name;
  ConstTensorView view;
};

std::int64_t numel(const ConstTensorView& view) noexcept;

/// "(2, 3)"
std::string shape_text(std::int64_t ndim, const std::int64_t* sizes);

[[noreturn]] void fail(const char* op, const std::string& sentence);

/// A tensor that is sound in itself, of a floating-point dtype.
void check_tensor(const char* op, const Argument& x);

/// A tensor that is sound in itself, of this dtype.
void check_tensor(const char* op, const Argument& x, DType dtype);

void check_same_dtype(const char* op, const Argument& x, const Argument& y);

/// x has the given shape.
void check_shape(const char* op, const Argument& x, std::int64_t ndim,
                 const std::int64_t* sizes);

/// x is sound in itself and has at least one dimension.
void check_has_rows(const char* op, const Argument& x);

/// y is sound in itself and has x's dtype and shape.
void check_like(const char* op, const Argument& y, const Argument& x);

/// v is sound in itself, has x's dtype, and one dimension of x's last size.
void check_last_size(const char* op, const Argument& v, const Argument& x);

/// No two indices of `out` share memory.
void check_no_self_overlap(const char* op, const Argument& out);

/// `out` shares no memory with x, or is exactly x if `may_alias`.
void check_overlap(const char* op, const Argument& out, const Argument& x,
                   bool may_alias);

}  // namespace foo_core
