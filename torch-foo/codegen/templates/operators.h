// Generated from ops.yaml by codegen/generate.py. Do not edit.
//
// The operators' kernels, as register.cpp gives them to the dispatcher.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "tensor.h"

namespace torch_foo {
{% set declared = namespace(names=[]) %}
{% for op in ops %}

{% for kernel in op.dispatch.values() if kernel not in declared.names %}
{% set declared.names = declared.names + [kernel] %}
{{ cpp_result(op) }} {{ kernel }}({{ cpp_arguments(op) }});
{% if op.has_out %}
void {{ kernel }}_out({{ cpp_arguments(op, "const Tensor& out") }});
{% endif %}
{% if op.inplace %}
void {{ kernel }}_({{ cpp_arguments(op) }});
{% endif %}
{% endfor %}
{% endfor %}

}  // namespace torch_foo
