"""Runs on the CPU what has no kernel of foo's.

Most calls go through C++ (src/device/fallback.cc). What that does not take, and
what fails there, comes here: operators with arguments that the stable ABI
cannot carry (Scalar, Generator), results in ``out=``, memory that arguments
share, tensors of other devices, complex numbers, views, all that a newer torch
has beyond the generated table, and operators of other libraries.
"""

# mypy: allow-untyped-calls
# (parts of torch have no types)

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_foo import _torch_internals as internals
from torch_foo._torch_internals import OpOverload, arguments
from torch_foo.device import _random
from torch_foo.device._memory import adopt, fail_out_of_memory
from torch_foo.device._module import device_index
from torch_foo.device._views import (
    is_of_metadata,
    overload_of,
    set_geometry,
    set_storage,
)

_ops = torch.ops.torch_foo
_add = _ops._device_add.default._op
_to_cpu = _ops._device_to_cpu.default._op
_to_foo = _ops._device_to_foo.default._op
_NATIVE = "PrivateUse2"  # kFallbackKey in fallback.h
_AUTOCAST_CPU = internals.dispatch_keys("AutocastCPU")

# Arguments that may be on the CPU beside tensors of an accelerator.
_ON_CPU = {
    "_ctc_loss": {"input_lengths", "target_lengths"},
    "_ctc_loss_backward": {"input_lengths", "target_lengths"},
    "_index_put_impl_": {"indices"},
    "_pack_padded_sequence": {"lengths"},
    "_unsafe_index": {"indices"},
    "_unsafe_index_put": {"indices"},
    "index": {"indices"},
    "index_put": {"indices"},
    "index_put_": {"indices"},
}


# --- through C++ ------------------------------------------------------------


def register(aten: torch.library.Library) -> None:
    rows = (row.partition(" ") for row in _ops._device_fallbacks())
    described = {name: description for name, _, description in rows}
    # Others have a kernel of ATen's that allocates the result and calls out=,
    # as add.Tensor does, or a view and clone, as view_copy does.
    key = "CompositeExplicitAutogradNonFunctional"
    named = internals.names_with_kernel(key, "aten")
    others = {name for name in named if "copy" not in name} - described.keys()
    # Or one for all devices, and another for the CPU, as addr does.
    shared = internals.names_with_kernel("CompositeExplicitAutograd", "aten")
    on_cpu = set(internals.names_with_kernel("CPU", "aten")).intersection(
        shared
    )
    others |= {name for name in on_cpu if "pin" not in name} - described.keys()
    # This one is for all devices, and refuses those whose names it lacks.
    others.add("aten::mode.values")
    others.remove("aten::add.Tensor")  # below
    for name in [*described, *sorted(others)]:
        description = described.get(name, "")
        aten.impl(name, _Kernel(name, description), "PrivateUse1")
    aten.impl("add.Tensor", add, "PrivateUse1")
    _register_copies(aten)


def add(self: Tensor, other: Tensor, *, alpha: float = 1) -> Tensor:
    """Add by foo_core's kernel: a call of the table cannot have an alpha."""
    # ATen refuses some alphas that equal 1, as True.
    if type(alpha) in (int, float) and alpha == 1 and isinstance(other, Tensor):
        try:
            result: Tensor = _add(self, other)
            return result
        except RuntimeError:
            pass
    result = fallback(torch.ops.aten.add.Tensor, self, other, alpha=alpha)
    return result


class _Kernel:
    """An operator's kernel: the one in C++ and, if that fails, Python's.

    An error in C++ is a RuntimeError, in Python what the CPU's kernel raises.
    An operator is looked up at its first call, or enabling the device would
    take a quarter of a second.
    """

    __slots__ = ("description", "name", "native", "op")

    def __init__(self, name: str, description: str) -> None:
        self.name, self.description = name, description
        self.op: OpOverload | None = None
        self.native: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.op is None:
            self.op = overload_of(self.name)
            assert self.op is not None  # PyTorch has just called it
            if _description(self.op) == self.description:
                self.native = internals.kernel(self.op, _NATIVE)
        if self.native is not None and not _autocasts_on_cpu():
            try:
                return self.native(*args, **kwargs)
            except RuntimeError:
                pass
        return fallback(self.op, *args, **kwargs)


