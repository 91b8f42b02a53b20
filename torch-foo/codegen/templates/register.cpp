// Generated from ops.yaml by codegen/generate.py. Do not edit.
//
// The operators' schemas and kernels. Their fake kernels, gradients, autocast
// and vmap rules are registered from Python (python/torch_foo/_dispatch.py):
// the stable ABI has no C++ interface for those.
#include <torch/csrc/stable/library.h>

#include "boxed.h"
#include "generated/operators.h"

STABLE_TORCH_LIBRARY(torch_foo, m) {
{% for op in ops %}
{% for schema, suffix in schemas(op) %}
  m.def("{{ schema }}");
{% endfor %}
{% endfor %}
}

namespace {

using torch::stable::detail::StableLibrary;
using torch_foo::boxed;

{% for key in ["CPU", "CUDA"] %}
void implement_{{ key | lower }}(StableLibrary& m) {
{% for op in ops if key in op.dispatch %}
{% for schema, suffix in schemas(op) %}
  m.impl("{{ schema_name(schema) }}", boxed<&torch_foo::{{ op.dispatch[key] }}{{ suffix }}>);
{% endfor %}
{% endfor %}
}

{% endfor %}
}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_foo, CompositeExplicitAutograd, m) {
{% for op in ops if "CompositeExplicitAutograd" in op.dispatch %}
  m.impl("{{ op.name }}", boxed<&torch_foo::{{ op.dispatch.CompositeExplicitAutograd }}>);
{% endfor %}
}

STABLE_TORCH_LIBRARY_IMPL(torch_foo, CPU, m) { implement_cpu(m); }
STABLE_TORCH_LIBRARY_IMPL(torch_foo, CUDA, m) { implement_cuda(m); }

// Layouts that the adaptors refuse. Without these the dispatcher would, with
// a page about backends in place of one sentence.
{% for key in ["SparseCPU", "SparseCsrCPU", "MkldnnCPU", "QuantizedCPU"] %}
STABLE_TORCH_LIBRARY_IMPL(torch_foo, {{ key }}, m) { implement_cpu(m); }
{% endfor %}
{% for key in ["SparseCUDA", "SparseCsrCUDA", "QuantizedCUDA"] %}
STABLE_TORCH_LIBRARY_IMPL(torch_foo, {{ key }}, m) { implement_cuda(m); }
{% endfor %}
