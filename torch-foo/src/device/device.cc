// The operators behind torch_foo.device, and what enable() registers.
#include <torch/csrc/stable/stableivalue_conversions.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "alias.h"
#include "boxed.h"
#include "fallback.h"
#include "kernels.h"
#include "library.h"
#include "memory.h"

namespace torch_foo {
namespace device {
namespace {

using torch::headeronly::ScalarType;

std::int64_t empty(const std::vector<std::int64_t>& sizes,
                   const std::optional<std::vector<std::int64_t>>& strides,
                   ScalarType dtype) {
  std::vector<std::int64_t> contiguous;
  if (!strides) {
    contiguous.resize(sizes.size());
    std::int64_t stride = 1;
    for (std::size_t i = sizes.size(); i-- > 0;) {
      contiguous[i] = stride;
      // What overflows here has a span that overflows, too.
      stride = static_cast<std::int64_t>(
          static_cast<std::uint64_t>(stride) *
          static_cast<std::uint64_t>(std::max<std::int64_t>(sizes[i], 1)));
    }
  }
  const auto& of_result = strides ? *strides : contiguous;
  return new_managed_tensor({sizes.data(), sizes.size()},
                            {of_result.data(), of_result.size()}, dtype);
}
std::vector<Tensor> to_cpu(const std::vector<Tensor>& tensors) {
  return cpu_aliases(tensors);
}
std::int64_t to_foo(const Tensor& x) { return new_managed_tensor(x); }
Tensor add_tensors(const Tensor& a, const Tensor& b) {
  const StableIValue stack[2] = {torch::stable::detail::from(a.handle()),
                                 torch::stable::detail::from(b.handle())};
  std::optional<Tensor> sum = add(stack);
  if (!sum) throw std::runtime_error("foo: left to the fallback in Python");
  return std::move(*sum);
}
std::tuple<std::int64_t, std::int64_t, std::int64_t> memory() {
  const MemoryStatistics now = memory_statistics();
  return {now.allocated, now.peak, now.limit};
}

}  // namespace
}  // namespace device

void define_device(const Library& m) {
  m.def("_adopt(int managed, ScalarType dtype) -> Tensor");
  m.def("_device_empty(int[] size, int[]? stride, ScalarType dtype) -> int");
  m.def("_device_add(Tensor a, Tensor b) -> Tensor");
  m.def("_device_to_cpu(Tensor[] tensors) -> Tensor[]");
  m.def("_device_to_foo(Tensor x) -> int");
  m.def("_device_memory() -> (int allocated, int peak, int limit)");
  m.def("_device_reset_peak() -> ()");
  m.def("_device_set_limit(int bytes) -> ()");
  m.def("_device_fallbacks() -> str[]");
  m.def("_device_enable() -> ()");
}

void implement_device(const Library& m) {
  using namespace device;
  m.impl("_device_empty", boxed<&empty>);
  m.impl("_device_memory", boxed<&memory>);
  m.impl("_device_reset_peak", boxed<&reset_peak_memory>);
  m.impl("_device_set_limit", boxed<&set_memory_limit>);
  m.impl("_device_fallbacks", boxed<&describe_fallbacks>);
  m.impl("_device_enable", boxed<&register_device>);
}

void implement_device_tensors(const Library& m) {
  m.impl("_device_add", boxed<&device::add_tensors>);
  m.impl("_device_to_cpu", boxed<&device::to_cpu>);
  m.impl("_device_to_foo", boxed<&device::to_foo>);
}

}  // namespace torch_foo
