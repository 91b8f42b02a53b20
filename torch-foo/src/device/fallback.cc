// A kernel of the dispatcher is not told which operator it serves, so there is
// one for each: an instance of a template over the generated table.
#include "fallback.h"

#include <torch/csrc/stable/stableivalue_conversions.h>

#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "alias.h"
#include "generated/fallbacks.h"

namespace torch_foo::device {
namespace {

namespace detail = torch::stable::detail;
using OptionalHandle = std::optional<AtenTensorHandle>;

class Lowering {
 public:
  explicit Lowering(const Fallback& fallback) : fallback_(fallback) {}

  StableIValue argument(std::size_t i, StableIValue value) {
    switch (fallback_.arguments[i]) {
      case 'T':
        return detail::from(tensor(i, detail::to<AtenTensorHandle>(value)));
      case 'O':
        return optional(i, value);
      case 'L':
      case 'M':
        return list(i, value);
      case 'D':
        return device(value);
      case 'E': {
        if (value == 0) return value;
        auto* inner = reinterpret_cast<StableIValue*>(value);
        *inner = device(*inner);
        return value;
      }
      default:
        return value;
    }
  }

  /// The argument itself, which is a result.
  StableIValue original(std::size_t i) {
    for (auto& [index, tensor] : originals_) {
      if (index == i) return detail::from(tensor.release());
    }
    throw std::runtime_error("foo: no such argument");  // not reached
  }

 private:
  AtenTensorHandle tensor(std::size_t i, AtenTensorHandle handle) {
    Tensor given(handle);
    if (!given.defined() || !is_foo(given)) return given.release();
    AtenTensorHandle lowered = cpu_alias(given).release();
    originals_.emplace_back(i, std::move(given));
    return lowered;
  }

  StableIValue optional(std::size_t i, StableIValue value) {
    const auto handle = detail::to<OptionalHandle>(value);
    return detail::from(handle ? OptionalHandle(tensor(i, *handle))
                               : std::nullopt);
  }

  StableIValue list(std::size_t i, StableIValue value) {
    const auto items = detail::to<StableListHandle>(value);
    std::size_t size;
    check(torch_list_size(items, &size), "read a list");
    for (std::size_t k = 0; k < size; ++k) {
      StableIValue item;
      check(torch_list_get_item(items, k, &item), "read a list");
      item = fallback_.arguments[i] == 'M'
                 ? optional(i, item)
                 : detail::from(tensor(i, detail::to<AtenTensorHandle>(item)));
      check(torch_list_set_item(items, k, item), "change a list");
    }
    return value;
  }

  static StableIValue device(StableIValue value) {
    const auto type = static_cast<std::int32_t>(value >> 32);
    if (type != aoti_torch_device_type_privateuse1()) return value;
    return static_cast<StableIValue>(aoti_torch_device_type_cpu()) << 32 |
           0xffffffff;  // the index, -1
  }

  const Fallback& fallback_;
  std::vector<std::pair<std::size_t, Tensor>> originals_;
};

StableIValue lift(AtenTensorHandle handle) {
  Tensor result(handle);
  if (!result.defined() || !result.is_cpu())
    return detail::from(result.release());
  return detail::from(foo_alias(std::move(result)).release());
}

StableIValue lift_list(StableIValue value) {
  const auto items = detail::to<StableListHandle>(value);
  std::size_t size;
  check(torch_list_size(items, &size), "read a list");
  for (std::size_t k = 0; k < size; ++k) {
    StableIValue item;
    check(torch_list_get_item(items, k, &item), "read a list");
    check(
        torch_list_set_item(items, k, lift(detail::to<AtenTensorHandle>(item))),
        "change a list");
  }
  return value;
}

/// Lowers the arguments on the stack to CPU tensors over the same memory, calls
/// the CPU's kernel, and lifts the results.
void run(const Fallback& fallback, StableIValue* stack) {
  Lowering lowering(fallback);
  for (std::size_t i = 0; fallback.arguments[i] != 0; ++i) {
    stack[i] = lowering.argument(i, stack[i]);
  }
  const AOTITorchError error = torch_call_dispatcher(
      fallback.name, fallback.overload, stack, TORCH_ABI_VERSION);
  if (error != AOTI_TORCH_SUCCESS) {
    const std::string reason = last_error();
    throw std::runtime_error(
        !reason.empty() ? reason
                        : std::string(fallback.name) +
                              " failed on the CPU, for foo; PyTorch, before "
                              "2.13, has written the reason to stderr");
  }
  for (std::size_t i = 0; fallback.results[i] != 0; ++i) {
    const char kind = fallback.results[i];
    if (kind == 'T') {
      stack[i] = lift(detail::to<AtenTensorHandle>(stack[i]));
    } else if (kind == 'L') {
      stack[i] = lift_list(stack[i]);
    } else if (kind != '.') {
      Tensor lowered(detail::to<AtenTensorHandle>(stack[i]));
      stack[i] = lowering.original(static_cast<std::size_t>(kind - '0'));
    }
  }
}

template <std::size_t kIndex>
void kernel(StableIValue* stack, std::uint64_t, std::uint64_t) {
  run(kFallbacks[kIndex], stack);
}

std::string full_name(const Fallback& f) {
  return f.name + std::string(*f.overload != 0 ? "." : "") + f.overload;
}

template <std::size_t... kIndex>
void implement(const Library& aten, const std::vector<bool>& use,
               std::index_sequence<kIndex...>) {
  (void(use.at(kIndex) &&
        (aten.impl(full_name(kFallbacks[kIndex]).c_str(), &kernel<kIndex>),
         true)),
   ...);
}

}  // namespace

std::vector<std::string> describe_fallbacks() {
  std::vector<std::string> lines;
  for (const Fallback& f : kFallbacks) {
    lines.push_back(full_name(f) + " " + f.arguments + " " + f.results);
  }
  return lines;
}

void implement_fallbacks(const Library& aten, const std::vector<bool>& use) {
  constexpr std::size_t kCount = sizeof kFallbacks / sizeof *kFallbacks;
  implement(aten, use, std::make_index_sequence<kCount>());
}

}  // namespace torch_foo::device
