#include <foo_core/foo_core.h>

const char* parent_version();
const char* parent_version() {
  float x[] = {1, 2};
  const std::int64_t size = 2, stride = 1;
  const foo_core::TensorView view{x, foo_core::DType::kFloat32, 1, &size,
                                  &stride};
  foo_core::add(view, view, view);
  return x[1] == 4 ? foo_core::version() : "wrong";
}
