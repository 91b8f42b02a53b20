# Generated from ops.yaml by codegen/generate.py. Do not edit.
from torch import Tensor

__all__ = [
    "add",
    "add_rms_norm",
    "add_rms_norm_",
    "cross_entropy",
    "gelu_mul",
    "linear",
    "mul",
    "muladd",
    "quantize_int8_rowwise",
    "rms_norm",
    "rope",
    "rope_",
    "silu_mul",
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
def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None = None, eps: float = 1e-6
) -> tuple[Tensor, Tensor]: ...
def add_rms_norm_(
    x: Tensor, residual: Tensor, weight: Tensor | None = None, eps: float = 1e-6
) -> None: ...
def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def silu_mul(
    gate: Tensor, up: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor: ...
def gelu_mul(
    gate: Tensor,
    up: Tensor | None = None,
    *,
    approximate: str = "none",
    out: Tensor | None = None,
) -> Tensor: ...
def rope(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    interleaved: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def rope_(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    interleaved: bool = False,
) -> None: ...
def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor: ...
def quantize_int8_rowwise(x: Tensor) -> tuple[Tensor, Tensor]: ...
