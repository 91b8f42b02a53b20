// The Python module foo_dlpack: each operator of foo_core on every array that
// speaks DLPack, in the array's own memory, on the CPU and on CUDA.
#include <cstdint>

#include "dlpack.h"

namespace foo_dlpack {
namespace {

using foo_core::BlockFormat;
using foo_core::CrossEntropyOptions;
using foo_core::GeluApproximation;
using foo_core::Reduction;
using foo_core::RopeOptions;

// foo_core's functions with scratch memory of the size that they need.

void rms_norm_backward(const ConstTensorView& grad, const ConstTensorView& x,
                       const ConstTensorView* weight, double eps,
                       const TensorView* grad_x, const TensorView* grad_weight,
                       Scratch& scratch, const Executor& executor) {
  const std::int64_t size =
      grad_weight ? foo_core::rms_norm_backward_scratch_size(x, executor) : 0;
  foo_core::rms_norm_backward(grad, x, weight, eps, grad_x, grad_weight,
                              scratch.get(size), executor);
}

void add_rms_norm_backward(const ConstTensorView& grad,
                           const ConstTensorView* grad_residual,
                           const ConstTensorView& residual_out,
                           const ConstTensorView* weight, double eps,
                           const TensorView* grad_x,
                           const TensorView* grad_weight, Scratch& scratch,
                           const Executor& executor) {
  const std::int64_t size =
      grad_weight
          ? foo_core::rms_norm_backward_scratch_size(residual_out, executor)
          : 0;
  foo_core::add_rms_norm_backward(grad, grad_residual, residual_out, weight,
                                  eps, grad_x, grad_weight, scratch.get(size),
                                  executor);
}

void cross_entropy(const ConstTensorView& logits, const ConstTensorView& target,
                   const CrossEntropyOptions& options, const TensorView& loss,
                   const TensorView& lse, Scratch& scratch,
                   const Executor& executor) {
  const std::int64_t size =
      foo_core::cross_entropy_scratch_size(logits, options, executor);
  foo_core::cross_entropy(logits, target, options, loss, lse, scratch.get(size),
                          executor);
}

void cross_entropy_backward(const ConstTensorView& grad,
                            const ConstTensorView& logits,
                            const ConstTensorView& target,
                            const ConstTensorView& lse,
                            const CrossEntropyOptions& options,
                            const TensorView& grad_logits, Scratch& scratch,
                            const Executor& executor) {
  const std::int64_t size =
      foo_core::cross_entropy_backward_scratch_size(logits, options, executor);
  foo_core::cross_entropy_backward(grad, logits, target, lse, options,
                                   grad_logits, scratch.get(size), executor);
}

void attention(const ConstTensorView& query, const ConstTensorView& key,
               const ConstTensorView& value, const ConstTensorView* mask,
               double scale, const TensorView& out, Scratch& scratch,
               const Executor& executor) {
  const std::int64_t size =
      foo_core::attention_scratch_size(query, key, value, executor);
  foo_core::attention(query, key, value, mask, scale, out, scratch.get(size),
                      executor);
}

void linear_quantized(const ConstTensorView& x, const ConstTensorView& weight,
                      BlockFormat format, const ConstTensorView* bias,
                      const TensorView& out, Scratch& scratch,
                      const Executor& executor) {
  const std::int64_t size =
      foo_core::linear_quantized_scratch_size(x, executor);
  foo_core::linear_quantized(x, weight, format, bias, out, scratch.get(size),
                             executor);
}

}  // namespace

NB_MODULE(foo_dlpack, m) {
  m.doc() = R"(foo_core's kernels for every array that speaks DLPack.

Functions and arguments are those of foo_core's headers, which say what they
compute; None is a null pointer. Arrays have any strides, and are read and
written in place. All of a call are on one device: the CPU or the current CUDA
device. A call releases the GIL.

stream, on CUDA, is a cudaStream_t as an int, such as that of
torch.cuda.Stream.cuda_stream. The default, 0, is the legacy default stream. It
waits for the work that the arrays' libraries have queued on them, and runs the
kernel. Until it has, the arrays must live and be used on no other stream.

scratch is an array of int8 on the same device. On the CPU, None is enough; on
CUDA, the error says how many bytes are needed.)";

