"""Rules for torch.vmap.

Called with the operator as a function, and what torch.library.register_vmap
says: the arguments, of which `in_dims` tells the batched dimensions.
"""

from typing import Any

import torch
from torch import Tensor

import torch_foo
from torch_foo import reference

Dims = tuple[int | None, ...]


def _batch_first(tensor: Tensor, dim: int | None, ndim: int) -> Tensor:
    """Move the batch to the front of ndim other dimensions.

    A tensor without a batch broadcasts as it is.
    """
    if dim is None:
        return tensor
    tensor = tensor.movedim(dim, 0)
    missing = ndim - (tensor.dim() - 1)
    return tensor.reshape(tensor.shape[:1] + (1,) * missing + tensor.shape[1:])


def broadcast(
    op: Any, info: Any, in_dims: Dims, a: Tensor, b: Tensor, *rest: Any
) -> tuple[Tensor, int]:
    """Element-wise operators: one more dimension to broadcast."""
    da, db, *_ = in_dims
    ndim = max(a.dim() - (da is not None), b.dim() - (db is not None))
    a, b = _batch_first(a, da, ndim), _batch_first(b, db, ndim)
    return op(a, b, *rest), 0


def rms_norm(
    op: Any,
    info: Any,
    in_dims: Dims,
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, int]:
    """More rows, unless there is a weight for each example."""
    dx, dweight = (*in_dims, None)[:2]
    if dweight is None or weight is None:
        assert dx is not None
        return op(x.movedim(dx, 0), weight, eps), 0
    # Not a row-wise operation, so it is done in two steps, with one rounding
    # all the same.
    ndim = x.dim() - (dx is not None)
    wide = torch.promote_types(x.dtype, torch.float32)
    x = _batch_first(x, dx, ndim)
    weight = _batch_first(weight, dweight, ndim)
    normed = op(x.to(wide), None, eps)
    return torch_foo.ops.mul(normed, weight.to(wide)).to(x.dtype), 0


def rms_norm_backward(
    op: Any, info: Any, in_dims: Dims, *args: Any
) -> tuple[tuple[Tensor | None, ...], Dims]:
    """As torch.autograd.grad(is_grads_batched=True) asks for it."""
    *_, wants_x, wants_weight = args
    wanted = [i for i, w in enumerate((wants_x, wants_weight)) if w]

    def formula(*tensors: Any) -> list[Tensor | None]:
        grads = reference.rms_norm_backward(*tensors, *args[3:])
        return [grads[i] for i in wanted]

    batched = torch.vmap(formula, in_dims=in_dims[:3])(*args[:3])
    results: list[Tensor | None] = [None, None]
    for i, grad in zip(wanted, batched, strict=True):
        results[i] = grad
    return tuple(results), tuple(None if r is None else 0 for r in results)
