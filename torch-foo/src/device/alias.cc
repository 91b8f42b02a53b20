// The stable ABI's torch_from_blob refuses a PrivateUse1 device, because it
// asks C++ hooks for the device of the pointer, and those cannot be registered
// through the stable ABI (torch 2.10 to 2.15). DLPack, a C ABI of its own, asks
// nobody; torch._C._from_dlpack takes its struct. So an operator in Python,
// torch_foo::_adopt, makes the tensors. That costs about 2 us.
#include "alias.h"

#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/stableivalue_conversions.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "memory.h"

namespace torch_foo::device {
namespace {

using torch::headeronly::ScalarType;

// DLPack 0.x, as all versions of torch read it.
struct DLDevice {
  std::int32_t type, index;
};
struct DLDataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  std::int32_t ndim;
  DLDataType dtype;
  std::int64_t *sizes, *strides;
  std::uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor tensor;
  void* context;
  void (*deleter)(DLManagedTensor*);
};
constexpr std::int32_t kExtensionDevice = 12;  // kDLExtDev
enum : std::uint8_t { kInt, kUInt, kFloat, kBits, kBFloat, kComplex, kBool };

DLDataType dlpack_dtype(ScalarType dtype) {
  const auto bits = static_cast<std::uint8_t>(
      8 * aoti_torch_dtype_element_size(static_cast<std::int32_t>(dtype)));
  switch (dtype) {
    case ScalarType::Half:
    case ScalarType::Float:
    case ScalarType::Double:
      return {kFloat, bits, 1};
    case ScalarType::BFloat16:
      return {kBFloat, bits, 1};
    case ScalarType::ComplexHalf:
    case ScalarType::ComplexFloat:
    case ScalarType::ComplexDouble:
      return {kComplex, bits, 1};
    case ScalarType::Bool:
      return {kBool, bits, 1};
    case ScalarType::Byte:
    case ScalarType::UInt16:
    case ScalarType::UInt32:
    case ScalarType::UInt64:
      return {kUInt, bits, 1};
    default:
      // Integers, and what not every torch reads from DLPack: integers of the
      // same size, which torch_foo::_adopt then views as the dtype.
      return {kInt, bits, 1};
  }
}

// What a DLManagedTensor is over: memory of the device or a tensor of the CPU.
struct Managed {
  DLManagedTensor managed;
  std::vector<std::int64_t> sizes, strides;
  std::int64_t bytes;
  void* memory;
  std::optional<Tensor> tensor;

  ~Managed() {
    if (tensor) {
      unreserve(bytes);
    } else {
      release(memory, bytes);
    }
  }
};

std::int64_t hand_over(std::unique_ptr<Managed> owned, ScalarType dtype) {
  Managed* self = owned.release();
  self->managed = {
      {self->memory,
       {kExtensionDevice, 0},
       static_cast<std::int32_t>(self->sizes.size()),
       dlpack_dtype(dtype),
       self->sizes.data(),
       self->strides.data(),
       0},
      self,
      [](DLManagedTensor* m) { delete static_cast<Managed*>(m->context); }};
  return reinterpret_cast<std::int64_t>(&self->managed);
}

std::int64_t storage_bytes(IntHeaderOnlyArrayRef sizes,
                           IntHeaderOnlyArrayRef strides, ScalarType dtype) {
  std::int64_t last = 0;
  bool overflows = false;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) return 0;
    std::int64_t span;
    overflows |= __builtin_mul_overflow(sizes[i] - 1, strides[i], &span);
    overflows |= __builtin_add_overflow(last, span, &last);
  }
  const auto item = static_cast<std::int64_t>(
      aoti_torch_dtype_element_size(static_cast<std::int32_t>(dtype)));
  std::int64_t bytes;
  overflows |= __builtin_mul_overflow(last + 1, item, &bytes);
  if (overflows) {
    throw std::runtime_error("foo: a tensor has too many bytes to count");
  }
  return bytes;
}

}  // namespace

Tensor cpu_alias(const Tensor& tensor) {
  using FromBlob = AOTITorchError (*)(
      void*, std::int64_t, const std::int64_t*, const std::int64_t*,
      std::int64_t, std::int32_t, std::int32_t, std::int32_t, AtenTensorHandle*,
      std::int32_t, const std::uint8_t*, std::int64_t, void (*)(void*, void*),
      void*);
  // Since torch 2.11, while this library runs with 2.10, too.
  static const auto from_blob = reinterpret_cast<FromBlob>(
      find_symbol("libtorch_cpu.so", "torch_from_blob"));
  AtenTensorHandle kept;
  check(aoti_torch_new_tensor_handle(tensor.handle(), &kept), "keep a tensor");
  AtenTensorHandle alias;
  static char nothing;  // torch_from_blob refuses null
  void* data = tensor.mutable_data_ptr();
  const AOTITorchError error = from_blob(
      data != nullptr ? data : &nothing, tensor.dim(), tensor.sizes().data(),
      tensor.strides().data(), 0, tensor.dtype(), aoti_torch_device_type_cpu(),
      -1, &alias, aoti_torch_layout_strided(), nullptr, 0,
      [](void*, void* context) {
        aoti_torch_delete_tensor_object(static_cast<AtenTensorHandle>(context));
      },
      kept);
  if (error != AOTI_TORCH_SUCCESS) aoti_torch_delete_tensor_object(kept);
  check(error, "make a CPU tensor over memory of foo");
  return Tensor(alias);
}

Tensor foo_alias(Tensor tensor) {
  auto owned = std::make_unique<Managed>();
  owned->sizes.assign(tensor.sizes().begin(), tensor.sizes().end());
  owned->strides.assign(tensor.strides().begin(), tensor.strides().end());
  owned->memory = tensor.mutable_data_ptr();
  const auto dtype = static_cast<ScalarType>(tensor.dtype());
  const std::int64_t bytes =
      storage_bytes(tensor.sizes(), tensor.strides(), dtype);
  const bool fits = reserve(bytes);
  owned->bytes = fits ? bytes : 0;
  owned->tensor = std::move(tensor);
  // For 0, _adopt raises an error of too little memory.
  StableIValue stack[3] = {
      torch::stable::detail::from(fits ? hand_over(std::move(owned), dtype)
                                       : std::int64_t{0}),
      torch::stable::detail::from(bytes), torch::stable::detail::from(dtype)};
  check(
      torch_call_dispatcher("torch_foo::_adopt", "", stack, TORCH_ABI_VERSION),
      "make a foo tensor");
  return Tensor(torch::stable::detail::to<AtenTensorHandle>(stack[0]));
}

std::int64_t new_managed_tensor(const std::vector<std::int64_t>& sizes,
                                const std::vector<std::int64_t>& strides,
                                ScalarType dtype) {
  const std::int64_t bytes = storage_bytes(
      {sizes.data(), sizes.size()}, {strides.data(), strides.size()}, dtype);
  void* memory = allocate(bytes);
  if (memory == nullptr) return 0;
  std::unique_ptr<Managed> owned(
      new Managed{{}, sizes, strides, bytes, memory, std::nullopt});
  return hand_over(std::move(owned), dtype);
}

}  // namespace torch_foo::device
