// The Python module foo_numpy: each operator of foo_core, on NumPy arrays.
//
// foo_core's exceptions derive from standard ones, which pybind11 translates:
// InvalidArgument becomes ValueError, Unavailable becomes RuntimeError, each
// with its message.
#include <string>
#include <vector>

#include "array.h"

namespace foo_numpy {
namespace {

using foo_core::GeluApproximation;
using foo_core::Reduction;
using py::literals::operator""_a;

using Object = const py::object&;  // an argument of any type

/// Runs `kernel` on views of x, y and out.
template <class Kernel>
py::array binary(const char* op, const Input& x, const Input& y,
                 Object out_object, const Kernel& kernel) {
  const Output out(op, out_object, x.array().dtype(),
                   broadcast(x.shape(), y.shape()));
  without_gil([&] { kernel(x, y, out, foo_core::Executor()); });
  return out.array();
}

template <class Kernel>
py::array elementwise(const char* op, Object a, Object b, Object out,
                      const Kernel& kernel) {
  const Input x(op, "a", a), y(op, "b", b);
  return binary(op, x, y, out, kernel);
}

py::array add(Object a, Object b, Object out) {
  return elementwise("add", a, b, out, foo_core::add);
}

py::array mul(Object a, Object b, Object out) {
  return elementwise("mul", a, b, out, foo_core::mul);
}

py::array muladd(Object a, Object b, double c, Object out) {
  return elementwise(
      "muladd", a, b, out,
      [c](const auto& x, const auto& y, const auto& to, const auto& executor) {
        foo_core::muladd(x, y, c, to, executor);
      });
}

/// The gate holds gate and up if `up` is None.
template <class Kernel>
py::array gated(const char* op, Object gate, Object up, Object out,
                const Kernel& kernel) {
  const Input x(op, "gate", gate);
  if (!up.is_none()) return binary(op, x, {op, "up", up}, out, kernel);
  if (x.shape().empty() || x.shape().back() % 2 != 0) {
    x.refuse("has shape " + py::str(gate.attr("shape")).cast<std::string>() +
             ", expected an even last dimension, of gate and up together");
  }
  const py::ssize_t n = x.shape().back() / 2;
  const Input first(op, "gate", part(gate, 0, n));
  const Input second(op, "up", part(gate, n, 2 * n));
  return binary(op, first, second, out, kernel);
}

py::array silu_mul(Object gate, Object up, Object out) {
  return gated("silu_mul", gate, up, out, foo_core::silu_mul);
}

GeluApproximation approximation_of(const std::string& name) {
  if (name == "none") return GeluApproximation::kNone;
  if (name == "tanh") return GeluApproximation::kTanh;
  throw py::value_error("gelu_mul: approximate is '" + name +
                        "', expected 'none' or 'tanh'");
}

py::array gelu_mul(Object gate, Object up, const std::string& approximate,
                   Object out) {
  const GeluApproximation approximation = approximation_of(approximate);
  return gated("gelu_mul", gate, up, out,
               [approximation](const auto& x, const auto& y, const auto& to,
                               const auto& executor) {
                 foo_core::gelu_mul(x, y, approximation, to, executor);
               });
}

py::array rms_norm(Object x_object, Object weight_object, double eps,
                   Object out_object) {
  const char* op = "rms_norm";
  const Input x(op, "x", x_object);
  const OptionalInput weight(op, "weight", weight_object);
  const Output out(op, out_object, x.array().dtype(), x.shape());
  without_gil([&] { foo_core::rms_norm(x, weight.get(), eps, out); });
  return out.array();
}

py::tuple add_rms_norm(Object x_object, Object residual_object,
                       Object weight_object, double eps) {
  const char* op = "add_rms_norm";
  const Input x(op, "x", x_object), residual(op, "residual", residual_object);
  const OptionalInput weight(op, "weight", weight_object);
  const Output y(op, py::none(), x.array().dtype(), x.shape());
  const Output residual_out(op, py::none(), x.array().dtype(), x.shape());
  without_gil([&] {
    foo_core::add_rms_norm(x, residual, weight.get(), eps, y, residual_out);
  });
  return py::make_tuple(y.array(), residual_out.array());
}

py::array linear(Object x_object, Object weight_object, Object bias_object,
                 Object out_object) {
  const char* op = "linear";
  const Input x(op, "x", x_object), weight(op, "weight", weight_object);
  const OptionalInput bias(op, "bias", bias_object);
  Shape shape = x.shape();
  // Without such a dimension, foo_core refuses the call before it writes.
  if (!shape.empty() && !weight.shape().empty()) {
    shape.back() = weight.shape().front();
  }
  const Output out(op, out_object, x.array().dtype(), shape);
  without_gil([&] { foo_core::linear(x, weight, bias.get(), out); });
  return out.array();
}

py::array rope(Object x_object, Object cos_object, Object sin_object,
               Object positions_object, bool interleaved, Object out_object) {
  const char* op = "rope";
  const Input x(op, "x", x_object), cos(op, "cos", cos_object),
      sin(op, "sin", sin_object);
  const OptionalInput positions(op, "positions", positions_object, "int64");
  const Output out(op, out_object, x.array().dtype(), x.shape());
  foo_core::RopeOptions options;
  options.interleaved = interleaved;
  without_gil(
      [&] { foo_core::rope(x, cos, sin, positions.get(), options, out); });
  return out.array();
}

py::tuple quantize_int8_rowwise(Object x_object) {
  const char* op = "quantize_int8_rowwise";
  const Input x(op, "x", x_object);
  Shape rows = x.shape();
  if (!rows.empty()) rows.back() = 1;
  const Output q(op, py::none(), py::dtype::of<std::int8_t>(), x.shape());
  const Output scale(op, py::none(), py::dtype::of<float>(), rows);
  without_gil([&] { foo_core::quantize_int8_rowwise(x, q, scale); });
  return py::make_tuple(q.array(), scale.array());
}

Reduction reduction_of(const std::string& name) {
  if (name == "none") return Reduction::kNone;
  if (name == "mean") return Reduction::kMean;
  if (name == "sum") return Reduction::kSum;
  throw py::value_error("cross_entropy: reduction is '" + name +
                        "', expected 'none', 'mean' or 'sum'");
}

py::array cross_entropy(Object logits_object, Object target_object,
                        std::int64_t ignore_index, const std::string& reduction,
                        double label_smoothing) {
  const char* op = "cross_entropy";
  const Input logits(op, "logits", logits_object);
  const Input target(op, "target", target_object, "int64");
  const foo_core::CrossEntropyOptions options{
      ignore_index, reduction_of(reduction), label_smoothing};
  const bool reduced = options.reduction != Reduction::kNone;
  const py::dtype float64 = py::dtype::of<double>();
  const Output loss(op, py::none(),
                    logits.dtype() == foo_core::DType::kFloat64
                        ? float64
                        : py::dtype::of<float>(),
                    reduced ? Shape() : target.shape());
  // Only the gradient needs lse, but foo_core always writes it.
  const Output lse(op, py::none(), float64, target.shape());
  struct alignas(64) Block {
    char bytes[64];
  };
  std::vector<Block> scratch(
      (foo_core::cross_entropy_scratch_size(logits, options) + 63) / 64);
  without_gil([&] {
    foo_core::cross_entropy(logits, target, options, loss, lse, scratch.data());
  });
  return loss.array();
}

}  // namespace

// The first line of each docstring is what inspect.signature() and help() show.
PYBIND11_MODULE(foo_numpy, m) {
  py::options options;
  options.disable_function_signatures();

  m.doc() = R"(foo_core's kernels for NumPy arrays.

Arrays are float32, float64, float16 or bfloat16 (of ml_dtypes), with any
strides. They are used in place: nothing is copied or converted. All arrays of a
call have the same dtype, unless stated otherwise. `out` is returned; it may be
exactly an input, and must not overlap one otherwise. A call releases the GIL, so
other threads must not write to its arrays meanwhile.

Raises TypeError for an argument that is not an array and ValueError for an array
that is refused. Nothing has been written then.)";

