# Generated from ops.yaml by codegen/generate.py. Do not edit.
from torch import Tensor

__all__ = [
    "add",
    "mul",
    "muladd",
    "rms_norm",
]

def add(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def mul(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def muladd(
    a: Tensor, b: Tensor, c: float, *, out: Tensor | None = None
) -> Tensor: ...
def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
