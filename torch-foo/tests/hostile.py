"""Attacks every operator with calls that nobody would write.

A seed decides a call: a sample with hostile arguments, the form (function,
operator or raw operator, with out= or in place) and the context that it runs in
(a mode, a transform, gradients). What it should do is decided without kernels:
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
import time
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

WORKERS = 2
SECONDS = 60  # that a call may take; it takes milliseconds
MEMORY = 2**29  # bytes that a call may ask for; it needs kilobytes
MOST = 2**22  # elements of a tensor that is computed with
ERRORS = (RuntimeError, TypeError, ValueError, IndexError, OverflowError)
PATH = re.compile(r"(?<![\w.])/\w+/[\w.+-]|\.(cc|cpp|cu|h|py)\b")
#: What may be wrong in a sum of magnitude 1.
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 2e-5,
    torch.bfloat16: 2**-6,
    torch.float16: 2**-9,
}

_ops = torch.ops.torch_foo
SAMPLES = [(o, list(o.samples())) for o in OPERATORS.values()]
INTERNAL = {r for o in OPERATORS.values() for r in o.internal_results}
ALL_DTYPES = sorted(
    {d for d in vars(torch).values() if isinstance(d, torch.dtype)}, key=str
)
#: Dtypes of query, key and value that attention takes, beside equal ones.
NARROW = [[torch.float32, d, d] for d in (torch.float16, torch.bfloat16)]
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


@dataclass
class Call:
    """One call; `args` are in the schema's order, and then comes out."""

    operator: type[Operator]
    form: str
    args: dict[str, Any]
    leaves: list[int]  # the arguments that may have gradients
    context: str = "nothing"
    keyword_from: int = 99
    more: list[Any] = field(default_factory=list)  # arguments than there are
    unknown: dict[str, Any] = field(default_factory=dict)
    #: How many dimensions of size 1 were put in front of an argument.
    leading: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        given = [f"{k}={describe(v)}" for k, v in self.args.items()]
        given += [str(e) for e in (self.more, self.unknown) if e]
        text = f"{self.operator.__name__}({', '.join(given)})"
        return f"{text}, {self.form}, in {self.context}"

    @property
    def schema(self) -> list[Any]:
        name = self.operator.__name__
        return list(getattr(_ops, name).default._schema.arguments)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {k: a for k, a in self.args.items() if isinstance(a, Tensor)}

    @property
    def is_raw(self) -> bool:
        """Whether autograd does not know the form."""
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
        keywords = [a.name for a in overload._schema.arguments if a.kwarg_only]
        keywords += list(given)[self.keyword_from :]
        function: Any = overload
        if self.form.startswith("function"):
            function = getattr(torch_foo, name)
        elif self.form.startswith("raw"):
            function = getattr(_ops, f"_{name}" + "_out" * has_out).default
            keywords = []
        positional = [v for k, v in given.items() if k not in keywords]
        named = {k: v for k, v in given.items() if k in keywords}
        result = function(*positional, *self.more, **named, **self.unknown)
        if self.written:
            wanted = given["out"] if self.form == "function out" else None
            assert result is wanted, f"returned {describe(result)}"
            return [given[name] for name in self.written]
        results = list(result) if isinstance(result, tuple) else [result]
        count = len(packet.default._schema.returns)
        return results[: count - len(self.operator.internal_results)]

    def reference(self, *args: Any) -> list[Any]:
        result = self.operator.reference(*args[: len(self.schema)])
        return list(result) if isinstance(result, tuple) else [result]

    def fake(self) -> list[Any]:
        """Return empty results, or raise what the arguments deserve."""
        args = [self.args[a.name] for a in self.schema]
        if self.promotes:
            args = promoted(self.operator, args)
        result = self.operator.fake(
            *(as_meta(a) if isinstance(a, Tensor) else a for a in args)
        )
        return list(result) if isinstance(result, tuple) else [result]

    @property
    def promotes(self) -> bool:
        is_autocast = self.context == "autocast" and not self.written
        return is_autocast and bool(self.operator.autocast)


def describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)[:60]
    words = [str(value.dtype).removeprefix("torch.")]
    if value.is_nested or value.layout != torch.strided:
        return f"{words[0]} {value.layout}"
    for sizes in (tuple(value.shape), value.stride()):
        few = sizes if len(sizes) < 9 else ("...", *sizes[-8:])
        words.append(str(few).replace("'", ""))
    words += [f"+{value.storage_offset()}"] * bool(value.storage_offset())
    words += [value.device.type] * (not value.is_cpu)
    words += [type(value).__name__] * (type(value) is not Tensor)
    words += ["requires_grad"] * value.requires_grad
    words += ["negated"] * value.is_neg() + ["inference"] * value.is_inference()
    return " ".join(words)


# --- hostile arguments --------------------------------------------------------


def special(t: Tensor, rng: Random) -> Tensor:
    values = SPECIAL if t.is_floating_point() else SPECIAL_INTEGERS
    flat = t.flatten().clone()
    for _ in range(rng.randint(1, 3) if t.numel() else 0):
        flat[rng.randrange(t.numel())] = torch.tensor(
            rng.choice(values),
            dtype=torch.float64 if t.is_floating_point() else torch.int64,
        ).to(t.dtype)
    return flat.view(t.shape)


def embedded(t: Tensor, rng: Random) -> Tensor:
    """The same values with gaps, which hold what a result would show."""
    strides, stride = [0] * t.dim(), 1
    for i in rng.sample(range(t.dim()), t.dim()):
        strides[i] = stride * rng.choice((1, 1, 2, 3))
        stride = max(strides[i] * t.shape[i], 1)
    if stride > MOST:  # of no elements
        return t
    offset = rng.choice((0, 1, 5, 16))
    gap = math.nan if t.is_floating_point() else 113
    memory = torch.full((offset + stride + 9,), gap).to(t.dtype)
    return memory.as_strided(t.shape, strides, offset).copy_(t)


def expanded(t: Tensor, rng: Random) -> Tensor:
    d = rng.randrange(max(t.dim(), 1))
    return t.narrow(d, 0, 1).expand_as(t) if t.dim() and t.numel() else t


