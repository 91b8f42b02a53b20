// Every operator as a function of a list of tensors, for tests of what all of
// them refuse.
#pragma once

#include <foo_core/foo_core.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace foo_core::testing {

/// A size that several arguments share.
enum Size {
  kBatch,
  kSeq,
  kHeads,
  kN,
  kHalf,
  kColumns,
  kOne,
  kBlocked,     // a multiple of 32
  kBlockBytes,  // of as many numbers in Q8_0
  kSizes
};

/// The dtype of most tensors of a call, and that of cross_entropy's loss.
constexpr auto kOfCall = static_cast<DType>(-1);
constexpr auto kOfLoss = static_cast<DType>(-2);

struct Parameter {
  enum Kind { kInput, kOptionalInput, kOutput, kOptionalOutput };

  bool is_optional() const {
    return kind == kOptionalInput || kind == kOptionalOutput;
  }
  bool is_output() const { return kind == kOutput || kind == kOptionalOutput; }

  DType dtype_in(DType call) const {
    if (dtype == kOfCall) return call;
    if (dtype != kOfLoss) return dtype;
    return call == DType::kFloat64 ? call : DType::kFloat32;
  }

  std::string name;
  Kind kind;
  DType dtype;  // may be kOfCall or kOfLoss
  std::vector<Size> shape;
};

/// The tensors of a call, in the order of Operator::parameters, and what else
/// it has. An optional tensor that is not given is null.
struct Call {
  const TensorView& operator[](std::size_t i) const { return *tensors[i]; }

  /// An optional input, which lives as long as the call.
  const ConstTensorView* input(std::size_t i) {
    if (tensors[i] == nullptr) return nullptr;
    inputs[i] = *tensors[i];
    return &inputs[i];
  }

  CrossEntropyOptions options() const {
    return {-100, reduction, flag ? 0.5 : 0};
  }

  std::vector<const TensorView*> tensors;
  void* scratch = nullptr;
  Executor executor;
  Reduction reduction = Reduction::kMean;
  bool flag = false;  // an option with two values
  std::vector<ConstTensorView> inputs{tensors.size()};
};

struct Operator {
  const char* name;
  std::vector<Parameter> parameters;
  void (*run)(Call& call);
  /// Null if it needs no scratch memory.
  std::int64_t (*scratch_size)(const Call& call) = nullptr;
};

