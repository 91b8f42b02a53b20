// Properties of dtypes. The switches have no default, so that the compiler
// reports an enumerator that is missing in one of them.
#include "foo_core/tensor.h"

#include "view.h"

namespace foo_core {

std::int64_t item_size(DType dtype) noexcept { return item_bytes(dtype); }

const char* name(DType dtype) noexcept {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat64:
      return "float64";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kInt8:
      return "int8";
    case DType::kInt64:
      return "int64";
    case DType::kUInt8:
      return "uint8";
  }
  return "invalid";
}

}  // namespace foo_core