def overlapping(t: Tensor, rng: Random) -> Tensor:
    """Windows of a memory that is shorter than they are together."""
    strides = [rng.choice((0, 1, 1, 2)) for _ in t.shape]
    reach = sum(s * max(n, 1) for s, n in zip(strides, t.shape, strict=True))
    memory = t.flatten().repeat(reach // max(t.numel(), 1) + 1)
    return memory.as_strided(t.shape, strides) if t.numel() else t


class Subclass(Tensor):
    pass


LAYOUTS = [
    *[embedded] * 6,
    expanded,
    overlapping,
    lambda t, rng: t if t.dtype == torch.bool else torch._neg_view(-t),
    lambda t, rng: torch.nn.Parameter(t, requires_grad=False),
    lambda t, rng: t.as_subclass(Subclass),
    lambda t, rng: t.requires_grad_(t.is_floating_point()),
    lambda t, rng: torch._efficientzerotensor(t.shape, dtype=t.dtype),
]
UNFIT: list[Callable[[Tensor, Random], Tensor]] = [
    lambda t, rng: torch.empty(t.shape, dtype=rng.choice(ALL_DTYPES)),
    lambda t, rng: t.to(rng.choice(DTYPES)),
    lambda t, rng: t.to("meta"),
    lambda t, rng: t.to_sparse(),
    lambda t, rng: t.to_sparse_csr(),
    lambda t, rng: t.to_mkldnn(),
    lambda t, rng: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    lambda t, rng: torch.nested.nested_tensor(list(t)),
    lambda t, rng: torch.zeros(t.shape, dtype=torch.complex64).conj(),
    lambda t, rng: t.unsqueeze(rng.randint(0, t.dim())),
    lambda t, rng: t.select(rng.randrange(t.dim()), 0),
    lambda t, rng: t.new_ones([rng.choice((n, 0, 1, 3, 7)) for n in t.shape]),
]


def resize(args: dict[str, Any], rng: Random) -> None:
    """Change sizes that are equal alike, which leaves most calls legal."""
    new: dict[int, int] = {}
    for name, a in args.items():
        for d, n in enumerate(a.shape if isinstance(a, Tensor) else ()):
            sizes = (n, n, 2 * n, 0, 1, rng.randint(1, 40))
            size = new.setdefault(n, rng.choice(sizes))
            if n > 0:
                a = a.index_select(d, torch.arange(size) % n)
        args[name] = a


def enlarge(call: Call, rng: Random) -> None:
    """Bring a size to the limits, by strides of 0."""
    tensors = call.tensors
    if not all(is_plain(a) and not a.is_neg() for a in tensors.values()):
        return  # of some, torch makes copies
    old = rng.choice(
        sorted({n for a in tensors.values() for n in a.shape} | {1})
    )
    new = 2 ** rng.choice((31, 31, 32, 40, 61, 62)) + rng.choice((-1, 0, 1))
    new = rng.choice((new, new, new, 2**63 - 1))
    for name, a in tensors.items():
        if old in a.shape:
            d, one, shape = a.shape.index(old), list(a.shape), list(a.shape)
            one[d], shape[d] = 1, new
            with contextlib.suppress(RuntimeError):  # not even torch can
                a = a.narrow(d, 0, 1) if old else a.new_ones(one)
                call.args[name] = a.expand(shape)


def hostile_out(call: Call, rng: Random) -> Any:
    """Something to write the result to, which is rarely like it."""
    out = torch.ones(3, 5)
    with contextlib.suppress(*ERRORS, AttributeError):
        (like,) = call.fake()
        out = torch.full(like.shape if like.nbytes < MOST else (1,), 7.0)
        out = out.to(like.dtype)
    kind, tensors = rng.randrange(16), list(call.tensors.values())
    if kind == 0:
        return rng.choice(OTHERS[1:])
    if kind == 1:
        return rng.choice(UNFIT)(out, rng)
    if kind == 2:
        return rng.choice(LAYOUTS)(out, rng)
    if kind == 3:
        with torch.inference_mode():
            return out.clone()
    if kind < 7 and tensors:
        return rng.choice(tensors)
    tensors = [t for t in tensors if has_memory(t)]
    if kind == 7 and out.numel() and tensors:
        memory = rng.choice(tensors).untyped_storage()
        memory = torch.empty(0, dtype=out.dtype).set_(memory)
        start = rng.randint(0, max(memory.numel() - out.numel(), 0))
        return memory[start:][: out.numel()].view_as(out)
    return embedded(out, rng)


def forms(operator: type[Operator]) -> list[str]:
    name, kinds = operator.__name__, ["operator"]
    if operator.is_public():
        kinds += ["function"] + ["raw"] * hasattr(_ops, f"_{name}")
    found = [*kinds, *kinds]
    if "out" in operator.variants:
        found += [f"{kind} out" for kind in kinds]
    if operator.inplace:
        found += [f"{kind} in place" for kind in kinds]
    return found


def make(seed: int) -> Call:
    """Return the call of a seed."""
    rng = Random(seed)
    torch.default_generator.manual_seed(seed)
    operator, samples = rng.choice(SAMPLES)
    is_large = rng.random() < 0.01
    samples = [s for s in samples if s.is_large == is_large] or samples
    sample, dtype = rng.choice(samples), rng.choice(DTYPES)
    call = Call(operator, rng.choice(forms(operator)), {}, [])
    args = call.args
    values = list(sample.args(dtype))
    for i, a in enumerate(call.schema):
        default = sample.named.get(a.name, a.default_value)
        args[a.name] = values[i] if i < len(values) else default
    shapes = enumerate(sample.arguments)
    call.leaves = [i for i, a in shapes if isinstance(a, tuple)]

    def chance(probability: float) -> bool:
        return rng.random() < probability

    if chance(0.3):
        resize(args, rng)
    for name in call.tensors:
        if chance(0.1):
            args[name] = special(args[name], rng)
        if chance(0.5):
            args[name] = rng.choice(LAYOUTS)(args[name], rng)
    one, other = (rng.choice(list(call.tensors)) for _ in range(2))
    if chance(0.1) and args[one].shape == args[other].shape:
        args[one] = args[other]
    if chance(0.15):
        with contextlib.suppress(*ERRORS):  # torch does not convert all
            args[one] = rng.choice(UNFIT)(args[one], rng)
    if chance(0.05):
        enlarge(call, rng)
    elif chance(0.1):
        count, share = rng.choice((1, 60, 63, 70, 200)), rng.choice((0.5, 1))
        for name, a in call.tensors.items():
            if is_plain(a) and chance(share):
                call.leading[name] = count
                args[name] = a.reshape((1,) * count + a.shape)
    for a in call.schema:
        kind = str(a.type)
        if kind in SCALARS and chance(0.1):
            args[a.name] = rng.choice(SCALARS[kind])
    if chance(0.03):
        args[rng.choice(list(args))] = rng.choice(OTHERS)
    if chance(0.02):
        call.more = [rng.choice(OTHERS)] * rng.randint(1, 9)
    if chance(0.02):
        call.unknown[rng.choice(("unknown", "out_", "self"))] = None
    call.keyword_from = rng.choice((99, 99, 0, 1, 2))
    if "out" in call.form:
        args["out"] = 1.5
        with contextlib.suppress(*ERRORS):
            args["out"] = hostile_out(call, rng)
    call.context = rng.choice(possible_contexts(call))
    return call


# --- contexts -----------------------------------------------------------------

Context = Callable[[Any, list[Any], Call, Random], list[Any]]


def floating(values: list[Any]) -> list[Tensor]:
    return [
        v for v in values if isinstance(v, Tensor) and v.is_floating_point()
    ]


def as_meta(t: Tensor) -> Tensor:
    return torch.empty_strided(
        t.shape, t.stride(), dtype=t.dtype, device="meta"
    )


def cotangent(t: Tensor) -> Tensor:
    """Numbers that all dtypes have."""
    return ((torch.arange(t.numel()) % 5 - 2) / 2).to(t.dtype).view(t.shape)


def total(results: list[Any]) -> Tensor:
    parts = [(r * cotangent(r)).sum().double() for r in floating(results)]
    return sum(parts, torch.zeros((), dtype=torch.float64))


def in_mode(manager: Callable[[], Any]) -> Context:
    def context(f: Any, args: list[Any], call: Call, rng: Random) -> Any:
        with manager():
            return f(*args)

    return context


def on_meta(f: Any, args: list[Any], call: Call, rng: Random) -> Any:
    return f(*tree_map_only(Tensor, as_meta, args))


def on_fakes(f: Any, args: list[Any], call: Call, rng: Random) -> Any:
    with FakeTensorMode() as mode:
        return f(*tree_map_only(Tensor, mode.from_tensor, args))


def functionalized(f: Any, args: list[Any], call: Call, rng: Random) -> Any:
    return torch.func.functionalize(f)(*args)


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
                pairs = zip(found, results, strict=True)
                results = [zero if g is None else g for g, zero in pairs]
            everything += results
        return everything

    return context


def transform(make: Callable[[Any, tuple[int, ...]], Any]) -> Context:
    def context(f: Any, args: list[Any], call: Call, rng: Random) -> Any:
        def of_leaves(*leaves: Any) -> Any:
            given = list(args)
            for i, leaf in zip(call.leaves, leaves, strict=True):
                given[i] = leaf
            return total(f(*given))

        where = tuple(range(len(call.leaves)))
        return list(make(of_leaves, where)(*(args[i] for i in call.leaves)))

    return context


def jvp(f: Any, argnums: tuple[int, ...]) -> Any:
    return lambda *leaves: torch.func.jvp(f, leaves, leaves)


def vmap(inner: Context) -> Context:
    def context(f: Any, args: list[Any], call: Call, rng: Random) -> Any:
        # Without examples, torch has no total of some results.
        sizes = (0, 1, 2, 2, 3) if inner is _nothing else (1, 2, 2, 3)
        args, size = list(args), rng.choice(sizes)
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
TRANSFORMS: dict[str, Context] = {
    "functionalize": functionalized,
    "vmap": vmap(_nothing),
    "vmap of vmap": vmap(vmap(_nothing)),
}
GRADIENTS: dict[str, Context] = {
    "grad": gradients(1),
    "grad of grad": gradients(2),
    "func.grad": transform(torch.func.grad),
    "jacrev": transform(torch.func.jacrev),
    "vmap of func.grad": vmap(transform(torch.func.grad)),
    "jvp": transform(jvp),
}
CONTEXTS = {**MODES, **NO_DATA, **TRANSFORMS, **GRADIENTS}


def is_plain(t: Tensor) -> bool:
    """Whether it is a tensor that all contexts can handle."""
    return (
        t.layout == torch.strided
        and t.dtype in (*DTYPES, torch.int64, torch.int32)
        and t.is_cpu
        and not t.is_nested
        and all(n < MOST for n in (*t.shape, t.numel()))
    )


def possible_contexts(call: Call) -> list[str]:
    tensors = list(call.tensors.values())
    found = ["nothing"] * 8 + [*MODES]
    if not tensors or not all(map(is_plain, tensors)):
        return found
    found += [*NO_DATA, *TRANSFORMS]
    leaves = [list(call.args.values())[i] for i in call.leaves]
    if (
        not (call.is_raw or call.written)
        and call.operator.backward is not None
        and len(floating(leaves)) == len(leaves)
    ):
        found += [*GRADIENTS] * 2
    return found


# --- what a call should do ----------------------------------------------------


@dataclass
class Expected:
    #: Whether it has to return (True), to raise (False) or may do either.
    returns: bool | None
    why: str = ""
    empty: list[Any] = field(default_factory=list)  # like the results
    args: list[Any] | None = None  # what the reference takes
    takes_too_long: bool = False


def promoted(operator: type[Operator], args: list[Any]) -> list[Any]:
    """What autocast makes of arguments that have several dtypes."""
    if operator.__name__ == "attention":
        query, key, value, *others = args
        query, *others = widened([query, *others])
        args = [query, key, value, *others]
        if [getattr(a, "dtype", None) for a in args[:3]] in NARROW:
            return args
    return widened(args)


def widened(args: list[Any]) -> list[Any]:
    """Bring arguments of the operators' dtypes to the widest of them."""
    known = [a for a in args if isinstance(a, Tensor) and a.dtype in DTYPES]
    widest = known[0].dtype if known else torch.float32
    for a in known:
        widest = torch.promote_types(widest, a.dtype)
    return [a.to(widest) if any(a is k for k in known) else a for a in args]


def fits(argument: Any, value: Any) -> bool | None:
    """Whether a value is of an argument's type, or one that torch may take."""
    kind = str(argument.type)
    if "Tensor" in kind:
        is_none = value is None and kind.startswith("Optional")
        return isinstance(value, Tensor) or is_none
    is_small = not isinstance(value, int) or -(2**63) <= value < 2**63
    return True if type(value).__name__ == kind and is_small else None


def expect(call: Call) -> Expected:
    tensors = [call.args[a.name] for a in call.schema if a.name in call.tensors]
    fit = [fits(a, call.args[a.name]) for a in call.schema]
    if False in fit or call.more or call.unknown:
        return Expected(False, "types")
    if any(t.layout != torch.strided or t.is_nested for t in tensors):
        return Expected(False, "a layout")
    if len({t.device for t in tensors}) > 1:
        return Expected(False, "devices")
    try:
        empty = call.fake()
    except (*ERRORS, AttributeError) as error:
        # A number that torch converts, or a result that is not wanted.
        may = None in fit or "overflowed" in str(error)
        return Expected(None if may else False, f"the fake: {error}")
    expected = Expected(None if None in fit else True, "", empty)
    if call.context in NO_DATA or tensors[0].is_meta:
        expected.returns = None if call.written else expected.returns
        return expected
    nbytes = sum(r.nbytes for r in empty if r is not None)
    if nbytes > 2 * MEMORY:
        return Expected(False, "memory")
    if any(t.numel() > MOST for t in tensors) or nbytes > MOST * 8:
        return Expected(None, takes_too_long=True)
    if not all(map(is_plain, tensors)):  # foo_core has a limit
        expected.returns = None
        return expected
    if INTERNAL & set(call.args):  # what the reference computes itself
        expected.returns = None
        return expected
    plain = []
    for a in call.schema:
        value = call.args[a.name]
        if isinstance(value, Tensor):
            value = value.as_subclass(Tensor).detach().resolve_neg() + 0
            value = value.reshape(value.shape[call.leading.get(a.name, 0) :])
        plain.append(value)
    promotes = call.promotes
    expected.args = promoted(call.operator, plain) if promotes else plain
    try:
        call.reference(*expected.args)
    except Exception as error:
        is_number = isinstance(error, (TypeError, OverflowError))
        if is_number or "vmap" in call.context or call.leading:
            return Expected(None)  # of no example, or with too few dimensions
        # Where nothing is computed, no index is looked at.
        returns = (
            False if any(r.numel() for r in empty if r is not None) else None
        )
        return Expected(returns, f"the reference: {error}")
    if call.written:
        expected.returns, expected.why = writable(call, expected)
    if call.context in GRADIENTS and (
        call.leading  # torch has 64 dimensions for some
        or any(t._is_zerotensor() for t in tensors)  # torch takes 0 * nan for 0
    ):
        expected.returns = None
    return expected


def has_memory(t: Any) -> bool:
    if not isinstance(t, Tensor) or not is_plain(t) or t._is_zerotensor():
        return False
    return t.untyped_storage().nbytes() > 0


def bytes_of(t: Tensor) -> Tensor:
    """Return the memory that a tensor has a part of."""
    return torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())


