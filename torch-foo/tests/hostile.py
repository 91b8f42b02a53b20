"""Attacks every operator with calls that nobody would write.

A seed decides a call: a sample with hostile arguments, the form (function,
operator, raw operator; with out= or in place) and the context that it runs in
(transforms, gradients, modes). What it should do is decided without kernels:
by the operator's fake, which knows shapes and dtypes, and by its reference, in
float64. Calls run in worker processes, so that a crash is a finding too.
"""

import argparse
import contextlib
import math
import multiprocessing
import os
import re
import resource
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from random import Random
from typing import Any

# Memory that nobody has written holds neither zeros nor old results.
os.environ.setdefault("MALLOC_PERTURB_", "129")
# Threads that wait leave the processor to the other worker.
os.environ["OMP_WAIT_POLICY"] = "passive"

import numpy as np
import torch
import torch_foo
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only
from torch_foo.operators import OPERATORS, Operator
from torch_foo.operators.base import DTYPES

Context = Callable[[Any, list[Any], "Call", Random], Any]

_ops = torch.ops.torch_foo

WORKERS = 2
SECONDS = 60  # that a call may take; it takes milliseconds
MEMORY = 2**29  # bytes that a call may ask for; it needs kilobytes
ERRORS = (RuntimeError, TypeError, ValueError, IndexError, OverflowError)
PATH = re.compile(r"(?<![\w.])/\w+/[\w.+-]|\.(cc|cpp|cu|h|py)\b")
#: What may be wrong in a sum of magnitude 1.
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 2e-5,
    torch.bfloat16: 2**-6,
    torch.float16: 2**-9,
}
SAMPLES = [(o, list(o.samples())) for o in OPERATORS.values()]
ALL_DTYPES = sorted(
    {d for d in vars(torch).values() if isinstance(d, torch.dtype)}, key=str
)
SPECIAL = (
    *(math.nan, math.inf, -math.inf, 0.0, -0.0),
    *(1e-310, 1e-40, 6e-8, 3e38, -6e4, 1e300),
)
SPECIAL_INTEGERS = (-1, 0, 1, -100, 2**31, 2**63 - 1, -(2**63))
SCALARS = {
    "float": (*SPECIAL, -1.0, 0.5, 1 + 1e-9, 1, True, 2**70, 10**400),
    "int": (*SPECIAL_INTEGERS, 2**63, 1.0),
    "bool": (True, False, 0, 2, None),
    "str": (
        *("mean", "sum", "none", "tanh", "", "Mean", "none ", "no\0ne"),
        *("\N{GREEK SMALL LETTER ALPHA}", "\ud800", "m" * 5000, "'%s{}"),
    ),
}
OTHERS = (
    *(None, 1, 1.5, True, 2**70, "x", b"x", [], [1.0], (2, 3), {}, 1j, ...),
    *(object(), float, range(3), torch.float32, torch.Size([2])),
    *(np.ones(3), np.float32(1), [torch.ones(2)], torch.Generator()),
)


TOO_LONG = "it would take too long"


class Subclass(Tensor):
    pass


@dataclass
class Call:
    """One call; `args` are in the schema's order, and then comes out."""

    operator: type[Operator]
    form: str
    args: dict[str, Any]
    leaves: list[int]  # the arguments that may have gradients
    context: str = "nothing"
    keyword_from: int = 99
    extra: tuple[list[Any], dict[str, Any]] = field(
        default_factory=lambda: ([], {})
    )
    #: How many dimensions of size 1 were put in front of an argument.
    leading: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        given = [f"{k}={describe(v)}" for k, v in self.args.items()]
        given += [str(e) for e in self.extra if e]
        text = f"{self.operator.__name__}({', '.join(given)})"
        return f"{text}, {self.form}, in {self.context}"

    @property
    def schema(self) -> list[Any]:
        name = self.operator.__name__
        return list(getattr(_ops, name).default._schema.arguments)

    @property
    def is_raw(self) -> bool:
        """Whether autograd and autocast do not know the form."""
        return self.form.startswith("raw") or not self.operator.is_public()

    @property
    def written(self) -> list[str]:
        if "in place" in self.form:
            return list(self.operator.inplace.values())
        return ["out"] if "out" in self.form else []

    def __call__(self, *args: Any) -> list[Any]:
        """Call the form with these values of the arguments."""
        given = dict(zip(self.args, args, strict=True))
        name = self.operator.__name__ + "_" * ("in place" in self.form)
        has_out = "out" in self.form
        packet = getattr(_ops, name)
        overload = packet.out if has_out else packet.default
        keyword = [a.name for a in overload._schema.arguments if a.kwarg_only]
        keyword += list(given)[self.keyword_from :]
        function: Any = overload
        if self.form.startswith("function"):
            function = getattr(torch_foo, name)
        elif self.form.startswith("raw"):
            function = getattr(_ops, f"_{name}" + "_out" * has_out).default
            keyword = []
        positional = [v for k, v in given.items() if k not in keyword]
        named = {k: v for k, v in given.items() if k in keyword}
        result = function(*positional, *self.extra[0], **named, **self.extra[1])
        if self.written:
            returned = given["out"] if self.form == "function out" else None
            assert result is returned, f"returned {describe(result)}"
            return [given[name] for name in self.written]
        results = list(result) if isinstance(result, tuple) else [result]
        internal = len(self.operator.internal_results)
        count = len(packet.default._schema.returns) - internal
        return results[:count]

    def reference(self, *args: Any) -> list[Any]:
        result = self.operator.reference(*args[: len(self.schema)])
        return list(result) if isinstance(result, tuple) else [result]


def describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)[:60]
    if value.is_nested or value.layout != torch.strided:
        return f"{value.dtype} {value.layout} {type(value)}"
    shape, strides = tuple(value.shape), value.stride()
    if value.dim() > 9:
        shape, strides = ("...", *shape[-8:]), ("...", *strides[-8:])
    flags = [value.device.type, type(value).__name__]
    for flag in ("requires_grad", "is_neg", "is_conj", "is_inference"):
        on = getattr(value, flag)
        flags += [flag] if (on() if callable(on) else on) else []
    special = {"cpu", "Tensor"}
    dtype = str(value.dtype).removeprefix("torch.")
    words = [dtype, shape, strides, value.storage_offset()]
    return " ".join(map(str, [*words, *(f for f in flags if f not in special)]))


# --- hostile arguments --------------------------------------------------------


def special(t: Tensor, rng: Random) -> Tensor:
    floating = t.is_floating_point()
    values = SPECIAL if floating else SPECIAL_INTEGERS
    dtype = torch.float64 if floating else torch.int64
    flat = t.flatten().clone()
    for _ in range(rng.randint(1, 3) if t.numel() else 0):
        value = torch.tensor(rng.choice(values), dtype=dtype)
        flat[rng.randrange(t.numel())] = value.to(t.dtype)
    return flat.view(t.shape)


def embedded(t: Tensor, rng: Random) -> Tensor:
    """The same values with gaps, which hold what a result would show."""
    strides, stride = [0] * t.dim(), 1
    for i in rng.sample(range(t.dim()), t.dim()):
        strides[i] = stride * rng.choice((1, 1, 2, 3))
        stride = max(strides[i] * t.shape[i], 1)
    if stride > 2**40:  # of no elements
        return t
    offset = rng.choice((0, 1, 5, 16))
    gap = math.nan if t.is_floating_point() else 113
    memory = torch.full((offset + stride + 9,), gap).to(t.dtype)
    return memory.as_strided(t.shape, strides, offset).copy_(t)


def expanded(t: Tensor, rng: Random) -> Tensor:
    if t.numel() == 0 or t.dim() == 0:
        return t
    d = rng.randrange(t.dim())
    return t.narrow(d, 0, 1).expand_as(t)


def overlapping(t: Tensor, rng: Random) -> Tensor:
    """Windows of a memory that is shorter than they are together."""
    strides = [rng.choice((0, 1, 1, 2)) for _ in t.shape]
    size = 1 + sum(s * max(n - 1, 0) for s, n in zip(strides, t.shape))
    values = (
        torch.arange(size) % 3
        if not t.is_floating_point()
        else t.new_empty(size).normal_()
    )
    return values.to(t.dtype).as_strided(t.shape, strides)


def negated(t: Tensor, rng: Random) -> Tensor:
    if not t.is_floating_point() or t.dtype == torch.bfloat16:
        return torch._neg_view(-t)
    return (
        torch.complex(*[-t.double()] * 2).conj().imag.to(t.dtype)
        if t.dtype != torch.float64
        else torch.complex(t, -t).conj().imag
    )


SAME_VALUES = [
    *[embedded] * 6,
    expanded,
    overlapping,
    lambda t, rng: torch._neg_view(-t) if t.dtype != torch.bool else t,
    lambda t, rng: torch.nn.Parameter(t, requires_grad=False),
    lambda t, rng: t.as_subclass(Subclass),
    lambda t, rng: t.requires_grad_(t.is_floating_point()),
    lambda t, rng: torch._efficientzerotensor(t.shape, dtype=t.dtype),
]


