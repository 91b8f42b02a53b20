"""Recognize the modules that compute what Llama's do.

Each `resembles_*` tells whether a module, or a class, looks as if torch_foo
could compute what it does. Each `refuse_*` returns the reason why a class, or a
module, cannot be replaced, or None.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from torch import Tensor, nn
from transformers.models.llama import modeling_llama as llama
from transformers.pytorch_utils import Conv1D

from torch_foo.integrations.transformers._equivalence import (
    difference,
    names,
    reached,
)
from torch_foo.integrations.transformers._forwards import GATES, ROTATE
from torch_foo.integrations.transformers._rebind import with_global

#: A module, or a class that stands for all its modules.
Target: TypeAlias = "nn.Module | type[nn.Module]"

#: The attribute that tells what patch() did to a module or a class.
MARK = "_torch_foo"

_ACTIVATION = re.compile(
    "((hidden_|intermediate_)?(act|activation)(_fn|_function)?"
    "|silu|gelu|swiglu)(_and_mul)?"
)
_ROTATION = re.compile("apply_.*(rot|rope)|rotate")
_OURS = tuple(
    str(Path(module.__file__ or "").parent) for module in (torch, transformers)
)


def class_of(target: Target) -> type[nn.Module]:
    return target if isinstance(target, type) else type(target)


def forward_of(cls: type[nn.Module]) -> Callable[..., Any]:
    """Return the forward of a class as it is without patch()."""
    forward: Callable[..., Any] = cls.forward
    for c in cls.__mro__:
        if "forward" in vars(c):
            mark = vars(c).get(MARK)
            if mark is not None and mark.is_in_place():
                forward = mark.original
            break
    return forward


# Another library may replace Llama's own later.
_NORM = forward_of(llama.LlamaRMSNorm)
_MLP = forward_of(llama.LlamaMLP)
_ROTARY = forward_of(llama.LlamaRotaryEmbedding)
_LINEAR = nn.Linear.forward
_ROTATE = llama.apply_rotary_pos_emb


def _vocabulary(cls: type[nn.Module]) -> frozenset[str]:
    """Return the names in a class's forward and what it reaches."""
    return _names_reached(cls, forward_of(cls))


@functools.cache
def _names_reached(
    cls: type[nn.Module], forward: Callable[..., Any]
) -> frozenset[str]:
    if cls.__module__.startswith("torch."):
        return frozenset()
    return frozenset(
        name
        for function in reached(cls, forward)
        for name in (*names(function.__code__), function.__name__ + "()")
    )


@functools.cache
def _differs(
    cls: type[nn.Module],
    forward: Callable[..., Any],
    other: type[nn.Module],
    expected: Callable[..., Any],
) -> str | None:
    """Return the reason why a class is not like one of Llama's."""
    found = _difference(forward, expected, (cls, other))
    if found is None:
        return None
    if found:
        return f"its {found} is not that of {other.__name__}"
    return f"it does not compute what {other.__name__} does"


def _difference(
    function: Any, expected: Any, owners: tuple[type, type] = (object, object)
) -> str | None:
    code = getattr(expected, "__code__", None)
    if code is None or not code.co_filename.startswith(_OURS):
        return ""  # another library had replaced Llama's
    return difference(function, expected, owners)


# --- norms ------------------------------------------------------------------


def resembles_norm(target: Target) -> bool:
    cls = class_of(target)
    return "rmsnorm" in cls.__name__.lower() or bool(
        _vocabulary(cls) & {"rsqrt", "rms_norm"}
    )


def refuse_norm(cls: type[nn.Module]) -> str | None:
    return _differs(cls, forward_of(cls), llama.LlamaRMSNorm, _NORM)


def refuse_weight(target: Target, _: object = None) -> str | None:
    if isinstance(target, type):
        return None
    kind = type(target.weight)
    if kind not in (Tensor, nn.Parameter):
        return f"its weight is a {kind.__name__}, expected a plain tensor"
    return None