def touched(t: Tensor) -> Tensor:
    """Count the elements in each byte of a tensor's memory."""
    size, total = t.element_size(), t.untyped_storage().nbytes()
    index = torch.arange(total).as_strided(
        (*t.shape, size),
        (*(s * size for s in t.stride()), 1),
        t.storage_offset() * size,
    )
    return index.flatten().bincount(minlength=total)


def overlap(a: Tensor, b: Tensor) -> bool:
    if not (has_memory(a) and has_memory(b)):
        return False
    if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return False
    return bool((touched(a).bool() & touched(b).bool()).any())


def may_be(call: Call) -> list[str]:
    """Return the arguments that the documentation lets out be."""
    about = (call.operator.__doc__ or "").partition("out: ")[2]
    found = re.search(r"It may be ([\w ]+)[;.]", " ".join(about.split()))
    return found[1].split(" or ") if found else []


def writable(call: Call, expected: Expected) -> tuple[bool | None, str]:
    """Whether the arguments that the form writes to may be written."""
    returns = None if call.context in TRANSFORMS else expected.returns
    is_recorded = call.context not in ("no_grad", "inference_mode")
    if is_recorded and any(t.requires_grad for t in call.tensors.values()):
        return (None, "") if call.is_raw else (False, "requires_grad")
    for name, like in zip(call.written, expected.empty, strict=True):
        out = call.args[name]
        if not isinstance(out, Tensor) or not is_plain(out):
            return False, f"what {name} is"
        if (out.shape, out.dtype) != (like.shape, like.dtype):
            return False, f"{name}'s shape or dtype"
        if out._is_zerotensor() or out.is_neg():
            return False, f"{name}, which is immutable"
        if out.is_inference() and call.context != "inference_mode":
            return None if call.is_raw else False, "an inference tensor"
        if out.numel() and touched(out).max() > 1:
            return False, f"{name}, which overlaps itself"
        for other, t in call.tensors.items():
            is_same = t.stride() == out.stride() and t.shape == out.shape
            is_same = is_same and t.data_ptr() == out.data_ptr()
            allowed = is_same and other in may_be(call)
            if other != name and overlap(out, t) and not allowed:
                returns = None  # but the result has to be right
    return returns, ""


