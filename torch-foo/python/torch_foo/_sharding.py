"""Sharding rules, by which DTensor runs the operators on shards.

They follow from Operator.dims and Operator.linear_in. This module is imported
after torch.distributed.tensor, which takes longer to import than torch_foo.
"""

# mypy: allow-untyped-calls
# (parts of torch have no types)

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding
from torch.distributed.tensor.placement_types import Placement

from torch_foo import _torch_internals as internals
from torch_foo._registration import (
    all_arguments,
    call_by_position,
    check_out,
)
from torch_foo._torch_internals import (
    OpOverload,
    arguments,
    returned_names,
)
from torch_foo.operators import OPERATORS, Operator

#: Placements of the results, and of the tensors among the arguments.
Sharding = tuple[list[Placement], list[Placement]]


def register() -> None:
    """Register the rules of all operators."""
    ops = torch.ops.torch_foo
    for name, operator in OPERATORS.items():
        packet = getattr(ops, name)
        _register_rule(operator, packet.default)
        if "out" in operator.variants:
            _register_writing(operator, packet.out, {"result": "out"})
        if operator.inplace:
            inplace = getattr(ops, f"{name}_").default
            _register_writing(operator, inplace, operator.inplace)


def _register_rule(operator: type[Operator], overload: OpOverload) -> None:
    def rule(*args: Any, **kwargs: Any) -> list[tuple[list[Any], list[Any]]]:
        given = all_arguments(overload, args, kwargs)
        is_tensor = [hasattr(a, "shape") for a in (*args, *kwargs.values())]
        acceptable = []
        for results, tensors in _shardings(operator, overload, given):
            left = iter(tensors)
            inputs = [next(left) if is_ else None for is_ in is_tensor]
            acceptable.append((results, inputs))
        return acceptable

    register_sharding(overload)(rule)
    internals.cache_sharding_by_all_arguments(overload)


def _shardings(
    operator: type[Operator], overload: OpOverload, given: Sequence[Any]
) -> Iterator[Sharding]:
    """Yield the ways to share a call among the ranks of a mesh's dimension.

    Of the tensors in `given`, which has all arguments, only shapes matter.
    """
    returns = len(returned_names(overload))
    names = [a.name for a in arguments(overload) if "Tensor" in str(a.type)]
    shapes = {
        a.name: value.shape
        for a, value in zip(arguments(overload), given, strict=True)
        if hasattr(value, "shape")
    }
    yield [Replicate()] * returns, [Replicate()] * len(shapes)

    linear_in = [group.split() for group in operator.linear_in]
    if not operator.is_public():
        linear_in.append([name for name in names if name.startswith("grad")])
    for group in linear_in:
        sums = [_sum_or_whole(t in group) for t in shapes]
        yield [Partial()] * returns, sums

    text = operator.dims
    if not isinstance(text, str):
        text = text(*given)
    left, _, right = text.partition("->")
    terms = dict(zip(names, left.split(","), strict=False))
    dims = {t: _dims(terms.get(t, ""), len(shapes[t])) for t in shapes}
    every = dict.fromkeys(d for ds in dims.values() for d in ds)
    leading = max((int(d) for d in every if d.isdigit()), default=0)
    results = [
        _dims(term, leading + len(_letters(term))) for term in right.split(",")
    ]
    for dim in every:
        split = {
            t
            for t, ds in dims.items()
            if dim in ds and shapes[t][ds.index(dim)] != 1  # not broadcast
        }
        if dim.isupper() or not split:
            continue
        added = {
            t
            for group in linear_in
            if any(dim not in ds for ds in results) and split & {*group}
            for t in group
        }
        yield (
            [
                Shard(ds.index(dim)) if dim in ds else Partial()
                for ds in results
            ],
            [
                Shard(dims[t].index(dim))
                if t in split
                else _sum_or_whole(t in added)
                for t in shapes
            ],
        )


def _sum_or_whole(is_sum: bool) -> Placement:
    return Partial() if is_sum else Replicate()


def _letters(term: str) -> str:
    return term.strip(" .")


def _dims(term: str, ndim: int) -> list[str]:
    """Name the dimensions; those of ``...`` are numbered, from the last on."""
    letters = _letters(term)
    count = ndim - len(letters) if "..." in term else 0
    return [*map(str, range(count, 0, -1)), *letters]


# --- variants that write to an argument -------------------------------------


def _register_writing(
    operator: type[Operator], overload: OpOverload, written: Mapping[str, str]
) -> None:
    """Compute results as DTensors, and copy them to where they belong.

    DTensor has no rules for operators that return nothing, and would write to
    a copy of what is sharded in another way.
    """
    full = getattr(torch.ops.torch_foo, operator.__name__).default
    call = call_by_position(full)
    returned = returned_names(full)
    names = [a.name for a in arguments(overload)]

    def write(cls: Any, func: Any, types: Any, args: Any, kwargs: Any) -> None:
        values = all_arguments(overload, args, kwargs or {})
        given = dict(zip(names, values, strict=True))
        targets = {written[name]: given[written[name]] for name in returned}
        out = given.pop("out", None)
        results = call(*given.values())
        results = results if isinstance(results, tuple) else (results,)
        if out is not None:
            check_out(operator, out, *results)
        shards = [
            _resharded(operator, name, target, result)
            for (name, target), result in zip(
                targets.items(), results, strict=True
            )
        ]
        for target, shard in zip(targets.values(), shards, strict=True):
            target.to_local().copy_(shard)

    torch.library.register_torch_dispatch(overload, DTensor, write)


def _resharded(
    operator: type[Operator], name: str, target: Any, result: Any
) -> Tensor:
    """Return what of a result this rank has to write to a target."""
    wrong = ""
    if not (isinstance(target, DTensor) and isinstance(result, DTensor)):
        found, expected = type(target).__name__, type(result).__name__
        wrong = f"is a {found}, expected a {expected}"
    elif target.placements == result.placements:
        return result.to_local()
    elif any(p.is_partial() for p in target.placements):
        wrong = (
            f"has placements {target.placements}, expected no partial sum, or "
            f"those of the result, {result.placements}"
        )
    if wrong:
        raise RuntimeError(f"torch_foo.{operator.__name__}: {name} {wrong}")
    resharded: DTensor = result.redistribute(placements=target.placements)
    return resharded.to_local()
