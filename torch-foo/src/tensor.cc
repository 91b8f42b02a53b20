// Reads what kernels ask of a tensor, once, by the C functions of the stable
// ABI that cost a few nanoseconds.
#include "tensor.h"

#include <dlfcn.h>
#include <torch/csrc/stable/c/shim.h>

#include <stdexcept>
#include <string>

namespace torch_foo {
namespace {

template <class T>
T query(AOTITorchError (*getter)(AtenTensorHandle, T*),
        AtenTensorHandle handle) {
  T value;
  check(getter(handle, &value), "read a tensor");
  return value;
}

}  // namespace

void* find_symbol(const char* library, const char* symbol) {
  void* handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
  if (!handle) return nullptr;
  void* address = dlsym(handle, symbol);
  dlclose(handle);  // PyTorch keeps it loaded
  return address;
}

std::string last_error() {
  using What = const char* (*)();
  static const auto what = reinterpret_cast<What>(find_symbol(
      "libtorch_cpu.so", "torch_exception_get_what_without_backtrace"));
  return what == nullptr ? "" : what();
}

void fail_call(const char* purpose) {
  const std::string reason = last_error();
  throw std::runtime_error(std::string("torch_foo: PyTorch could not ") +
                           purpose + (reason.empty() ? "" : ": ") + reason);
}

void Tensor::read(AtenTensorHandle handle) {
  handle_ = handle;
  defined_ = query(aoti_torch_is_defined, handle);
  if (!defined_) return;
  dtype_ = query(aoti_torch_get_dtype, handle);
  device_type_ = query(aoti_torch_get_device_type, handle);
  dim_ = query(aoti_torch_get_dim, handle);
  if (query(aoti_torch_get_layout, handle) != aoti_torch_layout_strided()) {
    return;
  }
  sizes_ = query(aoti_torch_get_sizes, handle);
  strides_ = query(aoti_torch_get_strides, handle);
}

Tensor Tensor::undefined() {
  AtenTensorHandle handle;
  check(aoti_torch_new_uninitialized_tensor(&handle), "make a tensor");
  return Tensor(handle);
}

std::int32_t Tensor::device_index() const {
  return query(aoti_torch_get_device_index, handle_);
}

bool Tensor::contiguous() const {
  return query(aoti_torch_is_contiguous, handle_);
}

const void* Tensor::const_data_ptr() const {
  return query(torch_get_const_data_ptr, handle_);
}

void* Tensor::mutable_data_ptr() const {
  return query(torch_get_mutable_data_ptr, handle_);
}

void Tensor::swap(Tensor& other) noexcept {
  std::swap(handle_, other.handle_);
  std::swap(defined_, other.defined_);
  std::swap(dtype_, other.dtype_);
  std::swap(device_type_, other.device_type_);
  std::swap(dim_, other.dim_);
  std::swap(sizes_, other.sizes_);
  std::swap(strides_, other.strides_);
}

Tensor same(const Tensor& tensor) {
  AtenTensorHandle handle;
  check(aoti_torch_new_tensor_handle(tensor.handle(), &handle),
        "keep a tensor");
  return Tensor(handle);
}

Tensor part_of(const Tensor& whole, IntHeaderOnlyArrayRef sizes,
               IntHeaderOnlyArrayRef strides, std::int64_t offset) {
  AtenTensorHandle handle;
  check(aoti_torch__reinterpret_tensor(
            whole.handle(), static_cast<std::int64_t>(sizes.size()),
            sizes.data(), strides.data(), offset, &handle),
        "make a view");
  return Tensor(handle);
}

}  // namespace torch_foo