# --- what it does -------------------------------------------------------------


def complaint(error: Exception, call: Call) -> str:
    """Return what is wrong with an error, or nothing."""
    if isinstance(error, RecursionError) or not isinstance(error, ERRORS):
        return "the type"
    text = str(error).split("vailable ")[0]  # then torch lists all backends
    computes = call.context == "autocast" or call.context not in MODES
    if computes and "DefaultCPUAllocator" in text:
        return ""  # of what torch computes around the operator
    if "INTERNAL ASSERT" in text or PATH.search(text):
        return "a path or an assertion"
    # What torch says of all operators.
    if isinstance(error, OverflowError) or text.startswith(
        ("ZeroTensors are immutable", "only tensors with up to 64 dims")
    ):
        return ""
    name = call.operator.__name__.strip("_").removesuffix("_backward")
    return "" if name in text else "no name of the operator"


def close(got: Tensor, want: Tensor, scale: float, dtype: torch.dtype) -> bool:
    """Whether numbers are near that were computed in a dtype, then rounded."""
    tolerance = TOLERANCE.get(got.dtype, 0)
    if tolerance:
        tolerance = max(tolerance, TOLERANCE[dtype])
    slack = 0 if got.dtype.is_floating_point else 1
    got, want = got.double().flatten(), want.double().flatten()
    same = (got == want) | (got.isnan() & want.isnan())
    near = (got - want).abs() <= tolerance * (want.abs() + scale) + slack
    overflows = (want.abs() > 1e30) & ~got.isnan()
    return bool((same | near | overflows).all())