def unfit(t: Tensor, rng: Random) -> Tensor:
    """A tensor that most arguments may not be."""
    shape, d = list(t.shape), rng.randrange(t.dim() or 1)
    kind = rng.randrange(12)
    if kind == 0:
        return torch.empty(shape, dtype=rng.choice(ALL_DTYPES))
    if kind == 1:
        return t.to("meta")
    if kind == 2 and shape:
        return t.to_sparse()
    if kind == 3 and len(shape) == 2:
        return t.to_sparse_csr()
    if kind == 4 and t.dtype == torch.float32:
        return t.to_mkldnn()
    if kind == 5 and t.dtype == torch.float32:
        return torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)
    if kind == 6 and len(shape) > 1 and t.numel():
        return torch.nested.nested_tensor(list(t))
    if kind == 7:
        return torch.zeros(shape, dtype=torch.complex64).conj()
    if kind == 8 and shape:
        shape[d] = rng.choice((0, 1, 2, 3, 7))
        return t.new_ones(shape)
    if kind == 9:
        return t.unsqueeze(rng.randint(0, t.dim()))
    if kind == 10 and t.numel() and shape:
        return t.select(d, 0)
    return t.to(rng.choice(DTYPES)) if t.is_floating_point() else t.int()


def resize(args: dict[str, Any], rng: Random) -> None:
    """Change sizes that are equal alike, which leaves most calls legal."""
    tensors = {k: a for k, a in args.items() if isinstance(a, Tensor)}
    new: dict[int, int] = {}
    for name, a in tensors.items():
        for d, n in enumerate(a.shape):
            sizes = (n, n, 2 * n, 0, 1, rng.randint(1, 40))
            size = new.setdefault(n, rng.choice(sizes))
            if n > 0:
                a = a.index_select(d, torch.arange(size) % n)
        args[name] = a


def enlarge(args: dict[str, Any], rng: Random) -> None:
    """Bring sizes to the limits, by strides of 0."""
    tensors = {k: a for k, a in args.items() if isinstance(a, Tensor)}
    if not all(is_plain(a) and not a.is_neg() for a in tensors.values()):
        return  # of some, torch makes copies
    old = rng.choice(
        sorted({1, *(n for a in tensors.values() for n in a.shape)})
    )
    new = 2 ** rng.choice((31, 31, 32, 40, 61, 62)) + rng.choice((-1, 0, 1))
    new = rng.choice((new, new, new, 2**63 - 1))
    for name, a in tensors.items():
        if old in a.shape:
            d = a.shape.index(old)
            one, shape = list(a.shape), list(a.shape)
            one[d], shape[d] = 1, new
            with contextlib.suppress(RuntimeError):  # not even torch can
                a = a.narrow(d, 0, 1) if old else a.new_ones(one)
                args[name] = a.expand(shape)


def hostile_out(call: Call, like: Tensor, rng: Random) -> Any:
    """Something to write a result like this to."""
    tensors = [a for a in call.args.values() if isinstance(a, Tensor)]
    kind = rng.randrange(16)
    out = like.new_full(like.shape, 7.0)
    if kind == 0:
        return rng.choice(OTHERS[1:])
    if kind == 1:
        return unfit(out, rng)
    if kind == 2:
        return rng.choice(SAME_VALUES)(out, rng)
    if kind < 6:
        return rng.choice(tensors)
    if kind == 6 and out.numel():
        # A window into an argument's memory.
        memory = rng.choice(tensors)
        memory = torch.empty(0, dtype=out.dtype).set_(memory.untyped_storage())
        start = memory.numel() - out.numel()
        if start >= 0:
            return memory[rng.randint(0, start) :][: out.numel()].view_as(out)
    if kind == 7:
        with torch.inference_mode():
            return out.clone()
    return embedded(out, rng)


def tensors_or_first(call: Call) -> Tensor:
    """Return a tensor like the result, or like any argument."""
    args = [call.args[a.name] for a in call.schema]
    try:
        metas = [as_meta(a) if isinstance(a, Tensor) else a for a in args]
        result = call.operator.fake(*metas)
        if result.nbytes < 2**22:
            return torch.empty(result.shape, dtype=result.dtype)
    except Exception:  # whatever is wrong with the arguments
        pass
    return torch.ones(3, 5)


