// The errors of an executor that has no kernels in this build. They are out of
// line, so that the check is one comparison in each operator.
#include "loop.h"

#include <string>

#include "checks.h"
#include "foo_core/error.h"

namespace foo_core {

void refuse_device(const char* op, Device device) {
  if (device == Device::kCuda) {
    throw Unavailable((std::string(op) +
                       ": this build of foo_core has no CUDA kernels; install "
                       "its cuda variant")
                          .c_str());
  }
  fail(op, "executor has device number " +
               std::to_string(static_cast<std::int32_t>(device)) +
               ", which is none of Device's");
}

}  // namespace foo_core