def _description(op: OpOverload) -> str:
    """Return the codes of device/fallback.h for the operator of this torch."""
    results = "".join(_code(str(r.type)) for r in internals.results(op))
    if arguments(op)[0].is_write:
        results = "0"
    return "".join(_code(str(a.type)) for a in arguments(op)) + " " + results


def _code(type_: str) -> str:
    for start, code in (("Optional[", "?"), ("List[", "[")):
        if type_.startswith(start):
            return code + _code(type_.removeprefix(start).removesuffix("]"))
    return {"Tensor": "T", "str": "S"}.get(type_, ".")


def _autocasts_on_cpu() -> bool:
    # The first is faster.
    return internals.autocast_is_enabled() and torch.is_autocast_enabled("cpu")


# --- through Python ---------------------------------------------------------


class _Plan(NamedTuple):
    """What has to be known of an operator, once."""

    kernel: Callable[..., Any]  # of the CPU
    is_of_metadata: bool
    tensors: list[int]  # positions of arguments that are one tensor
    outs: list[str]  # arguments that are out=
    generator: tuple[int, str] | None  # position and name
    is_seeded: bool


@cache
def _plan(op: OpOverload) -> _Plan:
    generators = (
        (i, a.name)
        for i, a in enumerate(arguments(op))
        if str(a.type) == "Optional[Generator]"
    )
    try:
        kernel = internals.kernel(op, "CPU")
    except NotImplementedError:
        raise NotImplementedError(
            f"Could not run '{op.name()}' with arguments from the 'foo' "
            "backend: it has a kernel neither for foo nor for the CPU, which "
            "foo would use."
        ) from None
    return _Plan(
        kernel,
        is_of_metadata(op),
        [i for i, a in enumerate(arguments(op)) if str(a.type) == "Tensor"],
        [a.name for a in arguments(op) if a.kwarg_only and a.is_write],
        next(generators, None),
        torch.Tag.nondeterministic_seeded in op.tags,
    )


