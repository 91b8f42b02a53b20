// Messages are composed only when a check fails, and the strides of two tensors
// are compared only when their address ranges meet: a valid call costs tens of
// nanoseconds.
#include "checks.h"

#include <algorithm>
#include <cmath>

#include "foo_core/error.h"
#include "overlap.h"
#include "view.h"

namespace foo_core {
std::string shape_text(std::int64_t ndim, const std::int64_t* sizes) {
  std::string result = "(";
  for (std::int64_t d = 0; d < ndim; ++d) {
    if (d > 0) result += ", ";
    result += std::to_string(sizes[d]);
  }
  return result + (ndim == 1 ? ",)" : ")");
}

void fail(const char* op, const std::string& sentence) {
  throw InvalidArgument((std::string(op) + ": " + sentence).c_str());
}

namespace {

constexpr std::int64_t kScratchAlignment = 64;  // a cache line

std::string text(std::int64_t value) { return std::to_string(value); }

bool is_floating_point(DType dtype) {
  return dtype != DType::kInt8 && dtype != DType::kInt64 &&
         dtype != DType::kUInt8;
}

/// How many elements a view has, and how far they lie apart. Numbers that would
/// overflow an integer are large in double; that these are rounded is no
/// matter, because the limits are far below what an integer holds.
struct Extent {
  explicit Extent(const ConstTensorView& x) {
    for (std::int64_t d = 0; d < x.ndim; ++d) {
      const std::int64_t size = x.sizes[d];
      if (size > 1) {
        count *= static_cast<double>(size);
        reach += static_cast<double>(size - 1) *
                 std::fabs(static_cast<double>(x.strides[d]));
      } else if (size < 1) {
        negative |= size < 0;
        empty = true;
      }
    }
    // 2^61 elements if there are none, because loops over rows still count
    // them.
    const double item =
        empty ? 0x1p-5 : static_cast<double>(item_bytes(x.dtype));
    too_large = count * item > kMost;
    too_far = reach * item > kMost;
  }

  bool is_valid() const { return !negative && !too_large && !too_far; }

