// PyTorch's current CUDA stream, without CUDA headers and without linking
// libtorch_cuda: one binary serves PyTorch's CPU builds and its CUDA builds.
#include "adaptor.h"

namespace torch_foo {

void* current_stream(std::int32_t device_index) {
  // In the CUDA builds of PyTorch 2.10 and later, and nowhere else.
  using CudaStream = AOTITorchError (*)(std::int32_t, void**);
  static const auto cuda_stream = reinterpret_cast<CudaStream>(
      find_symbol("libtorch_cuda.so", "aoti_torch_get_current_cuda_stream"));
  // The way for any accelerator, from PyTorch 2.13 on.
  using NativeHandle = AOTITorchError (*)(StreamHandle, void**);
  static const auto native_handle = reinterpret_cast<NativeHandle>(
      find_symbol("libtorch_cpu.so", "torch_stream_native_handle"));

  constexpr const char* kPurpose = "tell its current CUDA stream";
  void* stream = nullptr;
  if (cuda_stream) {
    check(cuda_stream(device_index, &stream), kPurpose);
  } else if (native_handle) {
    StreamHandle current = nullptr;
    check(aoti_torch_get_current_stream(device_index, &current), kPurpose);
    const AOTITorchError error = native_handle(current, &stream);
    aoti_torch_delete_stream(current);
    check(error, kPurpose);
  } else {
    fail(
        "current_stream: this build of PyTorch has no function that tells its "
        "current CUDA stream");
  }
  return stream;
}

}  // namespace torch_foo
