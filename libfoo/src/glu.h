// What the sources of gated linear units have in common.
#pragma once

#include <string>

#include "checks.h"
#include "foo_core/glu.h"

namespace foo_core {

enum class Activation { kSilu, kGelu, kGeluTanh };

/// Throws InvalidArgument for a number that is no GeluApproximation.
inline Activation gelu_activation(const char* op,
                                  GeluApproximation approximation) {
  switch (approximation) {
    case GeluApproximation::kNone:
      return Activation::kGelu;
    case GeluApproximation::kTanh:
      return Activation::kGeluTanh;
  }
  fail(op, "approximation is number " +
               std::to_string(static_cast<std::int32_t>(approximation)) +
               ", which is none of GeluApproximation's");
}

}  // namespace foo_core
