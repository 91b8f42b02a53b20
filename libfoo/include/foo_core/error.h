/// @file
/// The exceptions that foo_core throws.
#pragma once

#include <stdexcept>

#include "foo_core/export.h"

namespace foo_core {

/// An argument was refused. what() is one sentence that names the operator, the
/// argument, what was expected and what the caller passed, such as
/// "rms_norm: weight has 4095 elements, but x's last dimension is 4096".
/// Nothing has been written when it is thrown, except where an index that is
/// held in a tensor (positions, targets) was valid when the call began and was
/// then changed by another thread: all results are unspecified in that case.
class FOO_CORE_EXPORT InvalidArgument : public std::invalid_argument {
 public:
  /// Copies `message`.
  explicit InvalidArgument(const char* message);
  ~InvalidArgument() override;
};

/// This build lacks what the caller asked for, such as CUDA kernels. Nothing
/// has been written when it is thrown.
class FOO_CORE_EXPORT Unavailable : public std::runtime_error {
 public:
  /// Copies `message`.
  explicit Unavailable(const char* message);
  ~Unavailable() override;
};

/// A call of the CUDA runtime failed, such as a launch on a machine without a
/// GPU or with a driver that is too old. what() is one sentence with the
/// operator, the runtime's error and, where there is a cure, that. An error in
/// an earlier kernel of the process may be reported by a later call.
class FOO_CORE_EXPORT DeviceError : public std::runtime_error {
 public:
  /// Copies `message`.
  explicit DeviceError(const char* message);
  ~DeviceError() override;
};

}  // namespace foo_core
