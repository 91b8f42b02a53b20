"""add, mul, muladd: element-wise, with broadcasting."""

from typing import Any

import torch
from torch import Tensor

from torch_foo.ops import _shared

_native = torch.ops.torch_foo


def add(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Compute ``a + b``.

    Args:
        a: float32, float64, float16 or bfloat16, of any shape and strides.
        b: of a's dtype and device; the shapes broadcast as torch's do.
        out: where to put the result: a tensor of the broadcast shape and of
            a's dtype and device. It may be a or b; another overlap with them
            is an error. Not differentiable.

    Returns:
        ``out``, or a new contiguous tensor.

    Raises:
        RuntimeError: for arguments that do not fit together. Nothing has been
            written then.

    Source: ``torch.add``, without type promotion.

    >>> torch_foo.add(torch.ones(2, 1), torch.tensor([1.0, 2.0]))
    tensor([[2., 3.],
            [2., 3.]])
    """
    if out is None:
        result: Tensor = _native.add.default(a, b)
        return result
    _native.add.out(a, b, out=out)
    return out


def mul(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Compute ``a * b``.

    Args:
        a: float32, float64, float16 or bfloat16, of any shape and strides.
        b: of a's dtype and device; the shapes broadcast as torch's do.
        out: where to put the result: a tensor of the broadcast shape and of
            a's dtype and device. It may be a or b; another overlap with them
            is an error. Not differentiable.

    Returns:
        ``out``, or a new contiguous tensor.

    Raises:
        RuntimeError: for arguments that do not fit together. Nothing has been
            written then.

    Source: ``torch.mul``, without type promotion.

    >>> torch_foo.mul(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    tensor([3., 8.])
    """
    if out is None:
        result: Tensor = _native.mul.default(a, b)
        return result
    _native.mul.out(a, b, out=out)
    return out


def muladd(
    a: Tensor, b: Tensor, c: float, *, out: Tensor | None = None
) -> Tensor:
    """Compute ``a * b + c``, rounded once.

    Args:
        a: float32, float64, float16 or bfloat16, of any shape and strides.
        b: of a's dtype and device; the shapes broadcast as torch's do.
        c: a number.
        out: where to put the result: a tensor of the broadcast shape and of
            a's dtype and device. It may be a or b; another overlap with them
            is an error. Not differentiable.

    Returns:
        ``out``, or a new contiguous tensor.

    Raises:
        RuntimeError: for arguments that do not fit together. Nothing has been
            written then.

    Source: ``torch.addcmul`` with the roles of its arguments changed.

    >>> torch_foo.muladd(torch.tensor([1.0, 2.0]), torch.tensor([3.0]), 0.5)
    tensor([3.5000, 6.5000])
    """
    if out is None:
        result: Tensor = _native.muladd.default(a, b, c)
        return result
    _native.muladd.out(a, b, c, out=out)
    return out


# What the dispatcher needs to know about each. `c` holds muladd's number, or
# nothing: add and mul have the same rules without it.


def _register(op: str, *, is_sum: bool) -> None:
    overload = getattr(_native, op).default

    def fake(a: Tensor, b: Tensor, *c: float) -> Tensor:
        _shared.check_arguments(op, a=a, b=b)
        return a.new_empty(_shared.broadcast_shape(op, a, b))

    def fake_out(a: Tensor, b: Tensor, *c: float, out: Tensor) -> None:
        _shared.check_arguments(op, a=a, b=b, out=out)
        shape = _shared.broadcast_shape(op, a, b)
        _shared.check_shape(op, "out", out, shape)

    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        a, b, *_ = inputs
        ctx.shapes = a.shape, b.shape
        if not is_sum:
            wants_a, wants_b, *_ = ctx.needs_input_grad
            ctx.save_for_backward(
                b if wants_a else None, a if wants_b else None
            )

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        factors = (None, None) if is_sum else ctx.saved_tensors
        grads = [
            _reduced(grad, factor, shape) if wanted else None
            for factor, shape, wanted in zip(
                factors, ctx.shapes, ctx.needs_input_grad, strict=False
            )
        ]
        return *grads, *[None] * (len(ctx.needs_input_grad) - 2)

    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        a: Tensor,
        b: Tensor,
        *c: float,
    ) -> tuple[Tensor, int]:
        da, db, *_ = in_dims
        ndim = max(a.dim() - (da is not None), b.dim() - (db is not None))
        a = _shared.batch_first(a, da, ndim)
        b = _shared.batch_first(b, db, ndim)
        return overload(a, b, *c), 0

    _shared.register(
        op,
        fake=fake,
        fake_out=fake_out,
        backward=backward,
        setup_context=setup_context,
        vmap=vmap,
    )
    _shared.register_promotion(op)


def _reduced(grad: Tensor, factor: Tensor | None, shape: torch.Size) -> Tensor:
    """``grad * factor``, summed over the dimensions that were broadcast."""
    if factor is None:
        return grad.sum_to_size(shape)
    if grad.shape == shape:
        product: Tensor = _native.mul.default(grad, factor)
        return product
    # A sum of rounded products would be less accurate than the sum's dtype.
    wide = torch.promote_types(grad.dtype, torch.float32)
    product = _native.mul.default(grad.to(wide), factor.to(wide))
    return product.sum_to_size(shape).to(grad.dtype)


_register("add", is_sum=True)
_register("mul", is_sum=False)
_register("muladd", is_sum=False)
