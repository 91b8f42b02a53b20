// Adaptors of cross_entropy and its gradient.
#include "adaptor.h"
#include "generated/operators.h"

namespace torch_foo {
namespace {

using foo_core::CrossEntropyOptions;
using foo_core::DType;
using foo_core::Reduction;

Reduction reduction_of(const char* op, const std::string& name) {
  if (name == "none") return Reduction::kNone;
  if (name == "mean") return Reduction::kMean;
  if (name == "sum") return Reduction::kSum;
  fail(std::string(op) + ": reduction is '" + name +
       "', expected 'none', 'mean' or 'sum'");
}

CrossEntropyOptions check(const char* op, const Tensor& logits,
                          const Tensor& target, std::int64_t ignore_index,
                          const std::string& reduction,
                          double label_smoothing) {
  check_arguments(op, {{"logits", logits}});
  check_argument(op, {"target", target}, DType::kInt64, {"logits", logits});
  return {ignore_index, reduction_of(op, reduction), label_smoothing};
}

}  // namespace

std::tuple<Tensor, Tensor> cross_entropy(const Tensor& logits,
                                         const Tensor& target,
                                         std::int64_t ignore_index,
                                         const std::string& reduction,
                                         double label_smoothing) {
  const char* op = "cross_entropy";
  const CrossEntropyOptions options =
      check(op, logits, target, ignore_index, reduction, label_smoothing);
  const foo_core::ConstTensorView vlogits = view(logits);
  const DType dtype =
      vlogits.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  const bool reduced = options.reduction != Reduction::kNone;
  Tensor loss = empty(op, reduced ? IntHeaderOnlyArrayRef() : target.sizes(),
                      dtype, logits);
  Tensor lse = empty(op, target.sizes(), DType::kFloat64, logits);
  const Tensor scratch = empty_bytes(
      op,
      foo_core::cross_entropy_scratch_size(vlogits, options, device_of(logits)),
      logits);
  launch(logits, foo_core::cross_entropy, vlogits, PerRow{view(target)},
         options, PerRow{mutable_view(loss)}, PerRow{mutable_view(lse)},
         reduced ? scratch.mutable_data_ptr() : nullptr);
  return {std::move(loss), std::move(lse)};
}

Tensor cross_entropy_backward(const Tensor& grad, const Tensor& logits,
                              const Tensor& target, const Tensor& lse,
                              std::int64_t ignore_index,
                              const std::string& reduction,
                              double label_smoothing) {
  const char* op = "cross_entropy_backward";
  const CrossEntropyOptions options =
      check(op, logits, target, ignore_index, reduction, label_smoothing);
  check_arguments(op, {{"grad", grad}});
  check_device(op, {"grad", grad}, {"logits", logits});
  check_argument(op, {"lse", lse}, DType::kFloat64, {"logits", logits});
  Tensor grad_logits = empty(op, logits.sizes(), logits);
  const auto vlogits = view(logits);
  const std::int64_t bytes = foo_core::cross_entropy_backward_scratch_size(
      vlogits, options, device_of(logits));
  std::optional<Tensor> scratch;
  if (bytes > 0) scratch = empty_bytes(op, bytes, logits);
  launch(logits, foo_core::cross_entropy_backward, PerRow{view(grad)}, vlogits,
         PerRow{view(target)}, PerRow{view(lse)}, options,
         mutable_view(grad_logits),
         scratch ? scratch->mutable_data_ptr() : nullptr);
  return grad_logits;
}

}  // namespace torch_foo
