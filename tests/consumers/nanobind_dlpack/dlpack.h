// Python functions of foo_core's functions, for every array that speaks DLPack.
//
// def() makes one: ArgumentFor says what Python passes for a parameter of each
// C++ type. foo_core's exceptions derive from standard ones, which nanobind
// translates: InvalidArgument becomes ValueError, all others RuntimeError, each
// with its message.
#pragma once

#include <foo_core/foo_core.h>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>

#include <cstdint>
#include <iterator>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace foo_dlpack {

namespace nb = nanobind;
using nb::literals::operator""_a;

using foo_core::ConstTensorView;
using foo_core::DType;
using foo_core::Executor;
using foo_core::TensorView;

/// A device's type and number, as in DLPack.
using Device = std::pair<int, int>;

inline const Device kCpu{nb::device::cpu::value, 0};

inline std::string text(const Device& device) {
  return device == kCpu ? "cpu" : "cuda:" + std::to_string(device.second);
}

/// What the arguments of one call share.
struct Call {
  const char* op;
  std::uintptr_t stream;        ///< a cudaStream_t
  Device device = kCpu;         ///< where the first array is
  const char* first = nullptr;  ///< the first array's name

  /// Throws an error of this kind, with the message "{op}: {parts...}".
  template <class Kind, class... Parts>
  [[noreturn]] void refuse(Kind kind, const Parts&... parts) const {
    throw kind((op + std::string(": ") + ... + parts).c_str());
  }
};

/// Checks that the array is where the others of the call are.
inline void check_device(Call& call, const char* name,
                         const nb::object& array) {
  if (!nb::hasattr(array, "__dlpack_device__")) {
    call.refuse(nb::type_error, name, " is ",
                nb::type_name(array.type()).c_str(),
                ", expected a DLPack array");
  }
  auto device = nb::cast<Device>(array.attr("__dlpack_device__")());
  // The CPU reads and writes pinned memory like any other.
  if (device.first == nb::device::cuda_host::value) device = kCpu;
  if (device != kCpu && device.first != nb::device::cuda::value) {
    call.refuse(nb::type_error, name, " is on a device of DLPack's type ",
                std::to_string(device.first), ", expected cpu or cuda");
  }
  if (call.first == nullptr) {
    call.device = device;
    call.first = name;
  } else if (device != call.device) {
    call.refuse(nb::type_error, name, " is on ", text(device), ", but ",
                call.first, " is on ", text(call.device));
  }
}

/// Returns the array's memory as a capsule. On CUDA, the array's library makes
/// call.stream wait for the work on the array that it has queued elsewhere.
inline nb::object capsule_of(const Call& call, const char* name,
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

inline DType dtype_of(const Call& call, const char* name,
                      nb::dlpack::dtype dtype) {
  constexpr const char* kCodes[] = {"int",    "uint",    "float", "opaque",
                                    "bfloat", "complex", "bool"};
  std::string text = "code ";
  if (dtype.code < std::size(kCodes)) text = kCodes[dtype.code];
  text += std::to_string(dtype.bits);
  for (const DType known :
       {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16,
        DType::kInt8, DType::kUInt8, DType::kInt64}) {
    if (text == foo_core::name(known) && dtype.lanes == 1) return known;
  }
  call.refuse(nb::value_error, name, " is ", text,
              ", expected float32, float64, float16, bfloat16, int8, uint8 or "
              "int64");
}

/// An array as a View of foo_core: its memory, sizes and strides, borrowed. It
/// converts to a null pointer if it was None.
template <class View, class NdArray>
class Array {
 public:
  using Value = nb::object;

  Array(Call& call, const char* name, const Value& array) {
    if (array.is_none()) return;
    check_device(call, name, array);
    if (!nb::try_cast(capsule_of(call, name, array), array_)) {
      call.refuse(nb::value_error, name, " is read-only, expected to write it");
    }
    view_ = {array_.data(), dtype_of(call, name, array_.dtype()),
             static_cast<std::int64_t>(array_.ndim()), array_.shape_ptr(),
             array_.stride_ptr()};
    const std::int64_t item = foo_core::item_size(view_.dtype);
    if (reinterpret_cast<std::uintptr_t>(view_.data) % item != 0) {
      call.refuse(nb::value_error, name, " is not aligned to ",
                  std::to_string(item), " bytes");
    }
  }

  operator const View&() const { return view_; }
  operator const View*() const { return array_.is_valid() ? &view_ : nullptr; }

 private:
  NdArray array_;  // keeps the memory alive
  View view_;
};

using Input = Array<ConstTensorView, nb::ndarray<nb::ro>>;
using Output = Array<TensorView, nb::ndarray<>>;

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
      call_.refuse(nb::value_error, name_,
                   array == nullptr ? " is None" : " does not fit",
                   ", expected ", std::to_string(size),
                   " contiguous int8, aligned to 64 bytes, on ",
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
  Output array_;
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
  static Input type(const ConstTensorView&);
  static Input type(const ConstTensorView*);
  static Output type(const TensorView&);
  static Output type(const TensorView*);
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

}  // namespace foo_dlpack
