"""Copy a function and bind one of its global names to another object."""

from __future__ import annotations

import functools
from types import CellType, FunctionType
from typing import Any


def with_global(function: Any, name: str, value: object) -> FunctionType | None:
    """Return a copy of a function whose global `name` is `value`.

    Decorators written with functools.wraps are copied too. None means that one
    of them is not.
    """
    if not isinstance(function, FunctionType):
        return None
    scope, closure = function.__globals__, function.__closure__
    inner = getattr(function, "__wrapped__", None)
    if inner is None:
        scope = {**scope, name: value}
        del scope["__name__"]  # else Dynamo looks names up in that module
    else:  # a decorator's wrapper: the decorated function is in its closure
        wrapped = with_global(inner, name, value)
        cells = closure or ()
        if wrapped is None or not any(c.cell_contents is inner for c in cells):
            return None
        closure = tuple(
            CellType(wrapped) if cell.cell_contents is inner else cell
            for cell in cells
        )
    copy = FunctionType(
        function.__code__,
        scope,
        function.__name__,
        function.__defaults__,
        closure,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(copy, function)
    # mypy does not know what update_wrapper sets.
    if inner is None:
        del copy.__wrapped__  # type: ignore[attr-defined]
    else:
        copy.__wrapped__ = wrapped  # type: ignore[attr-defined]
    return copy
