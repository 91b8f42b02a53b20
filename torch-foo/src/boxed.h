// How arguments and results pass through the dispatcher's stack: TORCH_BOX for
// kernels that take torch_foo::Tensor.
#pragma once

#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/stableivalue_conversions.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "tensor.h"

namespace torch_foo {

/// How a T is taken from the stack, which then no longer owns it, and put on
/// it.
template <class T>
struct OnStack {
  static T take(StableIValue value) {
    return torch::stable::detail::to<T>(value);
  }
  static StableIValue put(T&& value) {
    return torch::stable::detail::from(value);
  }
};

template <>
struct OnStack<Tensor> {
  static Tensor take(StableIValue value) {
    return Tensor(torch::stable::detail::to<AtenTensorHandle>(value));
  }
  static StableIValue put(Tensor&& tensor) {
    return torch::stable::detail::from(tensor.release());
  }
};

template <>
struct OnStack<std::optional<Tensor>> {
  static std::optional<Tensor> take(StableIValue value) {
    const auto handle =
        torch::stable::detail::to<std::optional<AtenTensorHandle>>(value);
    if (!handle) return std::nullopt;
    return Tensor(*handle);
  }
};

/// PyTorch's own, before 2.14, keeps a copy of the string for ever.
template <>
struct OnStack<std::string> {
  static std::string take(StableIValue value) {
    const auto handle = torch::stable::detail::to<StringHandle>(value);
    std::size_t length;
    check(torch_string_length(handle, &length), "read a string");
    const char* data;
    check(torch_string_c_str(handle, &data), "read a string");
    std::string text(data, length);
    check(torch_delete_string(handle), "free a string");
    return text;
  }
  static StableIValue put(std::string&& text) {
    return torch::stable::detail::from(text);
  }
};

template <class T>
struct OnStack<std::vector<T>> {
  static std::vector<T> take(StableIValue value) {
    const auto items = torch::stable::detail::to<StableListHandle>(value);
    std::vector<T> values;
    std::size_t size;
    check(torch_list_size(items, &size), "read a list");
    values.reserve(size);
    for (std::size_t i = 0; i < size; ++i) {
      StableIValue item;
      check(torch_list_get_item(items, i, &item), "read a list");
      values.push_back(OnStack<T>::take(item));
    }
    check(torch_delete_list(items), "free a list");
    return values;
  }
  static StableIValue put(std::vector<T>&& values) {
    StableListHandle items;
    check(torch_new_list_reserve_size(values.size(), &items), "make a list");
    for (T& value : values) {
      const StableIValue item = OnStack<T>::put(std::move(value));
      check(torch_list_push_back(items, item), "fill a list");
    }
    return torch::stable::detail::from(items);
  }
};

/// boxed<kernel> calls kernel with arguments from the stack and leaves its
/// results there, as the dispatcher wants it: TORCH_BOX(&kernel).
template <auto kKernel>
struct Box;

template <class Result, class... Args, Result (*kKernel)(Args...)>
struct Box<kKernel> {
  static void call(StableIValue* stack, std::uint64_t, std::uint64_t) {
    run(stack, std::index_sequence_for<Args...>());
  }

 private:
  template <std::size_t... kIndex>
  static void run(StableIValue* stack, std::index_sequence<kIndex...>) {
    // The braces take them in order.
    const std::tuple<std::decay_t<Args>...> arguments{
        OnStack<std::decay_t<Args>>::take(stack[kIndex])...};
    if constexpr (std::is_void_v<Result>) {
      std::apply(kKernel, arguments);
    } else {
      put(stack, std::apply(kKernel, arguments));
    }
  }

  template <class T>
  static void put(StableIValue* stack, T&& result) {
    *stack = OnStack<T>::put(std::move(result));
  }

  template <class... T>
  static void put(StableIValue* stack, std::tuple<T...>&& results) {
    std::apply(
        [stack](T&... result) mutable {
          (put(stack++, std::move(result)), ...);
        },
        results);
  }
};

template <auto kKernel>
constexpr auto boxed = &Box<kKernel>::call;

}  // namespace torch_foo
