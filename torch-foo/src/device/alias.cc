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
#include <optional>
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
  Managed(IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides)
      : sizes(sizes.begin(), sizes.end()),
        strides(strides.begin(), strides.end()) {}
  Managed(const Managed&) = delete;
  ~Managed() {
    if (tensor) {
      unreserve(bytes);
    } else {
      release(memory, bytes);
    }
  }

  DLManagedTensor managed;
  std::vector<std::int64_t> sizes, strides;
  std::int64_t bytes = 0;
  void* memory = nullptr;
  std::optional<Tensor> tensor;
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

std::int64_t item_size(std::int32_t dtype) {
  return static_cast<std::int64_t>(aoti_torch_dtype_element_size(dtype));
}

/// The bytes from the first element to the last one, or none for what is no
/// shape or has too many bytes to count.
std::optional<std::int64_t> span(IntHeaderOnlyArrayRef sizes,
                                 IntHeaderOnlyArrayRef strides,
                                 ScalarType dtype) {
  if (sizes.size() != strides.size()) return std::nullopt;
  std::int64_t last = 0, bytes = 0;
  bool wrong = false, empty = false;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    empty |= sizes[i] == 0;
    wrong |= sizes[i] < 0 || strides[i] < 0;
    std::int64_t step = 0;
    wrong |= __builtin_mul_overflow(sizes[i] - 1, strides[i], &step);
    wrong |= __builtin_add_overflow(last, step, &last);
  }
  if (empty && !wrong) return 0;
  wrong |= __builtin_add_overflow(last, 1, &last);
  wrong |= __builtin_mul_overflow(
      last, item_size(static_cast<std::int32_t>(dtype)), &bytes);
  return wrong ? std::nullopt : std::optional(bytes);
}

/// A CPU tensor over memory of `owner`, whose storage it keeps alive.
Tensor from_blob(const Tensor& owner, const void* data,
                 IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides) {
  using FromBlob = AOTITorchError (*)(
      void*, std::int64_t, const std::int64_t*, const std::int64_t*,
      std::int64_t, std::int32_t, std::int32_t, std::int32_t, AtenTensorHandle*,
      std::int32_t, const std::uint8_t*, std::int64_t, void (*)(void*, void*),
      void*);
  // Since torch 2.11, while this library runs with 2.10, too.
  static const auto from_blob = reinterpret_cast<FromBlob>(
      find_symbol("libtorch_cpu.so", "torch_from_blob"));
  static char nothing;  // torch_from_blob refuses null
  void* start = data != nullptr ? const_cast<void*>(data) : &nothing;
  // The owner may be given another storage, as by resize_.
  Tensor kept = part_of(owner, {}, {}, 0);
  AtenTensorHandle handle;
  check(from_blob(
            start, static_cast<std::int64_t>(sizes.size()), sizes.data(),
            strides.data(), 0, owner.dtype(), aoti_torch_device_type_cpu(), -1,
            &handle, aoti_torch_layout_strided(), nullptr, 0,
            [](void*, void* context) {
              aoti_torch_delete_tensor_object(
                  static_cast<AtenTensorHandle>(context));
            },
            kept.handle()),
        "make a CPU tensor over memory of foo");
  kept.release();
  return Tensor(handle);
}

/// A vector over a whole storage, in another dtype, less what is left over.
Tensor seen_as(const Tensor& whole, std::int32_t dtype) {
  if (whole.dtype() == dtype) return same(whole);
  const std::int64_t from = item_size(whole.dtype()), to = item_size(dtype);
  const std::int64_t bytes = whole.sizes()[0] * from / to * to;
  const std::int64_t size = bytes / from, stride = 1;
  StableIValue stack[2] = {
      torch::stable::detail::from(
          part_of(whole, {&size, 1}, {&stride, 1}, 0).release()),
      torch::stable::detail::from(static_cast<ScalarType>(dtype))};
  check(torch_call_dispatcher("aten::view", "dtype", stack, TORCH_ABI_VERSION),
        "view memory as another dtype");
  return Tensor(torch::stable::detail::to<AtenTensorHandle>(stack[0]));
}

