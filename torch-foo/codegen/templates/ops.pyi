# Generated from ops.yaml by codegen/generate.py. Do not edit.
from torch import Tensor

__all__ = [
{% for op in ops if op.public %}
    "{{ op.name }}",
{% if op.inplace %}
    "{{ op.name }}_",
{% endif %}
{% endfor %}
]

{% for op in ops if op.public %}
def {{ op.name }}({{ python_parameters(op, out=op.has_out) }}) -> {{ python_result(op) }}: ...
{% if op.inplace %}
def {{ op.name }}_({{ python_parameters(op) }}) -> None: ...
{% endif %}
{% endfor %}
