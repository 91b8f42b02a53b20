// Kernels of foo_core under ATen's names, for contiguous tensors of one shape
// and floating-point dtype. A backend's own kernels go here, or to a file like
// this one.
#include "kernels.h"

#include <torch/csrc/stable/stableivalue_conversions.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "adaptor.h"
#include "alias.h"

namespace torch_foo::device {
namespace {

namespace detail = torch::stable::detail;

/// The first arguments, if they are such tensors, as vectors.
class Operands {
 public:
  Operands(const StableIValue* stack, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      tensors_[i].emplace(detail::to<AtenTensorHandle>(stack[i]));
    }
    suit_ = std::all_of(tensors_, tensors_ + count, [this](const auto& x) {
      return suits(**x, **tensors_[0]);
    });
    if (!suit_) return;
    for (const std::int64_t n : first().sizes()) size_ *= n;
  }
  Operands(const Operands&) = delete;

  bool suit() const { return suit_; }
  const Tensor& first() const { return **tensors_[0]; }
  foo_core::ConstTensorView operator[](std::size_t i) const {
    return {(*tensors_[i])->const_data_ptr(), view(first()).dtype, 1, &size_,
            &kDense};
  }
  foo_core::TensorView result(const Tensor& out) const {
    return {out.mutable_data_ptr(), view(first()).dtype, 1, &size_, &kDense};
  }
  /// As many ones.
  foo_core::ConstTensorView ones() const {
    return {one(first().dtype()), view(first()).dtype, 1, &size_, &kRepeated};
  }

 private:
  static constexpr std::int64_t kDense = 1, kRepeated = 0;

  static bool suits(const Tensor& x, const Tensor& like) {
    return x.defined() && is_foo(x) && x.dense() && is_floating_point(x) &&
           x.dtype() == like.dtype() && is_contiguous(x) &&
           std::equal(x.sizes().begin(), x.sizes().end(),  //
                      like.sizes().begin(), like.sizes().end());
  }
  static bool is_contiguous(const Tensor& x) {
    bool contiguous;
    check(aoti_torch_is_contiguous(x.handle(), &contiguous), "read a tensor");
    return contiguous;
  }
  static const void* one(std::int32_t dtype) {
    static constexpr double kDouble = 1;
    static constexpr float kFloat = 1;
    static constexpr std::uint16_t kHalf = 0x3c00, kBFloat16 = 0x3f80;
    if (dtype == aoti_torch_dtype_float64()) return &kDouble;
    if (dtype == aoti_torch_dtype_float32()) return &kFloat;
    if (dtype == aoti_torch_dtype_float16()) return &kHalf;
    return &kBFloat16;
  }

  std::optional<Borrowed> tensors_[2];
  bool suit_;
  std::int64_t size_ = 1;
};

std::optional<foo_core::GeluApproximation> approximation(StableIValue text) {
  const char* data;
  check(torch_string_c_str(detail::to<StringHandle>(text), &data),
        "read a string");
  const std::string_view name = data;
  if (name == "tanh") return foo_core::GeluApproximation::kTanh;
  if (name == "none") return foo_core::GeluApproximation::kNone;
  return std::nullopt;
}

// `function` is foo_core's, and `a` its arguments before out.

template <class F, class... A>
Tensor run(const Operands& x, F function, const A&... a) {
  Tensor out =
      new_tensor(x.first().sizes(), x.first().strides(),
                 static_cast<torch::headeronly::ScalarType>(x.first().dtype()));
  function(a..., x.result(out), torch_threads());
  return out;
}

template <class F, class... A>
std::optional<Tensor> activation(const StableIValue* stack, F function,
                                 A... a) {
  const Operands x(stack, 1);
  if (!x.suit()) return std::nullopt;
  return run(x, function, x[0], x.ones(), a...);
}

template <class F, class... A>
std::optional<Tensor> activation_backward(const StableIValue* stack, F function,
                                          A... a) {
  const Operands x(stack, 2);  // grad and self
  if (!x.suit()) return std::nullopt;
  const auto gradient = [&](const foo_core::TensorView& out,
                            const foo_core::Executor& executor) {
    function(x[0], x[1], x.ones(), a..., &out, nullptr, executor);
  };
  return run(x, gradient);
}

}  // namespace

std::optional<Tensor> add(const StableIValue* stack) {
  const Operands x(stack, 2);
  if (!x.suit()) return std::nullopt;
  return run(x, foo_core::add, x[0], x[1]);
}

std::optional<Tensor> mul(const StableIValue* stack) {
  const Operands x(stack, 2);
  if (!x.suit()) return std::nullopt;
  return run(x, foo_core::mul, x[0], x[1]);
}

std::optional<Tensor> silu(const StableIValue* stack) {
  return activation(stack, foo_core::silu_mul);
}

std::optional<Tensor> silu_backward(const StableIValue* stack) {
  return activation_backward(stack, foo_core::silu_mul_backward);
}

std::optional<Tensor> gelu(const StableIValue* stack) {
  const auto kind = approximation(stack[1]);
  if (!kind) return std::nullopt;
  return activation(stack, foo_core::gelu_mul, *kind);
}

std::optional<Tensor> gelu_backward(const StableIValue* stack) {
  const auto kind = approximation(stack[2]);
  if (!kind) return std::nullopt;
  return activation_backward(stack, foo_core::gelu_mul_backward, *kind);
}

}  // namespace torch_foo::device