  nb::enum_<BlockFormat>(m, "BlockFormat")
      .value("Q8_0", BlockFormat::kQ8_0)
      .value("Q4_0", BlockFormat::kQ4_0)
      .value("Q4_1", BlockFormat::kQ4_1)
      .value("Q4_K", BlockFormat::kQ4_K)
      .value("Q6_K", BlockFormat::kQ6_K);
  nb::enum_<GeluApproximation>(m, "GeluApproximation")
      .value("NONE", GeluApproximation::kNone)
      .value("TANH", GeluApproximation::kTanh);
  nb::enum_<Reduction>(m, "Reduction")
      .value("NONE", Reduction::kNone)
      .value("MEAN", Reduction::kMean)
      .value("SUM", Reduction::kSum);
  nb::class_<RopeOptions>(m, "RopeOptions")
      .def(nb::init<bool, bool>(), nb::kw_only(), "interleaved"_a = false,
           "inverse"_a = false);
  nb::class_<CrossEntropyOptions>(m, "CrossEntropyOptions")
      .def(nb::init<std::int64_t, Reduction, double>(), nb::kw_only(),
           "ignore_index"_a = -100, "reduction"_a = Reduction::kMean,
           "label_smoothing"_a = 0.0);

  def(m, "add", foo_core::add, "a", "b", "out", "stream");
  def(m, "mul", foo_core::mul, "a", "b", "out", "stream");
  def(m, "muladd", foo_core::muladd, "a", "b", "c", "out", "stream");
  def(m, "silu_mul", foo_core::silu_mul, "gate", "up", "out", "stream");
  def(m, "silu_mul_backward", foo_core::silu_mul_backward, "grad", "gate", "up",
      "grad_gate", "grad_up", "stream");
  def(m, "gelu_mul", foo_core::gelu_mul, "gate", "up", "approximation", "out",
      "stream");
  def(m, "gelu_mul_backward", foo_core::gelu_mul_backward, "grad", "gate", "up",
      "approximation", "grad_gate", "grad_up", "stream");
  def(m, "rms_norm", foo_core::rms_norm, "x", "weight", "eps", "out", "stream");
  def(m, "rms_norm_backward", rms_norm_backward, "grad", "x", "weight", "eps",
      "grad_x", "grad_weight", "scratch", "stream");
  def(m, "add_rms_norm", foo_core::add_rms_norm, "x", "residual", "weight",
      "eps", "out", "residual_out", "stream");
  def(m, "add_rms_norm_backward", add_rms_norm_backward, "grad",
      "grad_residual", "residual_out", "weight", "eps", "grad_x", "grad_weight",
      "scratch", "stream");
  def(m, "linear", foo_core::linear, "x", "weight", "bias", "out", "stream");
  def(m, "attention", attention, "query", "key", "value", "mask", "scale",
      "out", "scratch", "stream");
  def(m, "rope", foo_core::rope, "x", "cos", "sin", "positions", "options",
      "out", "stream");
  def(m, "quantize_int8_rowwise", foo_core::quantize_int8_rowwise, "x", "q",
      "scale", "stream");
  def(m, "quantize", foo_core::quantize, "x", "format", "blocks", "stream");
  def(m, "dequantize", foo_core::dequantize, "blocks", "format", "out",
      "stream");
  def(m, "linear_quantized", linear_quantized, "x", "weight", "format", "bias",
      "out", "scratch", "stream");
  def(m, "cross_entropy", cross_entropy, "logits", "target", "options", "loss",
      "lse", "scratch", "stream");
  def(m, "cross_entropy_backward", cross_entropy_backward, "grad", "logits",
      "target", "lse", "options", "grad_logits", "scratch", "stream");
}

}  // namespace foo_dlpack
