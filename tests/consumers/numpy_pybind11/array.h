// foo_core's views of NumPy arrays: their own memory and strides, never a copy.
#pragma once

#include <foo_core/foo_core.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace foo_numpy {

namespace py = pybind11;

using Shape = std::vector<std::int64_t>;

inline constexpr const char* kFloatingPoint =
    "float32, float64, float16 or bfloat16";

/// The DType for an element type of any byte order, if there is one.
inline std::optional<foo_core::DType> dtype_of(const py::dtype& dtype) {
  const auto is = [&](char kind, py::ssize_t size) {
    return dtype.kind() == kind && dtype.itemsize() == size;
  };
  if (is('f', 4)) return foo_core::DType::kFloat32;
  if (is('f', 8)) return foo_core::DType::kFloat64;
  if (is('f', 2)) return foo_core::DType::kFloat16;
  if (is('i', 1)) return foo_core::DType::kInt8;
  if (is('i', 8)) return foo_core::DType::kInt64;
  // NumPy itself has no bfloat16; that of ml_dtypes is recognized by its name.
  if (is('V', 2) && dtype.attr("name").cast<std::string>() == "bfloat16") {
    return foo_core::DType::kBFloat16;
  }
  return std::nullopt;
}

/// An argument that is read. It checks what foo_core cannot see; foo_core
/// itself checks shapes and dtypes.
class Input {
 public:
  Input(const char* op, const char* name, py::handle object,
        const char* expected = kFloatingPoint)
      : op_(op), name_(name) {
    if (!py::isinstance<py::array>(object)) {
      throw py::type_error(message(std::string("is ") +
                                   Py_TYPE(object.ptr())->tp_name +
                                   ", expected numpy.ndarray"));
    }
    array_ = py::reinterpret_borrow<py::array>(object);
    const py::dtype dtype = array_.dtype();
    const auto text = [&] { return py::str(dtype).cast<std::string>(); };
    const std::optional<foo_core::DType> known = dtype_of(dtype);
    if (!known) refuse("is " + text() + ", expected " + expected);
    if (!dtype.attr("isnative").cast<bool>()) {
      refuse("is " + text() + ", expected the machine's own byte order");
    }
    dtype_ = *known;
    data_ = array_.data();
    const std::int64_t item = foo_core::item_size(dtype_);
    bool aligned = reinterpret_cast<std::uintptr_t>(data_) % item == 0;
    for (py::ssize_t d = 0; d < array_.ndim(); ++d) {
      aligned &= array_.shape(d) < 2 || array_.strides(d) % item == 0;
      shape_.push_back(array_.shape(d));
      strides_.push_back(array_.strides(d) / item);  // NumPy's are in bytes
    }
    if (!aligned) {
      refuse("is not aligned, expected elements at multiples of " +
             std::to_string(item) + " bytes");
    }
  }
  Input(const Input&) = delete;  // views point into this

  const py::array& array() const { return array_; }
  const Shape& shape() const { return shape_; }
  foo_core::DType dtype() const { return dtype_; }

  /// Borrows from this.
  operator foo_core::ConstTensorView() const {
    return {data_, dtype_, ndim(), shape_.data(), strides_.data()};
  }

  /// Throws ValueError("{op}: {name} {rest}").
  [[noreturn]] void refuse(const std::string& rest) const {
    throw py::value_error(message(rest));
  }

 protected:
  std::int64_t ndim() const { return static_cast<std::int64_t>(shape_.size()); }

  std::string message(const std::string& rest) const {
    return std::string(op_) + ": " + name_ + " " + rest;
  }

  const char* op_;
  const char* name_;
  py::array array_;
  foo_core::DType dtype_;
  const void* data_;
  Shape shape_, strides_;
};

/// An argument that may be None.
class OptionalInput {
 public:
  OptionalInput(const char* op, const char* name, py::handle object,
                const char* expected = kFloatingPoint) {
    if (object.is_none()) return;
    input_.emplace(op, name, object, expected);
    view_ = *input_;
  }

  /// The view, or null for None, as foo_core takes it. Borrows from this.
  const foo_core::ConstTensorView* get() const {
    return input_ ? &view_ : nullptr;
  }

 private:
  std::optional<Input> input_;
  foo_core::ConstTensorView view_;
};

/// A result: the caller's array, or a new one for None.
class Output : public Input {
 public:
  Output(const char* op, const py::object& out, const py::dtype& dtype,
         const Shape& shape)
      : Input(op, "out", out.is_none() ? py::array(dtype, shape) : out) {
    if (!array_.writeable()) refuse("is read-only, expected a writeable array");
    mutable_data_ = array_.mutable_data();
  }

  /// Borrows from this.
  operator foo_core::TensorView() const {
    return {mutable_data_, dtype_, ndim(), shape_.data(), strides_.data()};
  }

 private:
  void* mutable_data_;
};

/// The shape to which a and b broadcast. foo_core checks that they do.
inline Shape broadcast(const Shape& a, const Shape& b) {
  Shape shape = a.size() < b.size() ? b : a;
  const Shape& shorter = a.size() < b.size() ? a : b;
  const std::size_t first = shape.size() - shorter.size();
  for (std::size_t d = 0; d < shorter.size(); ++d) {
    if (shape[first + d] == 1) shape[first + d] = shorter[d];
  }
  return shape;
}

/// The elements [begin, end) along the last dimension, in the same memory.
inline py::object part(const py::object& array, py::ssize_t begin,
                       py::ssize_t end) {
  return array[py::make_tuple(py::ellipsis(), py::slice(begin, end, 1))];
}

/// Runs a kernel without the GIL, so that other Python threads can run. The
/// kernel must not touch Python objects, only views of Input and Output.
template <class Kernel>
void without_gil(const Kernel& kernel) {
  const py::gil_scoped_release release;
  kernel();
}

}  // namespace foo_numpy
