// Views of tensors with more dimensions than foo_core takes.
//
// PyTorch limits a tensor to fewer than 2**63 elements, but not its dimensions:
// nested vmap and unsqueeze make hundreds. Nearly all of them have size 1.
#pragma once

#include <foo_core/foo_core.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

namespace torch_foo {

/// A view of shape (...) in a call whose other views have shape (..., n).
template <class View>
struct PerRow {
  View view;
  operator const View&() const { return view; }
};
template <class View>
PerRow(View) -> PerRow<View>;

/// The dimensions of an argument of foo_core's, if it is a view.
struct Dims {
  std::int64_t ndim = 0;
  const std::int64_t* sizes = nullptr;
  std::int64_t missing = 0;  // last ones, which other views have
};
template <class T>
Dims dims_of(const T&) {
  return {};
}
inline Dims dims_of(const foo_core::ConstTensorView& x) {
  return {x.ndim, x.sizes};
}
inline Dims dims_of(const foo_core::TensorView& x) { return {x.ndim, x.sizes}; }
inline Dims dims_of(const foo_core::ConstTensorView* x) {
  return x == nullptr ? Dims() : dims_of(*x);
}
inline Dims dims_of(const foo_core::TensorView* x) {
  return x == nullptr ? Dims() : dims_of(*x);
}
template <class View>
Dims dims_of(const PerRow<View>& x) {
  return {x.view.ndim, x.view.sizes, 1};
}

/// Views of a call without dimensions that have size 1 in all of them, or
/// repeat one of size 0.
///
/// Dimensions are counted from the last one on. The first one of each view and
/// some last ones stay. So folded views have one shape, broadcast or differ
/// exactly where the given ones did, and none becomes a vector or a matrix.
class Fold {
 public:
  using ConstView = foo_core::ConstTensorView;
  using View = foo_core::TensorView;

  template <class... Args>
  explicit Fold(const Args&... arguments) {
    choose({dims_of(arguments)...});
  }

  /// An argument, folded if it is a view. Borrows from this.
  template <class T>
  const T& operator()(const T& argument) {
    return argument;
  }
  ConstView operator()(const ConstView& x) { return folded(x, 0); }
  View operator()(const View& x) { return folded(x, 0); }
  template <class V>
  V operator()(const PerRow<V>& x) {
    return folded(x.view, 1);
  }
  const ConstView* operator()(const ConstView* x) {
    return x == nullptr ? x : &const_views_.emplace_back(folded(*x, 0));
  }
  const View* operator()(const View* x) {
    return x == nullptr ? x : &views_.emplace_back(folded(*x, 0));
  }

 private:
  void choose(const std::vector<Dims>& views);

  template <class V>
  V folded(V x, std::int64_t missing) {
    x.strides = shortened(x.strides, x.ndim, missing);
    x.sizes = shortened(x.sizes, x.ndim, missing);
    x.ndim = static_cast<std::int64_t>(arrays_.back().size());
    return x;
  }
  /// A copy of a view's array, without the dimensions that are left out.
  const std::int64_t* shortened(const std::int64_t* values, std::int64_t ndim,
                                std::int64_t missing);

  std::vector<bool> stays_;  // from the last dimension on
  std::deque<std::vector<std::int64_t>> arrays_;
  std::deque<ConstView> const_views_;
  std::deque<View> views_;
};

}  // namespace torch_foo
