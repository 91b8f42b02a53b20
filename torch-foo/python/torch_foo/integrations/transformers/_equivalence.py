"""Tell whether two functions compute the same."""

from __future__ import annotations

import builtins
import dis
import functools
import inspect
from collections.abc import Callable, Iterator
from itertools import zip_longest
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch

_CONSTANTS = (int, float, complex, str, bytes, type(None), type(...))

# What objects of these types are made of.
_ATTRIBUTES: dict[type, tuple[str, ...]] = {
    MethodType: ("__func__", "__self__"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset", "fdel"),
    functools.partial: ("func", "args", "keywords"),
    torch.no_grad: (),
}

# What does not change the results of a class.
_IGNORED = {
    *("__annotate__", "__annotate_func__", "__annotations__"),
    *("__annotations_cache__", "__dict__", "__doc__", "__firstlineno__"),
    *("__module__", "__qualname__", "__static_attributes__", "__weakref__"),
}

_FLAGS = (
    inspect.CO_VARARGS
    | inspect.CO_VARKEYWORDS
    | inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
)

_MISSING = object()


def difference(
    a: object, b: object, owners: tuple[type, type] = (object, object)
) -> str | None:
    """Return the name of what differs between two objects, or None.

    Functions are the same if their instructions and parameters are, and if all
    that they reach is: globals, closures (and so decorators), defaults, and
    what the classes `owners` give to `self`. Classes are the same if their
    bases and attributes are, constants if their types and values are. Any other
    object is the same as itself only. The attributes of instances are left to
    the caller.

    The name is empty if a and b themselves differ, not what they reach.
    """
    return _difference("", a, b, owners, set())


def _difference(
    name: str,
    a: Any,
    b: Any,
    owners: tuple[type, type],
    visited: set[tuple[int, int]],
) -> str | None:
    # A cycle differs where anything else in it does.
    if a is b or (id(a), id(b)) in visited:
        return None
    if type(a) is not type(b):
        return name
    if isinstance(a, _CONSTANTS):
        return None if repr(a) == repr(b) else name  # 0.0 is not -0.0
    if isinstance(a, type):
        owners = (a, b)
    parts = [_parts(x, owner) for x, owner in zip((a, b), owners, strict=True)]
    if None in parts:
        return name
    visited.add((id(a), id(b)))
    nothing = (None, _MISSING)
    for left, right in zip_longest(*parts, fillvalue=nothing):
        if left[0] != right[0]:
            return name
        found = _difference(left[0] or name, left[1], right[1], owners, visited)
        if found is not None:
            return found
    return None


def _parts(x: Any, owner: type) -> Iterator[tuple[str, Any]] | None:
    """Yield what an object is made of, named; None if that is not known."""
    if isinstance(x, FunctionType):
        return _parts_of_function(x, owner)
    if isinstance(x, CodeType):
        return _parts_of_code(x)
    if isinstance(x, type):
        names = sorted(vars(x).keys() - _IGNORED)
        return iter([("", x.__bases__), *((n, vars(x)[n]) for n in names)])
    if type(x) is tuple:
        return (("", part) for part in x)
    if type(x) is frozenset:
        return (("", part) for part in sorted(x, key=repr))
    if type(x) is dict and all(isinstance(key, str) for key in x):
        return iter(x.items())
    if type(x) in _ATTRIBUTES:
        return (("", getattr(x, a)) for a in _ATTRIBUTES[type(x)])
    return None


def _parts_of_function(
    function: FunctionType, owner: type
) -> Iterator[tuple[str, Any]]:
    code = function.__code__
    yield "", code  # first: if it is the same, so are the names below
    yield "", function.__defaults__
    yield "", function.__kwdefaults__
    for cell in function.__closure__ or ():
        try:
            yield "", cell.cell_contents
        except ValueError:
            yield "", None  # it is empty
    for name in names(code):
        scope = function.__globals__
        yield name, scope.get(name, vars(builtins).get(name, _MISSING))
        yield name, inspect.getattr_static(owner, name, _MISSING)


def _parts_of_code(code: CodeType) -> Iterator[tuple[str, Any]]:
    parameters = code.co_argcount + code.co_kwonlyargcount
    yield "", (code.co_argcount, code.co_posonlyargcount)
    yield "", code.co_varnames[:parameters]
    yield "", code.co_flags & _FLAGS
    yield "", getattr(code, "co_exceptiontable", b"")
    for instruction in dis.get_instructions(code):
        yield "", instruction.opcode
        if instruction.opcode in dis.hasconst:
            yield "", instruction.argval
        elif instruction.opcode in dis.hasname:
            yield "", instruction.argrepr
        else:
            yield "", instruction.arg


def names(code: CodeType) -> Iterator[str]:
    """Yield the names of globals and attributes in a code and its lambdas."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names(constant)


def reached(cls: type, method: Callable[..., Any]) -> Iterator[FunctionType]:
    """Yield a method and the functions that it reaches in its class's files."""
    files = {c.__module__ for c in cls.__mro__}
    found = [method]
    visited = set()
    while found:
        x = inspect.unwrap(found.pop())
        if (
            isinstance(x, FunctionType)
            and x not in visited
            and (x.__module__ in files)
        ):
            visited.add(x)
            yield x
            parts = [part for _, part in _parts_of_function(x, cls)]
            for name in names(x.__code__):  # super() may mean any class
                parts += (vars(c).get(name) for c in cls.__mro__)
            found += filter(callable, parts)