def difference(
    got: list[Any], call: Call, expected: Expected, seed: int
) -> str:
    """Return how results differ from what they should be, or nothing."""
    if call.context in MODES or call.context in NO_DATA:
        for g, like in zip(got, expected.empty, strict=False):
            if (g is None) != (like is None):
                return f"{describe(g)}, expected {describe(like)}"
            if g is None:
                continue
            if (g.shape, g.dtype) != (like.shape, like.dtype):
                return f"{describe(g)}, expected {describe(like)}"
            if not (call.written or g.is_contiguous()):
                return f"{describe(g)}, expected a contiguous tensor"
    is_other = call.leading and "vmap" in call.context  # draws other numbers
    if expected.args is None or call.context in NO_DATA or is_other:
        return ""
    wide = [
        a.double() if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in expected.args
    ]
    magnitudes = [a.abs() for a in floating(wide) if a.numel()]
    is_gradient = call.context in GRADIENTS or not call.operator.is_public()
    if is_gradient and not all((m < 1e4).all() for m in magnitudes):
        return ""  # the formula may overflow in between
    usual = [m.where(m < 1e4, 0).max().item() for m in magnitudes]
    # Gradients lose digits to cancellation.
    scale = max([1.0, *usual]) * (100 if is_gradient else 1)
    context = _nothing if call.context in MODES else CONTEXTS[call.context]
    is_wide = all(a.dtype == torch.float64 for a in floating(expected.args))
    computed = torch.float64 if is_wide else torch.float32
    why = ""
    for args in (wide, expected.args):
        try:
            want = context(call.reference, args, call, Random(seed))
        except Exception:
            continue  # not even torch can
        for g, w in zip(got, want, strict=True):
            if g is None or w is None:
                continue
            if call.leading and g.numel() == w.numel():
                w = w.reshape(g.shape)
            if g.shape != w.shape or not close(
                g.detach(), w.detach(), scale, computed
            ):
                why = f"{g.detach()}, expected {w.detach()}"
                break
        else:
            return ""
    return why


