"""Fake kernels: what operators do to tensors without data, to compile them.

Their checks are those of ``_C`` and foo_core, with the same messages. Sizes
may be symbolic. Called with the operator's name and what ops.yaml gives.
"""

# mypy: allow-untyped-calls
# (parts of torch have no types)

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check(condition: bool, message: str) -> None:
    """Raise unless the condition holds.

    Between sizes that nobody knows yet it becomes a check at run time.
    """
    torch._check(condition, lambda: message)


def _check_arguments(op: str, **tensors: Tensor | None) -> None:
    """Check that all tensors are dense, of one dtype and on one device."""
    given = {name: t for name, t in tensors.items() if t is not None}
    first_name, first = next(iter(given.items()))
    for name, tensor in given.items():
        prefix = f"torch_foo.{op}: {name}"
        if tensor.layout != torch.strided:
            raise RuntimeError(
                f"{prefix} is a sparse or otherwise not dense tensor, "
                "expected a dense one"
            )
        if tensor.dtype not in DTYPES:
            raise RuntimeError(
                f"{prefix} has dtype {_name(tensor.dtype)}, "
                "expected float32, float64, float16 or bfloat16"
            )
        if tensor.device != first.device:
            raise RuntimeError(
                f"{prefix} is on {tensor.device}, "
                f"but {first_name} is on {first.device}"
            )
        if tensor.dtype != first.dtype:
            raise RuntimeError(
                f"{prefix} has dtype {_name(tensor.dtype)}, "
                f"but {first_name} has {_name(first.dtype)}"
            )


def _broadcast_shape(op: str, a: Tensor, b: Tensor) -> torch.Size:
    """Return the shape that a and b broadcast to."""
    for na, nb in zip(reversed(a.shape), reversed(b.shape), strict=False):
        # torch.broadcast_shapes knows what to make of symbolic sizes.
        known = isinstance(na, int) and isinstance(nb, int)
        if known and na != nb and na != 1 and nb != 1:
            raise RuntimeError(
                f"torch_foo.{op}: a has shape {tuple(a.shape)}, b has "
                f"shape {tuple(b.shape)}: they do not broadcast"
            )
    shape: torch.Size = torch.broadcast_shapes(a.shape, b.shape)
    return shape


def _check_shape(
    op: str, name: str, tensor: Tensor, shape: Sequence[int]
) -> None:
    """Check that a tensor has this shape."""
    message = (
        f"torch_foo.{op}: {name} has shape {tuple(tensor.shape)}, "
        f"expected {tuple(shape)}"
    )
    _check(tensor.dim() == len(shape), message)
    for have, want in zip(tensor.shape, shape, strict=True):
        _check(have == want, message)


def check_out(op: str, result: Tensor, *, out: Tensor, **first: Tensor) -> None:
    """Check that `out` can take a result; `first` is the first argument."""
    _check_arguments(op, **first, out=out)
    _check_shape(op, "out", out, result.shape)


# --- element-wise -----------------------------------------------------------


def broadcast(op: str, a: Tensor, b: Tensor) -> Tensor:
    """A tensor of the shape that a and b broadcast to."""
    _check_arguments(op, a=a, b=b)
    return a.new_empty(_broadcast_shape(op, a, b))


# --- over rows --------------------------------------------------------------


def rms_norm(op: str, x: Tensor, weight: Tensor | None) -> Tensor:
    """A tensor like x, which has rows of weight's size."""
    _check_arguments(op, x=x, weight=weight)
    if x.dim() == 0:
        raise RuntimeError(
            f"torch_foo.{op}: x has no dimensions, expected at least 1"
        )
    if weight is not None and weight.dim() != 1:
        raise RuntimeError(
            f"torch_foo.{op}: weight has {weight.dim()} dimensions, expected 1"
        )
    if weight is not None:
        _check(
            weight.shape[0] == x.shape[-1],
            f"torch_foo.{op}: weight has {weight.shape[0]} elements, but x's "
            f"last dimension is {x.shape[-1]}",
        )
    return x.new_empty(x.shape)


def rms_norm_backward(
    op: str,
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    wants_x: bool,
    wants_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of rms_norm's arguments."""
    op = op.removeprefix("_")
    rms_norm(op, x, weight)
    _check_arguments(op, x=x, grad=grad)
    _check_shape(op, "grad", grad, x.shape)
    return (
        x.new_empty(x.shape) if wants_x else None,
        x.new_empty(x.shape[-1:]) if wants_weight else None,
    )
