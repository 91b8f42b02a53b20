"""Recognize the modules that compute what Llama's do.

Each `refuse_*` takes a module or a class, and its class, and returns the reason
why it cannot be replaced, or None.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.models.llama import modeling_llama as llama

from torch_foo.integrations.transformers._forwards import GATES

_DIFFERENT = "it does not compute what Llama's does"


def rotates(cls: type[nn.Module]) -> bool:
    """Whether the forward of a class applies rotary embeddings."""
    code = getattr(inspect.unwrap(cls.forward), "__code__", None)
    return code is not None and "apply_rotary_pos_emb" in code.co_names


def refuse_norm(target: object, cls: type[nn.Module]) -> str | None:
    if not _is_like(cls.forward, llama.LlamaRMSNorm.forward):
        return _DIFFERENT
    return refuse_weight(target, cls)


def refuse_weight(target: object, cls: type[nn.Module]) -> str | None:
    if isinstance(target, nn.Module) and (
        type(target.weight) not in (Tensor, nn.Parameter)
    ):
        kind = type(target.weight).__name__
        return f"its weight is a {kind}, expected a plain tensor"
    return None


def refuse_mlp(target: object, cls: type[nn.Module]) -> str | None:
    if not _is_like(cls.forward, llama.LlamaMLP.forward):
        return _DIFFERENT
    if isinstance(target, nn.Module) and type(target.act_fn) not in GATES:
        name = type(target.act_fn).__name__
        return f"its activation is {name}, expected SiLU or GELU"
    return None


def refuse_attention(target: object, cls: type[nn.Module]) -> str | None:
    scope = inspect.unwrap(cls.forward).__globals__
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
