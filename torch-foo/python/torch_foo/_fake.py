"""Fake kernels: what operators do to tensors without data, to compile them.

Their checks are those of the adaptors and foo_core, with the same messages.
Sizes may be symbolic. Called with the operator's name and what ops.yaml gives.
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
        _check_same_device(op, name, tensor, **{first_name: first})
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


def _check_ndim(op: str, name: str, tensor: Tensor, dims: str) -> None:
    if tensor.dim() != dims.count(",") + 1:
        raise RuntimeError(
            f"torch_foo.{op}: {name} has shape {tuple(tensor.shape)}, "
            f"expected {dims}"
        )


def _check_has_rows(op: str, **named: Tensor) -> None:
    ((name, tensor),) = named.items()
    if tensor.dim() == 0:
        raise RuntimeError(
            f"torch_foo.{op}: {name} has no dimensions, expected at least 1"
        )


def _check_int64(op: str, name: str, tensor: Tensor, **other: Tensor) -> None:
    if tensor.dtype != torch.int64:
        raise RuntimeError(
            f"torch_foo.{op}: {name} has dtype {_name(tensor.dtype)}, expected "
            "int64"
        )
    _check_same_device(op, name, tensor, **other)


def _check_same_device(
    op: str, name: str, tensor: Tensor, **other: Tensor
) -> None:
    ((other_name, other_tensor),) = other.items()
    if tensor.device != other_tensor.device:
        raise RuntimeError(
            f"torch_foo.{op}: {name} is on {tensor.device}, "
            f"but {other_name} is on {other_tensor.device}"
        )


def _check_choice(op: str, name: str, value: str, *choices: str) -> None:
    if value not in choices:
        quoted = [f"'{c}'" for c in choices]
        raise RuntimeError(
            f"torch_foo.{op}: {name} is '{value}', expected "
            f"{', '.join(quoted[:-1])} or {quoted[-1]}"
        )


def _check_out(
    op: str, result: Tensor, *, out: Tensor, **first: Tensor
) -> None:
    """Check that `out` can take a result; `first` is the first argument."""
    _check_arguments(op, **first, out=out)
    _check_shape(op, "out", out, result.shape)


# --- element-wise -----------------------------------------------------------


def broadcast(op: str, a: Tensor, b: Tensor) -> Tensor:
    """A tensor of the shape that a and b broadcast to."""
    _check_arguments(op, a=a, b=b)
    return a.new_empty(_broadcast_shape(op, a, b))


def gated(op: str, gate: Tensor, up: Tensor | None) -> Tensor:
    """A tensor like gate, or like half of it if there is no up."""
    if up is not None:
        _check_arguments(op, gate=gate, up=up)
        _check_shape(op, "up", up, gate.shape)
        return gate.new_empty(gate.shape)
    _check_arguments(op, gate=gate)
    _check(
        gate.dim() > 0 and gate.shape[-1] % 2 == 0,
        f"torch_foo.{op}: gate has shape {tuple(gate.shape)}, expected an "
        "even last dimension, of gate and up together",
    )
    return gate.new_empty((*gate.shape[:-1], gate.shape[-1] // 2))


def gelu_mul(
    op: str, gate: Tensor, up: Tensor | None, approximate: str
) -> Tensor:
    """The same, with a check of the formula's name."""
    _check_choice(op, "approximate", approximate, "none", "tanh")
    return gated(op, gate, up)