def fallback(op: OpOverload, *args: Any, **kwargs: Any) -> Any:
    """Lower the arguments, call the CPU's kernel, lift the results."""
    plan = _plan(op)
    if plan.is_of_metadata:
        return plan.kernel(*args, **kwargs)
    args = _with_tensors(plan, args)
    kwargs, random = _with_foos_numbers(plan, args, kwargs)
    autocast: AbstractContextManager[None] = nullcontext()
    if _autocasts_on_cpu():  # which is not of foo's tensors
        autocast = internals.exclude_keys(_AUTOCAST_CPU)
    tensors = list(_tensors((*args, *kwargs.values())))
    is_on_foo = _check_devices(op, args, kwargs, tensors)
    lowered = _lower(tensors)
    outs = [
        out
        for out in _tensors(kwargs.get(name) for name in plan.outs)
        if not out.is_cpu
    ]
    # These may be resized, which an alias may not.
    fresh = [out for out in outs if out.numel() == 0]
    with random, autocast:
        try:
            result = _call(plan, args, kwargs, lowered, fresh)
        except RuntimeError as error:
            if not outs or "not resizable" not in str(error):
                raise
            if _share_memory(outs, tensors):
                raise RuntimeError(
                    "unsupported operation: some elements of the input tensor "
                    "and the written-to tensor refer to a single memory "
                    "location. Please clone() the tensor before performing "
                    "the operation."
                ) from None
            # PyTorch has warned that this is deprecated.
            fresh = outs
            result = _call(plan, args, kwargs, lowered, fresh)
    originals = {id(low): x for x, low in lowered.values()}
    _write_back(outs, fresh, lowered)
    if not is_on_foo:
        return result
    if op.name() == "aten::_pack_padded_sequence":  # the sizes stay on the CPU
        return _lift_all(result[0], originals), result[1]
    return _lift_all(result, originals)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _with_tensors(plan: _Plan, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments with tensors in the place of numbers.

    PyTorch hands the 2 of x % 2 to kernels as a tensor, but to those in Python
    as a number again, which the CPU's kernel does not take. It is promoted as
    a number is: the tensor has the dtype that x % 2 has.
    """
    numbers = [
        i
        for i in plan.tensors
        if i < len(args) and not isinstance(args[i], Tensor)
    ]
    if not numbers or None in (args[i] for i in numbers):
        return args
    # A mask is not computed with.
    computed = [x for x in _tensors(args) if x.dtype is not torch.bool]
    like = (computed or list(_tensors(args)))[-1]
    made = list(args)
    for i in numbers:
        dtype = torch.result_type(like, args[i])
        made[i] = torch.tensor(args[i], dtype=dtype)
    return tuple(made)


def _check_devices(
    op: OpOverload,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tensors: list[Tensor],
) -> bool:
    """Refuse tensors of other devices; return whether results are foo's."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.device):
            return value.type == "foo"
    others = [t for t in tensors if t.device.type != "foo"]
    if not others or len(others) == len(tensors):
        return True
    packet = op.name().removeprefix("aten::").partition(".")[0]
    for argument, value in _by_argument(op, args, kwargs):
        may_be_on_cpu = argument.name in _ON_CPU.get(packet, ())
        for x in _tensors([value]):
            if x.device.type == "foo" or (
                x.is_cpu
                and (x.dim() == 0 or may_be_on_cpu)
                and not argument.is_write
            ):
                continue
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at "
                f"least two devices, foo:0 and {x.device}! (when checking "
                f"argument {argument.name} of {op.name()})"
            )
    return True


def _by_argument(
    op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[Any, Any]]:
    for i, argument in enumerate(arguments(op)):
        if i < len(args):
            yield argument, args[i]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]


def _with_foos_numbers(
    plan: _Plan, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[str, Any], AbstractContextManager[None]]:
    """Let random numbers come from foo's stream, not from the CPU's."""
    if plan.generator is not None:
        position, name = plan.generator
        if len(args) <= position and kwargs.get(name) is None:
            kwargs = {**kwargs, name: _random.generator}
    elif plan.is_seeded:
        return kwargs, _random.lent_to_cpu()
    return kwargs, nullcontext()


def _share_memory(outs: list[Tensor], tensors: list[Tensor]) -> bool:
    written = {id(x): x.untyped_storage().data_ptr() for x in outs}
    return any(
        x.untyped_storage().data_ptr() in written.values()
        for x in tensors
        if x.device.type == "foo" and id(x) not in written
    )


_Lowered = dict[int, tuple[Tensor, Tensor]]


def _lower(tensors: list[Tensor]) -> _Lowered:
    """Return CPU tensors over the memory of foo tensors, with those, by id."""
    foos = {id(x): x for x in tensors if not x.is_cpu}
    if not foos:
        return {}
    lows = map(_with_lazy_bits, foos.values(), _to_cpu(list(foos.values())))
    return dict(zip(foos, zip(foos.values(), lows, strict=True), strict=True))


def _with_lazy_bits(x: Tensor, low: Tensor) -> Tensor:
    # Some kernels, as mm's, read these.
    if x.is_conj():
        low = low.conj()
    return low._neg_view() if x.is_neg() else low


def _call(
    plan: _Plan,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    lowered: _Lowered,
    fresh: list[Tensor],
) -> Any:
    for out in fresh:
        lowered[id(out)] = out, torch.empty(0, dtype=out.dtype)
    low_kwargs = {name: _low(value, lowered) for name, value in kwargs.items()}
    low_args = [_low(value, lowered) for value in args]
    return plan.kernel(*low_args, **low_kwargs)


