// Which dimensions a fold leaves out.
#include "fold.h"

#include <algorithm>
#include <set>

namespace torch_foo {
namespace {

// More than the dimensions of what has a fixed number of them: rope has 4.
constexpr std::int64_t kLast = 5;

constexpr std::int64_t kNone = -1;

}  // namespace

void Fold::choose(const std::vector<Dims>& views) {
  const auto last = [](const Dims& x) { return x.ndim - 1 + x.missing; };
  std::int64_t count = 0;
  for (const Dims& x : views) count = std::max(count, last(x) + 1);
  std::set<std::vector<std::int64_t>> with_zero;
  for (std::int64_t i = 0; i < count; ++i) {
    std::vector<std::int64_t> sizes;
    bool ones = true, zero = false, first = false;
    for (const Dims& x : views) {
      const bool has = x.missing <= i && i <= last(x);
      sizes.push_back(has ? x.sizes[last(x) - i] : kNone);
      ones &= sizes.back() == 1 || sizes.back() == kNone;
      zero |= sizes.back() == 0;
      first |= has && i == last(x);
    }
    const bool repeats = zero && !with_zero.insert(sizes).second;
    stays_.push_back(i < kLast || first || !(ones || repeats));
  }
}

const std::int64_t* Fold::shortened(const std::int64_t* values,
                                    std::int64_t ndim, std::int64_t missing) {
  std::vector<std::int64_t>& kept = arrays_.emplace_back();
  for (std::int64_t d = 0; d < ndim; ++d) {
    const auto from_last = static_cast<std::size_t>(ndim - 1 - d + missing);
    if (stays_[from_last]) kept.push_back(values[d]);
  }
  return kept.data();
}

}  // namespace torch_foo
