"""Rules for torch.vmap.

Called with the operator as a function, and what torch.library.register_vmap
says: the arguments, of which `in_dims` tells the batched dimensions.
"""

import types
from typing import Any

import torch
from torch import Tensor

import torch_foo

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


def _batched(tensor: Any, dim: int | None, info: Any) -> Any:
    """Move the batch to the front; there has to be one, so repeat if not."""
    if not isinstance(tensor, Tensor):
        return tensor
    if dim is None:
        return tensor.expand(info.batch_size, *tensor.shape)
    return tensor.movedim(dim, 0)


def gated(
    op: Any,
    info: Any,
    in_dims: Dims,
    gate: Tensor,
    up: Tensor | None = None,
    *rest: Any,
    **named: Any,
) -> tuple[Tensor, int]:
    """silu_mul and gelu_mul: tensors of one shape, with one more dimension."""
    dgate, dup = (*in_dims, None)[:2]
    gate, up = _batched(gate, dgate, info), _batched(up, dup, info)
    return op(gate, up, *rest, **named), 0


def linear(
    op: Any,
    info: Any,
    in_dims: Dims,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
) -> tuple[Tensor, int]:
    """More rows, unless there are weights for each example."""
    dx, dweight, dbias = (*in_dims, None)[:3]
    if dweight is None and dbias is None:
        assert dx is not None
        return op(x.movedim(dx, 0), weight, bias), 0
    return one_by_one(op, info, (dx, dweight, dbias), x, weight, bias)


def add_rms_norm(
    op: Any,
    info: Any,
    in_dims: Dims,
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[tuple[Tensor, Tensor], Dims]:
    """More rows, unless there is a weight for each example."""
    dx, dresidual, dweight = (*in_dims, None)[:3]
    x, residual = _batched(x, dx, info), _batched(residual, dresidual, info)
    if dweight is None or weight is None:
        return op(x, residual, weight, eps), (0, 0)
    residual_out = torch_foo.ops.add(x, residual)
    y, _ = rms_norm(
        torch_foo.ops.rms_norm, info, (0, dweight), residual_out, weight, eps
    )
    return (y, residual_out), (0, 0)


def quantize_int8_rowwise(
    op: Any, info: Any, in_dims: Dims, x: Tensor
) -> tuple[tuple[Tensor, Tensor], Dims]:
    """More rows."""
    return op(_batched(x, in_dims[0], info)), (0, 0)


def rope(
    op: Any,
    info: Any,
    in_dims: Dims,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *rest: Any,
    **named: Any,
) -> tuple[Tensor, int]:
    """A larger batch, unless there are tables for each example."""
    dx, dcos, dsin, dpositions = (*in_dims, None)[:4]
    if dcos is not None or dsin is not None:
        raise NotImplementedError(
            "torch_foo.rope: vmap over cos or sin is not supported; use one "
            "table and positions"
        )
    x = _batched(x, dx, info)
    batch = x.shape[1]
    if positions is not None:
        positions = _batched(positions, dpositions, info)
        if positions.dim() == 2:
            positions = positions.unsqueeze(1)
        positions = positions.expand(-1, batch, -1).flatten(0, 1)
    y = op(x.flatten(0, 1), cos, sin, positions, *rest, **named)
    return y.unflatten(0, (info.batch_size, batch)), 0


def cross_entropy(
    op: Any,
    info: Any,
    in_dims: Dims,
    logits: Tensor,
    target: Tensor,
    *rest: Any,
    **named: Any,
) -> tuple[tuple[Tensor, Tensor], Dims]:
    """More rows, reduced for each example."""
    defaults: dict[str, Any] = {
        "ignore_index": -100,
        "reduction": "mean",
        "label_smoothing": 0.0,
    }
    given = defaults | dict(zip(defaults, rest, strict=False)) | named
    reduction, given["reduction"] = given["reduction"], "none"
    dlogits, dtarget, *_ = in_dims
    logits = _batched(logits, dlogits, info)
    target = _batched(target, dtarget, info)
    if rest:
        loss, lse = op(logits, target, *given.values())
    else:
        loss, lse = op(logits, target, **given)
    if reduction != "none":
        loss = loss.reshape(info.batch_size, -1).sum(1)
    if reduction == "mean":
        kept = target != given["ignore_index"]
        loss = loss / kept.reshape(info.batch_size, -1).sum(1)
    return (loss, lse), (0, 0)


def one_by_one(
    op: Any, info: Any, in_dims: Dims, *args: Any
) -> tuple[Any, Any]:
    """Operators of gradients: a call of the kernel for each example.

    They sum over rows, which must not mix examples. torch.vmap over
    torch.autograd.grad, which makes Jacobians, comes here.
    """
    if info.batch_size == 0:  # what comes out has a shape all the same
        one = types.SimpleNamespace(batch_size=1)
        padded = [
            arg
            if dim is None
            else arg.new_zeros(arg.movedim(dim, 0).shape[1:]).unsqueeze(dim)
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        results, dims = one_by_one(op, one, in_dims, *padded)
        if isinstance(results, Tensor):
            return results[:0], dims
        return tuple(None if r is None else r[:0] for r in results), dims

    def example(i: int) -> Any:
        return op(
            *(
                arg if dim is None else arg.select(dim, i)
                for arg, dim in zip(args, in_dims, strict=True)
            )
        )

    results = [example(i) for i in range(info.batch_size)]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    columns = list(zip(*results, strict=True))
    return (
        tuple(None if c[0] is None else torch.stack(c) for c in columns),
        tuple(None if c[0] is None else 0 for c in columns),
    )