# --- gated feed-forward blocks ----------------------------------------------


def resembles_mlp(target: Target) -> bool:
    cls = class_of(target)
    if cls.__module__ == "transformers.activations":
        return False  # a part of what is replaced
    return cls.__name__.endswith("MLP") or any(
        map(_ACTIVATION.fullmatch, _vocabulary(cls))
    )


def refuse_mlp(cls: type[nn.Module]) -> str | None:
    return _differs(cls, forward_of(cls), llama.LlamaMLP, _MLP)


def refuse_activation(target: Target, _: object = None) -> str | None:
    if isinstance(target, type):
        return None
    activation = type(target.act_fn)
    if activation not in GATES:
        name = activation.__name__
        return f"its activation is {name}, expected SiLU or GELU"
    return None


# --- rotary embeddings ------------------------------------------------------


def resembles_attention(target: Target) -> bool:
    return any(
        _ROTATION.match(name)
        for name in _vocabulary(class_of(target))
        if name.endswith("()")
    )


def refuse_rotation(cls: type[nn.Module]) -> str | None:
    forward = forward_of(cls)
    function = inspect.unwrap(forward)
    if ROTATE not in function.__code__.co_names or (
        with_global(forward, ROTATE, None) is None
    ):
        return f"it does not call {ROTATE} as Llama's attention does"
    found = _difference(function.__globals__[ROTATE], _ROTATE)
    if found is not None:
        return f"its {found or ROTATE} is not Llama's"
    return None


def refuse_tables(
    target: Target, classes: Collection[type[nn.Module]]
) -> str | None:
    """Refuse other tables than Llama's, and heads that cannot be halved.

    The modules that make the tables are those of the same file among
    `classes`, or else all in that file.
    """
    cls = class_of(target)
    tables = _tables(cls, classes) or _tables(cls, classes_beside(cls))
    if not tables or any(
        _differs(c, forward_of(c), llama.LlamaRotaryEmbedding, _ROTARY)
        for c in tables
    ):
        made_by = ", ".join(c.__name__ for c in tables) or "unknown code"
        return f"its cosines and sines are made by {made_by}, not as Llama's"
    head_dim = getattr(target, "head_dim", 2)
    if head_dim % 2:
        return f"its head_dim is {head_dim}, expected an even number"
    return None


def classes_beside(cls: type[nn.Module]) -> list[type[nn.Module]]:
    """Return the classes of modules in a class's source file."""
    return [
        value
        for value in vars(sys.modules[cls.__module__]).values()
        if isinstance(value, type)
        and issubclass(value, nn.Module)
        and value.__module__ == cls.__module__
    ]


def _tables(
    attention: type[nn.Module], classes: Collection[type[nn.Module]]
) -> list[type[nn.Module]]:
    """Return those in the attention's file that compute cosines and sines."""
    return [
        c
        for c in classes
        if c.__module__ == attention.__module__
        and {"cos", "sin"} <= _vocabulary(c)
    ]


# --- products with few rows -------------------------------------------------


def resembles_linear(target: Target) -> bool:
    cls = class_of(target)
    if issubclass(cls, (nn.Linear, Conv1D)):
        return True
    return "linear" in _vocabulary(cls) and not (
        isinstance(target, nn.Module) and "linear" in target._modules
    )


def refuse_linear(cls: type[nn.Module]) -> str | None:
    if cls is not nn.Linear:
        return "it is not a torch.nn.Linear"
    if _difference(cls.forward, _LINEAR) is not None:
        return "torch.nn.Linear.forward was replaced by another library"
    return None


# --- losses -----------------------------------------------------------------


def resembles_loss(target: Target) -> bool:
    cls = class_of(target)
    return issubclass(cls, transformers.PreTrainedModel) and bool(
        _vocabulary(cls)
        & {"loss_function", "CrossEntropyLoss", "cross_entropy"}
    )


def calls_loss_function(cls: type[nn.Module]) -> bool:
    return "loss_function" in _vocabulary(cls)
