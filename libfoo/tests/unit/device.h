// Where the tests run. With a foo_core that has CUDA kernels they run on CUDA:
// on a GPU, or on the CPU by tests/cuda_on_cpu. The same objects are linked to
// each foo_core, and device.cc is compiled for each.
#pragma once

#include <foo_core/foo_core.h>

#include <cstddef>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace foo_core::testing {

/// Whether operators run on CUDA.
bool on_cuda();

/// Whether the machine has what they run on.
bool has_device();

/// Whether memory takes no space before it is accessed.
bool has_lazy_memory();

/// Waits for all kernels, and aborts if one failed.
void synchronize();

/// Memory for kernels and for the CPU. It ends at the end of a page, and is
/// aligned to 64 bytes if `bytes` is a multiple of 64.
void* allocate(std::size_t bytes);
void release(void* data, std::size_t bytes);

template <class T>
struct Allocator {
  using value_type = T;
  Allocator() = default;
  template <class U>
  Allocator(const Allocator<U>&) {}
  T* allocate(std::size_t count) {
    return static_cast<T*>(testing::allocate(count * sizeof(T)));
  }
  void deallocate(T* data, std::size_t count) {
    release(data, count * sizeof(T));
  }
  bool operator==(const Allocator&) const { return true; }
  bool operator!=(const Allocator&) const { return false; }
};

/// A vector that kernels can access.
template <class T>
using Vector = std::vector<T, Allocator<T>>;
using Bytes = Vector<unsigned char>;

/// The executor of an operator that a test runs without one, or on threads().
Executor device_executor();

/// How often an operator has been called through OnDevice.
inline int device_calls = 0;

template <class T>
const T& on_device(const T& argument) {
  return argument;
}
inline Executor on_device(const Executor& executor) {
  const bool given =
      executor.device != Device::kCpu || executor.parallel_for != nullptr;
  return given ? executor : device_executor();
}

template <auto kOperator, class Parameters, class Indices>
struct WithoutExecutor;
template <auto kOperator, class... P, std::size_t... kIndices>
struct WithoutExecutor<kOperator, std::tuple<P...>,
                       std::index_sequence<kIndices...>> {
  static auto call(P... arguments) {
    ++device_calls;
    if constexpr (std::is_void_v<decltype(kOperator(arguments...))>) {
      kOperator(on_device(arguments)...);
      synchronize();
    } else {
      return kOperator(on_device(arguments)...);
    }
  }
  auto operator()(
      std::tuple_element_t<kIndices, std::tuple<P...>>... arguments) const {
    return call(arguments..., Executor());
  }
};

/// An operator of foo_core that runs where the tests run, and has returned when
/// its kernel has ended.
template <auto kOperator, class = decltype(kOperator)>
struct OnDevice;
template <auto kOperator, class R, class... P, bool kNoexcept>
struct OnDevice<kOperator, R (*)(P...) noexcept(kNoexcept)>
    : WithoutExecutor<kOperator, std::tuple<P...>,
                      std::make_index_sequence<sizeof...(P) - 1>> {
  using Function = R (*)(P...);
  /// Calls with an executor use this function, too.
  constexpr operator Function() const { return &OnDevice::call; }
};

// The tests find these before the functions of foo_core. Those of an operator
// that is not here would run on the CPU alone, which KernelTest reports.
inline constexpr OnDevice<&foo_core::add> add;
inline constexpr OnDevice<&foo_core::add_rms_norm> add_rms_norm;
inline constexpr OnDevice<&foo_core::add_rms_norm_backward>
    add_rms_norm_backward;
inline constexpr OnDevice<&foo_core::attention> attention;
inline constexpr OnDevice<&foo_core::attention_scratch_size>
    attention_scratch_size;
inline constexpr OnDevice<&foo_core::cross_entropy> cross_entropy;
inline constexpr OnDevice<&foo_core::cross_entropy_backward>
    cross_entropy_backward;
inline constexpr OnDevice<&foo_core::cross_entropy_backward_scratch_size>
    cross_entropy_backward_scratch_size;
inline constexpr OnDevice<&foo_core::cross_entropy_scratch_size>
    cross_entropy_scratch_size;
inline constexpr OnDevice<&foo_core::dequantize> dequantize;
inline constexpr OnDevice<&foo_core::gelu_mul> gelu_mul;
inline constexpr OnDevice<&foo_core::gelu_mul_backward> gelu_mul_backward;
inline constexpr OnDevice<&foo_core::linear> linear;
inline constexpr OnDevice<&foo_core::linear_quantized> linear_quantized;
inline constexpr OnDevice<&foo_core::linear_quantized_scratch_size>
    linear_quantized_scratch_size;
inline constexpr OnDevice<&foo_core::mul> mul;
inline constexpr OnDevice<&foo_core::muladd> muladd;
inline constexpr OnDevice<&foo_core::quantize> quantize;
inline constexpr OnDevice<&foo_core::quantize_int8_rowwise>
    quantize_int8_rowwise;
inline constexpr OnDevice<&foo_core::rms_norm> rms_norm;
inline constexpr OnDevice<&foo_core::rms_norm_backward> rms_norm_backward;
inline constexpr OnDevice<&foo_core::rms_norm_backward_scratch_size>
    rms_norm_backward_scratch_size;
inline constexpr OnDevice<&foo_core::rope> rope;
inline constexpr OnDevice<&foo_core::silu_mul> silu_mul;
inline constexpr OnDevice<&foo_core::silu_mul_backward> silu_mul_backward;

}  // namespace foo_core::testing
