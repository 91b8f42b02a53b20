"""Checks and rules that the operators' modules have in common.

The checks are those of ``_C`` and foo_core, with the same messages: fake
kernels run them when there is no data, as torch.compile does. Sizes may be
symbolic.
"""
# mypy: allow-untyped-calls
# (parts of torch.library have no types)

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check(condition: bool, message: str) -> None:
    """Raise unless the condition holds.

    Between sizes that nobody knows yet it becomes a check at run time.
    """
    torch._check(condition, lambda: message)


def check_arguments(op: str, **tensors: Tensor | None) -> None:
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


def broadcast_shape(op: str, a: Tensor, b: Tensor) -> torch.Size:
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


def check_shape(
    op: str, name: str, tensor: Tensor, shape: Sequence[int]
) -> None:
    """Check that a tensor has this shape."""
    message = (
        f"torch_foo.{op}: {name} has shape {tuple(tensor.shape)}, "
        f"expected {tuple(shape)}"
    )
    check(tensor.dim() == len(shape), message)
    for have, want in zip(tensor.shape, shape, strict=True):
        check(have == want, message)


def register_promotion(op: str) -> None:
    """Let autocast regions mix dtypes, as they do for torch.addcmul.

    Inside such a region activations are float16 or bfloat16 while parameters
    stay float32. Floating-point arguments of one call are brought to the
    widest of their dtypes; outside such a region mixing them is an error.
    """
    packet = getattr(torch.ops.torch_foo, op)

    def register(key: str) -> None:
        excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def kernel(*args: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(excluded):
                return packet.default(*_promote(args))

        _library.impl(op, kernel, key)

    register("AutocastCPU")
    register("AutocastCUDA")


def _promote(args: Sequence[Any]) -> list[Any]:
    floating = [
        a for a in args if isinstance(a, Tensor) and a.is_floating_point()
    ]
    if len({a.dtype for a in floating}) < 2:
        return list(args)
    widest = floating[0].dtype
    for a in floating[1:]:
        widest = torch.promote_types(widest, a.dtype)
    return [
        a.to(widest) if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in args
    ]


def batch_first(tensor: Tensor, dim: int | None, ndim: int) -> Tensor:
    """Move vmap's dimension to the front and make the others ndim.

    A tensor without such a dimension broadcasts as it is.
    """
    if dim is None:
        return tensor
    tensor = tensor.movedim(dim, 0)
    missing = ndim - (tensor.dim() - 1)
    return tensor.reshape(tensor.shape[:1] + (1,) * missing + tensor.shape[1:])


def register(
    op: str,
    *,
    fake: Callable[..., Any],
    fake_out: Callable[..., Any] | None = None,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
    vmap: Callable[..., Any] | None = None,
) -> None:
    """Register what the dispatcher needs to know about torch_foo::{op}."""
    name = f"torch_foo::{op}"
    torch.library.register_fake(name, fake)
    if fake_out is not None:
        torch.library.register_fake(f"{name}.out", fake_out)
        _register_mutation(op)
    if backward is not None:
        torch.library.register_autograd(
            name, backward, setup_context=setup_context
        )
    if vmap is not None:
        torch.library.register_vmap(name, vmap)


def _register_mutation(op: str) -> None:
    """Tell autograd that {op}.out writes to out and has no gradient."""
    overload = getattr(torch.ops.torch_foo, op).out

    def kernel(
        keyset: torch._C.DispatchKeySet, *args: Any, out: Tensor
    ) -> None:
        tensors = [a for a in (*args, out) if isinstance(a, Tensor)]
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            raise RuntimeError(
                f"torch_foo.{op}: out= does not support automatic "
                "differentiation, but one of the tensors requires grad; leave "
                "out= away or use torch.no_grad()"
            )
        if out.is_neg() or out.is_conj():
            raise RuntimeError(
                f"torch_foo.{op}: out is a negated or conjugated view, "
                "expected a plain tensor"
            )
        below = keyset & torch._C._after_autograd_keyset
        overload.redispatch(below, *args, out=out)
        # So that backward notices if it had saved out's former content.
        torch.autograd.graph.increment_version(out)

    _library.impl(f"{op}.out", kernel, "Autograd", with_keyset=True)


# Kept alive here: registrations end with their Library.
_library = torch.library.Library("torch_foo", "IMPL")
