// A kernel of the dispatcher is not told which operator it serves, so there is
// one for each: an instance of a template over the generated table.
//
// Only what nearly all calls are is done here: strided tensors, all of them
// foo's but for numbers, and no memory shared with what is written. For other
// arguments a kernel throws, as for errors of the CPU's kernel and of too
// little memory. Then device/_fallback.py, in Python, runs the operator: a
// kernel of the stable ABI can raise nothing but RuntimeError, and PyTorch
// before 2.13 does not tell it the reason.
#include "fallback.h"

#include <torch/csrc/stable/stableivalue_conversions.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "alias.h"
#include "generated/fallbacks.h"
#include "kernels.h"

namespace torch_foo::device {
namespace {

namespace detail = torch::stable::detail;

[[noreturn]] void decline() {
  throw std::runtime_error("foo: left to the fallback in Python");
}

// --- values on the dispatcher's stack ---------------------------------------

/// Returns the end of the first type.
const char* skip(const char* type) {
  while (*type == '?' || *type == '[') ++type;
  return type + 1;
}

/// Calls f(item) for each item of a list, which it may replace.
template <class F>
void for_each_item(StableIValue list, F f) {
  const auto items = detail::to<StableListHandle>(list);
  std::size_t size;
  check(torch_list_size(items, &size), "read a list");
  for (std::size_t i = 0; i < size; ++i) {
    StableIValue item;
    check(torch_list_get_item(items, i, &item), "read a list");
    f(item);
    check(torch_list_set_item(items, i, item), "change a list");
  }
}

/// Calls f(tensor) for each tensor in a value, which it may replace.
template <class F>
void for_each_tensor(const char* type, StableIValue& value, F& f) {
  if (*type == 'T') {
    auto handle = detail::to<AtenTensorHandle>(value);
    f(handle);
    value = detail::from(handle);
  } else if (*type == '?' && value != 0) {
    for_each_tensor(type + 1, *reinterpret_cast<StableIValue*>(value), f);
  } else if (*type == '[' && skip(type)[-1] == 'T') {
    for_each_item(value, [type, &f](StableIValue& item) {
      for_each_tensor(type + 1, item, f);
    });
  }
}

void discard(const char* type, StableIValue value) {
  if (*type == 'T') {
    aoti_torch_delete_tensor_object(detail::to<AtenTensorHandle>(value));
  } else if (*type == 'S') {
    torch_delete_string(detail::to<StringHandle>(value));
  } else if (*type == '?' && value != 0) {
    auto* inner = reinterpret_cast<StableIValue*>(value);
    discard(type + 1, *inner);
    delete inner;  // as PyTorch's own conversions do
  } else if (*type == '[') {
    for_each_item(value, [type](StableIValue& item) {
      discard(type + 1, std::exchange(item, 0));
    });
    torch_delete_list(detail::to<StableListHandle>(value));
  }
}

/// Owns the values on the stack from `first` on, until they are handed on.
class Owned {
 public:
  Owned(const char* types, StableIValue* first) : types_(types), next_(first) {}
  Owned(const Owned&) = delete;
  ~Owned() {
    while (*types_ != 0) {
      discard(types_, *next_);
      hand_on();
    }
  }
  void hand_on() {
    types_ = skip(types_);
    ++next_;
  }
  void hand_on_all() {
    while (*types_ != 0) hand_on();
  }

 private:
  const char* types_;
  StableIValue* next_;
};

// --- lowering and lifting ---------------------------------------------------

/// Whether a tensor of complex numbers is conjugated lazily. An alias would not
/// be.
bool is_conjugated(const Tensor& tensor) {
  if (tensor.dtype() != aoti_torch_dtype_complex64() &&
      tensor.dtype() != aoti_torch_dtype_complex128() &&
      tensor.dtype() != aoti_torch_dtype_complex32()) {
    return false;
  }
  AtenTensorHandle handle;
  check(aoti_torch_new_tensor_handle(tensor.handle(), &handle),
        "keep a tensor");
  // It returns the tensor itself, or a copy. (aten::is_conj is asked of a
  // copy.)
  StableIValue stack[1] = {detail::from(handle)};
  check(
      torch_call_dispatcher("aten::resolve_conj", "", stack, TORCH_ABI_VERSION),
      "read a tensor");
  const Tensor resolved(detail::to<AtenTensorHandle>(stack[0]));
  return resolved.sizes().data() != tensor.sizes().data();
}

/// Replaces foo tensors by CPU tensors over the same memory.
class Lowering {
 public:
  explicit Lowering(bool writes) : writes_(writes) {}

