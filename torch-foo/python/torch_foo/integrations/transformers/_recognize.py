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
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from torch import Tensor, nn
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3
from transformers.models.smollm3 import modeling_smollm3 as smollm3
from transformers.pytorch_utils import Conv1D

from torch_foo.integrations.transformers._equivalence import (
    difference,
    names,
    reached,
)
from torch_foo.integrations.transformers._forwards import GATE_NAMES, ROTATE
from torch_foo.integrations.transformers._rebind import with_global
from torch_foo.nn import QuantizedLinear

#: A module, or a class that stands for all its modules.
Target: TypeAlias = "nn.Module | type[nn.Module]"

# type[nn.Module], which mypy takes for unhashable.
_Class: TypeAlias = Any

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


def class_of(target: Target) -> _Class:
    return target if isinstance(target, type) else type(target)


def forward_of(cls: _Class) -> Callable[..., Any]:
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
_LAYER = forward_of(llama.LlamaDecoderLayer)
_ATTENTIONS: dict[_Class, Callable[..., Any]] = {
    cls: forward_of(cls)
    for cls in (
        llama.LlamaAttention,
        mistral.MistralAttention,
        qwen2.Qwen2Attention,
        qwen3.Qwen3Attention,
        smollm3.SmolLM3Attention,
    )
}
_MODELS: dict[_Class, Callable[..., Any]] = {
    cls: forward_of(cls)
    for cls in (
        llama.LlamaModel,
        mistral.MistralModel,
        qwen2.Qwen2Model,
        qwen3.Qwen3Model,
        smollm3.SmolLM3Model,
    )
}


def _vocabulary(cls: _Class) -> frozenset[str]:
    """Return the names in a class's forward and what it reaches."""
    return _names_reached(cls, forward_of(cls))


@functools.cache
def _names_reached(cls: _Class, forward: Callable[..., Any]) -> frozenset[str]:
    if cls.__module__.startswith(("torch.", "torch_foo.")):
        return frozenset()
    return frozenset(
        name
        for function in reached(cls, forward)
        for name in (*names(function.__code__), function.__name__ + "()")
    )


