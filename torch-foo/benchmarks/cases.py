"""Make the calls that are compared, from what the operators' classes describe.

``benchmark(rows, columns)`` of a class makes the arguments, and its ``peers``
are other ways to the same result. torch.compile gets the eager composition.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from itertools import cycle

import torch
import torch.nn.functional as F
import torch_foo
from torch import Tensor
from torch_foo.operators import Operator

Call = Callable[[], object]
Function = Callable[..., object]
Tensors = tuple[Tensor, ...]

DTYPES = [torch.float32, torch.bfloat16]
MAX_COPIES = 40  # of arguments; enough for 512 rows, 4096 columns, bfloat16
PUBLIC = {
    n: o for n, o in torch_foo.operators.OPERATORS.items() if o.is_public()
}
OPERATORS = {n: o for n, o in PUBLIC.items() if o.benchmark is not None}


@dataclass(frozen=True)
class Goal:
    """What an operator should reach in bfloat16 on an H100."""

    operator: str
    size: tuple[int, int]
    backward: bool = False
    share: float = 0.0  # at least, of the rate of a copy
    microseconds: float = 0.0  # at most
    published: str = ""  # times of others on an H100

    @property
    def text(self) -> str:
        if self.share:
            return f"{self.share:.0%} of the copy rate"
        return f"{self.microseconds:g} us" if self.microseconds else ""


GOALS = (
    Goal("rms_norm", (4096, 4096), share=0.85),
    Goal("add_rms_norm", (4096, 4096), share=0.85),
    Goal("silu_mul", (4096, 4096), share=0.85),
    Goal("rope", (4096, 4096), share=0.85),  # 32 heads: queries of Llama
    Goal("rope", (4096, 1024)),  # 8 heads: its keys
    Goal("quantize_int8_rowwise", (4096, 4096), share=0.85),
    Goal(
        "rms_norm",
        (4096, 4096),
        backward=True,
        microseconds=80,
        published="torch 195 us, Liger 309 us",
    ),
    Goal(
        "silu_mul",
        (8192, 8192),
        backward=True,
        microseconds=420,
        published="Liger 503 us",
    ),
    Goal(
        "cross_entropy",
        (8192, 131072),
        backward=True,
        microseconds=3000,
        published="Liger 7960 us",
    ),
)


@dataclass
class Case:
    """Calls that have the same result; "torch_foo" is one of them.

    A name that ends in "out" is of a call without memory of its own, by
    `out=` or in place.
    """

    name: str
    calls: dict[str, Call]
    mode: Callable[[], AbstractContextManager[object]] = nullcontext
    about: dict[str, str] = field(default_factory=dict)
    arguments: int = 0  # bytes
    read: int = 0  # bytes
    written: int = 0
    in_place: bool = False


def eager(operator: type[Operator]) -> Function:
    """Return what models write instead."""
    return operator.peers.get("eager", operator.reference)


def has_backward(operator: type[Operator]) -> bool:
    """Return whether forward and backward together are timed."""
    return operator.backward is not None and operator.times_gradients


def build(
    name: str,
    rows: int,
    columns: int,
    dtype: torch.dtype,
    backward: bool,
    compiled: Function | None = None,
    dynamic: bool = True,
    device: str = "cpu",
) -> Case:
    """Make the case of one operator, size, dtype and direction.

    With `dynamic`, one compilation serves all numbers of rows.
    """
    operator = OPERATORS[name]
    with torch.device(device):  # where random numbers take less time
        sample = operator.benchmark(rows, columns)
        args = sample.args(dtype, device, requires_grad=backward)
    peer_args = operator.peer_arguments(*args)
    if compiled is not None and dynamic and rows > 1:
        mark_rows(operator, columns, peer_args)
    peers = {
        "eager": eager(operator),
        "built-in": operator.peers.get("built-in"),
        "compile": compiled,
    }
    calls = {"torch_foo": partial(getattr(torch_foo, name), *args)}
    calls |= {n: partial(f, *peer_args) for n, f in peers.items() if f}
    calls = {n: partial(call, **sample.named) for n, call in calls.items()}
    results = flat(calls["torch_foo"]())
    arguments = read = size([a for a in args if isinstance(a, Tensor)])
    written = size(results)
    if backward:
        leaves = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
        grads = [torch.randn_like(r) for r in results]
        more = backward_bytes(calls["torch_foo"], leaves, grads)
        read, written = read + more[0], written + more[1]
        calls = {n: with_gradients(c, leaves, grads) for n, c in calls.items()}
    else:
        calls |= out_calls(operator, args, peer_args, sample.named, results)
    about = {
        "operator": name,
        "size": f"{rows}x{columns}",
        "dtype": str(dtype).removeprefix("torch."),
        "direction": "forward+backward" if backward else "forward",
    }
    return Case(
        " ".join(about.values()),
        calls,
        nullcontext if backward else torch.no_grad,
        about,
        arguments,
        read,
        written,
        "torch_foo out" in calls and "out" not in operator.variants,
    )


class Rotation:
    """Make calls in turn, and keep as many results as there are calls.

    So neither arguments nor results are in a cache that is smaller than they
    are together.
    """

    def __init__(self, calls: list[Call]) -> None:
        self.calls = cycle(calls)
        self.results: deque[object] = deque(maxlen=len(calls))

    def __call__(self) -> None:
        self.results.append(next(self.calls)())


def rotated(make: Callable[[], Case], cache: int) -> Case:
    """Return a case whose calls take arguments that a cache does not hold.

    Copies of the arguments together exceed three times the cache. Small ones
    would take too many copies, so they stay in the cache.
    """
    case = make()
    count = max(2, min(MAX_COPIES, 3 * cache // case.arguments + 1))
    copies = [case, *(make() for _ in range(count - 1))]
    case.calls = {
        name: Rotation([copy.calls[name] for copy in copies])
        for name in case.calls
    }
    return case


def mark_rows(
    operator: type[Operator], columns: int, args: tuple[object, ...]
) -> None:
    """Let one compilation be for all numbers of rows, but for a single row."""
    with torch.device("meta"):
        two, three = (
            operator.peer_arguments(
                *operator.benchmark(rows, columns).args(device="meta")
            )
            for rows in (2, 3)
        )
    for arg, a, b in zip(args, two, three, strict=True):
        if isinstance(arg, Tensor):
            sizes = enumerate(zip(a.shape, b.shape, strict=True))
            torch._dynamo.mark_dynamic(
                arg, [d for d, (m, n) in sizes if m != n]
            )


def flat(result: object) -> Tensors:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def size(tensors: list[Tensor] | Tensors) -> int:
    """Return the number of bytes of different tensors."""
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())


def out_calls(
    operator: type[Operator],
    args: tuple[object, ...],
    peer_args: tuple[object, ...],
    named: dict[str, object],
    results: Tensors,
) -> dict[str, Call]:
    """Return the calls by `out=`, or else those in place, on clones."""
    has_out = "out" in operator.variants
    if not has_out and not operator.inplace:
        return {}
    ours = getattr(torch_foo, operator.__name__)
    functions = {
        "torch_foo out": (ours if has_out else in_place(operator), args),
        "built-in out": (operator.peers.get("built-in out"), peer_args),
    }
    calls = {}
    for name, (function, given) in functions.items():
        if function is None:
            continue
        if has_out:
            more = {"out": torch.empty_like(results[0])}
        else:
            more = {}
            given = [a.clone() if isinstance(a, Tensor) else a for a in given]
        calls[name] = partial(function, *given, **named, **more)
    return calls


def in_place(operator: type[Operator]) -> Function:
    """Return the form in place as a function that returns its results."""
    function = getattr(torch_foo, f"{operator.__name__}_")
    names = list(signature(function).parameters)
    written = [names.index(argument) for argument in operator.inplace.values()]

    def call(*args: object, **named: object) -> object:
        function(*args, **named)
        return tuple(args[i] for i in written)

    return call


def with_gradients(
    call: Call, leaves: list[Tensor], grads: list[Tensor]
) -> Call:
    return lambda: torch.autograd.grad(flat(call()), leaves, grads)


def backward_bytes(
    call: Call, leaves: list[Tensor], grads: list[Tensor]
) -> tuple[int, int]:
    """Return how many bytes a backward pass has to read and to write.

    It reads the results' gradients and what was saved, and writes the leaves'
    gradients. Gradients that are the results' own, as a sum has them, are
    neither read nor written.
    """
    saved: list[Tensor] = []

    def save(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        results = flat(call())
    given = {g.data_ptr() for g in grads}
    written = [
        g
        for g in torch.autograd.grad(results, leaves, grads)
        if g.data_ptr() not in given
    ]
    return size([*grads, *saved]) if written else 0, size(written)


def call_cases() -> list[Case]:
    """The cost of a call: 4 elements, where the kernel takes no time."""
    cases = []
    for name, mode, requires_grad in [
        ("inference_mode", torch.inference_mode, False),
        ("no_grad", torch.no_grad, False),
        ("no_grad, parameters", torch.no_grad, True),
        ("grad mode", torch.enable_grad, False),
        ("requires_grad", torch.enable_grad, True),
    ]:
        a, b = (torch.randn(4, requires_grad=requires_grad) for _ in range(2))
        out = torch.empty(4)
        calls = {
            "torch_foo": lambda a=a, b=b: torch_foo.mul(a, b),
            "torch.mul": lambda a=a, b=b: torch.mul(a, b),
            "torch.ops": lambda a=a, b=b: torch.ops.torch_foo.mul(a, b),
        }
        cases.append(Case(f"mul, {name}", calls, mode))
        if mode is torch.enable_grad and requires_grad:
            continue
        calls = {
            "torch_foo": lambda a=a, b=b, o=out: torch_foo.mul(a, b, out=o),
            "torch.mul": lambda a=a, b=b, o=out: torch.mul(a, b, out=o),
        }
        cases.append(Case(f"mul out=, {name}", calls, mode))
        calls = {
            "torch_foo": lambda a=a, b=b: torch_foo.rms_norm(a, b),
            "torch.mul": lambda a=a, b=b: torch.mul(a, b),
            "F.rms_norm": lambda a=a, b=b: F.rms_norm(a, (4,), b, 1e-6),
        }
        cases.append(Case(f"rms_norm, {name}", calls, mode))
    return cases


def weight_cases(
    sizes: Sequence[tuple[int, int]] = ((4096, 4096), (11008, 4096)),
    total: int = 256 << 20,
) -> Iterator[Case]:
    """Products with weights of 8 and 4 bits, which no cache holds.

    Copies of a weight together have `total` bytes.

    The others' are the most similar that torch has: of int8 with a scale for
    each row, and of 4 bits with a scale and a zero for each 32; and of float32
    and bfloat16.
    """
    for n, k in sizes:
        weight = torch.randn(n, k)
        peers = (weight, weight.bfloat16())
        for bits, format in ((8, "q8_0"), (4, "q4_0")):
            for rows in (1, 4, 16):
                x = torch.randn(rows, k)
                ours = torch_foo.quantize(weight, format)
                functions = {
                    "torch_foo": (
                        partial(torch_foo.linear_quantized, x, format=format),
                        (ours,),
                    ),
                    "float32": (partial(F.linear, x), (peers[0],)),
                    "bfloat16": (partial(F.linear, x.bfloat16()), (peers[1],)),
                    f"aten int{bits}": packed(x.bfloat16(), weight, bits),
                }
                yield Case(
                    f"{rows}x{n}x{k} {format}",
                    {name: copied(*c, total) for name, c in functions.items()},
                    torch.inference_mode,
                )


def packed(x: Tensor, weight: Tensor, bits: int) -> tuple[Function, Tensors]:
    """Return torch's product of packed weights of any values."""
    n, k = weight.shape
    if bits == 8:
        q = torch.randint(-127, 128, (n, k), dtype=torch.int8)
        return partial(torch._weight_int8pack_mm, x), (
            q,
            weight[:, 0].bfloat16(),
        )
    q = torch.randint(0, 16, (n, k), dtype=torch.int32)
    scales = torch.ones(k // 32, n, 2, dtype=torch.bfloat16)

    def product(q: Tensor, scales: Tensor) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, q, 32, scales)

    return product, (torch._convert_weight_to_int4pack_for_cpu(q, 1), scales)


def copied(function: Function, tensors: Tensors, total: int) -> Rotation:
    """Call with copies in turn, which together have `total` bytes."""
    count = max(2, total // size(tensors))
    return Rotation(
        [partial(function, *(t.clone() for t in tensors)) for _ in range(count)]
    )
