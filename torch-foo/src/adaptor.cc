// The checks of devices, layouts and dtypes, which foo_core cannot see; the
// allocation of results; and PyTorch's threads for foo_core.
#include "adaptor.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/core/DeviceType.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cctype>
#include <optional>
#include <stdexcept>

namespace torch_foo {
namespace {

using torch::headeronly::ScalarType;

std::optional<foo_core::DType> dtype_of(const Tensor& tensor) {
  using foo_core::DType;
  const std::int32_t dtype = tensor.dtype();
  if (dtype == aoti_torch_dtype_float32()) return DType::kFloat32;
  if (dtype == aoti_torch_dtype_bfloat16()) return DType::kBFloat16;
  if (dtype == aoti_torch_dtype_float16()) return DType::kFloat16;
  if (dtype == aoti_torch_dtype_float64()) return DType::kFloat64;
  if (dtype == aoti_torch_dtype_int64()) return DType::kInt64;
  if (dtype == aoti_torch_dtype_int8()) return DType::kInt8;
  if (dtype == aoti_torch_dtype_uint8()) return DType::kUInt8;
  return std::nullopt;
}

std::int32_t torch_dtype(foo_core::DType dtype) {
  using foo_core::DType;
  switch (dtype) {
    case DType::kFloat32:
      return aoti_torch_dtype_float32();
    case DType::kBFloat16:
      return aoti_torch_dtype_bfloat16();
    case DType::kFloat16:
      return aoti_torch_dtype_float16();
    case DType::kFloat64:
      return aoti_torch_dtype_float64();
    case DType::kInt64:
      return aoti_torch_dtype_int64();
    case DType::kInt8:
      return aoti_torch_dtype_int8();
    case DType::kUInt8:
      return aoti_torch_dtype_uint8();
  }
  return -1;  // not reached
}

std::string device_name(const Tensor& tensor) {
  using torch::headeronly::DeviceType;
  const auto with_index = [&tensor](const char* name) {
    return name + (":" + std::to_string(tensor.device_index()));
  };
  switch (static_cast<DeviceType>(tensor.device_type())) {
    case DeviceType::CPU:
      return "cpu";
    case DeviceType::CUDA:
      return with_index("cuda");
    case DeviceType::XPU:
      return with_index("xpu");
    case DeviceType::MPS:
      return with_index("mps");
    case DeviceType::XLA:
      return with_index("xla");
    case DeviceType::Meta:
      return "meta";
    case DeviceType::PrivateUse1:
      return with_index("foo");
    default:
      return "a device of type " + std::to_string(tensor.device_type());
  }
}

bool same_device(const Tensor& a, const Tensor& b) {
  if (a.device_type() != b.device_type()) return false;
  return a.is_cpu() || a.device_index() == b.device_index();
}

[[noreturn]] void wrong(const char* op, const Argument& argument,
                        const std::string& what) {
  fail(std::string(op) + ": " + argument.name + " " + what);
}

void check_dense(const char* op, const Argument& argument) {
  if (!argument.tensor.defined()) {
    wrong(op, argument, "is None, expected a tensor");
  }
  if (!argument.tensor.dense()) {
    wrong(op, argument,
          "is a sparse or otherwise not dense tensor, expected a dense one");
  }
}

/// Asks for huge pages, as NumPy does for its arrays: a fresh result of 64 MiB
/// has 16384 page faults otherwise, which take four times as long as the
/// kernel.
void advise_huge_pages([[maybe_unused]] const Tensor& tensor,
                       [[maybe_unused]] std::int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr std::int64_t kWorthIt = std::int64_t{4} << 20;
  constexpr std::uintptr_t kPage = 4096;
  if (bytes < kWorthIt || tensor.is_cuda()) return;
  const auto begin = reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr());
  const std::uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  // Advice: where there are no huge pages, nothing changes.
  madvise(reinterpret_cast<void*>(first),
          static_cast<std::size_t>(bytes) - (first - begin), MADV_HUGEPAGE);
#endif
}

/// PyTorch's words, which other libraries look for in messages.
[[noreturn]] void fail_out_of_memory(const char* op, std::int64_t bytes,
                                     const Tensor& like) {
  const std::string text = std::to_string(bytes);
  if (like.is_cpu()) {
    fail(std::string(op) +
         ": DefaultCPUAllocator: can't allocate memory: you "
         "tried to allocate " +
         text + " bytes");
  }
  // PyTorch's own sentence may be about an earlier error of the device. That of
  // foo's kernel, which is Python, would come with a traceback.
  const std::string reason = like.is_cuda() ? last_error() : "";
  fail(std::string(op) + ": " +
       (!reason.empty()  ? reason
        : like.is_cuda() ? "CUDA out of memory."
                         : "foo out of memory.") +
       " (Tried to allocate " + text + " bytes on " + device_name(like) + ")");
}

Tensor empty(const char* op, IntHeaderOnlyArrayRef shape, std::int32_t dtype,
             const Tensor& like) {
  Shape strides(shape.size());
  std::int64_t stride = 1, count = 1;
  bool overflows = false;
  for (std::size_t i = shape.size(); i-- > 0;) {
    strides.data()[i] = stride;
    overflows |= __builtin_mul_overflow(count, shape[i], &count);
    overflows |= __builtin_mul_overflow(
        stride, std::max<std::int64_t>(shape[i], 1), &stride);
  }
  const auto item =
      static_cast<std::int64_t>(aoti_torch_dtype_element_size(dtype));
  std::int64_t bytes;
  overflows |= __builtin_mul_overflow(count, item, &bytes);
  if (overflows) {
    fail(std::string(op) + ": a result of shape " + shape_text(shape) +
         " has too many bytes to count");
  }
  AtenTensorHandle handle;
  const AOTITorchError error = aoti_torch_empty_strided(
      static_cast<std::int64_t>(shape.size()), shape.data(), strides.data(),
      dtype, like.device_type(), like.is_cpu() ? 0 : like.device_index(),
      &handle);
  if (error != AOTI_TORCH_SUCCESS) fail_out_of_memory(op, bytes, like);
  Tensor tensor(handle);
  advise_huge_pages(tensor, bytes);
  return tensor;
}

}  // namespace

