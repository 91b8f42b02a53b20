"""Formulas of gradients, as ops.yaml uses them.

Under create_graph they are differentiated again, so then they consist of
operations that autograd knows.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

import torch_foo
from torch_foo import reference

Gradients = tuple[Tensor | None, Tensor | None]
_ops = torch.ops.torch_foo


def reduced(grad: Tensor, shape: Sequence[int]) -> Tensor:
    """`grad`, summed over the dimensions that were broadcast."""
    return grad.sum_to_size(shape)


def product(grad: Tensor, factor: Tensor, shape: Sequence[int]) -> Tensor:
    """`grad * factor`, summed over the dimensions that were broadcast."""
    if grad.shape == shape:
        return torch_foo.ops.mul(grad, factor)
    # A sum of rounded products would be less accurate than the sum's dtype.
    wide = torch.promote_types(grad.dtype, torch.float32)
    product = torch_foo.ops.mul(grad.to(wide), factor.to(wide))
    return product.sum_to_size(shape).to(grad.dtype)


def rms_norm(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    wants_x: bool,
    wants_weight: bool,
) -> Gradients:
    """The gradients of rms_norm's x and weight."""
    args = grad, x, weight, eps, wants_x, wants_weight
    if torch.is_grad_enabled():
        return reference.rms_norm_backward(*args)
    gradients: Gradients = _ops._rms_norm_backward.default(*args)
    return gradients


def add_rms_norm(
    grad: Tensor,
    grad_residual: Tensor,
    residual_out: Tensor,
    weight: Tensor | None,
    eps: float,
    wants_x: bool,
    wants_residual: bool,
    wants_weight: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of add_rms_norm's x, residual and weight."""
    args = grad, grad_residual, residual_out, weight, eps
    wants = wants_x or wants_residual, wants_weight
    if torch.is_grad_enabled():
        grad_sum, grad_weight = reference.add_rms_norm_backward(*args, *wants)
    else:
        grad_sum, grad_weight = _ops._add_rms_norm_backward.default(
            *args, *wants
        )
    return (
        grad_sum if wants_x else None,
        grad_sum if wants_residual else None,
        grad_weight,
    )


def linear(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    wants_x: bool,
    wants_weight: bool,
    wants_bias: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of linear's x, weight and bias, by products of torch's.

    For those of many rows, which gradients are for, there are no faster ones.
    """
    n, k = weight.shape
    rows = math.prod(x.shape[:-1])
    flat = grad.reshape(rows, n)
    return (
        grad @ weight if wants_x else None,
        flat.T @ x.reshape(rows, k) if wants_weight else None,
        flat.sum(0) if wants_bias else None,
    )


def silu_mul(
    grad: Tensor,
    gate: Tensor,
    up: Tensor | None,
    wants_gate: bool,
    wants_up: bool,
) -> Gradients:
    """The gradients of silu_mul's gate and up."""
    args = grad, gate, up, wants_gate, wants_up
    if torch.is_grad_enabled():
        return reference.silu_mul_backward(*args)
    gradients: Gradients = _ops._silu_mul_backward.default(*args)
    return gradients


def gelu_mul(
    grad: Tensor,
    gate: Tensor,
    up: Tensor | None,
    approximate: str,
    wants_gate: bool,
    wants_up: bool,
) -> Gradients:
    """The gradients of gelu_mul's gate and up."""
    args = grad, gate, up, approximate, wants_gate, wants_up
    if torch.is_grad_enabled():
        return reference.gelu_mul_backward(*args)
    gradients: Gradients = _ops._gelu_mul_backward.default(*args)
    return gradients


def rope(
    grad: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    interleaved: bool,
) -> Tensor:
    """The gradient of rope's x: the rotation by the negative angle."""
    if torch.is_grad_enabled():
        return torch_foo.ops.rope(
            grad, cos, -sin, positions, interleaved=interleaved
        )
    gradient: Tensor = _ops._rope_backward.default(
        grad, cos, sin, positions, interleaved
    )
    return gradient


def cross_entropy(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    lse: Tensor,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    """The gradient of cross_entropy's logits."""
    rest = ignore_index, reduction, label_smoothing
    if torch.is_grad_enabled():
        return reference.cross_entropy_backward(grad, logits, target, *rest)
    gradient: Tensor = _ops._cross_entropy_backward.default(
        grad, logits, target, lse, *rest
    )
    return gradient
