"""The definition of every operator, in plain PyTorch.

The operators of ``torch_foo`` compute these formulas, faster; the tests hold
them against each other in float64. Arithmetic is in float32 (float64 for
float64) and the result is rounded once, at the end.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812
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


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """``x + residual`` is rounded, and its norm taken then."""
    residual_out = add(x, residual)
    return rms_norm(residual_out, weight, eps), residual_out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``."""
    y = _widen(x) @ _widen(weight).T
    if bias is not None:
        y = y + _widen(bias)
    return y.to(x.dtype)


def silu_mul(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """``gate * sigmoid(gate) * up``."""
    gate, up = _gate_and_up(gate, up)
    return (F.silu(_widen(gate)) * _widen(up)).to(gate.dtype)


def gelu_mul(
    gate: Tensor, up: Tensor | None = None, *, approximate: str = "none"
) -> Tensor:
    """``gate * Phi(gate) * up``, Phi the normal distribution function."""
    gate, up = _gate_and_up(gate, up)
    activation = F.gelu(_widen(gate), approximate=approximate)
    return (activation * _widen(up)).to(gate.dtype)


def _gate_and_up(gate: Tensor, up: Tensor | None) -> tuple[Tensor, Tensor]:
    if up is not None:
        return gate, up
    first, second = gate.chunk(2, -1)
    return first, second


def rope(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    interleaved: bool = False,
) -> Tensor:
    """``(x1 * cos - x2 * sin, x2 * cos + x1 * sin)`` for each pair of x."""
    if positions is None:
        positions = torch.arange(x.shape[1], device=x.device)
    # (batch or none, seq, heads, rotary_dim / 2)
    c = _widen(cos)[positions].unsqueeze(-2).to(_widen(x).dtype)
    s = _widen(sin)[positions].unsqueeze(-2).to(_widen(x).dtype)
    half = cos.shape[1]
    head, rest = _widen(x)[..., : 2 * half], x[..., 2 * half :]
    if interleaved:
        x1, x2 = head[..., ::2], head[..., 1::2]
    else:
        x1, x2 = head[..., :half], head[..., half:]
    y1, y2 = x1 * c - x2 * s, x2 * c + x1 * s
    if interleaved:
        rotated = torch.stack([y1, y2], -1).flatten(-2)
    else:
        rotated = torch.cat([y1, y2], -1)
    return torch.cat([rotated.to(x.dtype), rest], -1)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """``-log_softmax(logits)`` at the target."""
    classes = logits.shape[-1]
    loss = F.cross_entropy(
        _widen(logits).reshape(-1, classes),
        target.reshape(-1),
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    return loss.reshape(target.shape) if reduction == "none" else loss


def quantize_int8_rowwise(x: Tensor) -> tuple[Tensor, Tensor]:
    """``scale = max(abs(x)) / 127``, ``q = round(x / scale)``, row by row."""
    wide = _widen(x)
    if x.shape[-1] == 0:
        scale = x.new_ones((*x.shape[:-1], 1), dtype=torch.float32)
    else:
        scale = (wide.abs().amax(-1, keepdim=True) / 127).float()
    scale = torch.where(scale == 0, 1.0, scale)
    quotient = (wide / scale).round().clamp(-127, 127)
    return quotient.nan_to_num(0).to(torch.int8), scale


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


def add_rms_norm_backward(
    grad: Tensor,
    grad_residual: Tensor | None,
    residual_out: Tensor,
    weight: Tensor | None,
    eps: float,
    wants_x: bool,
    wants_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of ``add_rms_norm``'s x, or residual, and weight."""
    wide = _widen(residual_out)
    grad_x, grad_weight = rms_norm_backward(
        _widen(grad),
        wide,
        None if weight is None else _widen(weight),
        eps,
        wants_x,
        wants_weight,
    )
    if grad_x is not None and grad_residual is not None:
        grad_x = grad_x + _widen(grad_residual)
    dtype = residual_out.dtype
    return (
        None if grad_x is None else grad_x.to(dtype),
        None if grad_weight is None else grad_weight.to(dtype),
    )


def silu_mul_backward(
    grad: Tensor,
    gate: Tensor,
    up: Tensor | None,
    wants_gate: bool,
    wants_up: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of ``silu_mul``'s gate and up."""
    x = _widen(_gate_and_up(gate, up)[0])
    s = x.sigmoid()
    return _gated_backward(
        grad, gate, up, x * s, s * (1 + x * (1 - s)), wants_gate, wants_up
    )


def gelu_mul_backward(
    grad: Tensor,
    gate: Tensor,
    up: Tensor | None,
    approximate: str,
    wants_gate: bool,
    wants_up: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of ``gelu_mul``'s gate and up."""
    x = _widen(_gate_and_up(gate, up)[0])
    if approximate == "none":
        phi = (1 + torch.erf(x * math.sqrt(0.5))) / 2
        density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
        derivative = phi + x * density
    else:
        scale = math.sqrt(2 / math.pi)
        tanh = torch.tanh(scale * (x + 0.044715 * x**3))
        phi = (1 + tanh) / 2
        inner = scale * (1 + 3 * 0.044715 * x.square())
        derivative = phi + x / 2 * (1 - tanh.square()) * inner
    return _gated_backward(
        grad, gate, up, x * phi, derivative, wants_gate, wants_up
    )


def _gated_backward(
    grad: Tensor,
    gate: Tensor,
    up: Tensor | None,
    activation: Tensor,
    derivative: Tensor,
    wants_gate: bool,
    wants_up: bool,
) -> tuple[Tensor | None, Tensor | None]:
    g, (_, u) = _widen(grad), _gate_and_up(gate, up)
    grad_gate = (g * _widen(u) * derivative).to(gate.dtype)
    grad_up = (g * activation).to(gate.dtype)
    if up is None:
        packed = torch.cat([grad_gate, grad_up], -1)
        return packed if wants_gate else None, None
    return grad_gate if wants_gate else None, grad_up if wants_up else None


def cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    """The gradient of ``cross_entropy``'s logits."""
    classes = logits.shape[-1]
    kept = target != ignore_index
    onehot = target.unsqueeze(-1) == torch.arange(classes, device=target.device)
    difference = (
        _widen(logits).softmax(-1)
        - (1 - label_smoothing) * onehot.to(torch.float32)
        - label_smoothing / classes
    )
    factor = _widen(grad) * kept
    if reduction == "mean":
        factor = factor / kept.sum()
    return (factor.unsqueeze(-1) * difference).to(logits.dtype)
