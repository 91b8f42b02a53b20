"""Tells PyTorch what an operator is beside its kernels in C++."""
# mypy: allow-untyped-calls
# (parts of torch.library have no types)

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from torch_foo._autograd import mark_written

_ops = torch.ops.torch_foo
# Kept alive here: registrations end with their Library.
_library = torch.library.Library("torch_foo", "IMPL")


def register(
    op: str,
    *,
    has_raw: bool,
    is_constant: bool = False,
    fake: Callable[..., Any],
    fake_out: Callable[..., None] | None = None,
    written: Sequence[str] = (),
    vmap: Callable[..., Any] | None = None,
    autocast: Callable[..., Any] | None = None,
    tags: Sequence[str] = (),
) -> None:
    """Register an operator's rules.

    Args:
        op: its name.
        has_raw: whether there is `_{op}`, the same without gradients.
        is_constant: whether none of its results has a gradient.
        fake: what it does to tensors without data.
        fake_out: the same of `{op}.out`, if that exists.
        written: the arguments that `{op}_` writes to, if that exists.
        vmap: called as ``vmap(overload, info, in_dims, *args)``.
        autocast: called as ``autocast(overload, args, kwargs)``.
        tags: of torch.Tag.
    """
    overloads = [getattr(_ops, op).default]
    if has_raw:
        overloads.append(getattr(_ops, f"_{op}").default)
    for overload in overloads:
        torch.library.register_fake(overload.name(), fake)
        if vmap is not None:
            torch.library.register_vmap(
                overload.name(), partial(vmap, overload)
            )
        if autocast is not None:
            for device in ("CPU", "CUDA"):
                _register_autocast(overload, f"Autocast{device}", autocast)

    if is_constant:  # else a gradient that is asked for is a warning
        _library.impl(op, torch.library.fallthrough_kernel, "Autograd")

    if fake_out is not None:
        overloads += _register_mutating(
            op, getattr(_ops, op).out, f"_{op}_out", fake_out, ["out"]
        )
    if written:

        def fake_inplace(*args: Any, **kwargs: Any) -> None:
            fake(*args, **kwargs)

        overloads += _register_mutating(
            op,
            getattr(_ops, f"{op}_").default,
            f"_{op}_",
            fake_inplace,
            written,
        )
    for overload in overloads:
        overload.tags.extend(getattr(torch.Tag, tag) for tag in tags)


# --- autocast ---------------------------------------------------------------


def _register_autocast(
    overload: OpOverload, key: str, rule: Callable[..., Any]
) -> None:
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return overload(*rule(args), **kwargs)

    _library.impl(overload.name(), kernel, key)


def promote(args: Sequence[Any]) -> Sequence[Any]:
    """Let autocast regions mix dtypes, as they do for torch.addcmul.

    Inside such a region activations are float16 or bfloat16 while parameters
    stay float32. Floating-point arguments of one call are brought to the
    widest of their dtypes; outside such a region mixing them is an error.
    """
    floating = [
        a for a in args if isinstance(a, Tensor) and a.is_floating_point()
    ]
    if len({a.dtype for a in floating}) < 2:
        return args
    widest = floating[0].dtype
    for a in floating[1:]:
        widest = torch.promote_types(widest, a.dtype)
    return [
        a.to(widest) if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in args
    ]


# --- variants that write to an argument -------------------------------------


def _register_mutating(
    op: str,
    overload: OpOverload,
    raw: str,
    fake: Callable[..., None],
    written: Sequence[str],
) -> list[OpOverload]:
    raw_overload: OpOverload = getattr(_ops, raw).default
    names = [a.name for a in overload._schema.arguments]
    form, instead = ("out=", "leave out= away")
    if written != ["out"]:
        form, instead = (f"{op}_", f"use torch_foo.{op}")

    def autograd(
        keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any
    ) -> None:
        tensors = [
            a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)
        ]
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            raise RuntimeError(
                f"torch_foo.{op}: {form} does not support automatic "
                "differentiation, but one of the tensors requires grad; "
                f"{instead} or use torch.no_grad()"
            )
        below = keyset & torch._C._after_autograd_keyset
        overload.redispatch(below, *args, **kwargs)
        given = dict(zip(names, args, strict=False)) | kwargs
        mark_written(*(given[name] for name in written))

    def negative(each: OpOverload, *args: Any, **kwargs: Any) -> None:
        given = dict(zip(names, args, strict=False)) | kwargs
        for name in written:
            if given[name].is_neg():
                raise RuntimeError(
                    f"torch_foo.{op}: {name} is a negated view, expected a "
                    "plain tensor"
                )
        each(
            *map(_resolve_neg, args),
            **{name: _resolve_neg(value) for name, value in kwargs.items()},
        )

    _library.impl(overload.name(), autograd, "Autograd", with_keyset=True)
    for each in (overload, raw_overload):
        _library.impl(each.name(), partial(negative, each), "Negative")
        torch.library.register_fake(each.name(), fake)
    return [overload, raw_overload]


def _resolve_neg(value: Any) -> Any:
    return value.resolve_neg() if isinstance(value, Tensor) else value
