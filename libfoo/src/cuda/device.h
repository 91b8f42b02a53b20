// What all CUDA kernels share: conversions, vectors of neighbouring elements,
// sums over the threads of a row, and launches.
//
// A kernel is compiled twice for each dtype. One instance moves 16 bytes at a
// time and needs contiguous, aligned memory; the other moves single elements
// at any strides.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "nest.h"
#include "view.h"

namespace foo_core::cuda {

using std::int64_t;

/// The type of computation for T: double for double, else float.
template <class T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

/// Rounds to T.
template <class T>
__device__ T narrow(Compute<T> x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

template <class T>
constexpr DType kDType = std::is_same_v<T, double>          ? DType::kFloat64
                         : std::is_same_v<T, __half>        ? DType::kFloat16
                         : std::is_same_v<T, __nv_bfloat16> ? DType::kBFloat16
                                                            : DType::kFloat32;

/// Calls f(T()) with the type of a floating-point dtype.
template <class F>
void for_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat64:
      return f(double());
    case DType::kFloat16:
      return f(__half());
    case DType::kBFloat16:
      return f(__nv_bfloat16());
    default:
      return f(float());
  }
}

/// The number of elements of T in 16 bytes, the widest access of a thread.
template <class T>
constexpr int kWidth = 16 / sizeof(T);

/// kN neighbouring elements, which one instruction loads or stores.
template <class T, int kN, bool kPacked = (sizeof(T) == 2 && kN > 1)>
struct alignas(kN * sizeof(T)) Vec {
  T at[kN];

  __device__ Compute<T> operator[](int i) const { return widen(at[i]); }

  /// Rounds each number to T.
  __device__ static Vec of(const Compute<T> (&x)[kN]) {
    Vec y;
    for (int i = 0; i < kN; ++i) y.at[i] = narrow<T>(x[i]);
    return y;
  }
};

/// Two 16-bit elements in a register. As elements of an array each would take
/// one of its own.
template <class T, int kN>
struct alignas(kN * sizeof(T)) Vec<T, kN, true> {
  std::uint32_t words[kN / 2];

  __device__ float operator[](int i) const {
    const std::uint32_t word = words[i / 2];
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      return __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xFFFF0000);
    } else {
      return __half2float(__ushort_as_half(
          static_cast<unsigned short>(i % 2 == 0 ? word : word >> 16)));
    }
  }

  __device__ static Vec of(const float (&x)[kN]) {
    Vec y;
    for (int i = 0; i < kN; i += 2) y.words[i / 2] = pack(x[i], x[i + 1]);
    return y;
  }

 private:
  __device__ static std::uint32_t pack(float low, float high) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      const __nv_bfloat162 x = __floats2bfloat162_rn(low, high);
      return reinterpret_cast<const std::uint32_t&>(x);
    } else {
      const __half2 x = __floats2half2_rn(low, high);
      return reinterpret_cast<const std::uint32_t&>(x);
    }
  }
};

/// Elements `stride` apart. With kN > 1 they are aligned to kN elements, and
/// the stride is 1 or, in inputs, 0, which repeats one element.
template <class T>
struct Line {
  T* data;
  int64_t stride;

  template <int kN>
  __device__ Vec<std::remove_const_t<T>, kN> load(int64_t i) const {
    using Vector = Vec<std::remove_const_t<T>, kN>;
    if constexpr (kN == 1) {
      return {{data[i * stride]}};
    } else {
      if (stride == 1) return *reinterpret_cast<const Vector*>(data + i);
      const auto one = widen(*data);
      Compute<std::remove_const_t<T>> x[kN];
      for (auto& each : x) each = one;
      return Vector::of(x);
    }
  }

  template <int kN>
  __device__ void store(int64_t i, const Vec<T, kN>& x) const {
    if constexpr (kN == 1) {
      data[i * stride] = x.at[0];
    } else {
      *reinterpret_cast<Vec<T, kN>*>(data + i) = x;
    }
  }
};

