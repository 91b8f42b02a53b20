"""Runs on the CPU what has no kernel and does not go through C++.

These are operators with arguments that the stable ABI cannot carry (Scalar,
Generator), results in ``out=``, and all that a newer torch has beyond the
generated table.
"""

# mypy: allow-untyped-calls
# (parts of torch have no types)

from functools import cache
from typing import Any

import torch
from torch import Tensor

from torch_foo._torch_internals import OpOverload, arguments
from torch_foo.device._views import overload_of, set_storage

_ops = torch.ops.torch_foo
_to_cpu = _ops._device_to_cpu.default._op
_to_foo = _ops._device_to_foo.default._op


# --- which rows of the C++ table this torch can use -------------------------


def usable() -> list[bool]:
    """Return for each row whether this torch has the operator as it was."""
    return [_is_as_described(*row.split(" ")) for row in _rows()]


def _rows() -> list[str]:
    return list(_ops._device_fallbacks())


def _is_as_described(name: str, letters: str, results: str = "") -> bool:
    overload = overload_of(name)
    if overload is None:
        return False
    schema = overload._schema
    found = "".join(_letter(str(a.type)) for a in schema.arguments)
    return found == letters and len(schema.returns) == len(results)


_LETTERS = {
    "Tensor": "T",
    "Optional[Tensor]": "O",
    "List[Tensor]": "L",
    "List[Optional[Tensor]]": "M",
    "Device": "D",
    "Optional[Device]": "E",
}


def _letter(type_: str) -> str:
    return _LETTERS.get(type_, ".")


# --- the fallback -----------------------------------------------------------


def fallback(op: OpOverload, *args: Any, **kwargs: Any) -> Any:
    """Lower the arguments, call the CPU's kernel, lift the results."""
    lowered: dict[int, tuple[Tensor, Tensor]] = {}
    outs = _out_names(op)

    def lower(x: Any) -> Any:
        if isinstance(x, Tensor):
            if x.device.type != "foo":
                return x
            if id(x) not in lowered:
                lowered[id(x)] = (_to_cpu(x), x)
            return lowered[id(x)][0]
        if isinstance(x, torch.device):
            return torch.device("cpu") if x.type == "foo" else x
        if isinstance(x, (list, tuple)):
            return type(x)(map(lower, x))
        return x

    # The CPU's kernel may resize what it writes to: it gets a fresh tensor.
    fresh = []
    low_args = [lower(a) for a in args]
    low_kwargs = {n: lower(v) for n, v in kwargs.items() if n not in outs}
    for name in outs:
        out = kwargs.get(name)
        if isinstance(out, Tensor) and out.device.type == "foo":
            new = torch.empty(0, dtype=out.dtype)
            low_kwargs[name] = new
            fresh.append((new, out))
        else:
            low_kwargs[name] = out
    result = op(*low_args, **low_kwargs)
    for new, out in fresh:
        if new.shape == out.shape:
            _to_cpu(out).copy_(new)
        else:
            set_storage(out, _to_foo(new))
    back = {id(low): x for low, x in lowered.values()}
    back |= {id(new): out for new, out in fresh}

    def lift(x: Any) -> Any:
        if isinstance(x, Tensor):
            if id(x) in back:
                return back[id(x)]
            return _to_foo(x) if x.device.type == "cpu" else x
        if isinstance(x, (list, tuple)):
            return type(x)(map(lift, x))
        return x

    return lift(result)


@cache
def _out_names(op: OpOverload) -> list[str]:
    return [
        a.name
        for a in arguments(op)
        if a.kwarg_only and a.alias_info is not None and a.alias_info.is_write
    ]


# --- copies and scalars -----------------------------------------------------


def register(aten: torch.library.Library) -> None:
    aten.impl("_copy_from", copy_from, "PrivateUse1")
    aten.impl("_copy_from_and_resize", copy_from_and_resize, "PrivateUse1")
    aten.impl("_local_scalar_dense", local_scalar, "PrivateUse1")
    for key in ("Conjugate", "Negative"):
        # Or copy_ would resolve the bit by a clone, which is a copy.
        aten.impl("_copy_from", torch.library.fallthrough_kernel, key)


def _plain(x: Tensor) -> Tensor:
    """Return a CPU tensor over the same memory, with its lazy bits."""
    if x.device.type != "foo":
        return x
    low: Tensor = _to_cpu(x)
    if x.is_conj():
        low = low.conj()
    return low._neg_view() if x.is_neg() else low


def copy_from(src: Tensor, dst: Tensor, non_blocking: bool = False) -> Tensor:
    _plain(dst).copy_(_plain(src))
    return dst


def copy_from_and_resize(src: Tensor, dst: Tensor) -> Tensor:
    copied: Tensor = dst.resize_(src.shape).copy_(src)
    return copied


def local_scalar(x: Tensor) -> Any:
    return _to_cpu(x).item()
