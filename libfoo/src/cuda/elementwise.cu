// add, mul and muladd.
#include "cuda/elementwise.h"
#include "cuda/kernels.h"

namespace foo_core::cuda {
namespace {

struct Add {
  template <class C>
  __device__ void operator()(const C (&x)[2], C (&y)[1]) const {
    y[0] = x[0] + x[1];
  }
};

struct Mul {
  template <class C>
  __device__ void operator()(const C (&x)[2], C (&y)[1]) const {
    y[0] = x[0] * x[1];
  }
};

template <class C>
struct MulAdd {
  __device__ void operator()(const C (&x)[2], C (&y)[1]) const {
    y[0] = fma(x[0], x[1], c);
  }
  C c;
};

}  // namespace

void elementwise(Elementwise function, const ConstTensorView& a,
                 const ConstTensorView& b, double c, const TensorView& out,
                 void* stream) {
  for_dtype(out.dtype, [&](auto t) {
    using T = decltype(t);
    using C = Compute<T>;
    const ElementwiseArguments<T, 2, 1> arguments{
        nest_of_elements(out, a, b, out),
        {static_cast<const T*>(a.data), static_cast<const T*>(b.data)},
        {static_cast<T*>(out.data)}};
    const auto run = [&](const char* op, const auto& f) {
      launch_elementwise(op, arguments, numel(out), f, stream);
    };
    switch (function) {
      case Elementwise::kAdd:
        return run("add", Add());
      case Elementwise::kMul:
        return run("mul", Mul());
      case Elementwise::kMulAdd:
        return run("muladd", MulAdd<C>{static_cast<C>(c)});
    }
  });
}

}  // namespace foo_core::cuda
