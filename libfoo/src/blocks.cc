// Properties of block formats. The switches have no default, so that the
// compiler reports an enumerator that is missing in one of them.
#include "blocks.h"

#include <algorithm>

namespace foo_core {
namespace {

struct Properties {
  const char* name;
  std::int64_t elements, bytes;
};

Properties properties(BlockFormat format) {
  switch (format) {
    case BlockFormat::kQ8_0:
      return {"q8_0", 32, 34};
    case BlockFormat::kQ4_0:
      return {"q4_0", 32, 18};
    case BlockFormat::kQ4_1:
      return {"q4_1", 32, 20};
    case BlockFormat::kQ4_K:
      return {"q4_k", 256, 144};
    case BlockFormat::kQ6_K:
      return {"q6_k", 256, 210};
  }
  return {"invalid", 0, 0};
}

}  // namespace

const char* name(BlockFormat format) noexcept {
  return properties(format).name;
}

std::int64_t block_elements(BlockFormat format) noexcept {
  return properties(format).elements;
}

std::int64_t block_bytes(BlockFormat format) noexcept {
  return properties(format).bytes;
}

std::int64_t count_blocks(const char* op, const Argument& x,
                          BlockFormat format) {
  const std::int64_t elements = block_elements(format);
  if (elements == 0) {
    fail(op, "format is number " +
                 std::to_string(static_cast<std::int32_t>(format)) +
                 ", which is none of BlockFormat's");
  }
  const std::int64_t k = last_size(x.view);
  if (k % elements != 0) {
    fail(op, std::string(x.name) + "'s last dimension is " + std::to_string(k) +
                 ", expected a multiple of " + std::to_string(elements) +
                 " for " + name(format));
  }
  return k / elements;
}

void check_blocks(const char* op, const Argument& blocks, const Argument& x,
                  BlockFormat format) {
  const std::int64_t bytes = count_blocks(op, x, format) * block_bytes(format);
  check_tensor(op, blocks, DType::kUInt8);
  std::int64_t sizes[kMaxDims];
  std::copy_n(x.view.sizes, x.view.ndim, sizes);
  sizes[x.view.ndim - 1] = bytes;
  check_shape(op, blocks, x.view.ndim, sizes);
  check_contiguous_rows(op, blocks);
}

void check_contiguous_rows(const char* op, const Argument& blocks) {
  if (last_size(blocks.view) <= 1 || last_stride(blocks.view) == 1) return;
  fail(op, std::string(blocks.name) + " has stride " +
               std::to_string(last_stride(blocks.view)) +
               " in its last dimension, expected 1");
}

}  // namespace foo_core