  m.def("add", add, "a"_a, "b"_a, py::kw_only(), "out"_a = py::none(),
        "add(a, b, *, out=None)\n--\n\nReturn a + b; the shapes broadcast.");

  m.def("mul", mul, "a"_a, "b"_a, py::kw_only(), "out"_a = py::none(),
        "mul(a, b, *, out=None)\n--\n\nReturn a * b; the shapes broadcast.");

  m.def("muladd", muladd, "a"_a, "b"_a, "c"_a, py::kw_only(),
        "out"_a = py::none(),
        R"(muladd(a, b, c, *, out=None)
--

Return a * b + c, rounded once, c a number; the shapes broadcast.)");

  m.def("silu_mul", silu_mul, "gate"_a, "up"_a = py::none(), py::kw_only(),
        "out"_a = py::none(),
        R"(silu_mul(gate, up=None, *, out=None)
--

Return gate / (1 + exp(-gate)) * up, of one shape.

Without up, the last dimension of gate holds gate, then up.)");

  m.def("gelu_mul", gelu_mul, "gate"_a, "up"_a = py::none(), py::kw_only(),
        "approximate"_a = "none", "out"_a = py::none(),
        R"(gelu_mul(gate, up=None, *, approximate='none', out=None)
--

Return gelu(gate) * up, of one shape; approximate is 'none' or 'tanh'.

Without up, the last dimension of gate holds gate, then up.)");

