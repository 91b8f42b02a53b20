// foo_core::cuda in a build without CUDA kernels: the same functions, which
// all throw.
#include <string>

#include "foo_core/cross_entropy.h"
#include "foo_core/elementwise.h"
#include "foo_core/error.h"
#include "foo_core/glu.h"
#include "foo_core/linear.h"
#include "foo_core/quantize.h"
#include "foo_core/rms_norm.h"
#include "foo_core/rope.h"

namespace foo_core::cuda {
namespace {

[[noreturn]] void fail(const char* op) {
  throw Unavailable((std::string(op) +
                     ": this build of foo_core has no CUDA kernels; install "
                     "its cuda variant")
                        .c_str());
}

}  // namespace

void add(const ConstTensorView&, const ConstTensorView&, const TensorView&,
         void*) {
  fail("add");
}

void mul(const ConstTensorView&, const ConstTensorView&, const TensorView&,
         void*) {
  fail("mul");
}

void muladd(const ConstTensorView&, const ConstTensorView&, double,
            const TensorView&, void*) {
  fail("muladd");
}

void linear(const ConstTensorView&, const ConstTensorView&,
            const ConstTensorView*, const TensorView&, void*) {
  fail("linear");
}

void quantize_int8_rowwise(const ConstTensorView&, const TensorView&,
                           const TensorView&, void*) {
  fail("quantize_int8_rowwise");
}

void cross_entropy(const ConstTensorView&, const ConstTensorView&,
                   const CrossEntropyOptions&, const TensorView&,
                   const TensorView&, void*, void*) {
  fail("cross_entropy");
}

void cross_entropy_backward(const ConstTensorView&, const ConstTensorView&,
                            const ConstTensorView&, const ConstTensorView&,
                            const CrossEntropyOptions&, const TensorView&,
                            void*) {
  fail("cross_entropy_backward");
}

void silu_mul(const ConstTensorView&, const ConstTensorView&, const TensorView&,
              void*) {
  fail("silu_mul");
}

void silu_mul_backward(const ConstTensorView&, const ConstTensorView&,
                       const ConstTensorView&, const TensorView*,
                       const TensorView*, void*) {
  fail("silu_mul_backward");
}

void gelu_mul(const ConstTensorView&, const ConstTensorView&, GeluApproximation,
              const TensorView&, void*) {
  fail("gelu_mul");
}

void gelu_mul_backward(const ConstTensorView&, const ConstTensorView&,
                       const ConstTensorView&, GeluApproximation,
                       const TensorView*, const TensorView*, void*) {
  fail("gelu_mul_backward");
}

void rms_norm(const ConstTensorView&, const ConstTensorView*, double,
              const TensorView&, void*) {
  fail("rms_norm");
}

void add_rms_norm(const ConstTensorView&, const ConstTensorView&,
                  const ConstTensorView*, double, const TensorView&,
                  const TensorView&, void*) {
  fail("add_rms_norm");
}

void rms_norm_backward(const ConstTensorView&, const ConstTensorView&,
                       const ConstTensorView*, double, const TensorView*,
                       const TensorView*, void*, void*) {
  fail("rms_norm_backward");
}

void rope(const ConstTensorView&, const ConstTensorView&,
          const ConstTensorView&, const ConstTensorView*, const RopeOptions&,
          const TensorView&, void*) {
  fail("rope");
}

void add_rms_norm_backward(const ConstTensorView&, const ConstTensorView*,
                           const ConstTensorView&, const ConstTensorView*,
                           double, const TensorView*, const TensorView*, void*,
                           void*) {
  fail("add_rms_norm_backward");
}

}  // namespace foo_core::cuda