def torch_cannot(call: Call, expected: Expected, seed: int) -> bool:
    """Whether a context fails for the reference, too."""
    if call.context in MODES or expected.args is None:
        return False
    context = CONTEXTS[call.context]
    try:
        context(call.reference, expected.args, call, Random(seed))
    except Exception:
        return True
    return False


def attempt(seed: int) -> tuple[str, str]:
    """Make a call; return what became of it, and what is wrong."""
    call = make(seed)
    expected = expect(call)
    if expected.takes_too_long:
        return "left out", ""
    memory = [bytes_of(t) for t in call.tensors.values() if has_memory(t)]
    before = [m.clone() for m in memory]
    may_change: dict[int, Any] = {}
    for name in call.written:
        if has_memory(call.args[name]):
            start = call.args[name].untyped_storage().data_ptr()
            may_change[start] = may_change.get(start, 0) + touched(
                call.args[name]
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    context, args = CONTEXTS[call.context], list(call.args.values())
    outcome, wrong = "returned", ""
    try:
        got = context(call, args, call, Random(seed))
    except Exception as error:
        if torch_cannot(call, expected, seed):
            return "left out", ""
        outcome, may_change = "refused", {}
        wrong = complaint(error, call)
        is_supported = not isinstance(error, NotImplementedError)
        if expected.returns and (is_supported or call.context in MODES):
            wrong = wrong or "refused"
        if wrong:
            wrong = f"{wrong}: {type(error).__name__}: {error}"
    else:
        if expected.returns is False and call.context not in NO_DATA:
            wrong = f"accepted, despite {expected.why}"
        elif expected.empty:
            wrong = difference(got, call, expected, seed)
    for m, b in zip(memory, before, strict=True):
        changed = m != b
        if m.data_ptr() in may_change:
            changed &= may_change[m.data_ptr()] == 0
        if changed.any():
            wrong += "; changed an argument, or what is beside it"
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    if used * 2**10 > MEMORY / 2:
        wrong += f"; took {used} KiB"
    return outcome, wrong and f"{wrong}\n  {call}"


# --- workers ------------------------------------------------------------------


def prepare() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY * 2,) * 2)