def gated_backward(
    op: str,
    grad: Tensor,
    gate: Tensor,
    up: Tensor | None,
    wants_gate: bool,
    wants_up: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of silu_mul's arguments."""
    op = op.removeprefix("_")
    out = gated(op, gate, up)
    _check_arguments(op, gate=gate, grad=grad)
    _check_shape(op, "grad", grad, out.shape)
    return (
        gate.new_empty(gate.shape) if wants_gate else None,
        gate.new_empty(gate.shape) if wants_up and up is not None else None,
    )


def gelu_mul_backward(
    op: str,
    grad: Tensor,
    gate: Tensor,
    up: Tensor | None,
    approximate: str,
    wants_gate: bool,
    wants_up: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of gelu_mul's arguments."""
    _check_choice(
        op.removeprefix("_"), "approximate", approximate, "none", "tanh"
    )
    return gated_backward(op, grad, gate, up, wants_gate, wants_up)


# --- over rows --------------------------------------------------------------


def rms_norm(op: str, x: Tensor, weight: Tensor | None) -> Tensor:
    """A tensor like x, which has rows of weight's size."""
    _check_arguments(op, x=x, weight=weight)
    _check_has_rows(op, x=x)
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


def add_rms_norm(
    op: str, x: Tensor, residual: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The norm and the sum, both like x."""
    y = rms_norm(op, x, weight)
    _check_arguments(op, x=x, residual=residual)
    _check_shape(op, "residual", residual, x.shape)
    return y, x.new_empty(x.shape)


def add_rms_norm_backward(
    op: str,
    grad: Tensor,
    grad_residual: Tensor | None,
    residual_out: Tensor,
    weight: Tensor | None,
    wants_x: bool,
    wants_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of add_rms_norm's arguments."""
    if grad_residual is not None:
        _check_arguments(
            op.removeprefix("_"), grad=grad, grad_residual=grad_residual
        )
        _check_shape(
            op.removeprefix("_"), "grad_residual", grad_residual, grad.shape
        )
    return rms_norm_backward(
        op, grad, residual_out, weight, wants_x, wants_weight
    )


def quantize_int8_rowwise(op: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 like x, and a scale for each row."""
    _check_arguments(op, x=x)
    _check_has_rows(op, x=x)
    q = x.new_empty(x.shape, dtype=torch.int8)
    return q, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


def linear(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A column for each row of weight."""
    _check_arguments(op, x=x, weight=weight, bias=bias)
    _check_has_rows(op, x=x)
    k = x.shape[-1]
    message = (
        f"torch_foo.{op}: weight has shape {tuple(weight.shape)}, expected "
        f"(n, {k}), as x's last dimension is {k}"
    )
    _check(weight.dim() == 2, message)
    _check(weight.shape[1] == k, message)
    n = weight.shape[0]
    if bias is not None:
        _check_shape(op, "bias", bias, (n,))
    return x.new_empty((*x.shape[:-1], n))


# --- rope -------------------------------------------------------------------


def rope(
    op: str, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None
) -> Tensor:
    """A tensor like x."""
    op = "rope"
    _check_arguments(op, x=x)
    _check_arguments(op, cos=cos, sin=sin)
    _check_same_device(op, "cos", cos, x=x)
    _check_ndim(op, "x", x, "(batch, seq, heads, head_dim)")
    if cos.dtype not in (x.dtype, torch.float32):
        raise RuntimeError(
            f"torch_foo.{op}: cos is {_name(cos.dtype)}, but x is "
            f"{_name(x.dtype)}"
        )
    _check_ndim(op, "cos", cos, "(max_position, rotary_dim / 2)")
    _check_shape(op, "sin", sin, cos.shape)
    columns, head_dim = cos.shape[1], x.shape[3]
    _check(
        2 * columns <= head_dim,
        f"torch_foo.{op}: cos has {columns} columns, which rotate "
        f"{2 * columns} elements, but x's last dimension is {head_dim}",
    )
    batch, seq = x.shape[:2]
    if positions is None:
        _check(
            seq <= cos.shape[0],
            f"torch_foo.{op}: x has {seq} positions, but cos has "
            f"{cos.shape[0]} rows",
        )
    else:
        _check_int64(op, "positions", positions, x=x)
        expected = f"({seq},) or ({batch}, {seq})"
        message = (
            f"torch_foo.{op}: positions has shape {tuple(positions.shape)}, "
            f"expected {expected}"
        )
        _check(positions.dim() in (1, 2), message)
        _check(positions.shape[-1] == seq, message)
        if positions.dim() == 2:
            _check(positions.shape[0] == batch, message)
    return x.new_empty(x.shape)


# --- cross_entropy ----------------------------------------------------------


def cross_entropy(
    op: str,
    logits: Tensor,
    target: Tensor,
    reduction: str,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """The loss and each row's logarithm of the sum of exponentials."""
    _check_logits(op, logits, target, reduction)
    if not 0 <= label_smoothing <= 1:
        raise RuntimeError(
            f"torch_foo.{op}: label_smoothing is {label_smoothing:g}, expected "
            "0 to 1"
        )
    known = all(isinstance(n, int) for n in logits.shape)
    if known and logits.shape[-1] == 0 and target.numel() > 0:
        raise RuntimeError(
            f"torch_foo.{op}: logits has shape {tuple(logits.shape)}, expected "
            "at least 1 class"
        )
    return (
        _loss(logits, target, reduction),
        logits.new_empty(target.shape, dtype=torch.float64),
    )


def cross_entropy_backward(
    op: str,
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    lse: Tensor,
    reduction: str,
) -> Tensor:
    """A tensor like logits."""
    op = op.removeprefix("_")
    _check_logits(op, logits, target, reduction)
    _check_shape(op, "grad", grad, _loss(logits, target, reduction).shape)
    return logits.new_empty(logits.shape)


def _check_logits(
    op: str, logits: Tensor, target: Tensor, reduction: str
) -> None:
    _check_arguments(op, logits=logits)
    _check_int64(op, "target", target, logits=logits)
    _check_choice(op, "reduction", reduction, "none", "mean", "sum")
    _check_has_rows(op, logits=logits)
    _check_shape(op, "target", target, logits.shape[:-1])


def _loss(logits: Tensor, target: Tensor, reduction: str) -> Tensor:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    shape = target.shape if reduction == "none" else ()
    return logits.new_empty(shape, dtype=dtype)