def forms(operator: type[Operator]) -> list[str]:
    name = operator.__name__
    kinds = ["operator"]
    if operator.is_public():
        kinds = ["function", "operator"]
        kinds += ["raw"] * hasattr(_ops, f"_{name}")
    found = [*kinds, *kinds]
    if "out" in operator.variants:
        found += [f"{kind} out" for kind in kinds]
    if operator.inplace:
        found += [f"{kind} in place" for kind in kinds]
    return found


def make(seed: int) -> Call:
    """Return the call of a seed."""
    rng = Random(seed)
    torch.default_generator.manual_seed(seed)  # the rest takes a millisecond
    operator, samples = rng.choice(SAMPLES)
    is_large = rng.random() < 0.01
    same = [s for s in samples if s.is_large == is_large] or samples
    sample, dtype = rng.choice(same), rng.choice(DTYPES)
    call = Call(operator, rng.choice(forms(operator)), {}, [])
    values = dict(zip((a.name for a in call.schema), sample.args(dtype)))
    for a in call.schema:
        default = sample.named.get(a.name, a.default_value)
        call.args[a.name] = values.get(a.name, default)
    shapes = enumerate(sample.arguments)
    call.leaves = [i for i, a in shapes if isinstance(a, tuple)]
    args = call.args

    def chance(probability: float) -> bool:
        return rng.random() < probability

    def tensors() -> list[str]:
        return [k for k, a in args.items() if isinstance(a, Tensor)]

    if chance(0.3):
        resize(args, rng)
    for name in tensors():
        if chance(0.1):
            args[name] = special(args[name], rng)
        if chance(0.5):
            args[name] = rng.choice(SAME_VALUES)(args[name], rng)
    if chance(0.05):
        one, other = rng.choice(tensors()), rng.choice(tensors())
        if (args[one].shape, args[one].dtype) == (
            args[other].shape,
            args[other].dtype,
        ):
            args[one] = args[other]
    if chance(0.15):
        name = rng.choice(tensors())
        with contextlib.suppress(RuntimeError, NotImplementedError):
            args[name] = unfit(args[name], rng)
    if chance(0.05):
        enlarge(args, rng)
    elif chance(0.1):
        count, share = (
            rng.choice(
                (
                    1,
                    60,
                )
            ),
            rng.choice((0.5, 1)),
        )
        for name in tensors():
            if is_plain(args[name]) and chance(share):
                call.leading[name] = count
                ones = (1,) * count
                args[name] = args[name].reshape(ones + args[name].shape)
    for a in call.schema:
        kind = str(a.type).removeprefix("Optional[").removesuffix("]")
        if kind != "Tensor" and chance(0.1):
            args[a.name] = rng.choice(SCALARS[kind])
    if chance(0.03):
        args[rng.choice(list(args))] = rng.choice(OTHERS)
    if chance(0.02):
        call.extra[0].extend([rng.choice(OTHERS)] * rng.randint(1, 9))
    if chance(0.02):
        call.extra[1][rng.choice(("unknown", "out_", "self"))] = None
    call.keyword_from = rng.choice((99, 99, 0, 1, 2))
    if call.form.endswith("out"):
        like = tensors_or_first(call)
        with contextlib.suppress(RuntimeError, NotImplementedError):
            args["out"] = like
            args["out"] = hostile_out(call, like, rng)
    call.context = rng.choice(possible_contexts(call))
    return call


# --- contexts -----------------------------------------------------------------


def floating(values: list[Any]) -> list[Tensor]:
    return [
        v for v in values if isinstance(v, Tensor) and v.is_floating_point()
    ]


def cotangent(t: Tensor) -> Tensor:
    """Numbers that all dtypes have."""
    return ((torch.arange(t.numel()) % 5 - 2) / 2).to(t.dtype).view(t.shape)


def total(results: list[Any]) -> Any:
    parts = [(r * cotangent(r)).sum().double() for r in floating(results)]
    return sum(parts, torch.zeros((), dtype=torch.float64))


def in_mode(manager: Callable[[], Any]) -> Context:
    def context(f: Any, args: list[Any], call: Call, rng: Random) -> Any:
        with manager():
            return f(*args)

    return context


def as_meta(t: Tensor) -> Tensor:
    return torch.empty_strided(
        t.shape, t.stride(), dtype=t.dtype, device="meta"
    )


def on_meta(f: Any, args: list[Any], call: Call, rng: Random) -> Any:
    return f(*(as_meta(a) if isinstance(a, Tensor) else a for a in args))


def on_fakes(f: Any, args: list[Any], call: Call, rng: Random) -> Any:
    with FakeTensorMode() as mode:
        return f(*tree_map_only(Tensor, mode.from_tensor, args))


