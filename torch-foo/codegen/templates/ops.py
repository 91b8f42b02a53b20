# Generated from ops.yaml by codegen/generate.py. Do not edit.
"""The operators.

A plain call goes to an operator that has no derivatives, because those of
torch.library cost more than a small kernel even where nobody needs them. While
PyTorch traces or transforms, and where a gradient is needed, it goes to
_dispatch, which knows about derivatives.
"""

import torch
from torch import Tensor
from torch import compiler as _compiler
from torch.autograd import forward_ad as _forward_ad

from torch_foo import _dispatch
from torch_foo._autograd import is_plain as _is_plain
from torch_foo._autograd import mark_written as _mark_written

__all__ = [
{% for op in ops if op.public %}
    "{{ op.name }}",
{% if op.inplace %}
    "{{ op.name }}_",
{% endif %}
{% endfor %}
]

_ops = torch.ops.torch_foo
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_is_grad_enabled = torch.is_grad_enabled
_transforms_are_active = torch._C._are_functorch_transforms_active

# `_op` is what an overload calls, 0.2 µs later.
{% for op in ops if op.public %}
{% if op.derivatives %}
_{{ op.name }} = _ops._{{ op.name }}.default._op
{% else %}
_{{ op.name }} = _ops.{{ op.name }}.default._op
{% endif %}
{% if op.has_out %}
_{{ op.name }}_out = _ops._{{ op.name }}_out.default._op
{% endif %}
{% if op.inplace %}
_{{ op.name }}_ = _ops._{{ op.name }}_.default._op
{% endif %}
{% endfor %}
{% for op in ops if op.public %}


def {{ op.name }}({{ python_parameters(op, out=op.has_out) }}) -> {{ python_result(op) }}:
    """{{ wrapped(op.doc.summary, 4, 7)[7:] }}

    Args:
{% for name, text in op.doc.args.items() %}
{{ wrapped(name ~ ": " ~ text, 12, 8) }}
{% endfor %}
{% if op.has_out %}
{{ wrapped("out: where to put the result: " ~ op.doc.out ~ " Not differentiable.", 12, 8) }}
{% endif %}

    Returns:
{% if op.has_out %}
        ``out``, or a new contiguous tensor.
{% else %}
{{ wrapped(op.doc.returns, 8, 8) }}
{% endif %}

    Raises:
        RuntimeError: for arguments that do not fit together. Nothing has been
            written then.

{{ wrapped("Source: " ~ op.doc.source, 4, 4) }}

{{ op.doc.example | trim | indent(4, first=True) }}
    """
{% if op.has_out %}
    if out is not None:
        if _is_plain(out, {{ op.tensors | map(attribute="name") | join(", ") }}):
            _{{ op.name }}_out({{ python_arguments(op, keywords=False) }}, out)
            _mark_written(out)
        else:
            _ops.{{ op.name }}.out({{ python_arguments(op) }}, out=out)
        return out
{% endif %}
    try:
        is_special = (
            _is_dynamo_compiling()
            or _compiler._is_exporting_flag
{% if op.derivatives %}
            or _transforms_are_active()
            or _forward_ad._current_level >= 0
            or (_is_grad_enabled() and ({{ any_requires_grad(op) }}))
{% endif %}
        )
    except AttributeError:  # not a tensor: the dispatcher says so
        return _ops.{{ op.name }}.default({{ python_arguments(op) }})
    if is_special:
{% if op.derivatives %}
        return _dispatch.{{ op.name }}({{ python_arguments(op, keywords=False) }})
{% else %}
        return _ops.{{ op.name }}.default({{ python_arguments(op) }})
{% endif %}
    return _{{ op.name }}({{ python_arguments(op, keywords=False) }})
{% if op.inplace %}


def {{ op.name }}_({{ python_parameters(op) }}) -> None:
    """The same in place:{% for argument, result in op.inplace.items() %} {{ argument }} takes {{ "the result" if result == "result" else result }}{{ "," if not loop.last }}{% endfor %}.

    Not differentiable.
    """
    if _is_plain({{ op.tensors | map(attribute="name") | join(", ") }}):
        _{{ op.name }}_({{ python_arguments(op, keywords=False) }})
        _mark_written({{ op.inplace | join(", ") }})
    else:
        _ops.{{ op.name }}_.default({{ python_arguments(op) }})
{% endif %}
{% endfor %}