/// Single elements of any floating-point dtype, which are converted where they
/// are read or written.
template <class Pointer>
struct AnyLine {
  Pointer data;
  int64_t stride;
  DType dtype;

  /// The same elements, if they are T's.
  template <class T>
  __device__ Line<const T> as() const {
    return {static_cast<const T*>(data), stride};
  }

  /// Element i, which likely is a T.
  template <class T>
  __device__ Compute<T> get(int64_t i) const {
    if (dtype == kDType<T>) return get_as<T, T>(i);
    switch (dtype) {
      case DType::kFloat64:
        return get_as<double, T>(i);
      case DType::kFloat16:
        return get_as<__half, T>(i);
      case DType::kBFloat16:
        return get_as<__nv_bfloat16, T>(i);
      default:
        return get_as<float, T>(i);
    }
  }

  __device__ void set(int64_t i, double x) const {
    switch (dtype) {
      case DType::kFloat64:
        return set_as<double>(i, x);
      case DType::kFloat16:
        return set_as<__half>(i, x);
      case DType::kBFloat16:
        return set_as<__nv_bfloat16>(i, x);
      default:
        return set_as<float>(i, x);
    }
  }

 private:
  template <class Own, class T>
  __device__ Compute<T> get_as(int64_t i) const {
    return static_cast<Compute<T>>(
        widen(static_cast<const Own*>(data)[i * stride]));
  }

  template <class Own>
  __device__ void set_as(int64_t i, double x) const {
    static_cast<Own*>(data)[i * stride] =
        narrow<Own>(static_cast<Compute<Own>>(x));
  }
};

/// x's rows; null for null.
inline AnyLine<const void*> any_line_of(const ConstTensorView* x) {
  if (x == nullptr) return {nullptr, 0, DType::kFloat32};
  return {x->data, last_stride(*x), x->dtype};
}

/// Whether kN elements at a time can be accessed in `x`, whose rows have `n`
/// elements: it is null, or contiguous with aligned rows.
template <int kN, class View>
bool is_aligned(const View* x, int64_t n) {
  if (x == nullptr) return true;
  const auto data = reinterpret_cast<std::uintptr_t>(x->data);
  const auto bytes = static_cast<std::uintptr_t>(kN * item_bytes(x->dtype));
  if (n % kN != 0 || data % bytes != 0 || (last_stride(*x) != 1 && n > 1)) {
    return false;
  }
  for (int64_t d = 0; d < x->ndim - 1; ++d) {
    if (x->strides[d] % kN != 0 && x->sizes[d] != 1) return false;
  }
  return true;
}

/// x's rows, without their offsets; null for null.
template <class T>
Line<const T> line_of(const ConstTensorView* x) {
  if (x == nullptr) return {nullptr, 0};
  return {static_cast<const T*>(x->data), last_stride(*x)};
}
template <class T>
Line<const T> line_of(const ConstTensorView& x) {
  return line_of<T>(&x);
}
template <class T>
Line<T> line_of(const TensorView* x) {
  if (x == nullptr) return {nullptr, 0};
  return {static_cast<T*>(x->data), last_stride(*x)};
}
template <class T>
Line<T> line_of(const TensorView& x) {
  return line_of<T>(&x);
}

struct Division {
  int64_t quotient, remainder;
};

/// x / y for x >= 0 and y > 0. A GPU divides 32 bits several times faster.
__device__ inline Division divide(int64_t x, int64_t y) {
  if (((x | y) >> 32) == 0) {
    const auto a = static_cast<std::uint32_t>(x);
    const auto b = static_cast<std::uint32_t>(y);
    return {a / b, a % b};
  }
  return {x / y, x % y};
}

