// What a failed call of the CUDA runtime means to a user.
#include <string>

#include "cuda/device.h"
#include "foo_core/error.h"

namespace foo_core::cuda {

void check(cudaError_t error, const char* op) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next check would report it again
  std::string advice;
  switch (error) {
    case cudaErrorNoDevice:
      advice = "; this machine has no CUDA GPU, or hides it";
      break;
    case cudaErrorInsufficientDriver:
      advice =
          "; this machine has no NVIDIA driver, or one that is older than this "
          "build of foo_core: install or update the driver, or install a cuda "
          "variant for an older CUDA";
      break;
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
      advice =
          "; this build of foo_core has no code for this GPU and driver: build "
          "it with CMAKE_CUDA_ARCHITECTURES=native";
      break;
    default:
      break;
  }
  throw DeviceError((std::string(op) + ": CUDA failed with " +
                     cudaGetErrorName(error) + " (" +
                     cudaGetErrorString(error) + ")" + advice)
                        .c_str());
}

}  // namespace foo_core::cuda
