// The Python module foo_dlpack: each operator of foo_core on every array that
// speaks DLPack, in the array's own memory, on the CPU and on CUDA.
//
// def() makes a Python function of a function of foo_core: ArgumentFor says
// what Python passes for a parameter of each C++ type. foo_core's exceptions
// derive from standard ones, which nanobind translates: InvalidArgument becomes
// ValueError, all others RuntimeError, each with its message.
#include <foo_core/foo_core.h>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>

#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

namespace nb = nanobind;
using nb::literals::operator""_a;

using foo_core::ConstTensorView;
using foo_core::CrossEntropyOptions;
using foo_core::DType;
using foo_core::Executor;
using foo_core::GeluApproximation;
using foo_core::Reduction;
using foo_core::RopeOptions;
using foo_core::TensorView;

/// A type and a number, as in DLPack.
using Device = std::pair<int, int>;

const Device kCpu{nb::device::cpu::value, 0};

std::string text(const Device& device) {
  return device == kCpu ? "cpu" : "cuda:" + std::to_string(device.second);
}

/// What the arguments of one call share.
struct Call {
  const char* op;
  std::uintptr_t stream;        ///< a cudaStream_t
  Device device = kCpu;         ///< where the first array is
  const char* first = nullptr;  ///< the first array's name

  nb::builtin_exception type_error(const char* name,
                                   const std::string& rest) const {
    return nb::type_error(message(name, rest).c_str());
  }

  nb::builtin_exception value_error(const char* name,
                                    const std::string& rest) const {
    return nb::value_error(message(name, rest).c_str());
  }

  std::string message(const char* name, const std::string& rest) const {
    return std::string(op) + ": " + name + " " + rest;
  }
};

/// Checks that the array is where the others of the call are.
void check_device(Call& call, const char* name, const nb::object& array) {
  if (!nb::hasattr(array, "__dlpack_device__")) {
    const std::string type = nb::type_name(array.type()).c_str();
    throw call.type_error(name, "is " + type + ", expected a DLPack array");
  }
  auto device = nb::cast<Device>(array.attr("__dlpack_device__")());
  // The CPU reads and writes pinned memory like any other.
  if (device.first == nb::device::cuda_host::value) device = kCpu;
  if (device != kCpu && device.first != nb::device::cuda::value) {
    throw call.type_error(name, "is on a device of DLPack's type " +
                                    std::to_string(device.first) +
                                    ", expected cpu or cuda");
  }
  if (call.first == nullptr) {
    call.device = device;
    call.first = name;
  } else if (device != call.device) {
    throw call.type_error(name, "is on " + text(device) + ", but " +
                                    call.first + " is on " + text(call.device));
  }
}

/// Returns the array's memory as a capsule. On CUDA, the array's library makes
/// call.stream wait for the work on the array that it has queued elsewhere.
nb::object capsule_of(const Call& call, const char* name,
                      const nb::object& array) {
  nb::object stream = nb::none();
  if (call.device != kCpu) stream = nb::int_(call.stream);
  try {
    return array.attr("__dlpack__")("stream"_a = stream,
                                    "max_version"_a = nb::make_tuple(1, 0),
                                    "copy"_a = false);
  } catch (nb::python_error& error) {
    const nb::str why(error.value());
    nb::raise_from(error, PyExc_BufferError, "%s: %s cannot be used: %s",
                   call.op, name, why.c_str());
  }
}

DType dtype_of(const Call& call, const char* name, nb::dlpack::dtype dtype) {
  constexpr const char* kCodes[] = {"int",    "uint",    "float", "opaque",
                                    "bfloat", "complex", "bool"};
  std::string code = "code ";
  if (dtype.code < std::size(kCodes)) code = kCodes[dtype.code];
  code += std::to_string(dtype.bits);
  for (const DType known : {DType::kFloat32, DType::kFloat64, DType::kFloat16,
                            DType::kBFloat16, DType::kInt8, DType::kInt64}) {
    if (code == foo_core::name(known) && dtype.lanes == 1) return known;
  }
  throw call.value_error(name, "is " + code +
                                   ", expected float32, float64, float16, "
                                   "bfloat16, int8 or int64");
}

/// An array as a view of foo_core: its memory, sizes and strides, borrowed. It
/// converts to a null pointer if it was None.
template <class View>
class Array {
 public:
  using Value = nb::object;

  Array(Call& call, const char* name, const Value& array) {
    if (array.is_none()) return;
    check_device(call, name, array);
    if (!nb::try_cast(capsule_of(call, name, array), array_)) {
      throw call.value_error(name, "is read-only, expected to write it");
    }
    view_ = {array_.data(), dtype_of(call, name, array_.dtype()),
             static_cast<std::int64_t>(array_.ndim()), array_.shape_ptr(),
             array_.stride_ptr()};
    const std::int64_t item = foo_core::item_size(view_.dtype);
    if (reinterpret_cast<std::uintptr_t>(view_.data) % item != 0) {
      throw call.value_error(
          name, "is not aligned to " + std::to_string(item) + " bytes");
    }
  }