  m.def("rms_norm", rms_norm, "x"_a, "weight"_a = py::none(), "eps"_a = 1e-6,
        py::kw_only(), "out"_a = py::none(),
        R"(rms_norm(x, weight=None, eps=1e-06, *, out=None)
--

Return x / sqrt(mean(x**2, -1) + eps) * weight.

x has shape (..., n) and weight (n,); None means ones.)");

  m.def("add_rms_norm", add_rms_norm, "x"_a, "residual"_a,
        "weight"_a = py::none(), "eps"_a = 1e-6,
        R"(add_rms_norm(x, residual, weight=None, eps=1e-06)
--

Return (rms_norm(x + residual, weight, eps), x + residual).)");

  m.def("linear", linear, "x"_a, "weight"_a, "bias"_a = py::none(),
        py::kw_only(), "out"_a = py::none(),
        R"(linear(x, weight, bias=None, *, out=None)
--

Return x @ weight.T + bias, fast for few rows.

x has shape (..., k), weight (n, k) and bias (n,); None means zeros. out must not
overlap any of them.)");

  m.def("rope", rope, "x"_a, "cos"_a, "sin"_a, "positions"_a = py::none(),
        py::kw_only(), "interleaved"_a = false, "out"_a = py::none(),
        R"(rope(x, cos, sin, positions=None, *, interleaved=False, out=None)
--

Return x with its pairs of elements rotated by the angles of their positions.

x has shape (batch, seq, heads, head_dim); cos and sin (max_position,
rotary_dim / 2), of x's dtype or float32. positions are the rows of cos and sin,
of shape (seq,) or (batch, seq) and dtype int64; None means 0, 1, ..., seq - 1.
Pair i is (i, i + rotary_dim / 2), or (2i, 2i + 1) if interleaved.)");

  m.def("quantize_int8_rowwise", quantize_int8_rowwise, "x"_a,
        R"(quantize_int8_rowwise(x)
--

Return (q, scale): scale = max(abs(x)) / 127 over the last dimension, and
q = round(x / scale). q is int8, of x's shape; scale is float32, (..., 1).)");

  m.def(
      "cross_entropy", cross_entropy, "logits"_a, "target"_a, py::kw_only(),
      "ignore_index"_a = -100, "reduction"_a = "mean",
      "label_smoothing"_a = 0.0,
      R"(cross_entropy(logits, target, *, ignore_index=-100, reduction='mean', label_smoothing=0.0)
--

Return log(sum(exp(logits), -1)) - logits[target], the loss of class indices.

logits has shape (..., n); target (...), int64, each 0 to n - 1 or ignore_index.
The loss is float32 (float64 for float64): of shape () for the reduction 'mean'
or 'sum', and (...) for 'none'.)");
}

}  // namespace foo_numpy
