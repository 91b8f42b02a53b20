// A layer like Llama's for the few tokens of a decode step, in one call. In a
// small model, calls from Python take as long as the products.
#include <torch/headeronly/util/Half.h>

#include <cstring>
#include <vector>

#include "adaptor.h"
#include "boxed.h"
#include "generated/operators.h"
#include "library.h"

namespace torch_foo {
namespace {

constexpr const char* kOp = "decoder_layer";

/// In the order of Linears.
enum Linear { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown, kLinears };

/// The linear layers. A bias without elements stands for none, and the format
/// "" for a weight that is no blocks.
class Linears {
 public:
  Linears(const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
          const std::string& formats)
      : weights_(weights), biases_(biases), formats_(1) {
    for (const char c : formats) {
      if (c == ',') {
        formats_.emplace_back();
      } else {
        formats_.back() += c;
      }
    }
    if (weights_.size() != kLinears || biases_.size() != kLinears ||
        formats_.size() != kLinears) {
      fail("decoder_layer: weights, biases and formats are not of 7 layers");
    }
    for (const Tensor& weight : weights_) {
      if (!weight.is_cpu() || !weight.dense() || weight.dim() != 2) {
        fail("decoder_layer: weights are not matrices on the CPU");
      }
    }
  }

  std::int64_t rows(int i) const { return weights_[i].sizes()[0]; }

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
      const Tensor weight = joined(weights_, begin, next);
      std::optional<Tensor> bias;
      if (has_bias(begin)) bias = joined(biases_, begin, next);
      shape.last() = weight.sizes()[0];
      const Tensor part = part_of(out, shape, out.strides(), column);
      if (formats_[begin].empty()) {
        linear_out(x, weight, bias, part);
      } else {
        linear_quantized_out(x, weight, bias, formats_[begin], part);
      }
      begin = next;
    }
    return out;
  }

 private:
  bool has_bias(int i) const {
    const auto sizes = biases_[i].sizes();
    return sizes.size() != 1 || sizes[0] != 0;
  }

  bool adjoin(int i, int next) const {
    return formats_[i] == formats_[next] && has_bias(i) == has_bias(next) &&
           follows(weights_[i], weights_[next]) &&
           (!has_bias(i) || follows(biases_[i], biases_[next]));
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
  static Tensor joined(const std::vector<Tensor>& tensors, int begin, int end) {
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

  const std::vector<Tensor>& weights_;
  const std::vector<Tensor>& biases_;
  std::vector<std::string> formats_;
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

std::tuple<Tensor, Tensor, Tensor> decoder_layer(
    const Tensor& x, const Tensor& states, std::int64_t begin, std::int64_t end,
    const std::optional<Tensor>& mask, const std::optional<Tensor>& cos,
    const std::optional<Tensor>& sin, const std::optional<Tensor>& positions,
    const std::vector<Tensor>& norms, const std::vector<double>& eps,
    const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
    const std::string& formats, double scale, const std::string& gate) {
  check_arguments(kOp, {{"x", x}});
  check_any_dtypes(kOp, {{"x", x}, {"states", states}});
  if (x.dim() != 3 || states.dim() != 4 || norms.size() != eps.size() ||
      (norms.size() != 2 && norms.size() != 4)) {
    fail("decoder_layer: wrong arguments");
  }
  const bool is_half = states.dtype() == aoti_torch_dtype_float16();
  if (states.dtype() != x.dtype() &&
      !(is_half && x.dtype() == aoti_torch_dtype_float32())) {
    fail("decoder_layer: states has dtype " + dtype_name(states));
  }
  const Linears linears(weights, biases, formats);
  const auto n = states.sizes(), steps = states.strides();
  const std::int64_t batch = x.sizes()[0], seq = x.sizes()[1];
  const std::int64_t size = n[3], key_heads = n[1] / 2;
  const std::int64_t heads = size > 0 ? linears.rows(kQuery) / size : 0;
  if (n[0] != batch || begin < 0 || begin > end - seq || end > n[2] ||
      steps[3] != 1 || linears.rows(kQuery) != heads * size ||
      linears.rows(kKey) != key_heads * size ||
      linears.rows(kValue) != key_heads * size ||
      linears.rows(kGate) != linears.rows(kUp)) {
    fail("decoder_layer: shapes do not fit");
  }

  Tensor y = rms_norm(x, same(norms[0]), eps[0]);
  const Tensor products = linears.multiply(y, kQuery, kOutput);
  const std::int64_t all = heads + 2 * key_heads;
  // Of queries, keys and values: (batch, seq, heads, size).
  const auto part = [&](std::int64_t begin, std::int64_t count) {
    return view4(products, {batch, seq, count, size},
                 {seq * all * size, all * size, size, 1}, begin * size);
  };
  if (norms.size() == 4) {
    const Tensor queries = part(0, heads), new_keys = part(heads, key_heads);
    rms_norm_out(queries, same(norms[2]), eps[2], queries);
    rms_norm_out(new_keys, same(norms[3]), eps[3], new_keys);
  }
  if (cos && sin)
    rope_(part(0, heads + key_heads), *cos, *sin, positions, false);

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
  attention_out(queries, keys, values, mask, scale,
                view4(attended, {batch, heads, seq, size},
                      {seq * heads * size, size, heads * size, 1}, 0));

  y = linears.multiply(attended, kOutput, kGate);
  auto [normed, residual] = add_rms_norm(y, x, same(norms[1]), eps[1]);
  y = gated(gate, linears.multiply(normed, kGate, kDown));
  y = add(residual, linears.multiply(y, kDown, kLinears));
  return {std::move(y), std::move(keys), std::move(values)};
}

}  // namespace

void define_decoder_layer(const Library& m) {
  m.def(
      "_decoder_layer(Tensor x, Tensor(a!) states, int begin, int end, "
      "Tensor? mask, Tensor? cos, Tensor? sin, Tensor? positions, "
      "Tensor[] norms, float[] eps, Tensor[] weights, Tensor[] biases, "
      "str formats, float scale, str gate) "
      "-> (Tensor, Tensor(a), Tensor(a))");
}

void implement_decoder_layer(const Library& m) {
  m.impl("_decoder_layer", boxed<&decoder_layer>);
}

}  // namespace torch_foo
