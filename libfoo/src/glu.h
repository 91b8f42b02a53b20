// The activations of gated linear units, by which kernels are chosen.
#pragma once

#include <string>

#include "checks.h"
#include "foo_core/glu.h"

namespace foo_core {

enum class Activation { kSilu, kGelu, kGeluTanh };

/// The activation for a GeluApproximation. Throws InvalidArgument for a number
/// that is none.
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
