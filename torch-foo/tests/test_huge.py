"""Tensors of more than 2**31 elements, which 32 bits cannot count.

A row of the results follows from the same row of the arguments. So the rows at
the edges have to be those of a call with these rows alone.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_foo
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch_foo.operators import OPERATORS, Operator

Call = Callable[..., Any]

ROWS, COLUMNS = 2**19 + 1, 4096  # the last row begins at element 2**31
EDGES = [0, 1, ROWS - 2, ROWS - 1]
NEEDED = 9  # GiB: x and one more of its size
FEW = 100  # rows, for more of which an operator like linear takes too long

_ops = torch.ops.torch_foo


def weight(like: Tensor) -> Tensor:
    return torch.linspace(0.5, 2, COLUMNS).to(like)


# The benchmark has no such arguments: they broadcast, are packed or have few
# columns. Nor does memory suffice to get add_rms_norm's gradient by autograd,
# or to make blocks of so many numbers.
OTHERS: dict[str, Call] = {
    "mul by a row": lambda x: torch_foo.mul(x, weight(x), out=x),
    "packed silu_mul": torch_foo.silu_mul,
    "packed silu_mul's gradient": lambda x: _ops._silu_mul_backward(
        x[:, ::2], x, None, True, True
    )[0],
    "dequantize": lambda x: torch_foo.dequantize(
        x.view(torch.uint8)[:, : 8 * 34]
    ).nan_to_num_(0, 0, 0),
    "linear": lambda x: torch_foo.linear(x, weight(x).repeat(5, 1)),
    "attention": lambda x: torch_foo.attention(
        x[:, None, None, :128], *[x.view(-1, 1, 32, 128)] * 2
    ),
    "linear by many weights": lambda x: torch_foo.linear(weight(x), x),
    "add_rms_norm's gradient": lambda x: _ops._add_rms_norm_backward(
        x, x, x, weight(x), 1e-6, True, False
    )[0],
}


def available(device: str) -> float:
    """Return the GiB of memory that can be had without swapping."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] / 2**30
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return 0
    return int(re.search(r"MemAvailable: +(\d+)", text)[1]) / 2**20


def at_edges(values: Any) -> list[Any]:
    """Return the rows at the edges of all tensors that have rows."""
    return [
        v.index_select(v.shape.index(ROWS), torch.tensor(EDGES).to(v.device))
        if isinstance(v, Tensor) and ROWS in v.shape
        else v
        for v in tree_leaves(values)
    ]


def arguments(operator: type[Operator], x: Tensor) -> list[Any]:
    """Return the benchmark's arguments, with x in place of huge tensors."""

    def smaller(argument: Any) -> Any:
        if not isinstance(argument, tuple):
            return argument
        is_huge = torch.Size(argument).numel() > 2**31
        return (lambda _: x.view(argument)) if is_huge else argument

    sample = operator.benchmark(ROWS, COLUMNS)
    sample.arguments = tuple(map(smaller, sample.arguments))
    return list(sample.args(torch.bfloat16, x.device.type))


class LeftUnset(TorchDispatchMode):
    """Compute no huge result: to get memory takes longer than to fill it.

    A gradient here depends on the arguments alone.
    """

    def __torch_dispatch__(
        self, func: Call, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        with FakeTensorMode(allow_non_fake_inputs=True):
            like = func(*args, **kwargs or {})
        if isinstance(like, Tensor) and like.numel() > 2**31:
            return torch.empty(like.shape, dtype=like.dtype, device=like.device)
        return func(*args, **kwargs or {})


def public(operator: type[Operator]) -> Call:
    """Return the operator's function, whose results have a row per row."""
    function = getattr(torch_foo, operator.__name__)
    if "reduction" in inspect.signature(function).parameters:
        function = partial(function, reduction="none")
    return function


def forward_calls(
    operator: type[Operator], spare: Tensor
) -> Iterator[tuple[str, Call]]:
    """Yield the operator by `out=` and in place if it can, into `spare`."""
    name = operator.__name__
    function = public(operator)

    def out(*args: Any) -> Tensor:
        with FakeTensorMode(allow_non_fake_inputs=True):
            like = function(*args)
        out = spare.flatten()[: like.numel()].view(like.shape)
        return function(*args, out=out)

    def in_place(*args: Any) -> list[Tensor]:
        function = getattr(torch_foo, f"{name}_")
        given = inspect.signature(function).bind(*args).arguments
        first, *others = operator.inplace.values()
        for other in others:
            tensor = given[other]
            copy = spare.flatten()[: tensor.numel()].view_as(tensor)
            given[other] = copy.copy_(tensor)
        function(**given)
        return [given[argument] for argument in (first, *others)]

    if "out" in operator.variants:
        yield f"{name} out=", out
    if operator.inplace:
        yield f"{name}_", in_place
    if "out" not in operator.variants and not operator.inplace:
        yield name, function


def gradient_calls(
    operator: type[Operator], args: list[Any]
) -> Iterator[tuple[str, Call]]:
    """Yield the gradient of each huge argument, if there is one result."""
    function = public(operator)

    def gradient(i: int, *args: Any) -> Tensor:
        leaf = args[i].detach().requires_grad_()
        with LeftUnset():
            result = function(*args[:i], leaf, *args[i + 1 :])
        same = (result.shape, result.dtype) == (leaf.shape, leaf.dtype)
        grad = args[i] if same else torch.ones_like(result)
        edge = get_gradient_edge(result)
        del result
        return torch.autograd.grad(edge, leaf, grad)[0]

    has_one_result = isinstance(function(*at_edges(args)), Tensor)
    if operator.backward is not None and has_one_result:
        for i, arg in enumerate(args):
            if isinstance(arg, Tensor) and arg.numel() > 2**31:
                name = f"gradient {i} of {operator.__name__}"
                yield name, partial(gradient, i)


def test_rows_beyond_32_bits(device: str) -> None:
    gib = available(device)
    if gib < NEEDED:
        pytest.skip(f"needs {NEEDED} GiB, and {gib:.1f} are available")
    x = torch.zeros(ROWS, COLUMNS, dtype=torch.bfloat16, device=device)
    rows = torch.randn(len(EDGES), COLUMNS).to(x)

    def check(name: str, call: Call, args: list[Any]) -> None:
        x[EDGES] = rows
        expected = tree_map(torch.clone, call(*at_edges(args)))
        for got, want in zip(
            tree_leaves(call(*args)), tree_leaves(expected), strict=True
        ):
            assert torch.equal(*at_edges(got), want), name

    operators = {
        operator: arguments(operator, x)
        for operator in OPERATORS.values()
        if operator.benchmark is not None
        and operator.__name__ not in OTHERS
        and max(operator.sizes)[0] >= FEW
    }
    spare = torch.empty_like(x)
    for operator, args in operators.items():
        for name, call in forward_calls(operator, spare):
            check(name, call, args)
    del spare, call  # for the gradients
    for operator, args in operators.items():
        for name, call in gradient_calls(operator, args):
            check(name, call, args)
    for name, call in OTHERS.items():
        check(name, call, [x])
