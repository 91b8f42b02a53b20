// The layers of a model like Llama for the few tokens of a decode step, in one
// call. In a small model, calls from Python take as long as the products.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <tuple>
#include <utility>
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
constexpr const char* kNames[] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                  "gate_proj", "up_proj", "down_proj"};

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

  void check_rows(int i, std::int64_t expected) const {
    if (rows(i) == expected) return;
    fail(std::string(kOp) + ": " + kNames[i] + " has a weight of " +
         std::to_string(rows(i)) + " rows, expected " +
         std::to_string(expected));
  }

  std::int64_t rows(int begin, int end) const {
    std::int64_t sum = 0;
    for (int i = begin; i < end; ++i) sum += rows(i);
    return sum;
  }

  /// Writes the products of x and the layers of [begin, end) to `out`, side by
  /// side. Weights that follow each other in memory are one to the kernel.
  void multiply(const Tensor& x, int begin, int end, const Tensor& out) const {
    Shape shape(out.sizes());
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

/// Copies (batch, seq, heads, size) to a cache, which may be of 16 bits.
void append(const Tensor& from, const Tensor& to) {
  if (from.dtype() != to.dtype()) {
    return to.dtype() == aoti_torch_dtype_float16()
               ? copy<torch::headeronly::Half, float>(from, to)
               : copy<torch::headeronly::BFloat16, float>(from, to);
  }
  switch (aoti_torch_dtype_element_size(from.dtype())) {
    case 2:
      return copy<std::uint16_t, std::uint16_t>(from, to);
    case 4:
      return copy<float, float>(from, to);
    default:
      return copy<double, double>(from, to);
  }
}

void multiply_by_gate(const std::string& gate, const Tensor& gate_up,
                      const Tensor& out) {
  if (gate == "silu") return silu_mul_out(gate_up, std::nullopt, out);
  if (gate != "gelu" && gate != "gelu_tanh") {
    fail(std::string(kOp) + ": gate is '" + gate +
         "', expected 'silu', 'gelu' or 'gelu_tanh'");
  }
  gelu_mul_out(gate_up, std::nullopt, gate == "gelu" ? "none" : "tanh", out);
}

/// The numbers of a layer's heads, and their size.
struct Heads {
  std::int64_t queries, keys, size;

  bool operator!=(const Heads& other) const {
    return queries != other.queries || keys != other.keys || size != other.size;
  }
};

/// Queries, keys and values of new tokens, and what attention makes of them.
/// Layers with the same heads use the same memory.
struct Attention {
  Attention(const Tensor& x, const Heads& heads)
      : heads(heads),
        products(rows_like(x, (heads.queries + 2 * heads.keys) * heads.size)),
        result(rows_like(x, heads.queries * heads.size)),
        queries(by_token(0, heads.queries)),
        keys(by_token(heads.queries, heads.keys)),
        rotated(by_token(0, heads.queries + heads.keys)),
        appended(by_token(heads.queries, 2 * heads.keys)),
        queries_by_head(by_head(products)),
        result_by_head(by_head(result)) {}

  static Tensor rows_like(const Tensor& x, std::int64_t size) {
    Shape shape(x.sizes());
    shape.last() = size;
    return empty(kOp, shape, x);
  }

  Heads heads;
  Tensor products, result;
  // (batch, seq, heads, size)
  Tensor queries, keys, rotated, appended;
  // (batch, heads, seq, size)
  Tensor queries_by_head, result_by_head;

 private:
  Tensor by_token(std::int64_t first, std::int64_t count) const {
    const auto n = products.sizes(), steps = products.strides();
    return view4(products, {n[0], n[1], count, heads.size},
                 {steps[0], steps[1], heads.size, 1}, first * heads.size);
  }
  Tensor by_head(const Tensor& x) const {
    const auto n = x.sizes(), steps = x.strides();
    return view4(x, {n[0], heads.queries, n[1], heads.size},
                 {steps[0], heads.size, steps[1], 1}, 0);
  }
};

/// A step through layers, one after the other.
class Step {
 public:
  Step(const Tensor& x, const std::optional<Tensor>& mask, const Tensor& cos,
       const Tensor& sin, const std::optional<Tensor>& positions)
      : x_(x), mask_(mask), cos_(cos), sin_(sin), positions_(positions) {}

  /// Computes a layer, and writes the states of x's tokens, so that the last
  /// are before `end`. Returns the keys and values from `begin` to there.
  std::pair<Tensor, Tensor> compute(const Layer& layer, const Tensor& states,
                                    std::int64_t begin, std::int64_t end) {
    const auto n = states.sizes(), steps = states.strides();
    const std::int64_t batch = x_.sizes()[0], seq = x_.sizes()[1];
    const std::int64_t size = n[3], key_heads = n[1] / 2;
    const Heads heads{size > 0 ? layer.rows(kQuery) / size : 0, key_heads,
                      size};
    if (n[0] != batch || begin < 0 || begin > end - seq || end > n[2] ||
        n[1] % 2 != 0 || steps[3] != 1) {
      fail(std::string(kOp) + ": states have shape " + shape_text(n) +
           ", which does not fit x of shape " + shape_text(x_.sizes()) +
           " between " + std::to_string(begin) + " and " + std::to_string(end));
    }
    // Otherwise memory beyond the results would be written.
    layer.check_rows(kQuery, heads.queries * size);
    layer.check_rows(kKey, key_heads * size);
    layer.check_rows(kValue, key_heads * size);
    layer.check_rows(kOutput, x_.sizes()[2]);
    layer.check_rows(kUp, layer.rows(kGate));
    layer.check_rows(kDown, x_.sizes()[2]);
    if (!attention_ || attention_->heads != heads) {
      attention_.emplace(x_, heads);
    }
    const Attention& now = *attention_;

    add_and_norm(layer, 0);
    layer.multiply(*y_, kQuery, kOutput, now.products);
    if (layer.has_head_norms) {
      rms_norm_out(now.queries, same(layer.norms[2]), layer.eps[2],
                   now.queries);
      rms_norm_out(now.keys, same(layer.norms[3]), layer.eps[3], now.keys);
    }
    if (layer.rotates) rope_(now.rotated, cos_, sin_, positions_, false);
    append(now.appended,
           view4(states, {batch, seq, 2 * key_heads, size},
                 {steps[0], steps[2], steps[1], 1}, (end - seq) * steps[2]));
    const auto cached = [&](std::int64_t head) {
      return view4(states, {batch, key_heads, end - begin, size},
                   {steps[0], steps[1], steps[2], 1},
                   head * steps[1] + begin * steps[2]);
    };
    Tensor keys = cached(0), values = cached(key_heads);
    attention_out(now.queries_by_head, keys, values, mask_, layer.scale,
                  now.result_by_head);
    layer.multiply(now.result, kOutput, kGate, *y_);

    add_and_norm(layer, 1);
    const Tensor& gate_up = sized(gate_up_, layer.rows(kGate, kDown));
    layer.multiply(*y_, kGate, kDown, gate_up);
    const Tensor& gated = sized(gated_, layer.rows(kUp));
    multiply_by_gate(layer.gate, gate_up, gated);
    layer.multiply(gated, kDown, kLinears, *y_);
    return {std::move(keys), std::move(values)};
  }

  /// What the last layer returns.
  Tensor result() const { return residual_ ? add(*residual_, *y_) : same(x_); }

 private:
  /// Adds y to the residual, and makes y its norm.
  void add_and_norm(const Layer& layer, int norm) {
    const std::optional<Tensor> weight = same(layer.norms[norm]);
    const double eps = layer.eps[norm];
    if (residual_) {
      add_rms_norm_(*y_, *residual_, weight, eps);
    } else if (!y_) {  // x is the residual, and stays as it is
      y_ = rms_norm(x_, weight, eps);
    } else {
      std::tie(y_, residual_) = add_rms_norm(*y_, x_, weight, eps);
    }
  }

  /// Memory for rows of this size, the same for all layers that ask for it.
  const Tensor& sized(std::optional<Tensor>& memory, std::int64_t size) const {
    if (!memory || memory->sizes().back() != size) {
      memory = Attention::rows_like(x_, size);
    }
    return *memory;
  }

  const Tensor& x_;
  const std::optional<Tensor>& mask_;
  const Tensor &cos_, &sin_;
  const std::optional<Tensor>& positions_;
  std::optional<Tensor> y_, residual_, gate_up_, gated_;
  std::optional<Attention> attention_;
};

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
    const bool is_narrow = view(x).dtype == foo_core::DType::kFloat32 &&
                           view(state).dtype != foo_core::DType::kFloat64;
    if ((state.dtype() != x.dtype() && !is_narrow) || state.dim() != 4 ||
        x.dim() != 3) {
      fail(std::string(kOp) + ": states have shape " +
           shape_text(state.sizes()) + " and dtype " + dtype_name(state));
    }
  }

  Step step(x, mask, *cos, *sin, positions);
  std::vector<Tensor> keys, values;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t linear = i * kLinears;
    const Layer layer{
        &norms[i * of_layer], &eps[i * of_layer],
        &weights[linear],     biases.empty() ? nullptr : &biases[linear],
        &each_format[linear], scales[i],
        of_layer == 4,        rotates[i] != 0,
        each_gate[i]};
    auto [k, v] = step.compute(layer, states[i], begins[i], ends[i]);
    keys.push_back(std::move(k));
    values.push_back(std::move(v));
  }
  return {step.result(), std::move(keys), std::move(values)};
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