def gradients(order: int) -> Context:
    def context(f: Any, args: list[Any], call: Call, rng: Random) -> Any:
        args = list(args)
        for i in call.leaves:
            args[i] = args[i].detach().requires_grad_()
        leaves = [args[i] for i in call.leaves]
        results = f(*args)
        everything = [*results]
        for _ in range(order):
            value = total(results)
            results = [torch.zeros_like(leaf) for leaf in leaves]
            if value.requires_grad:
                found = torch.autograd.grad(
                    value, leaves, create_graph=True, allow_unused=True
                )
                results = [
                    zero if g is None else g for g, zero in zip(found, results)
                ]
            everything += results
        return everything

    return context


def transform(make: Callable[[Any, tuple[int, ...]], Any]) -> Context:
    def context(f: Any, args: list[Any], call: Call, rng: Random) -> Any:
        def of_leaves(*leaves: Any) -> Any:
            given = list(args)
            for i, leaf in zip(call.leaves, leaves):
                given[i] = leaf
            return total(f(*given))

        where = tuple(range(len(call.leaves)))
        return list(make(of_leaves, where)(*(args[i] for i in call.leaves)))

    return context


def jvp(f: Any, argnums: tuple[int, ...]) -> Any:
    return lambda *leaves: torch.func.jvp(
        f, leaves, tuple(map(cotangent, leaves))
    )


def vmap(inner: Context) -> Context:
    def context(f: Any, args: list[Any], call: Call, rng: Random) -> Any:
        args, size = list(args), rng.choice((0, 1, 2, 2, 3))
        tensors = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
        dims: list[int | None] = [None] * len(args)
        for i in rng.sample(tensors, rng.randint(1, len(tensors))):
            d = dims[i] = rng.randint(0, args[i].dim())
            examples = [args[i].roll(k) for k in range(max(size, 1))]
            args[i] = torch.stack(examples, d).narrow(d, 0, size)
        seed = rng.random()

        def example(*args: Any) -> Any:
            results = inner(f, list(args), call, Random(seed))
            return [r for r in results if r is not None]

        return torch.vmap(example, tuple(dims))(*args)

    return context


_nothing = in_mode(contextlib.nullcontext)
MODES: dict[str, Context] = {
    "nothing": _nothing,
    "no_grad": in_mode(torch.no_grad),
    "inference_mode": in_mode(torch.inference_mode),
    "autocast": in_mode(lambda: torch.autocast("cpu", torch.bfloat16)),
}
NO_DATA: dict[str, Context] = {"meta": on_meta, "fake": on_fakes}
VMAPS = {"vmap": vmap(_nothing), "vmap of vmap": vmap(vmap(_nothing))}
GRADIENTS = {
    "grad": gradients(1),
    "grad of grad": gradients(2),
    "func.grad": transform(torch.func.grad),
    "jacrev": transform(torch.func.jacrev),
    "vmap of func.grad": vmap(transform(torch.func.grad)),
    "jvp": transform(jvp),
}
CONTEXTS = {**MODES, **NO_DATA, **VMAPS, **GRADIENTS}
CONTEXTS["functionalize"] = lambda f, args, call, rng: torch.func.functionalize(
    f
)(*args)


def is_plain(t: Tensor) -> bool:
    """Whether it is a tensor that contexts can handle."""
    return (
        t.layout == torch.strided
        and t.dtype in (*DTYPES, torch.int64, torch.int32)
        and t.device.type == "cpu"
        and not (t.is_nested or t.is_quantized)
        and all(n < 2**22 for n in (*t.shape, t.numel()))
    )


def possible_contexts(call: Call) -> list[str]:
    tensors = [a for a in call.args.values() if isinstance(a, Tensor)]
    if not all(map(is_plain, tensors)):
        return ["nothing", "nothing", *MODES]
    found = ["nothing"] * 8 + [*MODES, *NO_DATA, *VMAPS] * bool(tensors)
    if call.form != "function":  # torch: no rule for autograd.Function
        found.append("functionalize")
    leaves = [list(call.args.values())[i] for i in call.leaves]
    if (
        not (call.is_raw or call.written)
        and call.operator.backward is not None
        and len(floating(leaves)) == len(leaves)
        and not any(t.is_inference() for t in tensors)
    ):
        found += ["grad", "grad of grad"] * 2
        if call.form == "function":  # the operators have no torch.func.grad
            found += [*GRADIENTS]
    return found


# --- what a call should do ----------------------------------------------------


