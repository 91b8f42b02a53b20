"""Formulas of gradients, as ops.yaml uses them.

Under create_graph they are differentiated again, so then they consist of
operations that autograd knows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

import torch_foo
from torch_foo import reference

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
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of rms_norm's x and weight."""
    args = grad, x, weight, eps, wants_x, wants_weight
    if torch.is_grad_enabled():
        return reference.rms_norm_backward(*args)
    grads: tuple[Tensor | None, Tensor | None]
    grads = _ops._rms_norm_backward.default(*args)
    return grads
