// What every adaptor needs: checks, outputs, and the way from a torch tensor
// to a foo_core view. An adaptor sits between PyTorch's dispatcher and
// foo_core: it checks what foo_core cannot see (device, layout, dtype),
// allocates the result, and hands over pointers, threads or a stream.
//
// Only the stable ABI of LibTorch is used, and of that only the C functions
// that cost a few nanoseconds: a call by name through the dispatcher, such as
// torch::stable::empty_like, costs more than a small kernel.
#pragma once

#include <foo_core/foo_core.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "fold.h"
#include "tensor.h"

namespace torch_foo {

struct Argument {
  const char* name;
  const Tensor& tensor;
};

/// Throws what Python sees as RuntimeError("torch_foo.{message}").
[[noreturn]] void fail(const std::string& message);

/// Python's name of the dtype.
std::string dtype_name(const Tensor& tensor);

/// Whether the dtype is float32, float64, float16 or bfloat16.
bool is_floating_point(const Tensor& tensor);

/// Checks that the arguments are dense tensors of one floating-point dtype on
/// one device. Shapes are foo_core's to check.
void check_arguments(const char* op, std::initializer_list<Argument> arguments);

/// Checks the same, but for the dtypes, which may differ.
void check_any_dtypes(const char* op,
                      std::initializer_list<Argument> arguments);

/// Checks that an argument is on the device of another one.
void check_device(const char* op, const Argument& argument,
                  const Argument& other);

/// Checks that an argument is a dense tensor of this dtype on the device of
/// another one.
void check_argument(const char* op, const Argument& argument,
                    foo_core::DType dtype, const Argument& other);

/// Whether the dtype is bool.
bool is_bool(const Tensor& tensor);

/// Checks that an argument of bool is a dense tensor on the device of another
/// one.
void check_bool(const char* op, const Argument& argument,
                const Argument& other);

/// Checks that `out` is a dense tensor of this dtype, which may be another one
/// than that of the first argument, on its device.
void check_out(const char* op, const Argument& first, const Argument& out,
               foo_core::DType dtype);

/// "(2, 3)", as Python writes a shape.
std::string shape_text(IntHeaderOnlyArrayRef shape);

/// A number for each dimension, in memory of its own: without an allocation for
/// as many dimensions as nearly all tensors have.
class Shape {
 public:
  explicit Shape(std::size_t ndim) : ndim_(ndim) {
    if (ndim > kFew) many_.reset(new std::int64_t[ndim]);
  }
  explicit Shape(IntHeaderOnlyArrayRef sizes) : Shape(sizes.size()) {
    std::copy_n(sizes.data(), ndim_, data());
  }
  operator IntHeaderOnlyArrayRef() const { return {data(), ndim_}; }

  std::size_t ndim() const { return ndim_; }
  std::int64_t* data() { return many_ ? many_.get() : few_; }
  const std::int64_t* data() const { return many_ ? many_.get() : few_; }
  std::int64_t& last() { return data()[ndim_ - 1]; }

 private:
  static constexpr std::size_t kFew = 64;

  std::size_t ndim_;
  std::unique_ptr<std::int64_t[]> many_;
  std::int64_t few_[kFew];
};

/// The shape that a and b broadcast to.
Shape broadcast_shape(const char* op, const Tensor& a, const Tensor& b);

/// A new contiguous tensor with the dtype and device of `like`.
Tensor empty(const char* op, IntHeaderOnlyArrayRef shape, const Tensor& like);

/// The same, of another dtype.
Tensor empty(const char* op, IntHeaderOnlyArrayRef shape, foo_core::DType dtype,
             const Tensor& like);

/// Scratch memory for a kernel, aligned to 64 bytes.
Tensor empty_bytes(const char* op, std::int64_t size, const Tensor& like);

/// The dtype of a result of both, by PyTorch's rules of type promotion: the
/// narrowest that holds either's values, but a tensor without dimensions does
/// not count beside one that has some.
foo_core::DType result_dtype(const Tensor& a, const Tensor& b);

/// A tensor in a dtype: itself, or a copy.
class Converted {
 public:
  Converted(const char* op, const Tensor& tensor, foo_core::DType dtype);
  operator const Tensor&() const { return copy_ ? *copy_ : tensor_; }

