// ATen's operators that foo_core has a kernel for.
#pragma once

#include <optional>
#include <string_view>

#include "tensor.h"

namespace torch_foo::device {

/// Computes the result from the arguments on the stack, which stay there; no
/// result if the kernel is not made for such arguments.
using Kernel = std::optional<Tensor> (*)(const StableIValue* stack);

/// Of add.Tensor, where alpha is 1: the stable ABI has no Scalar. So Python
/// calls it, as torch_foo::_device_add.
std::optional<Tensor> add(const StableIValue* stack);
std::optional<Tensor> mul(const StableIValue* stack);
std::optional<Tensor> silu(const StableIValue* stack);
std::optional<Tensor> silu_backward(const StableIValue* stack);
std::optional<Tensor> gelu(const StableIValue* stack);
std::optional<Tensor> gelu_backward(const StableIValue* stack);

/// The kernel of an operator, or null.
constexpr Kernel kernel_of(std::string_view name, std::string_view overload) {
  struct Row {
    std::string_view name, overload;
    Kernel kernel;
  };
  constexpr Row kRows[] = {
      {"aten::mul", "Tensor", mul},
      {"aten::silu", "", silu},
      {"aten::silu_backward", "", silu_backward},
      {"aten::gelu", "", gelu},
      {"aten::gelu_backward", "", gelu_backward},
  };
  for (const Row& row : kRows) {
    if (row.name == name && row.overload == overload) return row.kernel;
  }
  return nullptr;
}

}  // namespace torch_foo::device