def promoted(args: list[Any]) -> list[Any]:
    """What autocast makes of arguments that have several dtypes."""
    dtypes = [a.dtype for a in floating(args)]
    for dtype in dtypes:
        dtypes[0] = torch.promote_types(dtypes[0], dtype)
    return [
        a.to(dtypes[0])
        if isinstance(a, Tensor) and a.is_floating_point()
        else a
        for a in args
    ]


@dataclass
class Expected:
    #: Whether it has to return (True), to raise (False) or may do either.
    returns: bool | None
    why: str = ""
    empty: list[Any] = field(default_factory=list)  # the results' metadata
    args: list[Any] | None = None  # as the reference takes them


def fits(a: Any, value: Any) -> bool | None:
    """Whether a value is of an argument's type."""
    kind, optional = str(a.type), str(a.type).startswith("Optional")
    if value is None:
        return optional or (None if kind == "bool" else False)
    if "Tensor" in kind:
        return isinstance(value, Tensor)
    plain = {"float": (int, float), "int": int, "bool": bool, "str": str}
    good = isinstance(value, plain[kind])
    if good and isinstance(value, int) and not -(2**63) <= value < 2**63:
        return None
    return (
        True
        if good
        and (kind == "bool")
        == (value in (True, False) and isinstance(value, bool))
        else None
    )


def expect(call: Call) -> Expected:
    args = [call.args[a.name] for a in call.schema]
    tensors = [a for a in args if isinstance(a, Tensor)]
    fit = [fits(a, v) for a, v in zip(call.schema, args)]
    if False in fit or call.extra[0] or call.extra[1]:
        return Expected(False, "of the types")
    if any(t.layout != torch.strided or t.is_nested for t in tensors):
        return Expected(False, "of a layout")
    if len({t.device for t in tensors}) > 1:
        return Expected(False, "of devices")
    promotes = call.context == "autocast" and call.operator.autocast
    try:
        metas = [as_meta(a) if isinstance(a, Tensor) else a for a in args]
        if promotes and not call.written:
            metas = promoted(metas)
        empty = call.operator.fake(*metas)
    except (
        RuntimeError,
        IndexError,
        AttributeError,
        TypeError,
        ValueError,
        OverflowError,
    ) as error:
        if "overflowed" in str(error):  # of what it may not need
            return Expected(None, TOO_LONG)
        return Expected(False, f"fake: {error}")
    results = list(empty) if isinstance(empty, tuple) else [empty]
    returns = None if None in fit else True
    expected = Expected(returns, "", results)
    if call.context in NO_DATA or (tensors and tensors[0].is_meta):
        expected.returns = None if call.written else expected.returns
        return expected
    nbytes = sum(r.nbytes for r in results if r is not None)
    if nbytes > 2 * MEMORY:
        return Expected(False, "of memory", results)
    if any(t.numel() > 2**22 for t in tensors) or nbytes > 2**24:
        return Expected(None, TOO_LONG, results)
    if not all(map(is_plain, tensors)):
        return expected
    plain = []
    for a, value in zip(call.schema, args):
        if isinstance(value, Tensor):
            value = (
                value.as_subclass(Tensor)
                .detach()
                .clone(memory_format=torch.contiguous_format)
                .resolve_neg()
                + 0
            )
            value = value.reshape(value.shape[call.leading.get(a.name, 0) :])
        plain.append(value)
    if promotes and not call.written:
        plain = promoted(plain)
    internal = {r for o in OPERATORS.values() for r in o.internal_results}
    if internal & {a.name for a in call.schema}:
        # The reference computes what such an argument holds.
        expected.returns = None
        return expected
    expected.args = plain
    try:
        call.reference(*plain)
    except Exception as error:
        if (
            isinstance(error, (OverflowError, TypeError))
            or "vmap" in call.context
        ):
            return Expected(None)
        return Expected(False, f"reference: {error}", results)
    if call.written:
        expected.returns, expected.why = writable(call, expected)
    if call.context == "jvp" or (call.leading and call.context in GRADIENTS):
        expected.returns = None
    return expected


def bytes_of(t: Tensor) -> Tensor:
    """Return the memory that a tensor has a part of."""
    return torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())


def has_memory(t: Any) -> bool:
    return (
        isinstance(t, Tensor)
        and is_plain(t)
        and not t._is_zerotensor()
        and t.untyped_storage().nbytes() > 0
    )


def touched(t: Tensor) -> Tensor:
    """Count the elements in each byte of a tensor's memory."""
    size = t.element_size()
    index = torch.arange(t.untyped_storage().nbytes()).as_strided(
        (*t.shape, size),
        (*(s * size for s in t.stride()), 1),
        t.storage_offset() * size,
    )
    return index.flatten().bincount(minlength=t.untyped_storage().nbytes())


