// The layers of a model like Llama for the few tokens of a decode step, in one
// call. In a small model, calls from Python take as long as the products.
#include <torch/headeronly/util/Half.h>

#include <cstring>
#include <vector>

#include "adaptor.h"
#include "boxed.h"
#include "generated/operators.h"
#include "library.h"

namespace torch_foo {
namespace {

constexpr const char* kOp = "decoder_layers";

/// The linear layers of a layer, in their order.
enum Linear { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown, kLinears };

/// What a comma separates.
std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == ',') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

/// What a layer has.
struct Layer {
  const Tensor* norms;
  const double* eps;
  const Tensor* weights;  // of kLinears
  const Tensor* biases;   // of kLinears, without elements for none; or null
  const std::string* formats;  // of blocks; "" for a weight of numbers
  double scale;
  bool has_head_norms, rotates;
  const std::string& gate;

  std::int64_t rows(int i) const { return weights[i].sizes()[0]; }

  /// The products of x and the layers of [begin, end), side by side. Weights
  /// that follow each other in memory are one to the kernel.
  Tensor multiply(const Tensor& x, int begin, int end) const {
    Shape shape(x.sizes());
    shape.last() = 0;
    for (int i = begin; i < end; ++i) shape.last() += rows(i);
    Tensor out = empty(kOp, shape, x);
    for (std::int64_t column = 0; begin < end; column += shape.last()) {
      int next = begin + 1;
      while (next < end && adjoin(next - 1, next)) ++next;
      const Tensor weight = joined(weights, begin, next);
      std::optional<Tensor> bias;
      if (has_bias(begin)) bias = joined(biases, begin, next);
      shape.last() = weight.sizes()[0];
      const Tensor part = part_of(out, shape, out.strides(), column);
      if (formats[begin].empty()) {
        linear_out(x, weight, bias, part);
      } else {
        linear_quantized_out(x, weight, bias, formats[begin], part);
      }
      begin = next;
    }
    return out;
  }

 private:
  bool has_bias(int i) const {
    if (biases == nullptr) return false;
    const auto sizes = biases[i].sizes();
    return sizes.size() != 1 || sizes[0] != 0;
  }

  bool adjoin(int i, int next) const {
    return formats[i] == formats[next] && has_bias(i) == has_bias(next) &&
           follows(weights[i], weights[next]) &&
           (!has_bias(i) || follows(biases[i], biases[next]));
  }

  /// Whether the rows of both are rows of one contiguous tensor.
  static bool follows(const Tensor& a, const Tensor& b) {
    if (a.dim() != b.dim() || a.dtype() != b.dtype() || !b.is_cpu() ||
        !a.contiguous() || !b.contiguous()) {
      return false;
    }
    std::int64_t bytes = aoti_torch_dtype_element_size(a.dtype());
    for (std::int64_t i = 0; i < a.dim(); ++i) {
      if (i > 0 && a.sizes()[i] != b.sizes()[i]) return false;
      bytes *= a.sizes()[i];
    }
    return static_cast<const char*>(a.const_data_ptr()) + bytes ==
           b.const_data_ptr();
  }

