// Registers the operators when this library is loaded.
//
// STABLE_TORCH_LIBRARY would end the process where another copy of the library
// has registered them: an exception cannot leave dlopen. This copy has no
// effect then, but for a line on stderr; import torch_foo compares the paths.
#include "library.h"

#include <cstdio>
#include <exception>
#include <vector>

#include "device/fallback.h"

namespace torch_foo {
namespace {

constexpr const char* kNamespace = "torch_foo";

// Adaptors refuse sparse and quantized tensors in one sentence; without kernels
// for their keys the dispatcher would, with a page about backends.
constexpr const char* kKeys[] = {
    "CPU",          "CUDA",       "SparseCPU",     "SparseCsrCPU", "MkldnnCPU",
    "QuantizedCPU", "SparseCUDA", "SparseCsrCUDA", "QuantizedCUDA"};

class Registration {
 public:
  Registration() {
    try {
      check(aoti_torch_library_init_def(kNamespace, library_path(), 0, &next()),
            "register torch_foo");
      const Library definitions(handles_.back());
      define_operators(definitions);
      define_build_info(definitions);
      define_decoder_layers(definitions);
      define_device(definitions);
      for (const char* key : kKeys)
        implement_operators(kernels(kNamespace, key));
      implement_decoder_layers(kernels(kNamespace, "CPU"));
      const Library others = kernels(kNamespace, "CompositeExplicitAutograd");
      implement_build_info(others);
      implement_device(others);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s is not used. %s\n", library_path(),
                   error.what());
    }
  }
  ~Registration() {
    for (TorchLibraryHandle handle : handles_) {
      if (handle != nullptr) aoti_torch_delete_library_object(handle);
    }
  }
  Registration(const Registration&) = delete;

  void add_device() {
    const Library own = kernels(kNamespace, "PrivateUse1");
    implement_operators(own);
    implement_device_tensors(own);
    implement_device_tensors(kernels(kNamespace, "CPU"));
    device::implement_fallbacks(kernels("aten", device::kFallbackKey));
  }

 private:
  TorchLibraryHandle& next() { return handles_.emplace_back(nullptr); }
  Library kernels(const char* name, const char* key) {
    check(aoti_torch_library_init_impl(name, key, library_path(), 0, &next()),
          "register kernels");
    return Library(handles_.back());
  }

  std::vector<TorchLibraryHandle> handles_;
};

Registration registration;

}  // namespace

void register_device() { registration.add_device(); }

}  // namespace torch_foo
