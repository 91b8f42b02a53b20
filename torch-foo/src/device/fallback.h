// Runs ATen's operators on foo tensors by the CPU's kernels.
#pragma once

#include <string>
#include <vector>

#include "library.h"

namespace torch_foo::device {

/// An operator of ATen that has no kernel of ours. A letter stands for each
/// argument and result: T a tensor, O a tensor or None, L a list of tensors, M
/// a list of tensors or None, D a device, E a device or None, and . for what is
/// passed on as it is. A result that is a written argument is the argument's
/// number, from 0.
struct Fallback {
  const char* name;
  const char* overload;
  const char* arguments;
  const char* results;
};

/// "aten::mul.Tensor TT T" for each operator of the generated table.
std::vector<std::string> describe_fallbacks();

/// Registers a kernel for each of them that is to be used.
void implement_fallbacks(const Library& aten, const std::vector<bool>& use);

}  // namespace torch_foo::device