  void operator()(AtenTensorHandle& handle) {
    Borrowed given(handle);
    if (!given->defined()) return;
    if (!is_foo(*given)) {
      // Numbers are tensors of the CPU, too, but not what is written to.
      if (!given->is_cpu() || given->dim() != 0) decline();
      if (writes_ && originals_.empty()) decline();
      return;
    }
    if (!given->dense() || is_conjugated(*given)) decline();
    const char* storage = storage_of(*given);
    // Over two aliases, PyTorch would not see that arguments overlap.
    if (writes_ && storage != nullptr && uses(storage)) decline();
    storages_.push_back(storage);
    Tensor lowered = cpu_alias(*given);
    originals_.push_back(given.take());
    handle = lowered.release();
  }

  bool uses(const char* storage) const {
    return std::find(storages_.begin(), storages_.end(), storage) !=
           storages_.end();
  }

  /// The first tensor, which is written to.
  Tensor& written() { return originals_.front(); }

 private:
  const bool writes_;
  std::vector<Tensor> originals_;
  std::vector<const char*> storages_;
};

void lift(const Lowering& lowering, AtenTensorHandle& handle) {
  Borrowed result(handle);
  if (!result->defined()) return;
  if (!result->is_cpu() || !result->dense() || is_conjugated(*result))
    decline();
  // It should then be a view of the argument.
  const char* storage = storage_of(*result);
  if (storage != nullptr && lowering.uses(storage)) decline();
  Tensor lifted = foo_alias(*result);
  result.take();
  handle = lifted.release();
}

void run(const Fallback& fallback, StableIValue* stack) {
  const bool writes = *fallback.results == '0';
  Lowering lowering(writes);
  Owned arguments(fallback.arguments, stack);
  // torch_call_dispatcher, before 2.14, keeps a copy of a string for ever.
  if (std::strchr(fallback.arguments, 'S') != nullptr) decline();
  const char* type = fallback.arguments;
  for (StableIValue* value = stack; *type != 0; type = skip(type)) {
    for_each_tensor(type, *value++, lowering);
  }
  arguments.hand_on_all();
  check(torch_call_dispatcher(fallback.name, fallback.overload, stack,
                              TORCH_ABI_VERSION),
        "run the CPU's kernel");
  if (writes) {
    discard("T", *stack);
    *stack = detail::from(lowering.written().release());
    return;
  }
  Owned results(fallback.results, stack);
  const auto lift_each = [&lowering](AtenTensorHandle& handle) {
    lift(lowering, handle);
  };
  type = fallback.results;
  for (StableIValue* value = stack; *type != 0; type = skip(type)) {
    for_each_tensor(type, *value++, lift_each);
  }
  results.hand_on_all();
}

template <std::size_t kIndex>
void kernel(StableIValue* stack, std::uint64_t, std::uint64_t) {
  constexpr const Fallback& kFallback = kFallbacks[kIndex];
  constexpr Kernel kKernel = kernel_of(kFallback.name, kFallback.overload);
  if constexpr (kKernel != nullptr) {
    std::optional<Tensor> result;
    {
      Owned arguments(kFallback.arguments, stack);
      result = kKernel(stack);
      if (!result) arguments.hand_on_all();
    }
    if (result) {
      *stack = detail::from(result->release());
      return;
    }
  }
  run(kFallback, stack);
}

std::string full_name(const Fallback& f) {
  return f.name + std::string(*f.overload != 0 ? "." : "") + f.overload;
}

template <std::size_t... kIndex>
void implement(const Library& aten, std::index_sequence<kIndex...>) {
  (aten.impl(full_name(kFallbacks[kIndex]).c_str(), &kernel<kIndex>), ...);
}

}  // namespace

std::vector<std::string> describe_fallbacks() {
  std::vector<std::string> lines;
  for (const Fallback& f : kFallbacks) {
    lines.push_back(full_name(f) + " " + f.arguments + " " + f.results);
  }
  return lines;
}

void implement_fallbacks(const Library& aten) {
  constexpr std::size_t kCount = sizeof kFallbacks / sizeof *kFallbacks;
  implement(aten, std::make_index_sequence<kCount>());
}

}  // namespace torch_foo::device