 private:
  const Tensor& tensor_;
  std::optional<Tensor> copy_;
};

/// How foo_core sees a tensor that passed check_arguments. Borrows from it.
foo_core::ConstTensorView view(const Tensor& tensor);
foo_core::TensorView mutable_view(const Tensor& tensor);

/// The bytes of a tensor that passed check_bool.
foo_core::ConstTensorView bool_view(const Tensor& tensor);

/// The view of an optional argument, for functions that take a pointer to one.
class OptionalView {
 public:
  explicit OptionalView(const std::optional<Tensor>& tensor) {
    if (tensor) view_ = view(*tensor);
  }
  const foo_core::ConstTensorView* get() const {
    return view_ ? &*view_ : nullptr;
  }

 private:
  std::optional<foo_core::ConstTensorView> view_;
};

/// A result that may not be wanted, and then is neither allocated nor written.
class OptionalResult {
 public:
  OptionalResult(const char* op, bool wanted, IntHeaderOnlyArrayRef shape,
                 const Tensor& like) {
    if (!wanted) return;
    tensor_ = empty(op, shape, like);
    view_ = mutable_view(*tensor_);
  }
  const foo_core::TensorView* get() const { return tensor_ ? &view_ : nullptr; }
  /// The tensor, or what Python sees as None.
  Tensor take() { return tensor_ ? std::move(*tensor_) : Tensor::undefined(); }

 private:
  std::optional<Tensor> tensor_;
  foo_core::TensorView view_;
};

/// The cudaStream_t that PyTorch currently uses on a device.
void* current_stream(std::int32_t device_index);

/// Makes a device the current one.
class DeviceGuard {
 public:
  explicit DeviceGuard(std::int32_t device_index) {
    check(aoti_torch_create_device_guard(device_index, &guard_),
          "select a device");
  }
  ~DeviceGuard() { aoti_torch_delete_device_guard(guard_); }
  DeviceGuard(const DeviceGuard&) = delete;

 private:
  DeviceGuardHandle guard_ = nullptr;
};

/// PyTorch's threads, lent to foo_core.
foo_core::Executor torch_threads();

/// Throws what foo_core throws as an error of torch_foo's.
[[noreturn]] void rethrow(bool folded);

/// Calls function(arguments..., executor) on the device of `tensor`: with
/// PyTorch's threads or on its current stream.
template <class F, class... Args>
void run(const Tensor& tensor, F function, const Args&... arguments) {
  if (!tensor.is_cuda()) {  // the CPU, or the device "foo", which it serves
    function(arguments..., torch_threads());
  } else {
    const std::int32_t device = tensor.device_index();
    const DeviceGuard guard(device);
    function(arguments..., foo_core::Executor::cuda(current_stream(device)));
  }
}

/// Runs one of foo_core's functions, whose views may have any number of
/// dimensions here.
template <class F, class... Args>
void launch(const Tensor& tensor, F function, const Args&... arguments) {
  const bool many = ((dims_of(arguments).ndim > foo_core::kMaxDims) || ...);
  try {
    if (many) {
      Fold fold(arguments...);
      run(tensor, function, fold(arguments)...);
    } else {
      run(tensor, function, arguments...);
    }
  } catch (...) {
    rethrow(many);
  }
}

/// The bytes of scratch memory that a function of foo_core's needs for x, which
/// may have any number of dimensions here.
template <class F, class... Args>
std::int64_t scratch_size(F function, const Tensor& x, const Args&... others) {
  const auto executor =
      x.is_cuda() ? foo_core::Executor::cuda(nullptr) : foo_core::Executor();
  const foo_core::ConstTensorView vx = view(x);
  if (vx.ndim <= foo_core::kMaxDims) return function(vx, others..., executor);
  return function(Fold(vx)(vx), others..., executor);
}

/// An argument's name in messages of a function of foo_core's, and in those of
/// the operator that calls it.
struct Renamed {
  const char* from;
  const char* to;
};

/// Throws the message with other names of the operator and its arguments.
[[noreturn]] void fail_renamed(const char* op, const std::string& message,
                               std::initializer_list<Renamed> names);

/// Calls f, with errors as fail_renamed words them.
template <class F>
void renamed(const char* op, std::initializer_list<Renamed> names, F f) {
  try {
    f();
  } catch (const std::runtime_error& error) {
    fail_renamed(op, error.what(), names);
  }
}

}  // namespace torch_foo
