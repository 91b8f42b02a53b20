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

/// A CPU tensor over the memory of a dense foo tensor, which it keeps alive.
Tensor cpu_alias(const Tensor& tensor);

/// A foo tensor over the memory of a dense CPU tensor, which it keeps alive.
Tensor foo_alias(Tensor tensor);

/// The address of a new tensor's DLManagedTensor, or 0 if there is not enough
/// memory. PyTorch's Python interface makes a tensor of it: the only way of
/// all versions to one on a PrivateUse1 device.
std::int64_t new_managed_tensor(const std::vector<std::int64_t>& sizes,
                                const std::vector<std::int64_t>& strides,
                                torch::headeronly::ScalarType dtype);

}  // namespace torch_foo::device
