// Blocks of a few bits per number, from floating-point numbers and back.
// Threads share the blocks of all rows.
#include "foo_core/blocks.h"

#include <cstdint>

#include "blocks.h"
#include "checks.h"
#include "cpu/simd.h"
#include "cuda/kernels.h"
#include "loop.h"
#include "nest.h"
#include "view.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/blocks.cc"
// These read HWY_TARGET_INCLUDE, so they come after it.
#include "hwy/foreach_target.h"
//
#include "blocks-inl.h"

#ifndef FOO_CORE_BLOCKS_
#define FOO_CORE_BLOCKS_
namespace foo_core {
namespace {

/// The most elements of a block.
constexpr int kMostElements = 256;

struct BlockKernels {
  void (*pack)(const float* x, std::uint8_t* block);
  void (*unpack)(const std::uint8_t* block, float* x);
};

using ToFloat = void (*)(const void* x, std::int64_t stride, float* y,
                         std::int64_t n);

}  // namespace
}  // namespace foo_core
#endif

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {
namespace {

struct KernelsOf {
  template <class Format>
  HWY_INLINE BlockKernels operator()(Format) const {
    return {[](const float* x, uint8_t* block)
                HWY_ATTR { Format::Pack(x, block); },
            [](const uint8_t* block, float* x)
                HWY_ATTR { Format::Unpack(block, x); }};
  }
};

BlockKernels Blocks(BlockFormat format) {
  return ForFormat(format, KernelsOf());
}

template <class T>
void Convert(const void* x, int64_t stride, float* y, int64_t n) {
  const auto* p = static_cast<const T*>(x);
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (hwy::IsSame<T, hwy::float16_t>()) {
      y[i] = LoadHalf(reinterpret_cast<const uint8_t*>(p + i * stride));
    } else if constexpr (hwy::IsSame<T, hwy::bfloat16_t>()) {
      y[i] = hwy::F32FromBF16(p[i * stride]);
    } else {
      y[i] = static_cast<float>(p[i * stride]);
    }
  }
}

struct ConversionOf {
  template <class T>
  HWY_INLINE ToFloat operator()(T) const {
    return Convert<T>;
  }
};

ToFloat Conversion(DType dtype) { return ForDType(dtype, ConversionOf()); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foo_core {

void quantize(const ConstTensorView& x, BlockFormat format,
              const TensorView& blocks, const Executor& executor) {
  const char* op = "quantize";
  const Argument arg_x{"x", x}, arg_blocks{"blocks", blocks};
  check_has_rows(op, arg_x);
  check_blocks(op, arg_blocks, arg_x, format);
  check_output(op, arg_blocks, {}, {&arg_x});
  if constexpr (cuda::kBuilt) {
    if (on_cuda(executor)) {
      return cuda::quantize(x, format, blocks, executor.stream);
    }
  }
  const CpuThreads threads(op, executor);

  const auto kernels = FOO_CORE_DISPATCH(Blocks)(format);
  const auto convert = FOO_CORE_DISPATCH(Conversion)(x.dtype);
  const std::int64_t elements = block_elements(format);
  const std::int64_t bytes = block_bytes(format);
  const std::int64_t count = last_size(x) / elements;
  if (count == 0) return;
  const auto nest = nest_of_rows(x, x, blocks);
  const auto run = [&](std::int64_t begin, std::int64_t end) {
    float numbers[kMostElements];
    Walker<2> at(nest, nest.ndim, begin / count);
    for (std::int64_t i = begin % count; begin < end; ++begin) {
      const Row row = row_at(&x, at.offset(0) + i * elements * last_stride(x));
      auto* const block =
          static_cast<std::uint8_t*>(blocks.data) + at.offset(1) + i * bytes;
      convert(row.data, row.stride, numbers, elements);
      kernels.pack(numbers, block);
      if (++i < count) continue;
      i = 0;
      at.next();
    }
  };
  threads.for_ranges(count_rows(x) * count, elements, run);
}

void dequantize(const ConstTensorView& blocks, BlockFormat format,
                const TensorView& out, const Executor& executor) {
  const char* op = "dequantize";
  const Argument arg_blocks{"blocks", blocks}, arg_out{"out", out};
  check_tensor(op, arg_out, DType::kFloat32);
  check_has_rows(op, arg_out);
  check_blocks(op, arg_blocks, arg_out, format);
  check_output(op, arg_out, {}, {&arg_blocks});
  if constexpr (cuda::kBuilt) {
    if (on_cuda(executor)) {
      return cuda::dequantize(blocks, format, out, executor.stream);
    }
  }
  const CpuThreads threads(op, executor);

  const auto unpack = FOO_CORE_DISPATCH(Blocks)(format).unpack;
  const std::int64_t elements = block_elements(format);
  const std::int64_t bytes = block_bytes(format);
  const std::int64_t count = last_size(out) / elements;
  if (count == 0) return;
  const auto nest = nest_of_rows(out, blocks, out);
  const auto run = [&](std::int64_t begin, std::int64_t end) {
    float numbers[kMostElements];
    Walker<2> at(nest, nest.ndim, begin / count);
    for (std::int64_t i = begin % count; begin < end; ++begin) {
      const auto* const block = static_cast<const std::uint8_t*>(blocks.data) +
                                at.offset(0) + i * bytes;
      const std::int64_t stride = last_stride(out);
      auto* const y = static_cast<float*>(
          element_at(out, at.offset(1) + i * elements * stride));
      unpack(block, stride == 1 ? y : numbers);
      if (stride != 1) {
        for (std::int64_t j = 0; j < elements; ++j) y[j * stride] = numbers[j];
      }
      if (++i < count) continue;
      i = 0;
      at.next();
    }
  };
  threads.for_ranges(count_rows(out) * count, elements, run);
}

}  // namespace foo_core
#endif  // HWY_ONCE