/// Where index `at` of a nest is in its N tensors.
template <int N>
struct Offsets {
  __device__ Offsets(const Nest<N>& nest, int64_t at) {
    for (int d = nest.ndim - 1; d > 0; --d) {
      const Division index = divide(at, nest.sizes[d]);
      at = index.quotient;
      for (int k = 0; k < N; ++k) {
        of[k] += index.remainder * nest.strides[d][k];
      }
    }
    for (int k = 0; k < N; ++k) of[k] += at * nest.strides[0][k];
  }
  int64_t of[N] = {};
};

template <class T>
__device__ Line<T> moved(Line<T> line, int64_t offset) {
  return {line.data + offset, line.stride};
}

/// As read_index of view.h.
__device__ inline int64_t read_index(const int64_t* p) {
  return *static_cast<const volatile int64_t*>(p);
}

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;

/// The type in which the sums of warps are added.
template <class C>
using Wide = std::conditional_t<std::is_same_v<C, float>, double, C>;

template <int kCount, class C>
struct Totals {
  Wide<C> of[kCount];
};

/// Combines each of the values over the threads with one threadIdx.y, in an
/// order that depends on blockDim alone. All threads of the block call it, and
/// all get the totals: to add the warps' parts in each warp is faster than to
/// wait for one that does. blockDim.x is a multiple of kWarp.
template <int kCount, class C, class F>
__device__ Totals<kCount, C> reduce_row(C (&values)[kCount], const F& combine) {
  __shared__ C parts[kCount][kMaxThreads / kWarp];
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    for (C& value : values) {
      value = combine(value, __shfl_xor_sync(0xFFFFFFFF, value, mask));
    }
  }
  Totals<kCount, C> totals;
  const int warps = blockDim.x / kWarp;
  if (warps == 1) {
    for (int k = 0; k < kCount; ++k) totals.of[k] = values[k];
    return totals;
  }
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int first = threadIdx.y * warps;
  __syncthreads();  // the parts of the last call have been read
  if (lane == 0) {
    for (int k = 0; k < kCount; ++k) parts[k][first + warp] = values[k];
  }
  __syncthreads();
  for (int k = 0; k < kCount; ++k) {
    Wide<C> value = parts[k][first + (lane < warps ? lane : 0)];
    for (int i = 1; i < warps; i *= 2) {
      const Wide<C> other = __shfl_xor_sync(0xFFFFFFFF, value, i);
      if (lane < warps && (lane ^ i) < warps) value = combine(value, other);
    }
    totals.of[k] = __shfl_sync(0xFFFFFFFF, value, 0);
  }
  return totals;
}

struct Sum {
  template <class C>
  __device__ C operator()(C a, C b) const {
    return a + b;
  }
};

struct Largest {
  template <class C>
  __device__ C operator()(C a, C b) const {
    return a > b ? a : b;
  }
};

/// Throws DeviceError if a call of the CUDA runtime failed.
void check(cudaError_t error, const char* op);

/// Queues kernel(arguments...) on a stream.
template <class... Parameters, class... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), dim3 grid,
            dim3 block, void* stream, const Arguments&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), op);
}

/// `count` divided by `size`, rounded up.
constexpr int64_t ceil_div(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

constexpr int64_t kMostBlocksY = 65535;

/// The number of blocks for `count` pieces of work. A kernel's blocks loop over
/// what is beyond.
inline unsigned grid_size(int64_t count) {
  return static_cast<unsigned>(
      std::min<int64_t>(count, std::numeric_limits<int>::max()));
}

/// The threads for a row of `count` vectors of which each thread has up to
/// `each`, at most `most`, and the rows of a block: as many as fit in 128
/// threads, or one.
inline dim3 row_block(int64_t count, int each, int most) {
  const int64_t warps = ceil_div(std::max<int64_t>(count, 1), each * kWarp);
  const auto x =
      static_cast<unsigned>(kWarp * std::min<int64_t>(warps, most / kWarp));
  return dim3(x, std::max(1u, 128 / x));
}

}  // namespace foo_core::cuda
