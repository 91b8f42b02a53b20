// Half of a planted violation: value() differs from that of the other half in
// nothing but its body.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace foo_core {
namespace HWY_NAMESPACE {

template <class T>
T value() {
  return 1;
}

}  // namespace HWY_NAMESPACE
}  // namespace foo_core
HWY_AFTER_NAMESPACE();

namespace foo_core {

int planted_1() { return HWY_NAMESPACE::value<int>(); }

}  // namespace foo_core
