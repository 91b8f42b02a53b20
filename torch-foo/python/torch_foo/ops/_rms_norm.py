"""rms_norm and its gradient."""

from typing import Any

import torch
from torch import Tensor

from torch_foo import reference
from torch_foo.ops import _shared

_native = torch.ops.torch_foo


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Compute ``x / sqrt(mean(x**2, -1) + eps) * weight``, rounded once.

    Args:
        x: (..., n), float32, float64, float16 or bfloat16, any strides.
        weight: (n,), of x's dtype and device; None means ones.
        eps: added to the mean square of a row.
        out: where to put the result: a tensor of x's shape, dtype and device.
            It may be x; another overlap with x or weight is an error. Not
            differentiable.

    Returns:
        ``out``, or a new contiguous tensor.

    Raises:
        RuntimeError: for arguments that do not fit together. Nothing has been
            written then.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019;
    ``torch.nn.functional.rms_norm`` over the last dimension.

    >>> torch_foo.rms_norm(torch.tensor([3.0, 4.0]), eps=0.0)
    tensor([0.8485, 1.1314])
    """
    if out is None:
        result: Tensor = _native.rms_norm.default(x, weight, eps)
        return result
    _native.rms_norm.out(x, weight, eps, out=out)
    return out


def _check(op: str, x: Tensor, weight: Tensor | None) -> None:
    if x.dim() == 0:
        raise RuntimeError(
            f"torch_foo.{op}: x has no dimensions, expected at least 1"
        )
    if weight is None:
        return
    if weight.dim() != 1:
        raise RuntimeError(
            f"torch_foo.{op}: weight has {weight.dim()} dimensions, expected 1"
        )
    _shared.check(
        weight.shape[0] == x.shape[-1],
        f"torch_foo.{op}: weight has {weight.shape[0]} elements, but x's last "
        f"dimension is {x.shape[-1]}",
    )


def _fake(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    _shared.check_arguments("rms_norm", x=x, weight=weight)
    _check("rms_norm", x, weight)
    return x.new_empty(x.shape)


def _fake_out(
    x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, *, out: Tensor
) -> None:
    _shared.check_arguments("rms_norm", x=x, weight=weight, out=out)
    _check("rms_norm", x, weight)
    _shared.check_shape("rms_norm", "out", out, x.shape)


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    wants_x: bool,
    wants_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    op = "rms_norm_backward"
    _shared.check_arguments(op, x=x, weight=weight, grad=grad)
    _check(op, x, weight)
    _shared.check_shape(op, "grad", grad, x.shape)
    return (
        x.new_empty(x.shape) if wants_x else None,
        x.new_empty(x.shape[-1:]) if wants_weight else None,
    )


def _setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _backward(
    ctx: Any, grad: Tensor
) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight = ctx.saved_tensors
    # The dispatcher drops arguments that equal their defaults.
    wants_x, wants_weight = (*ctx.needs_input_grad, False)[:2]
    args = grad, x, weight, ctx.eps, wants_x, wants_weight
    # Under create_graph the gradient is differentiated again, which takes
    # operations that autograd knows.
    if torch.is_grad_enabled():
        grad_x, grad_weight = reference.rms_norm_backward(*args)
    else:
        grad_x, grad_weight = _native.rms_norm_backward.default(*args)
    return grad_x, grad_weight, None


def _vmap(
    info: Any,
    in_dims: tuple[int | None, ...],
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, int]:
    dx, dweight = (*in_dims, None)[:2]
    if dweight is None or weight is None:
        assert dx is not None
        return _native.rms_norm.default(x.movedim(dx, 0), weight, eps), 0
    # A weight of its own for every example: not a row-wise operation, so it
    # is done in two steps, with one rounding all the same.
    ndim = x.dim() - (dx is not None)
    wide = torch.promote_types(x.dtype, torch.float32)
    x = _shared.batch_first(x, dx, ndim)
    weight = _shared.batch_first(weight, dweight, ndim)
    normed = _native.rms_norm.default(x.to(wide), None, eps)
    return _native.mul.default(normed, weight.to(wide)).to(x.dtype), 0


def _vmap_backward(
    info: Any, in_dims: tuple[int | None, ...], *args: Any
) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
    # torch.autograd.grad(is_grads_batched=True), as jacobians use it.
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


_shared.register(
    "rms_norm",
    fake=_fake,
    fake_out=_fake_out,
    backward=_backward,
    setup_context=_setup_context,
    vmap=_vmap,
)
_shared.register("rms_norm_backward", fake=_fake_backward, vmap=_vmap_backward)
_shared.register_promotion("rms_norm")