  operator const View&() const { return view_; }
  operator const View*() const { return array_.is_valid() ? &view_ : nullptr; }

 private:
  std::conditional_t<std::is_same_v<View, TensorView>, nb::ndarray<>,
                     nb::ndarray<nb::ro>>
      array_;  // keeps the memory alive
  View view_;
};

/// Scratch memory: an array of the caller's, or for None, on the CPU, our own.
class Scratch {
 public:
  using Value = nb::object;

  Scratch(Call& call, const char* name, const Value& array)
      : call_(call), name_(name), array_(call, name, array) {}

  /// Returns `size` bytes, for as long as this lives.
  void* get(std::int64_t size) {
    const TensorView* array = array_;
    if (size == 0) return nullptr;
    if (array == nullptr && call_.device == kCpu) {
      own_.resize((size + sizeof(Block) - 1) / sizeof(Block));
      return own_.data();
    }
    if (array == nullptr || array->dtype != DType::kInt8 || array->ndim != 1 ||
        array->strides[0] != 1 || array->sizes[0] < size ||
        reinterpret_cast<std::uintptr_t>(array->data) % alignof(Block) != 0) {
      throw call_.value_error(name_,
                              (array == nullptr ? "is None" : "does not fit") +
                                  (", expected " + std::to_string(size)) +
                                  " contiguous int8, aligned to 64 bytes, on " +
                                  text(call_.device));
    }
    return array->data;
  }

 private:
  struct alignas(64) Block {
    char bytes[64];
  };

  const Call& call_;
  const char* name_;
  Array<TensorView> array_;
  std::vector<Block> own_;
};

/// The stream, and the device on which the arrays are.
class Stream {
 public:
  using Value = std::uintptr_t;

  Stream(const Call& call, const char*, Value) : call_(call) {}

  operator Executor() const {
    if (call_.device == kCpu) return {};
    return Executor::cuda(reinterpret_cast<void*>(call_.stream));
  }

 private:
  const Call& call_;
};

/// A number, an enumeration or options.
template <class T>
class Plain {
 public:
  using Value = T;

  Plain(const Call&, const char*, const Value& value) : value_(value) {}

  operator const Value&() const { return value_; }

 private:
  Value value_;
};

/// What makes a parameter. It is constructed with the GIL, from a Value of
/// Python's, and then converts to the parameter without it.
struct ArgumentFor {
  static Array<ConstTensorView> type(const ConstTensorView&);
  static Array<ConstTensorView> type(const ConstTensorView*);
  static Array<TensorView> type(const TensorView&);
  static Array<TensorView> type(const TensorView*);
  static Scratch type(Scratch&);
  static Stream type(const Executor&);
  template <class T>
  static Plain<T> type(const T&);
};
template <class Parameter>
using Argument = decltype(ArgumentFor::type(std::declval<Parameter>()));

/// A parameter in Python: scratch and stream have defaults, others may be None.
template <class Parameter>
auto named(const char* name) {
  if constexpr (std::is_same_v<Argument<Parameter>, Stream>) {
    return nb::arg(name) = 0;
  } else if constexpr (std::is_same_v<Argument<Parameter>, Scratch>) {
    return nb::arg(name) = nb::none();
  } else if constexpr (std::is_pointer_v<Parameter>) {
    return nb::arg(name).none();
  } else {
    return nb::arg(name);
  }
}

/// Adds `function` to the module. Its last parameter is the stream.
template <class... Parameters, class... Names>
void def(nb::module_& m, const char* op, void (*function)(Parameters...),
         Names... names) {
  const auto call = [=](typename Argument<Parameters>::Value... values) {
    auto stream = std::get<sizeof...(values) - 1>(std::tie(values...));
    if (stream == 0) stream = 1;  // both are the legacy default stream
    Call call{op, stream};
    // Braces construct the arguments in this order.
    std::tuple<Argument<Parameters>...> arguments{
        Argument<Parameters>(call, names, values)...};
    const nb::gil_scoped_release without_gil;
    std::apply(function, arguments);
  };
  m.def(op, call, named<Parameters>(names)...);
}

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
  def(m, "rope", foo_core::rope, "x", "cos", "sin", "positions", "options",
      "out", "stream");
  def(m, "quantize_int8_rowwise", foo_core::quantize_int8_rowwise, "x", "q",
      "scale", "stream");
  def(m, "cross_entropy", cross_entropy, "logits", "target", "options", "loss",
      "lse", "scratch", "stream");
  def(m, "cross_entropy_backward", foo_core::cross_entropy_backward, "grad",
      "logits", "target", "lse", "options", "grad_logits", "stream");
}
