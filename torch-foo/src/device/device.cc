// The operators behind torch_foo.device, and what enable() registers.
#include <torch/csrc/stable/stableivalue_conversions.h>

#include <string>
#include <vector>

#include "alias.h"
#include "boxed.h"
#include "fallback.h"
#include "library.h"
#include "memory.h"

namespace torch_foo {
namespace device {
namespace {

using torch::headeronly::ScalarType;

std::int64_t empty(std::vector<std::int64_t> sizes,
                   std::vector<std::int64_t> strides, ScalarType dtype) {
  return new_managed_tensor(sizes, strides, dtype);
}
Tensor to_cpu(const Tensor& x) { return cpu_alias(x); }
Tensor to_foo(const Tensor& x) {
  AtenTensorHandle handle;
  check(aoti_torch_new_tensor_handle(x.handle(), &handle), "keep a tensor");
  return foo_alias(Tensor(handle));
}
std::tuple<std::int64_t, std::int64_t, std::int64_t> memory() {
  const MemoryStatistics now = memory_statistics();
  return {now.allocated, now.peak, now.limit};
}

void enable(std::vector<bool> use) { register_device(use); }

}  // namespace
}  // namespace device

void define_device(const Library& m) {
  m.def("_adopt(int managed, int bytes, ScalarType dtype) -> Tensor");
  m.def("_device_empty(int[] size, int[] stride, ScalarType dtype) -> int");
  m.def("_device_to_cpu(Tensor x) -> Tensor");
  m.def("_device_to_foo(Tensor x) -> Tensor");
  m.def("_device_memory() -> (int allocated, int peak, int limit)");
  m.def("_device_reset_peak() -> ()");
  m.def("_device_set_limit(int bytes) -> ()");
  m.def("_device_fallbacks() -> str[]");
  m.def("_device_enable(bool[] use) -> ()");
}

void implement_device(const Library& m) {
  using namespace device;
  m.impl("_device_empty", boxed<&empty>);
  m.impl("_device_memory", boxed<&memory>);
  m.impl("_device_reset_peak", boxed<&reset_peak_memory>);
  m.impl("_device_set_limit", boxed<&set_memory_limit>);
  m.impl("_device_fallbacks", boxed<&describe_fallbacks>);
  m.impl("_device_enable", boxed<&enable>);
}

void implement_device_tensors(const Library& m) {
  m.impl("_device_to_cpu", boxed<&device::to_cpu>);
  m.impl("_device_to_foo", boxed<&device::to_foo>);
}

}  // namespace torch_foo
