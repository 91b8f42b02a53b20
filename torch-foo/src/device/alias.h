// Tensors of the device "foo", and the way between them and the CPU's, which
// copies nothing.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <vector>

#include "tensor.h"

namespace torch_foo::device {

inline bool is_foo(const Tensor& tensor) {
  return tensor.device_type() == aoti_torch_device_type_privateuse1();
}

/// The start of a dense tensor's storage, or null if it has no elements.
const char* storage_of(const Tensor& tensor);

/// A CPU tensor over the memory of a dense foo tensor, which it keeps alive.
Tensor cpu_alias(const Tensor& tensor);

/// CPU tensors over the memory of dense foo tensors, those of one storage in
/// one storage there, too.
std::vector<Tensor> cpu_aliases(const std::vector<Tensor>& tensors);

/// The address of the DLManagedTensor of a new tensor, over the memory of a
/// dense CPU tensor, which it keeps alive, or over new memory. It is 0 if there
/// is not enough memory, and for sizes and strides of no tensor. PyTorch's
/// Python interface makes a tensor of it: the only way of all versions to one
/// on a PrivateUse1 device.
std::int64_t new_managed_tensor(const Tensor& tensor);
std::int64_t new_managed_tensor(IntHeaderOnlyArrayRef sizes,
                                IntHeaderOnlyArrayRef strides,
                                torch::headeronly::ScalarType dtype);

/// The tensors of these.
Tensor foo_alias(const Tensor& tensor);
Tensor new_tensor(IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides,
                  torch::headeronly::ScalarType dtype);

}  // namespace torch_foo::device
