// Generated from python/torch_foo/operators by codegen/generate.py. Do not
// edit.
//
// The operators' schemas and kernels. Their fake kernels, gradients, autocast
// and vmap rules are registered from Python, by torch_foo/_registration.py: the
// stable ABI has no C++ interface for them.
#include "boxed.h"
#include "generated/operators.h"
#include "library.h"

namespace torch_foo {

void define_operators(const Library& m) {
  m.def(
      "attention(Tensor query, Tensor key, Tensor value, Tensor? mask=None, *, "
      "float? scale=None) -> Tensor");
  m.def(
      "_attention(Tensor query, Tensor key, Tensor value, Tensor? mask, float? "
      "scale) -> Tensor");
  m.def(
      "attention.out(Tensor query, Tensor key, Tensor value, Tensor? "
      "mask=None, *, float? scale=None, Tensor(a!) out) -> ()");
  m.def(
      "_attention_out(Tensor query, Tensor key, Tensor value, Tensor? mask, "
      "float? scale, Tensor(a!) out) -> ()");
  m.def("quantize(Tensor weight, str format=\"q8_0\") -> Tensor");
  m.def("dequantize(Tensor blocks, str format=\"q8_0\") -> Tensor");
  m.def(
      "linear_quantized(Tensor x, Tensor weight, Tensor? bias=None, *, str "
      "format=\"q8_0\") -> Tensor");
  m.def(
      "_linear_quantized(Tensor x, Tensor weight, Tensor? bias, str format) -> "
      "Tensor");
  m.def(
      "linear_quantized.out(Tensor x, Tensor weight, Tensor? bias=None, *, str "
      "format=\"q8_0\", Tensor(a!) out) -> ()");
  m.def(
      "_linear_quantized_out(Tensor x, Tensor weight, Tensor? bias, str "
      "format, Tensor(a!) out) -> ()");
  m.def(
      "cross_entropy(Tensor logits, Tensor target, *, int ignore_index=-100, "
      "str reduction=\"mean\", float label_smoothing=0.0) -> (Tensor loss, "
      "Tensor lse)");
  m.def(
      "_cross_entropy(Tensor logits, Tensor target, int ignore_index, str "
      "reduction, float label_smoothing) -> (Tensor loss, Tensor lse)");
  m.def(
      "_cross_entropy_backward(Tensor grad, Tensor logits, Tensor target, "
      "Tensor lse, int ignore_index, str reduction, float label_smoothing) -> "
      "Tensor");
  m.def("add(Tensor a, Tensor b) -> Tensor");
  m.def("_add(Tensor a, Tensor b) -> Tensor");
  m.def("add.out(Tensor a, Tensor b, *, Tensor(a!) out) -> ()");
  m.def("_add_out(Tensor a, Tensor b, Tensor(a!) out) -> ()");
  m.def("mul(Tensor a, Tensor b) -> Tensor");
  m.def("_mul(Tensor a, Tensor b) -> Tensor");
  m.def("mul.out(Tensor a, Tensor b, *, Tensor(a!) out) -> ()");
  m.def("_mul_out(Tensor a, Tensor b, Tensor(a!) out) -> ()");
  m.def("muladd(Tensor a, Tensor b, float c) -> Tensor");
  m.def("_muladd(Tensor a, Tensor b, float c) -> Tensor");
  m.def("muladd.out(Tensor a, Tensor b, float c, *, Tensor(a!) out) -> ()");
  m.def("_muladd_out(Tensor a, Tensor b, float c, Tensor(a!) out) -> ()");
  m.def("silu_mul(Tensor gate, Tensor? up=None) -> Tensor");
  m.def("_silu_mul(Tensor gate, Tensor? up) -> Tensor");
  m.def("silu_mul.out(Tensor gate, Tensor? up=None, *, Tensor(a!) out) -> ()");
  m.def("_silu_mul_out(Tensor gate, Tensor? up, Tensor(a!) out) -> ()");
  m.def(
      "_silu_mul_backward(Tensor grad, Tensor gate, Tensor? up, bool "
      "wants_gate, bool wants_up) -> (Tensor grad_gate, Tensor grad_up)");
  m.def(
      "gelu_mul(Tensor gate, Tensor? up=None, *, str approximate=\"none\") -> "
      "Tensor");
  m.def("_gelu_mul(Tensor gate, Tensor? up, str approximate) -> Tensor");
  m.def(
      "gelu_mul.out(Tensor gate, Tensor? up=None, *, str approximate=\"none\", "
      "Tensor(a!) out) -> ()");
  m.def(
      "_gelu_mul_out(Tensor gate, Tensor? up, str approximate, Tensor(a!) out) "
      "-> ()");
  m.def(
      "_gelu_mul_backward(Tensor grad, Tensor gate, Tensor? up, str "
      "approximate, bool wants_gate, bool wants_up) -> (Tensor grad_gate, "
      "Tensor grad_up)");
  m.def("linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor");
  m.def("_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  m.def(
      "linear.out(Tensor x, Tensor weight, Tensor? bias=None, *, Tensor(a!) "
      "out) -> ()");
  m.def(
      "_linear_out(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) out) -> "
      "()");
  m.def("quantize_int8_rowwise(Tensor x) -> (Tensor q, Tensor scale)");
  m.def("rms_norm(Tensor x, Tensor? weight=None, float eps=1e-6) -> Tensor");
  m.def("_rms_norm(Tensor x, Tensor? weight, float eps) -> Tensor");
  m.def(
      "rms_norm.out(Tensor x, Tensor? weight=None, float eps=1e-6, *, "
      "Tensor(a!) out) -> ()");
  m.def(
      "_rms_norm_out(Tensor x, Tensor? weight, float eps, Tensor(a!) out) -> "
      "()");
  m.def(
      "_rms_norm_backward(Tensor grad, Tensor x, Tensor? weight, float eps, "
      "bool wants_x, bool wants_weight) -> (Tensor grad_x, Tensor "
      "grad_weight)");
  m.def(
      "add_rms_norm(Tensor x, Tensor residual, Tensor? weight=None, float "
      "eps=1e-6) -> (Tensor y, Tensor residual_out)");
  m.def(
      "_add_rms_norm(Tensor x, Tensor residual, Tensor? weight, float eps) -> "
      "(Tensor y, Tensor residual_out)");
  m.def(
      "add_rms_norm_(Tensor(a!) x, Tensor(b!) residual, Tensor? weight=None, "
      "float eps=1e-6) -> ()");
  m.def(
      "_add_rms_norm_(Tensor(a!) x, Tensor(b!) residual, Tensor? weight, float "
      "eps) -> ()");
  m.def(
      "_add_rms_norm_backward(Tensor grad, Tensor? grad_residual, Tensor "
      "residual_out, Tensor? weight, float eps, bool wants_x, bool "
      "wants_weight) -> (Tensor grad_x, Tensor grad_weight)");
  m.def(
      "rope(Tensor x, Tensor cos, Tensor sin, Tensor? positions=None, *, bool "
      "interleaved=False) -> Tensor");
  m.def(
      "_rope(Tensor x, Tensor cos, Tensor sin, Tensor? positions, bool "
      "interleaved) -> Tensor");
  m.def(
      "rope.out(Tensor x, Tensor cos, Tensor sin, Tensor? positions=None, *, "
      "bool interleaved=False, Tensor(a!) out) -> ()");
  m.def(
      "_rope_out(Tensor x, Tensor cos, Tensor sin, Tensor? positions, bool "
      "interleaved, Tensor(a!) out) -> ()");
  m.def(
      "rope_(Tensor(a!) x, Tensor cos, Tensor sin, Tensor? positions=None, *, "
      "bool interleaved=False) -> ()");
  m.def(
      "_rope_(Tensor(a!) x, Tensor cos, Tensor sin, Tensor? positions, bool "
      "interleaved) -> ()");
  m.def(
      "_rope_backward(Tensor grad, Tensor cos, Tensor sin, Tensor? positions, "
      "bool interleaved) -> Tensor");
}

void implement_operators(const Library& m) {
  m.impl("attention", boxed<&attention>);
  m.impl("_attention", boxed<&attention>);
  m.impl("attention.out", boxed<&attention_out>);
  m.impl("_attention_out", boxed<&attention_out>);
  m.impl("quantize", boxed<&quantize>);
  m.impl("dequantize", boxed<&dequantize>);
  m.impl("linear_quantized", boxed<&linear_quantized>);
  m.impl("_linear_quantized", boxed<&linear_quantized>);
  m.impl("linear_quantized.out", boxed<&linear_quantized_out>);
  m.impl("_linear_quantized_out", boxed<&linear_quantized_out>);
  m.impl("cross_entropy", boxed<&cross_entropy>);
  m.impl("_cross_entropy", boxed<&cross_entropy>);
  m.impl("_cross_entropy_backward", boxed<&cross_entropy_backward>);
  m.impl("add", boxed<&add>);
  m.impl("_add", boxed<&add>);
  m.impl("add.out", boxed<&add_out>);
  m.impl("_add_out", boxed<&add_out>);
  m.impl("mul", boxed<&mul>);
  m.impl("_mul", boxed<&mul>);
  m.impl("mul.out", boxed<&mul_out>);
  m.impl("_mul_out", boxed<&mul_out>);
  m.impl("muladd", boxed<&muladd>);
  m.impl("_muladd", boxed<&muladd>);
  m.impl("muladd.out", boxed<&muladd_out>);
  m.impl("_muladd_out", boxed<&muladd_out>);
  m.impl("silu_mul", boxed<&silu_mul>);
  m.impl("_silu_mul", boxed<&silu_mul>);
  m.impl("silu_mul.out", boxed<&silu_mul_out>);
  m.impl("_silu_mul_out", boxed<&silu_mul_out>);
  m.impl("_silu_mul_backward", boxed<&silu_mul_backward>);
  m.impl("gelu_mul", boxed<&gelu_mul>);
  m.impl("_gelu_mul", boxed<&gelu_mul>);
  m.impl("gelu_mul.out", boxed<&gelu_mul_out>);
  m.impl("_gelu_mul_out", boxed<&gelu_mul_out>);
  m.impl("_gelu_mul_backward", boxed<&gelu_mul_backward>);
  m.impl("linear", boxed<&linear>);
  m.impl("_linear", boxed<&linear>);
  m.impl("linear.out", boxed<&linear_out>);
  m.impl("_linear_out", boxed<&linear_out>);
  m.impl("quantize_int8_rowwise", boxed<&quantize_int8_rowwise>);
  m.impl("rms_norm", boxed<&rms_norm>);
  m.impl("_rms_norm", boxed<&rms_norm>);
  m.impl("rms_norm.out", boxed<&rms_norm_out>);
  m.impl("_rms_norm_out", boxed<&rms_norm_out>);
  m.impl("_rms_norm_backward", boxed<&rms_norm_backward>);
  m.impl("add_rms_norm", boxed<&add_rms_norm>);
  m.impl("_add_rms_norm", boxed<&add_rms_norm>);
  m.impl("add_rms_norm_", boxed<&add_rms_norm_>);
  m.impl("_add_rms_norm_", boxed<&add_rms_norm_>);
  m.impl("_add_rms_norm_backward", boxed<&add_rms_norm_backward>);
  m.impl("rope", boxed<&rope>);
  m.impl("_rope", boxed<&rope>);
  m.impl("rope.out", boxed<&rope_out>);
  m.impl("_rope_out", boxed<&rope_out>);
  m.impl("rope_", boxed<&rope_>);
  m.impl("_rope_", boxed<&rope_>);
  m.impl("_rope_backward", boxed<&rope_backward>);
}

}  // namespace torch_foo
