// Adaptors of quantize, dequantize and linear_quantized.
#include "adaptor.h"
#include "generated/operators.h"

namespace torch_foo {
namespace {

using foo_core::BlockFormat;
using foo_core::DType;

BlockFormat parse(const char* op, const std::string& format) {
  std::string names;
  for (int i = 0;; ++i) {
    const auto candidate = static_cast<BlockFormat>(i);
    if (foo_core::block_bytes(candidate) == 0) break;
    if (format == foo_core::name(candidate)) return candidate;
    names += (i ? ", '" : "'") + std::string(foo_core::name(candidate)) + "'";
  }
  fail(std::string(op) + ": format is '" + format + "', expected one of " +
       names);
}

/// A tensor whose rows have no gaps: itself, or a copy.
class WholeRows {
 public:
  WholeRows(const char* op, const Tensor& tensor) : tensor_(tensor) {
    if (tensor.dim() == 0 || tensor.sizes().back() <= 1 ||
        tensor.strides().back() == 1) {
      return;
    }
    copy_ = empty(op, tensor.sizes(), tensor);
    check(aoti_torch_copy_(copy_->handle(), tensor.handle(), 0),
          "copy a tensor");
  }
  operator const Tensor&() const { return copy_ ? *copy_ : tensor_; }

 private:
  const Tensor& tensor_;
  std::optional<Tensor> copy_;
};

/// The shape of a tensor with its last size divided by `divisor`, which it has
/// to be a multiple of, and multiplied by `factor`.
Shape scaled(const char* op, const Argument& argument, std::int64_t divisor,
             std::int64_t factor, BlockFormat format) {
  const auto sizes = argument.tensor.sizes();
  const std::string start = std::string(op) + ": " + argument.name;
  if (sizes.empty()) fail(start + " has no dimensions, expected at least 1");
  if (sizes.back() % divisor != 0) {
    fail(start + " has a last dimension of " + std::to_string(sizes.back()) +
         ", expected a multiple of " + std::to_string(divisor) + " for " +
         foo_core::name(format));
  }
  Shape shape(sizes);
  shape.last() /= divisor;
  if (__builtin_mul_overflow(shape.last(), factor, &shape.last())) {
    fail(start + " has shape " + shape_text(sizes) +
         ", whose result has too many bytes to count");
  }
  return shape;
}

void check(const Tensor& x, const Tensor& weight,
           const std::optional<Tensor>& bias) {
  const char* op = "linear_quantized";
  check_arguments(op, {{"x", x}});
  check_argument(op, {"weight", weight}, DType::kUInt8, {"x", x});
  if (bias) check_arguments(op, {{"x", x}, {"bias", *bias}});
}

void into(const Tensor& x, const Tensor& weight,
          const std::optional<Tensor>& bias, BlockFormat format,
          const Tensor& out) {
  const char* op = "linear_quantized";
  const WholeRows whole(op, weight);
  const std::int64_t bytes =
      scratch_size(foo_core::linear_quantized_scratch_size, x);
  std::optional<Tensor> scratch;
  if (bytes > 0) scratch = empty_bytes(op, bytes, x);
  launch(x, foo_core::linear_quantized, view(x), view(whole), format,
         OptionalView(bias).get(), mutable_view(out),
         scratch ? scratch->mutable_data_ptr() : nullptr);
}

}  // namespace

Tensor quantize(const Tensor& weight, const std::string& format) {
  const char* op = "quantize";
  const BlockFormat parsed = parse(op, format);
  check_arguments(op, {{"weight", weight}});
  const Shape shape =
      scaled(op, {"weight", weight}, foo_core::block_elements(parsed),
             foo_core::block_bytes(parsed), parsed);
  Tensor blocks = empty(op, shape, DType::kUInt8, weight);
  launch(weight, foo_core::quantize, view(weight), parsed,
         mutable_view(blocks));
  return blocks;
}

Tensor dequantize(const Tensor& blocks, const std::string& format) {
  const char* op = "dequantize";
  const BlockFormat parsed = parse(op, format);
  check_argument(op, {"blocks", blocks}, DType::kUInt8, {"blocks", blocks});
  const Shape shape =
      scaled(op, {"blocks", blocks}, foo_core::block_bytes(parsed),
             foo_core::block_elements(parsed), parsed);
  Tensor out = empty(op, shape, DType::kFloat32, blocks);
  const WholeRows whole(op, blocks);
  launch(blocks, foo_core::dequantize, view(whole), parsed, mutable_view(out));
  return out;
}

Tensor linear_quantized(const Tensor& x, const Tensor& weight,
                        const std::optional<Tensor>& bias,
                        const std::string& format) {
  const char* op = "linear_quantized";
  const BlockFormat parsed = parse(op, format);
  check(x, weight, bias);
  Shape shape(x.sizes());
  // Where there is no such dimension, foo_core says so before it writes.
  if (x.dim() > 0 && weight.dim() > 0) {
    shape.last() = weight.sizes()[0];
  }
  Tensor out = empty(op, shape, x);
  into(x, weight, bias, parsed, out);
  return out;
}

void linear_quantized_out(const Tensor& x, const Tensor& weight,
                          const std::optional<Tensor>& bias,
                          const std::string& format, const Tensor& out) {
  const BlockFormat parsed = parse("linear_quantized", format);
  check(x, weight, bias);
  check_arguments("linear_quantized", {{"x", x}, {"out", out}});
  into(x, weight, bias, parsed, out);
}

}  // namespace torch_foo
