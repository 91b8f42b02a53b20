"""The definition of every operator, in plain PyTorch.

The operators of ``torch_foo`` compute these formulas, faster; the tests hold
them against each other in float64. Arithmetic is in float32 (float64 for
float64) and the result is rounded once, at the end.
"""

import torch
from torch import Tensor


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def add(a: Tensor, b: Tensor) -> Tensor:
    """``a + b``."""
    return (_widen(a) + _widen(b)).to(a.dtype)


def mul(a: Tensor, b: Tensor) -> Tensor:
    """``a * b``."""
    return (_widen(a) * _widen(b)).to(a.dtype)


def muladd(a: Tensor, b: Tensor, c: float) -> Tensor:
    """``a * b + c``."""
    return (_widen(a) * _widen(b) + c).to(a.dtype)


def rms_norm(
    x: Tensor, weight: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """``x / sqrt(mean(x**2, -1) + eps) * weight``."""
    wide = _widen(x)
    y = wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    if weight is not None:
        y = y * _widen(weight)
    return y.to(x.dtype)


def rms_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    wants_x: bool,
    wants_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of ``rms_norm``'s x and weight, None where not wanted."""
    wide, g = _widen(x), _widen(grad)
    r = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    normed = wide * r
    grad_x = grad_weight = None
    if wants_weight:
        grad_weight = (g * normed).sum_to_size(x.shape[-1:]).to(x.dtype)
    if wants_x:
        if weight is not None:
            g = g * _widen(weight)
        mean = (g * normed).mean(-1, keepdim=True)
        grad_x = (r * (g - normed * mean)).to(x.dtype)
    return grad_x, grad_weight
