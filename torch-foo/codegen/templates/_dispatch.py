# Generated from ops.yaml by codegen/generate.py. Do not edit.
"""What PyTorch is told about the operators beside the kernels in _C.

For each: what it makes of tensors without data, its gradients, and its rules
for vmap and autocast.
"""

from torch_foo import _autograd, _derivatives, _fake, _register, _vmap
{% for op in ops if op.fake %}

# --- {{ op.name }} {{ "-" * (72 - op.name | length) }}


def _{{ op.name }}_fake({{ python_parameters(op, types=False) | replace("*, ", "") }}):
    return _fake.{{ op.fake | replace("(", '("' ~ op.name ~ '", ', 1) }}

{% if op.has_out %}

def _{{ op.name }}_fake_out({{ python_parameters(op, types=False) | replace("*, ", "") }}, out=None):
    result = _{{ op.name }}_fake({{ python_arguments(op, keywords=False) }})
    _fake.check_out("{{ op.name }}", result, {{ op.tensors[0].name }}={{ op.tensors[0].name }}, out=out)

{% endif %}
{% if op.derivatives %}

def _{{ op.name }}_save(ctx, inputs, output):
    {{ op.arguments | map(attribute="name") | join(", ") }}{{ "," if op.arguments | length == 1 }} = inputs
{% if unpacked_results(op) %}
    {{ unpacked_results(op) }} = output
{% endif %}
{% if constants(op) %}
    ctx.mark_non_differentiable({{ constants(op) | join(", ") }})
{% endif %}
{% for name in saved(op, "values") %}
    ctx.{{ name }} = {{ name }}
{% endfor %}
{% for name in saved(op, "shapes") %}
    ctx.{{ name }}_shape = {{ name }}.shape
{% endfor %}
{% if saved_tensors(op) %}
{% if op.derivatives | length > 1 %}
    {{ wanted(op) }}
{% endif %}
    ctx.save_for_backward({{ saved_tensors(op) | join(", ") }})
{% endif %}


def _{{ op.name }}_backward(ctx, {{ gradients(op) | join(", ") }}):
    {{ wanted(op) }}
{% if saved_tensors(op) %}
    {{ saved(op, "tensors") | join(", ") }}{{ "," if saved(op, "tensors") | length == 1 }} = ctx.saved_tensors
{% endif %}
{% for derivative in op.derivatives %}
{% if derivative.arguments | length > 1 %}
    {{ "grad_of_" ~ derivative.arguments | join(", grad_of_") }} = _derivatives.{{ derivative.formula }}
{% else %}
    grad_of_{{ derivative.arguments[0] }} = (
        _derivatives.{{ derivative.formula }} if wants_{{ derivative.arguments[0] }} else None
    )
{% endif %}
{% endfor %}
    return {{ returned(op) }}


{{ op.name }} = _autograd.differentiable("{{ op.name }}", _{{ op.name }}_save, _{{ op.name }}_backward, _vmap.{{ op.vmap }})
{% endif %}
_register.register(
    "{{ op.name }}",
    has_raw={{ op.derivatives | length > 0 }},
    fake=_{{ op.name }}_fake,
{% if op.has_out %}
    fake_out=_{{ op.name }}_fake_out,
{% endif %}
{% if op.inplace %}
    written={{ op.inplace | list }},
{% endif %}
{% if op.vmap %}
    vmap=_vmap.{{ op.vmap }},
{% endif %}
{% if op.autocast %}
    autocast=_register.{{ op.autocast }},
{% endif %}
    tags={{ op.tags | list }},
)
{% endfor %}