def overlap(a: Tensor, b: Tensor) -> bool:
    if not (has_memory(a) and has_memory(b)):
        return False
    if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return False
    return bool((touched(a).bool() & touched(b).bool()).any())


def may_be(call: Call) -> list[str]:
    """Return the arguments that the documentation lets out be."""
    about = " ".join(
        (call.operator.__doc__ or "").partition("out: ")[2].split()
    )
    found = re.search(r"It may be ([\w ]+)[;.]", about)
    return found[1].split(" or ") if found else []


def writable(call: Call, expected: Expected) -> tuple[bool | None, str]:
    """Whether the arguments that the form writes to may be written."""
    returns = expected.returns
    tensors = {k: a for k, a in call.args.items() if isinstance(a, Tensor)}
    grad = call.context not in ("no_grad", "inference_mode")
    if grad and any(t.requires_grad for t in tensors.values()):
        return (None, "") if call.is_raw else (False, "of requires_grad")
    for name in call.written:
        out = call.args[name]
        if not isinstance(out, Tensor):
            return False, "out is no tensor"
        like = expected.empty[call.written.index(name)]
        if not is_plain(out) or (
            (out.shape, out.dtype) != (like.shape, like.dtype)
        ):
            return False, f"of {name}'s metadata"
        if out._is_zerotensor() or out.is_neg():
            return False, "it is immutable"
        if out.is_inference() and call.context != "inference_mode":
            return False, "out is an inference tensor"
        if out.numel() and touched(out).max() > 1:
            return False, "out overlaps itself"
        for other, t in tensors.items():
            if other == name or not overlap(out, t):
                continue
            same = (t.stride(), t.shape, t.data_ptr(), t.dtype) == (
                out.stride(),
                out.shape,
                out.data_ptr(),
                out.dtype,
            )
            if not (same and other in may_be(call)):
                returns = None  # but the result has to be right
    if call.context not in MODES:
        returns = None
    return returns, ""


# --- what it does -------------------------------------------------------------


def complaint(error: Exception, call: Call) -> str:
    """Return what is wrong with an error, or nothing."""
    if isinstance(error, RecursionError) or not isinstance(error, ERRORS):
        return "the type"
    # What follows is torch's list of all backends.
    text = str(error).split("vailable ")[0]
    if "INTERNAL ASSERT" in text:
        return "an internal assertion"
    if PATH.search(text):
        return "a path"
    # What torch says of all operators.
    if isinstance(error, OverflowError):
        return ""
    if text.startswith("ZeroTensors are immutable") or call.context == "jvp":
        return ""
    name = call.operator.__name__.strip("_").removesuffix("_backward")
    if name not in text:
        return "no name of the operator"
    return ""


def close(got: Tensor, want: Tensor, scale: float) -> bool:
    if not got.dtype.is_floating_point:
        return bool(((got.double() - want.double()).abs() <= 1).all())
    got, want, tolerance = got.double(), want.double(), TOLERANCE[got.dtype]
    same = (got == want) | (got.isnan() & want.isnan())
    near = (got - want).abs() <= tolerance * (want.abs() + scale)
    overflows = (want.abs() > 1e30) & ~got.isnan()
    return bool((same | near | overflows).all())


def difference(
    got: list[Any], call: Call, expected: Expected, seed: int
) -> str:
    """Return how results differ from what they should be, or nothing."""
    context = CONTEXTS[call.context]
    if call.context in MODES or call.context in NO_DATA:
        for g, like in zip(got, expected.empty):
            if (g is None) != (like is None):
                return "None"
            if g is None:
                continue
            if (g.shape, g.dtype) != (like.shape, like.dtype):
                return f"{describe(g)}, expected {describe(like)}"
            if not (call.written or g.is_contiguous()):
                return "a result that is not contiguous"
    if expected.args is None or call.context in NO_DATA:
        return ""
    if call.leading and "vmap" in call.context:  # other dimensions
        return ""
    context = _nothing if call.context in MODES else context
    wide = [
        a.double() if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in expected.args
    ]
    if call.context in GRADIENTS and not all(
        (a.abs() < 1e4).all() for a in floating(wide)
    ):
        return ""  # what overflows in between is the formula's
    magnitudes = [
        a.abs().where(a.abs() < 1e4, 0).max()
        for a in floating(wide)
        if a.numel()
    ]
    scale = float(max([1.0, *magnitudes]))
    why = ""
    for args in (wide, expected.args):
        try:
            want = context(call.reference, args, call, Random(seed))
        except Exception:
            continue  # not even torch can
        for i, (g, w) in enumerate(zip(got, want, strict=True)):
            if g is None and w is None:
                continue
            if call.leading and g.numel() == w.numel():
                w = w.reshape(g.shape)
            if g.shape != w.shape:
                why = f"result {i}: {describe(g)}, expected {describe(w)}"
                break
            if not close(g.detach(), w.detach(), scale):
                why = f"result {i}: {g.detach()}, expected {w.detach()}"
                break
        else:
            return ""
    return why


