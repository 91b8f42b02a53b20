// Checks of arguments. Each throws InvalidArgument with a sentence that begins
// with the operator's name, and passes for an argument that was not given.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "foo_core/tensor.h"

namespace foo_core {

/// A tensor and its name in messages.
struct Argument {
  Argument(const char* label, const ConstTensorView& tensor)
      : name(label), view(tensor), given(true) {}
  /// A null tensor stands for an argument that was not given.
  template <class View>
  Argument(const char* label, const View* tensor)
      : name(label), given(tensor != nullptr) {
    if (given) view = *tensor;
  }

  const char* name;
  ConstTensorView view;  // unset if not given
  bool given;
};
using Arguments = std::initializer_list<const Argument*>;

/// "(2, 3)"
std::string shape_text(std::int64_t ndim, const std::int64_t* sizes);

[[noreturn]] void fail(const char* op, const std::string& sentence);

/// Refuses indices in a tensor that were valid when they were checked, but not
/// when they were used.
[[noreturn]] void fail_changed(const char* op, const char* name);

/// Whether x passes check_has_rows, whatever its data.
bool has_rows(const ConstTensorView& x) noexcept;

/// x is a valid view of a floating-point dtype.
void check_tensor(const char* op, const Argument& x);

/// x is a valid view of this dtype.
void check_tensor(const char* op, const Argument& x, DType dtype);

/// y has x's dtype.
void check_same_dtype(const char* op, const Argument& x, const Argument& y);

/// x has the given shape.
void check_shape(const char* op, const Argument& x, std::int64_t ndim,
                 const std::int64_t* sizes);

/// x is a valid view of a floating-point dtype with at least one dimension.
void check_has_rows(const char* op, const Argument& x);

/// For a product of x, which has rows, with a matrix of n rows: bias has shape
/// (n), and out x's with n in the place of the last dimension. Both have x's
/// dtype.
void check_product(const char* op, const Argument& x, std::int64_t n,
                   const Argument& bias, const Argument& out);

/// y is a valid view with x's dtype and shape.
void check_like(const char* op, const Argument& y, const Argument& x);

/// v is a valid view of a floating-point dtype with one dimension, of x's last
/// size.
void check_last_size(const char* op, const Argument& v, const Argument& x);

/// No two indices of `out` share memory. It overlaps nothing in `apart`, and
/// nothing in `may_be` unless it is exactly that argument.
void check_output(const char* op, const Argument& out, Arguments may_be,
                  Arguments apart);

/// Scratch memory of an operator, as an argument for check_output.
class Scratch {
 public:
  /// `data` is aligned and not null, unless `bytes` is 0.
  Scratch(const char* op, void* data, std::int64_t bytes);
  Scratch(const Scratch&) = delete;  // argument() points into it

  /// Borrows from this. It is not given if it has no bytes.
  const Argument& argument() const { return argument_; }

 private:
  std::int64_t bytes_, stride_ = 1;
  ConstTensorView view_;
  Argument argument_;
};

}  // namespace foo_core