inline std::vector<Operator> all_operators() {
  using P = Parameter;
  constexpr auto kIn = P::kInput, kMay = P::kOptionalInput;
  constexpr auto kOut = P::kOutput, kMayOut = P::kOptionalOutput;
  constexpr auto kF = kOfCall;
  const std::vector<Size> rows{kBatch, kOne, kN}, row{kN};
  const std::vector<Size> heads{kBatch, kSeq, kHeads, kN};
  const std::vector<Size> table{kSeq, kHalf}, labels{kBatch, kOne};
  return {
      {"add",
       {{"a", kIn, kF, rows}, {"b", kIn, kF, row}, {"out", kOut, kF, rows}},
       [](Call& c) { foo_core::add(c[0], c[1], c[2], c.executor); }},
      {"mul",
       {{"a", kIn, kF, rows}, {"b", kIn, kF, rows}, {"out", kOut, kF, rows}},
       [](Call& c) { foo_core::mul(c[0], c[1], c[2], c.executor); }},
      {"muladd",
       {{"a", kIn, kF, row}, {"b", kIn, kF, rows}, {"out", kOut, kF, rows}},
       [](Call& c) { foo_core::muladd(c[0], c[1], 2, c[2], c.executor); }},
      {"silu_mul",
       {{"gate", kIn, kF, rows},
        {"up", kIn, kF, rows},
        {"out", kOut, kF, rows}},
       [](Call& c) { foo_core::silu_mul(c[0], c[1], c[2], c.executor); }},
      {"gelu_mul",
       {{"gate", kIn, kF, rows},
        {"up", kIn, kF, rows},
        {"out", kOut, kF, rows}},
       [](Call& c) {
         foo_core::gelu_mul(c[0], c[1], GeluApproximation::kTanh, c[2],
                            c.executor);
       }},
      {"silu_mul_backward",
       {{"grad", kIn, kF, rows},
        {"gate", kIn, kF, rows},
        {"up", kIn, kF, rows},
        {"grad_gate", kMayOut, kF, rows},
        {"grad_up", kMayOut, kF, rows}},
       [](Call& c) {
         foo_core::silu_mul_backward(c[0], c[1], c[2], c.tensors[3],
                                     c.tensors[4], c.executor);
       }},
      {"gelu_mul_backward",
       {{"grad", kIn, kF, rows},
        {"gate", kIn, kF, rows},
        {"up", kIn, kF, rows},
        {"grad_gate", kMayOut, kF, rows},
        {"grad_up", kMayOut, kF, rows}},
       [](Call& c) {
         foo_core::gelu_mul_backward(c[0], c[1], c[2], GeluApproximation::kNone,
                                     c.tensors[3], c.tensors[4], c.executor);
       }},
      {"rms_norm",
       {{"x", kIn, kF, rows},
        {"weight", kMay, kF, row},
        {"out", kOut, kF, rows}},
       [](Call& c) {
         foo_core::rms_norm(c[0], c.input(1), 1e-6, c[2], c.executor);
       }},
      {"add_rms_norm",
       {{"x", kIn, kF, rows},
        {"residual", kIn, kF, rows},
        {"weight", kMay, kF, row},
        {"out", kOut, kF, rows},
        {"residual_out", kOut, kF, rows}},
       [](Call& c) {
         foo_core::add_rms_norm(c[0], c[1], c.input(2), 1e-6, c[3], c[4],
                                c.executor);
       }},
      {"rms_norm_backward",
       {{"grad", kIn, kF, rows},
        {"x", kIn, kF, rows},
        {"weight", kMay, kF, row},
        {"grad_x", kMayOut, kF, rows},
        {"grad_weight", kMayOut, kF, row}},
       [](Call& c) {
         foo_core::rms_norm_backward(c[0], c[1], c.input(2), 1e-6, c.tensors[3],
                                     c.tensors[4], c.scratch, c.executor);
       },
       [](const Call& c) {
         return foo_core::rms_norm_backward_scratch_size(c[1], c.executor);
       }},
      {"add_rms_norm_backward",
       {{"grad", kIn, kF, rows},
        {"grad_residual", kMay, kF, rows},
        {"residual_out", kIn, kF, rows},
        {"weight", kMay, kF, row},
        {"grad_x", kMayOut, kF, rows},
        {"grad_weight", kMayOut, kF, row}},
       [](Call& c) {
         foo_core::add_rms_norm_backward(c[0], c.input(1), c[2], c.input(3),
                                         1e-6, c.tensors[4], c.tensors[5],
                                         c.scratch, c.executor);
       },
       [](const Call& c) {
         return foo_core::rms_norm_backward_scratch_size(c[2], c.executor);
       }},
      {"linear",
       {{"x", kIn, kF, rows},
        {"weight", kIn, kF, {kColumns, kN}},
        {"bias", kMay, kF, {kColumns}},
        {"out", kOut, kF, {kBatch, kOne, kColumns}}},
       [](Call& c) {
         foo_core::linear(c[0], c[1], c.input(2), c[3], c.executor);
       }},
      {"attention",
       {{"query", kIn, kF, heads},
        {"key", kIn, kF, {kBatch, kSeq, kHeads, kN}},
        {"value", kIn, kF, {kBatch, kSeq, kHeads, kColumns}},
        {"mask", kMay, kF, {kBatch, kSeq, kHeads, kHeads}},
        {"out", kOut, kF, {kBatch, kSeq, kHeads, kColumns}}},
       [](Call& c) {
         foo_core::attention(c[0], c[1], c[2], c.input(3), 0.5, c[4], c.scratch,
                             c.executor);
       },
       [](const Call& c) {
         return foo_core::attention_scratch_size(c[0], c[1], c[2], c.executor);
       }},
      {"rope",
       {{"x", kIn, kF, heads},
        {"cos", kIn, kF, table},
        {"sin", kIn, kF, table},
        {"positions", kMay, DType::kInt64, {kBatch, kSeq}},
        {"out", kOut, kF, heads}},
       [](Call& c) {
         foo_core::rope(c[0], c[1], c[2], c.input(3), {c.flag, false}, c[4],
                        c.executor);
       }},
      {"quantize",
       {{"x", kIn, kF, {kBatch, kOne, kBlocked}},
        {"blocks", kOut, DType::kUInt8, {kBatch, kOne, kBlockBytes}}},
       [](Call& c) {
         foo_core::quantize(c[0], BlockFormat::kQ8_0, c[1], c.executor);
       }},
      {"dequantize",
       {{"blocks", kIn, DType::kUInt8, {kBatch, kOne, kBlockBytes}},
        {"out", kOut, DType::kFloat32, {kBatch, kOne, kBlocked}}},
       [](Call& c) {
         foo_core::dequantize(c[0], BlockFormat::kQ8_0, c[1], c.executor);
       }},
      {"linear_quantized",
       {{"x", kIn, kF, {kBatch, kOne, kBlocked}},
        {"weight", kIn, DType::kUInt8, {kColumns, kBlockBytes}},
        {"bias", kMay, kF, {kColumns}},
        {"out", kOut, kF, {kBatch, kOne, kColumns}}},
       [](Call& c) {
         foo_core::linear_quantized(c[0], c[1], BlockFormat::kQ8_0, c.input(2),
                                    c[3], c.scratch, c.executor);
       },
       [](const Call& c) {
         return foo_core::linear_quantized_scratch_size(c[0], c.executor);
       }},
      {"quantize_int8_rowwise",
       {{"x", kIn, kF, rows},
        {"q", kOut, DType::kInt8, rows},
        {"scale", kOut, DType::kFloat32, {kBatch, kOne, kOne}}},
       [](Call& c) {
         foo_core::quantize_int8_rowwise(c[0], c[1], c[2], c.executor);
       }},
      {"cross_entropy",
       {{"logits", kIn, kF, rows},
        {"target", kIn, DType::kInt64, labels},
        {"loss", kOut, kOfLoss, {}},
        {"lse", kOut, DType::kFloat64, labels}},
       [](Call& c) {
         foo_core::cross_entropy(c[0], c[1], c.options(), c[2], c[3], c.scratch,
                                 c.executor);
       },
       [](const Call& c) {
         return foo_core::cross_entropy_scratch_size(c[0], c.options(),
                                                     c.executor);
       }},
      {"cross_entropy_backward",
       {{"grad", kIn, kOfLoss, {}},
        {"logits", kIn, kF, rows},
        {"target", kIn, DType::kInt64, labels},
        {"lse", kIn, DType::kFloat64, labels},
        {"grad_logits", kOut, kF, rows}},
       [](Call& c) {
         foo_core::cross_entropy_backward(c[0], c[1], c[2], c[3], c.options(),
                                          c[4], c.scratch, c.executor);
       },
       [](const Call& c) {
         return foo_core::cross_entropy_backward_scratch_size(c[1], c.options(),
                                                              c.executor);
       }},
  };
}

}  // namespace foo_core::testing
