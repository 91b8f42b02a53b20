// Reads what kernels ask of a tensor, once, by the C functions of the stable
// ABI that cost a few nanoseconds.
#include "tensor.h"

#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

namespace torch_foo {
namespace {

template <class T>
T query(AOTITorchError (*getter)(AtenTensorHandle, T*),
        AtenTensorHandle handle) {
  T value;
  TORCH_ERROR_CODE_CHECK(getter(handle, &value));
  return value;
}

}  // namespace

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
  TORCH_ERROR_CODE_CHECK(aoti_torch_new_uninitialized_tensor(&handle));
  return Tensor(handle);
}

std::int32_t Tensor::device_index() const {
  return query(aoti_torch_get_device_index, handle_);
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

}  // namespace torch_foo
