// Runs ATen's operators on foo tensors by the CPU's kernels.
#pragma once

#include <string>
#include <vector>

#include "library.h"

namespace torch_foo::device {

/// An operator of ATen. The types of its arguments and results are written one
/// after the other: T for a tensor, S for a string, . for anything else, each
/// behind ? where it is optional and [ where it is a list of them. A result
/// that is a written argument is the argument's number, from 0.
struct Fallback {
  const char* name;
  const char* overload;
  const char* arguments;
  const char* results;
};

/// "aten::mul.Tensor TT T" for each operator of the generated table.
std::vector<std::string> describe_fallbacks();

/// The dispatcher's key that they are kernels of: one that no backend uses,
/// from which device/_fallback.py calls them.
constexpr const char* kFallbackKey = "PrivateUse2";

/// Registers a kernel for each of them. It throws for arguments that it does
/// not take, before anything is written; device/_fallback.py takes all.
void implement_fallbacks(const Library& aten);

}  // namespace torch_foo::device