def work(seeds: range, connection: Connection) -> None:
    prepare()
    for seed in seeds:
        connection.send((seed, "", ""))
        connection.send((seed, *attempt(seed)))


def attack(first: int, calls: int) -> int:
    """Make the calls, print what is wrong, and return how much is."""
    context = multiprocessing.get_context("spawn")
    stop = first + calls
    outcomes: Counter[str] = Counter()
    running: dict[Connection, list[Any]] = {}

    def start(seed: int) -> None:
        ours, theirs = context.Pipe(duplex=False)
        seeds = range(seed, stop, WORKERS)
        process = context.Process(target=work, args=(seeds, theirs))
        process.start()
        theirs.close()
        running[ours] = [process, seed, time.monotonic()]

    def report(seed: int, wrong: str) -> None:
        outcomes["wrong"] += 1
        print(f"seed {seed}: {wrong}", flush=True)

    for i in range(min(WORKERS, calls)):
        start(first + i)
    while running:
        ready = wait(list(running), 1)
        for connection, worker in list(running.items()):
            process, seed, since = worker
            if connection not in ready:
                if time.monotonic() - since > SECONDS:
                    process.kill()
                continue
            try:
                seed, outcome, wrong = connection.recv()
                worker[1:] = seed, time.monotonic()
                outcomes[outcome] += bool(outcome)
                if wrong:
                    report(seed, wrong)
            except EOFError:
                del running[connection]
                process.join()
                if process.exitcode:
                    report(seed, f"ended with status {process.exitcode}")
                    start(seed + WORKERS)
    counts = ", ".join(f"{n} {o}" for o, n in sorted(outcomes.items()) if o)
    print(f"calls of seeds {first} to {stop - 1}: {counts}")
    return outcomes["wrong"]


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
