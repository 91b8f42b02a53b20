// PyTorch's current CUDA stream, without CUDA headers and without linking
// libtorch_cuda: one binary serves PyTorch's CPU builds and its CUDA builds.
#include <dlfcn.h>

#include "adaptor.h"

namespace torch_foo {
namespace {

// A function of a library that PyTorch has loaded, or null.
template <class Function>
Function find(const char* library, const char* symbol) {
  void* handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
  if (!handle) return nullptr;
  void* address = dlsym(handle, symbol);
  dlclose(handle);  // PyTorch keeps it loaded
  return reinterpret_cast<Function>(address);
}

}  // namespace

void* current_stream(std::int32_t device_index) {
  // In the CUDA builds of PyTorch 2.10 and later, and nowhere else.
  using CudaStream = AOTITorchError (*)(std::int32_t, void**);
  static const auto cuda_stream = find<CudaStream>(
      "libtorch_cuda.so", "aoti_torch_get_current_cuda_stream");
  // The way for any accelerator, from PyTorch 2.13 on.
  using NativeHandle = AOTITorchError (*)(StreamHandle, void**);
  static const auto native_handle =
      find<NativeHandle>("libtorch_cpu.so", "torch_stream_native_handle");

  void* stream = nullptr;
  if (cuda_stream) {
    TORCH_ERROR_CODE_CHECK(cuda_stream(device_index, &stream));
  } else if (native_handle) {
    StreamHandle current = nullptr;
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_stream(device_index, &current));
    const torch::stable::accelerator::Stream owner(current);
    TORCH_ERROR_CODE_CHECK(native_handle(current, &stream));
  } else {
    fail(
        "current_stream: this build of PyTorch has no function that tells its "
        "current CUDA stream");
  }
  return stream;
}

}  // namespace torch_foo