  /// The rows of [begin, end) as one tensor, which does not own them.
  static Tensor joined(const Tensor* tensors, int begin, int end) {
    const Tensor& first = tensors[begin];
    if (end == begin + 1) return same(first);
    Shape shape(first.sizes());
    for (int i = begin + 1; i < end; ++i) {
      shape.data()[0] += tensors[i].sizes()[0];
    }
    AtenTensorHandle handle;
    check(aoti_torch_create_tensor_from_blob(
              const_cast<void*>(first.const_data_ptr()), first.dim(),
              shape.data(), first.strides().data(), 0, first.dtype(),
              first.device_type(), first.device_index(), &handle),
          "join weights");
    return Tensor(handle);
  }
};

/// A part of a tensor, of 4 dimensions.
Tensor view4(const Tensor& whole, const std::int64_t (&sizes)[4],
             const std::int64_t (&strides)[4], std::int64_t offset) {
  return part_of(whole, {sizes, 4}, {strides, 4}, offset);
}

template <class To, class From>
void copy(const Tensor& from, const Tensor& to) {
  const auto* source = static_cast<const From*>(from.const_data_ptr());
  auto* target = static_cast<To*>(to.mutable_data_ptr());
  const auto n = from.sizes(), in = from.strides(), out = to.strides();
  for (std::int64_t a = 0; a < n[0]; ++a) {
    for (std::int64_t b = 0; b < n[1]; ++b) {
      for (std::int64_t c = 0; c < n[2]; ++c) {
        const From* row = source + a * in[0] + b * in[1] + c * in[2];
        To* copied = target + a * out[0] + b * out[1] + c * out[2];
        for (std::int64_t d = 0; d < n[3]; ++d) {
          copied[d] = static_cast<To>(row[d]);
        }
      }
    }
  }
}

/// Copies (batch, seq, heads, size) to a cache, which may be of float16.
void append(const Tensor& from, const Tensor& to) {
  if (from.dtype() != to.dtype()) {
    copy<torch::headeronly::Half, float>(from, to);
  } else if (aoti_torch_dtype_element_size(from.dtype()) == 4) {
    copy<float, float>(from, to);
  } else {
    copy<std::uint16_t, std::uint16_t>(from, to);
  }
}

Tensor gated(const std::string& gate, const Tensor& gate_up) {
  if (gate == "silu") return silu_mul(gate_up, std::nullopt);
  return gelu_mul(gate_up, std::nullopt, gate == "gelu" ? "none" : "tanh");
}

/// What all layers share in a step.
struct Step {
  const std::optional<Tensor>&mask, &cos, &sin, &positions;
};

/// What a layer returns: its result, and the keys and values it attended to.
struct Result {
  Tensor y, keys, values;
};

/// Computes a layer, and writes the states of x's tokens, so that the last are
/// before `end`. Those that x attends to begin at `begin`.
Result compute(const Tensor& x, const Layer& layer, const Step& step,
               const Tensor& states, std::int64_t begin, std::int64_t end) {
  const auto n = states.sizes(), steps = states.strides();
  const std::int64_t batch = x.sizes()[0], seq = x.sizes()[1];
  const std::int64_t size = n[3], key_heads = n[1] / 2;
  const std::int64_t heads = size > 0 ? layer.rows(kQuery) / size : 0;
  if (n[0] != batch || begin < 0 || begin > end - seq || end > n[2] ||
      steps[3] != 1 || layer.rows(kQuery) != heads * size ||
      layer.rows(kKey) != key_heads * size ||
      layer.rows(kValue) != key_heads * size ||
      layer.rows(kGate) != layer.rows(kUp)) {
    fail(std::string(kOp) + ": shapes do not fit");
  }

  Tensor y = rms_norm(x, same(layer.norms[0]), layer.eps[0]);
  const Tensor products = layer.multiply(y, kQuery, kOutput);
  const std::int64_t all = heads + 2 * key_heads;
  // Of queries, keys and values: (batch, seq, heads, size).
  const auto part = [&](std::int64_t first, std::int64_t count) {
    return view4(products, {batch, seq, count, size},
                 {seq * all * size, all * size, size, 1}, first * size);
  };
  if (layer.has_head_norms) {
    const Tensor queries = part(0, heads), keys = part(heads, key_heads);
    rms_norm_out(queries, same(layer.norms[2]), layer.eps[2], queries);
    rms_norm_out(keys, same(layer.norms[3]), layer.eps[3], keys);
  }
  if (layer.rotates) {
    rope_(part(0, heads + key_heads), *step.cos, *step.sin, step.positions,
          false);
  }
  append(part(heads, 2 * key_heads),
         view4(states, {batch, seq, 2 * key_heads, size},
               {steps[0], steps[2], steps[1], 1}, (end - seq) * steps[2]));
  const auto cached = [&](std::int64_t head) {
    return view4(states, {batch, key_heads, end - begin, size},
                 {steps[0], steps[1], steps[2], 1},
                 head * steps[1] + begin * steps[2]);
  };
  Tensor keys = cached(0), values = cached(key_heads);
  const Tensor queries = view4(products, {batch, heads, seq, size},
                               {seq * all * size, size, all * size, 1}, 0);
  Shape shape(x.sizes());
  shape.last() = heads * size;
  const Tensor attended = empty(kOp, shape, x);
  attention_out(queries, keys, values, step.mask, layer.scale,
                view4(attended, {batch, heads, seq, size},
                      {seq * heads * size, size, heads * size, 1}, 0));

  y = layer.multiply(attended, kOutput, kGate);
  auto [normed, residual] =
      add_rms_norm(y, x, same(layer.norms[1]), layer.eps[1]);
  y = gated(layer.gate, layer.multiply(normed, kGate, kDown));
  y = add(residual, layer.multiply(y, kDown, kLinears));
  return {std::move(y), std::move(keys), std::move(values)};
}

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> decoder_layers(
    const Tensor& x, const std::vector<Tensor>& states,
    const std::vector<std::int64_t>& begins,
    const std::vector<std::int64_t>& ends, const std::optional<Tensor>& mask,
    const std::optional<Tensor>& cos, const std::optional<Tensor>& sin,
    const std::optional<Tensor>& positions, const std::vector<Tensor>& norms,
    const std::vector<double>& eps, const std::vector<Tensor>& weights,
    const std::vector<Tensor>& biases, const std::string& formats,
    const std::vector<double>& scales, const std::vector<std::int64_t>& rotates,
    const std::string& gates) {
  const std::size_t count = states.size();
  const std::vector<std::string> each_format = split(formats);
  const std::vector<std::string> each_gate = split(gates);
  const std::size_t of_layer = count > 0 ? norms.size() / count : 0;
  if ((of_layer != 2 && of_layer != 4) || norms.size() != count * of_layer ||
      eps.size() != norms.size() || weights.size() != count * kLinears ||
      (!biases.empty() && biases.size() != weights.size()) ||
      each_format.size() != weights.size() || begins.size() != count ||
      ends.size() != count || scales.size() != count ||
      rotates.size() != count || each_gate.size() != count || !cos || !sin) {
    fail(std::string(kOp) + ": the arguments are not of one number of layers");
  }
  check_arguments(kOp, {{"x", x}});
  for (const Tensor& weight : weights) {
    if (!weight.is_cpu() || !weight.dense() || weight.dim() != 2) {
      fail(std::string(kOp) + ": weights are not matrices on the CPU");
    }
  }
  for (const Tensor& state : states) {
    check_any_dtypes(kOp, {{"x", x}, {"states", state}});
    const bool is_half = state.dtype() == aoti_torch_dtype_float16() &&
                         x.dtype() == aoti_torch_dtype_float32();
    if ((state.dtype() != x.dtype() && !is_half) || state.dim() != 4 ||
        x.dim() != 3) {
      fail(std::string(kOp) + ": states have shape " + shape_text(state.sizes()) +
           " and dtype " + dtype_name(state));
    }
  }

  const Step step{mask, cos, sin, positions};
  Tensor y = same(x);
  std::vector<Tensor> keys, values;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t linear = i * kLinears;
    const Layer layer{
        &norms[i * of_layer], &eps[i * of_layer],
        &weights[linear],     biases.empty() ? nullptr : &biases[linear],
        &each_format[linear], scales[i],
        of_layer == 4,        rotates[i] != 0,
        each_gate[i]};
    Result result = compute(y, layer, step, states[i], begins[i], ends[i]);
    y = std::move(result.y);
    keys.push_back(std::move(result.keys));
    values.push_back(std::move(result.values));
  }
  return {std::move(y), std::move(keys), std::move(values)};
}

}  // namespace

void define_decoder_layers(const Library& m) {
  m.def(
      "_decoder_layers(Tensor x, Tensor(a!)[] states, int[] begins, "
      "int[] ends, Tensor? mask, Tensor? cos, Tensor? sin, Tensor? positions, "
      "Tensor[] norms, float[] eps, Tensor[] weights, Tensor[] biases, "
      "str formats, float[] scales, int[] rotates, str gates) "
      "-> (Tensor, Tensor[], Tensor[])");
}

void implement_decoder_layers(const Library& m) {
  m.impl("_decoder_layers", boxed<&decoder_layers>);
}

}  // namespace torch_foo
