"""Mistakes that mypy finds, each with the code of its error."""

import torch_foo
from torch import Tensor


def calls(a: Tensor, b: Tensor) -> None:
    torch_foo.add(1.0, b)  # arg-type
    torch_foo.mul(a, None)  # arg-type
    torch_foo.add(a)  # call-arg
    torch_foo.muladd(a, b, "1")  # arg-type
    torch_foo.muladd(a, b, None)  # arg-type
    torch_foo.rms_norm(a, 1e-6)  # arg-type
    torch_foo.rms_norm(a, eps="small")  # arg-type
    torch_foo.rms_norm(a, epsilon=1e-6)  # call-arg
    torch_foo.add(a, b, a)  # call-arg
    torch_foo.add(a, b, out=True)  # arg-type
    torch_foo.add(a, b, output=a)  # call-arg
    torch_foo.gelu_mul(a, b, "tanh")  # call-arg
    torch_foo.gelu_mul(a, b, approximate=True)  # arg-type
    torch_foo.subtract(a, b)  # attr-defined


def results(a: Tensor, b: Tensor) -> float:
    number: float = torch_foo.mul(a, b)  # assignment
    torch_foo.add(a, number)  # arg-type
    torch_foo.add(a, b).dimensions()  # attr-defined
    torch_foo.mul(a, torch_foo.rms_norm)  # arg-type
    torch_foo.add(a, torch_foo.add_rms_norm(a, b))  # arg-type
    print(torch_foo.add_rms_norm_(a, b))  # func-returns-value
    return torch_foo.muladd(a, b, 1.0)  # return-value
