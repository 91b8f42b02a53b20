"""Recognize the modules that compute what Llama's do.

Each `refuse_*` takes a module or a class and returns the reason why it cannot
be replaced, or None.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn
from transformers.models.llama import modeling_llama as llama

from torch_foo.integrations.transformers._forwards import GATES

#: A module, or a class that stands for all its modules.
Target: TypeAlias = "nn.Module | type[nn.Module]"

_DIFFERENT = "it does not compute what Llama's does"


def class_of(target: Target) -> type[nn.Module]:
    return target if isinstance(target, type) else type(target)


def rotates(cls: type[nn.Module]) -> bool:
    """Whether the forward of a class applies rotary embeddings."""
    code = getattr(inspect.unwrap(cls.forward), "__code__", None)
    return code is not None and "apply_rotary_pos_emb" in code.co_names


def refuse_norm(target: Target) -> str | None:
    if not _is_like(class_of(target).forward, llama.LlamaRMSNorm.forward):
        return _DIFFERENT
    return refuse_weight(target)


def refuse_weight(target: Target) -> str | None:
    if isinstance(target, nn.Module) and (
        type(target.weight) not in (Tensor, nn.Parameter)
    ):
        kind = type(target.weight).__name__
        return f"its weight is a {kind}, expected a plain tensor"
    return None


def refuse_mlp(target: Target) -> str | None:
    if not _is_like(class_of(target).forward, llama.LlamaMLP.forward):
        return _DIFFERENT
    if isinstance(target, nn.Module) and type(target.act_fn) not in GATES:
        name = type(target.act_fn).__name__
        return f"its activation is {name}, expected SiLU or GELU"
    return None


def refuse_attention(target: Target) -> str | None:
    scope = inspect.unwrap(class_of(target).forward).__globals__
    embeddings = [
        value.forward
        for name, value in scope.items()
        if name.endswith("RotaryEmbedding")
        and isinstance(value, type)
        and issubclass(value, nn.Module)
    ]
    if not (
        _is_like(scope["apply_rotary_pos_emb"], llama.apply_rotary_pos_emb)
        and embeddings
        and all(
            _is_like(forward, llama.LlamaRotaryEmbedding.forward)
            for forward in embeddings
        )
    ):
        return _DIFFERENT
    head_dim = getattr(target, "head_dim", 2)
    if head_dim % 2:
        return f"its head_dim is {head_dim}, expected an even number"
    return None


def _is_like(function: Callable[..., Any], other: Callable[..., Any]) -> bool:
    return _code(function) == _code(other)


def _code(function: Callable[..., Any]) -> tuple[object, ...]:
    """Return what a function does, without its decorators and its docstring."""
    function = inspect.unwrap(function)
    code = function.__code__
    constants = [c for c in code.co_consts if c != function.__doc__]
    return code.co_code, code.co_names, tuple(constants)
