"""Mistakes that mypy finds, each with the code of its error.

Wrong arguments of each operator follow from its schema, in test_typing.py.
"""

import torch_foo
from torch import Tensor


def calls(a: Tensor, b: Tensor) -> float:
    torch_foo.subtract(a, b)  # attr-defined
    number: float = torch_foo.mul(a, b)  # assignment
    torch_foo.add(a, number)  # arg-type
    torch_foo.add(a, b).dimensions()  # attr-defined
    torch_foo.mul(a, torch_foo.rms_norm)  # arg-type
    torch_foo.add(a, torch_foo.add_rms_norm(a, b))  # arg-type
    print(torch_foo.add_rms_norm_(a, b))  # func-returns-value
    return torch_foo.muladd(a, b, 1.0)  # return-value