def torch_cannot(call: Call, expected: Expected, seed: int) -> bool:
    """Whether a transform fails for the reference, too."""
    if expected.args is None:
        return False
    try:
        CONTEXTS[call.context](
            call.reference, expected.args, call, Random(seed)
        )
    except Exception:
        return True
    return False


def attempt(seed: int) -> tuple[str, str]:
    """Make a call; return what became of it, and what is wrong."""
    call = make(seed)
    expected = expect(call)
    if expected.why == TOO_LONG:
        return "left out", ""
    memory = [bytes_of(a) for a in call.args.values() if has_memory(a)]
    before = [m.clone() for m in memory]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    masks = {}
    for name in call.written:
        out = call.args[name]
        if has_memory(out) and out.numel():
            key = out.untyped_storage().data_ptr()
            masks[key] = masks.get(key, 0) + touched(out)
    try:
        got = CONTEXTS[call.context](
            call, list(call.args.values()), call, Random(seed)
        )
    except Exception as error:
        masks, outcome = {}, "refused"
        if call.context not in MODES and torch_cannot(call, expected, seed):
            return "left out", ""
        wrong = complaint(error, call)
        if wrong:
            wrong = f"{wrong} in {type(error).__name__}: {error}"
        elif expected.returns and not (
            isinstance(error, NotImplementedError) and call.context not in MODES
        ):
            wrong = f"refused: {type(error).__name__}: {error}"
    else:
        outcome, wrong = "returned", ""
        if expected.returns is False and not (call.context in NO_DATA):
            wrong = f"accepted, but not {expected.why}"
        elif expected.empty:
            wrong = difference(got, call, expected, seed)
    for m, b in zip(memory, before, strict=True):
        changed = m != b
        if m.data_ptr() in masks:
            changed &= masks[m.data_ptr()] == 0
        if changed.any():
            wrong += " changed an argument, or memory beside it"
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    if used * 2**10 > MEMORY / 2:
        wrong += f" took {used} KiB of memory"
    return outcome, f"{wrong}\n  {call}" if wrong else ""


# --- workers ------------------------------------------------------------------


def prepare() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    torch.zeros(2**16).sum()
    used = (
        int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    )
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY * 2,) * 2)


def work(seeds: range, connection: Connection) -> None:
    prepare()
    for seed in seeds:
        connection.send((seed, "", ""))
        connection.send((seed, *attempt(seed)))


def attack(first: int, calls: int) -> int:
    context = multiprocessing.get_context("spawn")
    stop, outcomes, findings = first + calls, Counter(), 0
    running: dict[Connection, list[Any]] = {}

    def start(seed: int) -> None:
        ours, theirs = context.Pipe(duplex=False)
        args = (range(seed, stop, WORKERS), theirs)
        process = context.Process(target=work, args=args)
        process.start()
        theirs.close()
        running[ours] = [process, seed]

    def report(seed: int, wrong: str) -> None:
        nonlocal findings
        findings += 1
        print(f"seed {seed}: {wrong}", flush=True)

    for i in range(min(WORKERS, calls)):
        start(first + i)
    while running:
        ready = wait(list(running), SECONDS)
        for connection in ready or list(running):
            process, seed = running[connection]
            try:
                if not ready:
                    process.kill()
                    raise EOFError
                running[connection][1], outcome, wrong = connection.recv()
                outcomes[outcome] += bool(outcome)
                if wrong:
                    report(seed, wrong)
            except EOFError:
                del running[connection]
                process.join()
                if process.exitcode:
                    report(seed, f"status {process.exitcode}")
                    start(seed + WORKERS)
    print(f"seeds {first} to {stop - 1}: {dict(outcomes)}, {findings} findings")
    return findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="make this call only, here")
    options = parser.parse_args()
    if options.seed is None:
        sys.exit(attack(options.first, options.calls) > 0)
    prepare()
    print(make(options.seed))
    outcome, wrong = attempt(options.seed)
    print(outcome, wrong)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
