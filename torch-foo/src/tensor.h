// A tensor of torch's. What torch::stable::Tensor is, less its count of
// references, and with what every kernel asks for read once: together a sixth
// of the time of a small call.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace torch_foo {

using torch::headeronly::IntHeaderOnlyArrayRef;

/// A function of a library that PyTorch has loaded, or null.
void* find_symbol(const char* library, const char* symbol);

/// The message of PyTorch's last error in this thread. It is empty before
/// PyTorch 2.13, which prints the message instead.
std::string last_error();

[[noreturn]] void fail_call(const char* purpose);

/// Checks what a function of PyTorch's C interface returned. The message of
/// PyTorch's own macro for this has the path of the build. `purpose` follows
/// "PyTorch could not".
inline void check(AOTITorchError error, const char* purpose) {
  if (error != AOTI_TORCH_SUCCESS) fail_call(purpose);
}

/// A handle to a tensor, owned.
class Tensor {
 public:
  explicit Tensor(AtenTensorHandle handle) : Tensor() { read(handle); }
  Tensor(Tensor&& other) noexcept { swap(other); }
  Tensor& operator=(Tensor&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Tensor() {
    if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
  }

  /// A result that Python sees as None.
  static Tensor undefined();

  AtenTensorHandle handle() const { return handle_; }
  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }

  bool defined() const { return defined_; }
  /// Whether it has strides: not sparse, not another library's format.
  bool dense() const { return strides_ != nullptr; }
  /// The number that torch gives the dtype: a value of c10::ScalarType.
  std::int32_t dtype() const { return dtype_; }
  std::int32_t device_type() const { return device_type_; }
  std::int32_t device_index() const;
  bool is_cpu() const { return device_type_ == aoti_torch_device_type_cpu(); }
  bool is_cuda() const { return device_type_ == aoti_torch_device_type_cuda(); }

  std::int64_t dim() const { return dim_; }
  /// Of a dense tensor.
  IntHeaderOnlyArrayRef sizes() const {
    return {sizes_, static_cast<std::size_t>(dim_)};
  }
  IntHeaderOnlyArrayRef strides() const {
    return {strides_, static_cast<std::size_t>(dim_)};
  }
  bool contiguous() const;
  const void* const_data_ptr() const;
  void* mutable_data_ptr() const;

 private:
  Tensor() = default;
  void read(AtenTensorHandle handle);
  void swap(Tensor& other) noexcept;

  AtenTensorHandle handle_ = nullptr;
  bool defined_ = false;
  std::int32_t dtype_ = 0;
  std::int32_t device_type_ = 0;
  std::int64_t dim_ = 0;
  const std::int64_t* sizes_ = nullptr;
  const std::int64_t* strides_ = nullptr;
};

/// Another handle to the tensor.
Tensor same(const Tensor& tensor);

/// A tensor in the storage of another one, which it keeps alive. Its first
/// element is `offset` elements behind the other's.
Tensor part_of(const Tensor& whole, IntHeaderOnlyArrayRef sizes,
               IntHeaderOnlyArrayRef strides, std::int64_t offset);

/// A tensor that somebody else owns, until it is taken.
class Borrowed {
 public:
  explicit Borrowed(AtenTensorHandle handle) : tensor_(handle) {}
  Borrowed(const Borrowed&) = delete;
  ~Borrowed() { tensor_.release(); }

  const Tensor& operator*() const { return tensor_; }
  const Tensor* operator->() const { return &tensor_; }
  Tensor take() { return std::move(tensor_); }

 private:
  Tensor tensor_;
};

}  // namespace torch_foo