  static constexpr auto kMost = static_cast<double>(kMaxBytes);
  double count = 1;  // the product of the sizes, without zeros
  double reach = 0;  // the sum of (size - 1) * |stride|
  bool negative = false, empty = false, too_large, too_far;
};

/// Whether x keeps the rules of ConstTensorView for what `extent` is computed
/// from.
bool is_readable(const ConstTensorView& x) {
  return item_bytes(x.dtype) != 0 && x.ndim >= 0 && x.ndim <= kMaxDims &&
         (x.ndim == 0 || (x.sizes != nullptr && x.strides != nullptr));
}

bool is_valid(const ConstTensorView& x) {
  if (!is_readable(x)) return false;
  const Extent extent(x);
  const auto item = static_cast<std::uintptr_t>(item_bytes(x.dtype));
  return extent.is_valid() &&
         (extent.empty ||
          (x.data != nullptr &&
           (reinterpret_cast<std::uintptr_t>(x.data) & (item - 1)) == 0));
}

/// Says which rule x breaks.
[[noreturn]] void fail_invalid(const char* op, const Argument& x) {
  const ConstTensorView& view = x.view;
  const auto name = [&x] { return std::string(x.name); };
  if (item_bytes(view.dtype) == 0) {
    fail(op, name() + " has dtype number " +
                 text(static_cast<std::int64_t>(view.dtype)) +
                 ", which is none of DType's");
  }
  if (view.ndim < 0 || view.ndim > kMaxDims) {
    fail(op, name() + " has " + text(view.ndim) +
                 " dimensions, expected 0 to " + text(kMaxDims));
  }
  if (view.ndim > 0 && (view.sizes == nullptr || view.strides == nullptr)) {
    fail(op, name() + " has ndim " + text(view.ndim) +
                 ", but its sizes or strides are null");
  }
  for (std::int64_t d = 0; d < view.ndim; ++d) {
    if (view.sizes[d] >= 0) continue;
    fail(op, name() + " has size " + text(view.sizes[d]) + " in dimension " +
                 text(d) + ", expected at least 0");
  }
  const std::string shape =
      name() + " has shape " + shape_text(view.ndim, view.sizes);
  const std::string dtype = foo_core::name(view.dtype);
  const Extent extent(view);
  if (extent.too_large) {
    fail(op, shape + (extent.empty ? ", expected a product of at most 2^61 for "
                                     "the sizes that are not 0"
                                   : " and is " + dtype +
                                         ", expected at most 2^56 bytes"));
  }
  if (extent.too_far) {
    fail(op, shape + " and strides " + shape_text(view.ndim, view.strides) +
                 " and is " + dtype + ", expected elements at most " +
                 (extent.empty ? "2^61 elements" : "2^56 bytes") + " apart");
  }
  if (view.data == nullptr) fail(op, shape + ", but its data is null");
  fail(op, name() + " is " + dtype +
               ", but the address of its data is no multiple of " +
               text(item_bytes(view.dtype)));
}

void check_valid(const char* op, const Argument& x) {
  if (!is_valid(x.view)) fail_invalid(op, x);
}

void check_no_self_overlap(const char* op, const Argument& out) {
  const Overlap result = self_overlap(out.view);
  if (result == Overlap::kNo) return;
  fail(op, std::string(out.name) +
               (result == Overlap::kYes ? " overlaps" : " may overlap") +
               " itself: two of its indices share memory");
}

void check_overlap(const char* op, const Argument& out, const Argument& x,
                   bool may_be_x) {
  if (!x.given || (may_be_x && is_same(out.view, x.view))) return;
  const Overlap result = overlap(out.view, x.view);
  if (result == Overlap::kNo) return;
  fail(op, std::string(out.name) +
               (result == Overlap::kYes ? " overlaps " : " may overlap ") +
               x.name +
               (may_be_x ? std::string(" without being exactly ") + x.name
                         : std::string(", expected memory of its own")));
}

}  // namespace

void fail_changed(const char* op, const char* name) {
  fail(op, std::string(name) +
               " was changed during the call: an index that had been checked "
               "is out of range now");
}

bool has_rows(const ConstTensorView& x) noexcept {
  return is_readable(x) && is_floating_point(x.dtype) && x.ndim > 0 &&
         Extent(x).is_valid();
}

void check_tensor(const char* op, const Argument& x) {
  if (!x.given) return;
  check_valid(op, x);
  if (is_floating_point(x.view.dtype)) return;
  fail(op, std::string(x.name) + " is " + name(x.view.dtype) +
               ", expected float32, float64, float16 or bfloat16");
}

void check_tensor(const char* op, const Argument& x, DType dtype) {
  if (!x.given) return;
  check_valid(op, x);
  if (x.view.dtype == dtype) return;
  fail(op, std::string(x.name) + " is " + name(x.view.dtype) + ", expected " +
               name(dtype));
}

void check_same_dtype(const char* op, const Argument& x, const Argument& y) {
  if (!y.given || x.view.dtype == y.view.dtype) return;
  fail(op, std::string(y.name) + " is " + name(y.view.dtype) + ", but " +
               x.name + " is " + name(x.view.dtype));
}

void check_shape(const char* op, const Argument& x, std::int64_t ndim,
                 const std::int64_t* sizes) {
  if (!x.given) return;
  bool same = x.view.ndim == ndim;
  for (std::int64_t d = 0; same && d < ndim; ++d) {
    same = x.view.sizes[d] == sizes[d];
  }
  if (same) return;
  fail(op, std::string(x.name) + " has shape " +
               shape_text(x.view.ndim, x.view.sizes) + ", expected " +
               shape_text(ndim, sizes));
}

void check_product(const char* op, const Argument& x, std::int64_t n,
                   const Argument& bias, const Argument& out) {
  check_tensor(op, bias);
  check_same_dtype(op, x, bias);
  check_shape(op, bias, 1, &n);
  std::int64_t sizes[kMaxDims];
  std::copy_n(x.view.sizes, x.view.ndim, sizes);
  sizes[x.view.ndim - 1] = n;
  check_tensor(op, out);
  check_same_dtype(op, x, out);
  check_shape(op, out, x.view.ndim, sizes);
}

void check_has_rows(const char* op, const Argument& x) {
  check_tensor(op, x);
  if (x.view.ndim > 0) return;
  fail(op, std::string(x.name) + " has no dimensions, expected at least 1");
}

void check_like(const char* op, const Argument& y, const Argument& x) {
  check_tensor(op, y);
  check_same_dtype(op, x, y);
  check_shape(op, y, x.view.ndim, x.view.sizes);
}

void check_last_size(const char* op, const Argument& v, const Argument& x) {
  if (!v.given) return;
  check_tensor(op, v);
  if (v.view.ndim != 1) {
    fail(op, std::string(v.name) + " has " + text(v.view.ndim) +
                 " dimensions, expected 1");
  }
  if (last_size(v.view) != last_size(x.view)) {
    fail(op, std::string(v.name) + " has " + text(last_size(v.view)) +
                 " elements, but " + x.name + "'s last dimension is " +
                 text(last_size(x.view)));
  }
}

void check_output(const char* op, const Argument& out, Arguments may_be,
                  Arguments apart) {
  if (!out.given) return;
  check_no_self_overlap(op, out);
  for (const Argument* x : may_be) check_overlap(op, out, *x, true);
  for (const Argument* x : apart) check_overlap(op, out, *x, false);
}

Scratch::Scratch(const char* op, void* data, std::int64_t bytes)
    : bytes_(bytes),
      view_{data, DType::kInt8, 1, &bytes_, &stride_},
      argument_("scratch", bytes > 0 ? &view_ : nullptr) {
  if (bytes == 0) return;
  if (data == nullptr) {
    fail(op, "scratch is null, expected " + text(bytes) + " bytes");
  }
  if (reinterpret_cast<std::uintptr_t>(data) % kScratchAlignment != 0) {
    fail(op, "scratch is not aligned to " + text(kScratchAlignment) + " bytes");
  }
}

}  // namespace foo_core
