// Adaptor of attention.
#include <cmath>

#include "adaptor.h"
#include "generated/operators.h"

namespace torch_foo {
namespace {

/// A mask as foo_core sees it: bool as bytes.
class Mask {
 public:
  Mask(const Tensor& query, const std::optional<Tensor>& mask) {
    if (!mask) return;
    const char* op = "attention";
    if (is_bool(*mask)) {
      check_bool(op, {"mask", *mask}, {"query", query});
      view_ = bool_view(*mask);
    } else if (!is_floating_point(*mask)) {
      fail("attention: mask has dtype " + dtype_name(*mask) +
           ", expected bool or that of query, " + dtype_name(query));
    } else {
      check_arguments(op, {{"query", query}, {"mask", *mask}});
      view_ = view(*mask);
    }
  }
  const foo_core::ConstTensorView* get() const {
    return view_ ? &*view_ : nullptr;
  }

 private:
  std::optional<foo_core::ConstTensorView> view_;
};

void check(const Tensor& query, const Tensor& key, const Tensor& value) {
  const char* op = "attention";
  const Argument arg_key{"key", key};
  check_any_dtypes(op, {{"query", query}, arg_key, {"value", value}});
  if (view(query).dtype != foo_core::DType::kFloat32) {
    check_arguments(op, {{"query", query}, arg_key});
  } else if (view(key).dtype == foo_core::DType::kFloat64) {
    fail(
        "attention: key has dtype float64, expected float32, float16 or "
        "bfloat16, as query has float32");
  }
  check_arguments(op, {arg_key, {"value", value}});
}

void into(const Tensor& query, const Tensor& key, const Tensor& value,
          const std::optional<Tensor>& mask, const std::optional<double>& scale,
          const Tensor& out) {
  const Mask checked(query, mask);
  const std::int64_t bytes = scratch_size(foo_core::attention_scratch_size,
                                          query, view(key), view(value));
  std::optional<Tensor> scratch;
  if (bytes > 0) scratch = empty_bytes("attention", bytes, query);
  const std::int64_t size = query.dim() > 0 ? query.sizes().back() : 1;
  launch(query, foo_core::attention, view(query), view(key), view(value),
         checked.get(),
         scale ? *scale
               : 1 / std::sqrt(
                         static_cast<double>(std::max<std::int64_t>(size, 1))),
         mutable_view(out), scratch ? scratch->mutable_data_ptr() : nullptr);
}

}  // namespace

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value,
                 const std::optional<Tensor>& mask,
                 const std::optional<double>& scale) {
  check(query, key, value);
  Shape shape(query.sizes());
  // Where there is no such dimension, foo_core says so before it writes.
  if (query.dim() > 0 && value.dim() > 0) shape.last() = value.sizes().back();
  Tensor out = empty("attention", shape, query);
  into(query, key, value, mask, scale, out);
  return out;
}

void attention_out(const Tensor& query, const Tensor& key, const Tensor& value,
                   const std::optional<Tensor>& mask,
                   const std::optional<double>& scale, const Tensor& out) {
  check(query, key, value);
  check_arguments("attention", {{"query", query}, {"out", out}});
  into(query, key, value, mask, scale, out);
}

}  // namespace torch_foo