std::string dtype_name(const Tensor& tensor) {
  const auto type = static_cast<ScalarType>(tensor.dtype());
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::ComplexHalf:
      return "complex32";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default: {  // the others are alike but for capitals
      std::string name = torch::headeronly::toString(type);
      for (char& c : name) c = static_cast<char>(std::tolower(c));
      return name;
    }
  }
}

bool is_floating_point(const Tensor& tensor) {
  using foo_core::DType;
  const auto dtype = dtype_of(tensor);
  return dtype && *dtype != DType::kInt64 && *dtype != DType::kInt8 &&
         *dtype != DType::kUInt8;
}

void fail(const std::string& message) {
  throw std::runtime_error("torch_foo." + message);
}

void fail_renamed(const char* op, const std::string& message,
                  std::initializer_list<Renamed> names) {
  std::string sentence = message.substr(message.find(':'));
  for (const auto& [from, to] : names) {
    for (const char* end : {" ", ",", "'"}) {
      const std::string name = std::string(" ") + from + end;
      const std::size_t at = sentence.find(name);
      if (at != std::string::npos)
        sentence.replace(at + 1, name.size() - 2, to);
    }
  }
  fail(op + sentence);
}

std::string shape_text(IntHeaderOnlyArrayRef shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

void check_device(const char* op, const Argument& argument,
                  const Argument& other) {
  if (same_device(argument.tensor, other.tensor)) return;
  wrong(op, argument,
        "is on " + device_name(argument.tensor) + ", but " + other.name +
            " is on " + device_name(other.tensor));
}

void check_any_dtypes(const char* op,
                      std::initializer_list<Argument> arguments) {
  for (const Argument& argument : arguments) {
    check_dense(op, argument);
    if (!is_floating_point(argument.tensor)) {
      wrong(op, argument,
            "has dtype " + dtype_name(argument.tensor) +
                ", expected float32, float64, float16 or bfloat16");
    }
    check_device(op, argument, *arguments.begin());
  }
}

void check_arguments(const char* op,
                     std::initializer_list<Argument> arguments) {
  check_any_dtypes(op, arguments);
  const Argument& first = *arguments.begin();
  for (const Argument& argument : arguments) {
    if (argument.tensor.dtype() == first.tensor.dtype()) continue;
    wrong(op, argument,
          "has dtype " + dtype_name(argument.tensor) + ", but " + first.name +
              " has " + dtype_name(first.tensor));
  }
}

void check_argument(const char* op, const Argument& argument,
                    foo_core::DType dtype, const Argument& other) {
  check_dense(op, argument);
  if (dtype_of(argument.tensor) != dtype) {
    wrong(op, argument,
          "has dtype " + dtype_name(argument.tensor) + ", expected " +
              foo_core::name(dtype));
  }
  check_device(op, argument, other);
}

bool is_bool(const Tensor& tensor) {
  return tensor.dtype() == aoti_torch_dtype_bool();
}

void check_bool(const char* op, const Argument& argument,
                const Argument& other) {
  check_dense(op, argument);
  check_device(op, argument, other);
}

void check_out(const char* op, const Argument& first, const Argument& out,
               foo_core::DType dtype) {
  if (dtype_of(first.tensor) == dtype) return check_arguments(op, {first, out});
  check_any_dtypes(op, {first, out});
  check_argument(op, out, dtype, first);
}

Shape broadcast_shape(const char* op, const Tensor& a, const Tensor& b) {
  const auto sizes_a = a.sizes();
  const auto sizes_b = b.sizes();
  Shape shape(std::max(sizes_a.size(), sizes_b.size()));
  for (std::size_t i = 1; i <= shape.ndim(); ++i) {  // from the last dimension
    const auto na = i <= sizes_a.size() ? sizes_a[sizes_a.size() - i] : 1;
    const auto nb = i <= sizes_b.size() ? sizes_b[sizes_b.size() - i] : 1;
    if (na != nb && na != 1 && nb != 1) {
      fail(std::string(op) + ": a has shape " + shape_text(sizes_a) +
           ", b has shape " + shape_text(sizes_b) + ": they do not broadcast");
    }
    shape.data()[shape.ndim() - i] = na == 1 ? nb : na;
  }
  return shape;
}

Tensor empty(const char* op, IntHeaderOnlyArrayRef shape, const Tensor& like) {
  return empty(op, shape, like.dtype(), like);
}

Tensor empty(const char* op, IntHeaderOnlyArrayRef shape, foo_core::DType dtype,
             const Tensor& like) {
  return empty(op, shape, torch_dtype(dtype), like);
}

Tensor empty_bytes(const char* op, std::int64_t size, const Tensor& like) {
  return empty(op, IntHeaderOnlyArrayRef(&size, 1), aoti_torch_dtype_uint8(),
               like);
}

foo_core::DType result_dtype(const Tensor& a, const Tensor& b) {
  using foo_core::DType;
  const DType of_a = *dtype_of(a), of_b = *dtype_of(b);
  if (of_a == of_b) return of_a;
  if ((a.dim() == 0) != (b.dim() == 0)) return a.dim() == 0 ? of_b : of_a;
  const bool wide = of_a == DType::kFloat64 || of_b == DType::kFloat64;
  return wide ? DType::kFloat64 : DType::kFloat32;
}

Converted::Converted(const char* op, const Tensor& tensor,
                     foo_core::DType dtype)
    : tensor_(tensor) {
  if (dtype_of(tensor) == dtype) return;
  copy_ = empty(op, tensor.sizes(), dtype, tensor);
  check(aoti_torch_copy_(copy_->handle(), tensor.handle(), 0),
        "convert a tensor");
}

namespace {

foo_core::ConstTensorView view(const Tensor& tensor, foo_core::DType dtype) {
  const auto sizes = tensor.sizes();
  return {tensor.const_data_ptr(), dtype,
          static_cast<std::int64_t>(sizes.size()), sizes.data(),
          tensor.strides().data()};
}

}  // namespace

foo_core::ConstTensorView view(const Tensor& tensor) {
  return view(tensor, *dtype_of(tensor));
}

foo_core::ConstTensorView bool_view(const Tensor& tensor) {
  return view(tensor, foo_core::DType::kUInt8);
}

foo_core::TensorView mutable_view(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {tensor.mutable_data_ptr(), *dtype_of(tensor),
          static_cast<std::int64_t>(sizes.size()), sizes.data(),
          tensor.strides().data()};
}

foo_core::Executor torch_threads() {
  return foo_core::Executor::threads([](void*, std::int64_t begin,
                                        std::int64_t end, std::int64_t grain,
                                        foo_core::RangeBody body,
                                        void* context) {
    struct Call {
      foo_core::RangeBody body;
      void* context;
    } call{body, context};
    // PyTorch wants the arguments in another order, so it calls this.
    const ParallelFunc func = [](std::int64_t b, std::int64_t e, void* self) {
      const auto* call = static_cast<Call*>(self);
      call->body(call->context, b, e);
    };
    check(torch_parallel_for(begin, end, grain, func, &call),
          "run a parallel loop");
  });
}

void rethrow(bool folded) {
  try {
    throw;
  } catch (const foo_core::InvalidArgument& error) {
    fail(error.what() + std::string(folded ? " (some dimensions of size 1 are "
                                             "left out)"
                                           : ""));
  } catch (const foo_core::Unavailable& error) {
    fail(std::string(error.what()) + ": conda install 'libfoo-core=*=cuda*'");
  } catch (const foo_core::DeviceError& error) {
    fail(error.what());
  }
}

}  // namespace torch_foo
