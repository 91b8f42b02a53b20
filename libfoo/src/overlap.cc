// Overlap of strided tensors. In general that is an integer program. Here it is
// decided exactly for nested strides, dimension by dimension from the largest
// stride on; for any others the answer is kMaybe.
#include "overlap.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "view.h"

namespace foo_core {
namespace {

// Addresses are integers, because those of a view that is refused may be wild.
std::uintptr_t address(const void* data) {
  return reinterpret_cast<std::uintptr_t>(data);
}
std::uintptr_t address(std::int64_t bytes) {
  return static_cast<std::uintptr_t>(bytes);
}

// The bytes that a tensor occupies. Each dimension repeats what the dimensions
// after it occupy `size` times, at a distance of `stride` > 0 bytes.
struct Layout {
  std::uintptr_t begin;  // the lowest address
  std::int64_t item_size;
  int ndim = 0;
  std::int64_t sizes[kMaxDims];
  std::int64_t strides[kMaxDims];      // descending
  std::int64_t extents[kMaxDims + 1];  // of the dimensions from d on

  explicit Layout(const ConstTensorView& x)
      : begin(address(x.data)), item_size(item_bytes(x.dtype)) {
    for (std::int64_t d = 0; d < x.ndim; ++d) {
      const std::int64_t size = x.sizes[d];
      if (size == 1 || x.strides[d] == 0)
        continue;  // a repeat occupies no more
      const std::int64_t stride = x.strides[d] * item_size;
      if (stride < 0) begin += address((size - 1) * stride);
      int at = ndim++;
      for (; at > 0 && strides[at - 1] < std::abs(stride); --at) {
        sizes[at] = sizes[at - 1];
        strides[at] = strides[at - 1];
      }
      sizes[at] = size;
      strides[at] = std::abs(stride);
    }
    extents[ndim] = item_size;
    for (int d = ndim - 1; d >= 0; --d) {
      extents[d] = extents[d + 1] + (sizes[d] - 1) * strides[d];
    }
  }
};

// The bytes from the lowest to the highest address of a tensor, which is not
// empty.
struct Span {
  std::uintptr_t begin, end;

  explicit Span(const ConstTensorView& x) : begin(address(x.data)), end(begin) {
    const std::int64_t item = item_bytes(x.dtype);
    for (std::int64_t d = 0; d < x.ndim; ++d) {
      const std::int64_t reach = (x.sizes[d] - 1) * x.strides[d] * item;
      (reach < 0 ? begin : end) += address(reach);
    }
    end += address(item);
  }
};

bool is_empty(const ConstTensorView& x) {
  return std::find(x.sizes, x.sizes + x.ndim, 0) != x.sizes + x.ndim;
}

// Compares the dimensions of x from x_d on with those of y from y_d on, which
// begin `delta` bytes later.
Overlap overlap(const Layout& x, int x_d, const Layout& y, int y_d,
                std::int64_t delta, int& steps) {
  if (delta >= x.extents[x_d] || delta + y.extents[y_d] <= 0) {
    return Overlap::kNo;
  }
  if (x_d == x.ndim && y_d == y.ndim) return Overlap::kYes;
  if (--steps < 0) return Overlap::kMaybe;

  // Split both tensors into rows at the largest stride; a tensor without that
  // stride is one row. Rows shorter than the stride can meet at two distances.
  const std::int64_t stride = std::max(x_d < x.ndim ? x.strides[x_d] : 0,
                                       y_d < y.ndim ? y.strides[y_d] : 0);
  const bool in_x = x_d < x.ndim && x.strides[x_d] == stride;
  const bool in_y = y_d < y.ndim && y.strides[y_d] == stride;
  const std::int64_t x_size = in_x ? x.sizes[x_d] : 1;
  const std::int64_t y_size = in_y ? y.sizes[y_d] : 1;
  x_d += in_x;
  y_d += in_y;
  if (x.extents[x_d] > stride || y.extents[y_d] > stride) {
    return Overlap::kMaybe;
  }
  std::int64_t rows = delta / stride;
  if (delta % stride < 0) --rows;
  Overlap result = Overlap::kNo;
  for (const std::int64_t i : {rows, rows + 1}) {
    if (i >= x_size || i <= -y_size) continue;
    result =
        std::max(result, overlap(x, x_d, y, y_d, delta - i * stride, steps));
    if (result == Overlap::kYes) break;
  }
  return result;
}

}  // namespace

Overlap self_overlap(const ConstTensorView& x) noexcept {
  if (is_empty(x)) return Overlap::kNo;
  for (std::int64_t d = 0; d < x.ndim; ++d) {
    if (x.sizes[d] > 1 && x.strides[d] == 0) return Overlap::kYes;
  }
  const Layout layout(x);
  for (int d = 0; d < layout.ndim; ++d) {
    if (layout.strides[d] < layout.extents[d + 1]) return Overlap::kMaybe;
  }
  return Overlap::kNo;
}

Overlap overlap(const ConstTensorView& x, const ConstTensorView& y) noexcept {
  if (is_empty(x) || is_empty(y)) return Overlap::kNo;
  // Address ranges alone decide most calls, at a fraction of the cost.
  const Span x_span(x), y_span(y);
  if (x_span.end <= y_span.begin || y_span.end <= x_span.begin) {
    return Overlap::kNo;
  }
  const Layout a(x);
  const Layout b(y);
  int steps = 256;
  return overlap(a, 0, b, 0, static_cast<std::int64_t>(b.begin - a.begin),
                 steps);
}

bool is_same(const ConstTensorView& x, const ConstTensorView& y) noexcept {
  if (x.data != y.data || x.ndim != y.ndim) return false;
  for (std::int64_t d = 0; d < x.ndim; ++d) {
    if (x.sizes[d] != y.sizes[d]) return false;
    if (x.sizes[d] > 1 && x.strides[d] != y.strides[d]) return false;
  }
  return true;
}

}  // namespace foo_core
