// The exceptions' constructors and destructors. They are out of line, so that
// the library holds the only copy of their vtables and type information.
#include "foo_core/error.h"

namespace foo_core {

InvalidArgument::InvalidArgument(const char* message)
    : std::invalid_argument(message) {}
InvalidArgument::~InvalidArgument() = default;

Unavailable::Unavailable(const char* message) : std::runtime_error(message) {}
Unavailable::~Unavailable() = default;

DeviceError::DeviceError(const char* message) : std::runtime_error(message) {}
DeviceError::~DeviceError() = default;

}  // namespace foo_core