@functools.cache
def _differs(
    cls: _Class,
    forward: Callable[..., Any],
    other: _Class,
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
    if "rmsnorm" in cls.__name__.lower():
        return not cls.__module__.startswith("torch_foo.")
    return bool(_vocabulary(cls) & {"rsqrt", "rms_norm"})


def refuse_norm(cls: _Class) -> str | None:
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


def refuse_mlp(cls: _Class) -> str | None:
    return _differs(cls, forward_of(cls), llama.LlamaMLP, _MLP)


def refuse_activation(target: Target, _: object = None) -> str | None:
    if isinstance(target, type):
        return None
    activation = type(target.act_fn)
    if activation not in GATE_NAMES:
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


def refuse_rotation(cls: _Class) -> str | None:
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


def refuse_tables(target: Target, classes: Collection[_Class]) -> str | None:
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


def classes_beside(cls: _Class) -> list[_Class]:
    """Return the classes of modules in a class's source file."""
    return [
        value
        for value in vars(sys.modules[cls.__module__]).values()
        if isinstance(value, type)
        and issubclass(value, nn.Module)
        and value.__module__ == cls.__module__
    ]


def _tables(attention: _Class, classes: Collection[_Class]) -> list[_Class]:
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
        return cls is not QuantizedLinear
    return "linear" in _vocabulary(cls) and not (
        isinstance(target, nn.Module) and "linear" in target._modules
    )


def refuse_linear(cls: _Class) -> str | None:
    if cls is not nn.Linear:
        return "it is not a torch.nn.Linear"
    if _difference(cls.forward, _LINEAR) is not None:
        return "torch.nn.Linear.forward was replaced by another library"
    return None


# --- layers -----------------------------------------------------------------


def resembles_layer(target: Target) -> bool:
    """Whether the target is a module with attention, then a gated block."""
    return isinstance(target, nn.Module) and (
        {"self_attn", "input_layernorm"} <= _vocabulary(class_of(target))
    )


def refuse_layer(cls: _Class) -> str | None:
    return _differs(cls, forward_of(cls), llama.LlamaDecoderLayer, _LAYER)


def resembles_model(target: Target) -> bool:
    """Whether the target is a module with layers that are replaced already."""
    return (
        isinstance(target, nn.Module)
        and target._modules.keys() >= {"embed_tokens", "layers", "rotary_emb"}
        and any(MARK in vars(layer) for layer in layers_of(target))
    )


def layers_of(model: Any) -> list[Any]:
    return [*model.layers._modules.values()]


def refuse_model(cls: _Class) -> str | None:
    return _refuse_others(cls, _MODELS)


def _refuse_others(
    cls: _Class, known: dict[_Class, Callable[..., Any]]
) -> str | None:
    if any(
        _differs(cls, forward_of(cls), other, expected) is None
        for other, expected in known.items()
    ):
        return None
    names = ", ".join(other.__name__ for other in known)
    return f"its {cls.__name__} computes what none of {names} does"


def refuse_step(layer: Any, classes: Collection[_Class] = ()) -> str | None:
    """Refuse what the decode step does not know in a layer like Llama's.

    Whether the rotation's tables are Llama's depends on `classes`, those in the
    layer's model, if there are any.
    """
    for module, reason in _refused_parts(layer, classes):
        cls = type(module)
        if forward_of(cls) is not cls.forward:
            return f"patch() was called for {cls.__name__}"
        if reason:
            return reason
    return None


def _refused_parts(
    layer: Any, classes: Collection[_Class]
) -> Iterator[tuple[nn.Module, str | None]]:
    """Yield the parts of a layer, each with a reason not to compute with it."""
    attention, mlp = layer.self_attn, layer.mlp

    def left(module: nn.Module, reason: str | None) -> str | None:
        return reason and f"its {type(module).__name__} is left alone"

    cls = type(attention)
    reason = refuse_rotation(cls)
    if classes and not reason:
        reason = refuse_tables(attention, classes)
    yield attention, left(attention, reason) or _refuse_attention(attention)
    reason = refuse_mlp(type(mlp)) or refuse_activation(mlp)
    yield mlp, left(mlp, reason)
    for norm in norms_of(layer):
        reason = refuse_norm(type(norm)) or refuse_weight(norm)
        yield norm, left(norm, reason)
    for linear in linears_of(layer):
        if type(linear) is not QuantizedLinear:
            reason = refuse_linear(type(linear)) or refuse_weight(linear)
            yield linear, left(linear, reason)


def _refuse_attention(attention: Any) -> str | None:
    reason = _refuse_others(type(attention), _ATTENTIONS)
    if reason:
        return reason
    found = attention.config._attn_implementation
    if found != "sdpa":
        return f"its attention is {found}, expected sdpa"
    return None


def head_norms_of(attention: Any) -> list[Any]:
    """Return the norms of queries' and keys' heads, if there are any."""
    if "q_norm" not in _vocabulary(type(attention)):
        return []
    return [attention.q_norm, attention.k_norm]


def rotates(attention: Any) -> bool:
    """Whether this layer's queries and keys are rotated."""
    return "use_rope" not in _vocabulary(type(attention)) or attention.use_rope


def norms_of(layer: Any) -> list[Any]:
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    return norms + head_norms_of(layer.self_attn)


def projections_of(layer: Any) -> list[Any]:
    attention = layer.self_attn
    return [attention.q_proj, attention.k_proj, attention.v_proj]


def linears_of(layer: Any) -> list[Any]:
    mlp = layer.mlp
    return [
        *projections_of(layer),
        layer.self_attn.o_proj,
        *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
    ]


# --- losses -----------------------------------------------------------------


def resembles_loss(target: Target) -> bool:
    cls = class_of(target)
    return issubclass(cls, transformers.PreTrainedModel) and bool(
        _vocabulary(cls)
        & {"loss_function", "CrossEntropyLoss", "cross_entropy"}
    )


def calls_loss_function(cls: _Class) -> bool:
    return "loss_function" in _vocabulary(cls)