def _low(value: Any, lowered: _Lowered) -> Any:
    if isinstance(value, Tensor):
        return value if value.is_cpu else lowered[id(value)][1]
    if isinstance(value, (list, tuple)):
        return [_low(item, lowered) for item in value]
    if isinstance(value, torch.device) and value.type == "foo":
        device_index(value)
        return torch.device("cpu")
    return value


def _write_back(
    outs: list[Tensor], fresh: list[Tensor], lowered: _Lowered
) -> None:
    """Give out= the shapes, or the memory, that their CPU tensors have now."""
    is_fresh = set(map(id, fresh))
    changes: list[Callable[[], object]] = []
    for out in outs:
        _, low = lowered[id(out)]
        if id(out) not in is_fresh:
            if low.is_conj() != out.is_conj():
                # The kernel set the bit, as linalg.lu_solve does.
                changes.append(partial(low.conj().copy_, low.clone()))
            if (low.shape, low.stride()) != (out.shape, out.stride()):
                changes.append(partial(set_geometry, out, low))
        elif low.shape == out.shape:
            changes.append(partial(copy_from, low, out))
        else:
            changes.append(partial(set_storage, out, lift(low)))
    for change in changes:  # now that there is memory for all
        change()


def _lift_all(result: Any, originals: dict[int, Tensor]) -> Any:
    """Return results with foo tensors in the place of CPU tensors."""
    if isinstance(result, Tensor):
        original = originals.get(id(result))
        return lift(result) if original is None else original
    if isinstance(result, (list, tuple)):
        return type(result)([_lift_all(x, originals) for x in result])
    return result


def lift(x: Tensor) -> Tensor:
    """Return a foo tensor over the memory of a CPU tensor, which it keeps."""
    if not x.is_cpu:
        return x
    if x.layout is not torch.strided or x.is_quantized or x.is_nested:
        raise NotImplementedError(
            "foo has strided tensors only, but the result is "
            f"{'nested' if x.is_nested else x.layout} of {x.dtype}"
        )
    x = x.resolve_conj().resolve_neg()
    managed = _to_foo(x)
    if managed == 0:
        fail_out_of_memory(x.shape, x.stride(), x.dtype)
    return adopt(managed, x.dtype)


# --- copies and scalars -----------------------------------------------------


def _register_copies(aten: torch.library.Library) -> None:
    aten.impl("_copy_from", copy_from, "PrivateUse1")
    aten.impl("_copy_from_and_resize", copy_from_and_resize, "PrivateUse1")
    aten.impl("_local_scalar_dense", local_scalar, "PrivateUse1")
    for key in ("Conjugate", "Negative"):
        # Or copy_ would resolve the bit by a clone, which is a copy.
        aten.impl("_copy_from", torch.library.fallthrough_kernel, key)


def register_collectives(c10d: torch.library.Library) -> None:
    """Let torch.distributed's backend for the CPU, gloo, serve foo.

    A real device has a backend of its own, which PyTorch's kernels call. That
    is why these have some for every device, and replacing them is a warning.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name in internals.names_with_kernel("PrivateUse1", "c10d"):
            overload = overload_of(name)
            if overload is not None:
                kernel = partial(fallback, overload)
                c10d.impl(name, kernel, "PrivateUse1")


def copy_from(src: Tensor, dst: Tensor, non_blocking: bool = False) -> Tensor:
    lowered = _lower([t for t in (src, dst) if t.device.type == "foo"])
    low_src, low_dst = (lowered.get(id(t), (t, t))[1] for t in (src, dst))
    low_dst.copy_(low_src)
    return dst


def copy_from_and_resize(src: Tensor, dst: Tensor) -> Tensor:
    copied: Tensor = dst.resize_(src.shape).copy_(src)
    return copied


def local_scalar(x: Tensor) -> Any:
    return _to_cpu([x])[0].item()