template <class... A>
Tensor adopt(ScalarType dtype, const A&... managed_of) {
  // Not all dtypes have a value for the stack, and what is managed, an owner.
  StableIValue stack[2] = {0, torch::stable::detail::from(dtype)};
  stack[0] = torch::stable::detail::from(new_managed_tensor(managed_of...));
  check(
      torch_call_dispatcher("torch_foo::_adopt", "", stack, TORCH_ABI_VERSION),
      "make a foo tensor");
  return Tensor(torch::stable::detail::to<AtenTensorHandle>(stack[0]));
}

}  // namespace

const char* storage_of(const Tensor& tensor) {
  const auto* data = static_cast<const char*>(tensor.const_data_ptr());
  if (data == nullptr) return nullptr;
  std::int64_t offset;
  check(aoti_torch_get_storage_offset(tensor.handle(), &offset),
        "read a tensor");
  return data - offset * item_size(tensor.dtype());
}

Tensor cpu_alias(const Tensor& tensor) {
  return from_blob(tensor, tensor.mutable_data_ptr(), tensor.sizes(),
                   tensor.strides());
}

std::vector<Tensor> cpu_aliases(const std::vector<Tensor>& tensors) {
  std::vector<std::pair<const char*, Tensor>> storages;
  std::vector<Tensor> aliases;
  for (const Tensor& x : tensors) {
    const char* data = storage_of(x);
    if (data == nullptr) {  // without elements, nothing overlaps
      aliases.push_back(cpu_alias(x));
      continue;
    }
    const auto found =
        std::find_if(storages.begin(), storages.end(),
                     [data](const auto& known) { return known.first == data; });
    std::int64_t bytes, offset, stride = 1;
    check(aoti_torch_get_storage_size(x.handle(), &bytes), "read a tensor");
    check(aoti_torch_get_storage_offset(x.handle(), &offset), "read a tensor");
    const std::int64_t size = bytes / item_size(x.dtype());
    Tensor whole = found != storages.end()
                       ? seen_as(found->second, x.dtype())
                       : from_blob(x, data, {&size, 1}, {&stride, 1});
    aliases.push_back(part_of(whole, x.sizes(), x.strides(), offset));
    if (found == storages.end()) storages.emplace_back(data, std::move(whole));
  }
  return aliases;
}

std::int64_t new_managed_tensor(const Tensor& tensor) {
  const auto dtype = static_cast<ScalarType>(tensor.dtype());
  const auto bytes = span(tensor.sizes(), tensor.strides(), dtype);
  auto owned = std::make_unique<Managed>(tensor.sizes(), tensor.strides());
  owned->memory = tensor.mutable_data_ptr();
  owned->tensor = same(tensor);
  if (!bytes || !reserve(*bytes)) return 0;
  owned->bytes = *bytes;
  return hand_over(std::move(owned), dtype);
}

std::int64_t new_managed_tensor(IntHeaderOnlyArrayRef sizes,
                                IntHeaderOnlyArrayRef strides,
                                ScalarType dtype) {
  const auto bytes = span(sizes, strides, dtype);
  if (!bytes) return 0;
  void* memory = allocate(*bytes);
  if (memory == nullptr) return 0;
  auto owned = std::make_unique<Managed>(sizes, strides);
  owned->memory = memory;
  owned->bytes = *bytes;
  return hand_over(std::move(owned), dtype);
}

Tensor foo_alias(const Tensor& tensor) {
  return adopt(static_cast<ScalarType>(tensor.dtype()), tensor);
}

Tensor new_tensor(IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides,
                  ScalarType dtype) {
  return adopt(dtype, sizes, strides, dtype);
}

}  // namespace torch_foo::device
