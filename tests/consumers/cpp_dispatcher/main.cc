// A transformer's feed-forward block of torch-foo's operators, compared with
// the same block in plain ATen.
//
// The program links torch_foo::torch_foo, which registers the operators with
// libtorch's dispatcher before main() starts. It finds them by name; typed()
// throws if the C++ types do not match the schema.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cstdio>
#include <exception>
#include <optional>

namespace {

template <class Signature>
auto find(const char* name, const char* overload = "") {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(name, overload)
      .typed<Signature>();
}

using OptionalTensor = std::optional<at::Tensor>;

at::Tensor rms_norm(const at::Tensor& x, const OptionalTensor& weight,
                    double eps) {
  static const auto op =
      find<at::Tensor(const at::Tensor&, const OptionalTensor&, double)>(
          "torch_foo::rms_norm");
  return op.call(x, weight, eps);
}

at::Tensor silu_mul(const at::Tensor& gate, const OptionalTensor& up) {
  static const auto op =
      find<at::Tensor(const at::Tensor&, const OptionalTensor&)>(
          "torch_foo::silu_mul");
  return op.call(gate, up);
}

void add_out(const at::Tensor& a, const at::Tensor& b, at::Tensor& out) {
  static const auto op =
      find<void(const at::Tensor&, const at::Tensor&, at::Tensor&)>(
          "torch_foo::add", "out");
  op.call(a, b, out);
}

}  // namespace

int main() {
  // Gradients are registered from Python and do not exist here.
  const at::NoGradGuard no_grad;
  at::manual_seed(1);

  for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    const at::Tensor x = at::randn({5, 64}, dtype);
    const at::Tensor weight = at::randn({64}, dtype);
    const at::Tensor gate = at::randn({64, 128}, dtype) / 8;
    const at::Tensor up = at::randn({64, 128}, dtype) / 8;
    const at::Tensor down = at::randn({128, 64}, dtype) / 12;

    const at::Tensor normed = rms_norm(x, weight, 1e-6);
    at::Tensor y = at::mm(silu_mul(normed.mm(gate), normed.mm(up)), down);
    add_out(x, y, y);

    const at::Tensor expected_normed = at::rms_norm(x, {64}, weight, 1e-6);
    const at::Tensor expected =
        x + at::mm(at::silu(expected_normed.mm(gate)) * expected_normed.mm(up),
                   down);
    const double tolerance = dtype == at::kBFloat16 ? 0.05 : 1e-5;
    if (!at::allclose(y, expected, tolerance, tolerance)) {
      std::fprintf(stderr, "%s: off by %g\n", c10::toString(dtype),
                   (y - expected).abs().max().item<double>());
      return 1;
    }
    std::printf("%s: equal to ATen\n", c10::toString(dtype));
  }

  const at::Tensor x = at::ones({2, 4});
  try {
    rms_norm(x, at::ones({3}), 1e-6);
  } catch (const std::exception& error) {
    std::printf("refused: %s\n", error.what());
    return 0;
  }
  return 2;
}
