// Definitions and kernels, on their way to the dispatcher.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <vector>

#include "tensor.h"

namespace torch_foo {

/// A torch::Library: what STABLE_TORCH_LIBRARY calls m.
class Library {
 public:
  explicit Library(TorchLibraryHandle handle) : handle_(handle) {}

  void def(const char* schema) const {
    check(aoti_torch_library_def(handle_, schema), "define an operator");
  }
  void impl(const char* name,
            void (*kernel)(StableIValue*, std::uint64_t, std::uint64_t)) const {
    check(torch_library_impl(handle_, name, kernel, TORCH_ABI_VERSION),
          "register a kernel");
  }

 private:
  TorchLibraryHandle handle_;
};

// In generated/register.cc.
void define_operators(const Library& m);
void implement_operators(const Library& m);

// In build_info.cc: operators without tensors.
/// The file that this library was loaded from.
const char* library_path();
void define_build_info(const Library& m);
void implement_build_info(const Library& m);

// In decoder_layers.cc: an operator that only the decode step calls, on plain
// tensors of the CPU.
void define_decoder_layers(const Library& m);
void implement_decoder_layers(const Library& m);

// In device/device.cc: what is behind torch_foo.device.
void define_device(const Library& m);
void implement_device(const Library& m);
void implement_device_tensors(const Library& m);

/// Registers the kernels of the device "foo": torch_foo's operators' and those
/// of device/fallback.h.
void register_device();

}  // namespace torch_foo
