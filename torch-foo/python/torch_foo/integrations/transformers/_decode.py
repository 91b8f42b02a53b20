"""The decode step: a few tokens through the layers of a model.

A token of a small model takes transformers as long in Python as in its
products. Where nothing observes the inside of the layers, one operator computes
all of them, with one product for queries, keys and values and one for gate and
up, and appends to the cache in place. Where something observes the inside of a
layer, each of the others is computed by that operator alone.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from itertools import chain, repeat
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama as llama

from torch_foo._torch_internals import (
    PLAIN_TENSORS,
    HookHandle,
    autocast_is_enabled,
    count_dispatch_modes,
    forward_ad_state,
    global_hooks_are_set,
    operation,
    tracing_state,
    transforms_are_active,
)
from torch_foo.integrations.transformers._cache import (
    CACHE,
    New,
    Room,
    appends,
    layer_with_room,
)
from torch_foo.integrations.transformers._forwards import (
    MOST_ROWS,
    gate_of,
    rope_tables,
)
from torch_foo.integrations.transformers._recognize import (
    MARK,
    layers_of,
    linears_of,
    norms_of,
    refuse_step,
    rotates,
)
from torch_foo.nn import QuantizedLinear

try:
    _capturing: Any = import_module("transformers.utils.output_capturing")
except ImportError:  # transformers 4 records in another way
    _capturing = None

_ops = torch.ops.torch_foo
_decoder_layers = operation(_ops._decoder_layers.default)

_Rotation = tuple[Tensor, Tensor, Tensor | None]

# Arguments of a layer and of a model that the step knows.
_KNOWN = {
    *("attention_mask", "position_ids", "position_embeddings", "use_cache"),
    *(CACHE, "cache_position"),
}

# Since transformers 5, a model takes no notice of it.
_TAKES_CACHE_POSITION = (
    "cache_position" in inspect.signature(llama.LlamaModel.forward).parameters
)

# Those of the backward have nothing to do without gradients.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


# --- a layer ----------------------------------------------------------------


def layer_forward(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(
        self: Any, hidden_states: Tensor, *rest: Any, **more: Any
    ) -> Any:
        result = None
        if _is_plain(hidden_states) and not rest and _are_known(more):
            result = _compute_layer(self, hidden_states, more)
        if result is None:
            return original(self, hidden_states, *rest, **more)
        return result

    return forward


def _is_plain(x: Tensor) -> bool:
    """Whether nothing but a few rows on the CPU is asked for."""
    return (
        type(x) is Tensor
        and x.dim() == 3
        and x.numel() <= MOST_ROWS * x.shape[-1]
        and x.is_cpu
        and _is_undisturbed()
    )


def _is_undisturbed() -> bool:
    """Whether nothing wants to know of operators, or to change them."""
    return (
        not torch.compiler.is_compiling()
        and tracing_state() is None
        and not torch.is_grad_enabled()
        and not transforms_are_active()
        and not count_dispatch_modes()
        and not autocast_is_enabled()
        and forward_ad_state._current_level < 0
        and not global_hooks_are_set()
    )


def _are_known(arguments: Mapping[str, Any]) -> bool:
    return arguments.keys() <= _KNOWN or not any(
        value is not None and value is not False
        for name, value in arguments.items()
        if name not in _KNOWN
    )


def _compute_layer(
    layer: Any, x: Tensor, arguments: dict[str, Any]
) -> Tensor | None:
    """Return the layer's result; None if something else is asked for."""
    plan = _plan(layer, [layer])
    tables: Any = arguments.get("position_embeddings")
    if plan is None or type(tables) is not tuple or len(tables) != 2:
        return None
    rotation = _rotation(*tables, x.shape[0], plan.head_dim, x.dtype)
    rooms = plan.rooms(arguments.get(CACHE), *x.shape[:2])
    if rotation is None or rooms is None or x.dtype != plan.dtype:
        return None
    ((_, room),) = rooms
    keys = room.end + x.shape[1] - room.first
    mask, is_known = _mask(arguments.get("attention_mask"), x, keys)
    return plan(x, rooms, mask, rotation) if is_known else None


@functools.lru_cache(maxsize=1)  # all layers of a model get the same tables
def _rotation(
    cos: Tensor, sin: Tensor, batch: int, head_dim: int, dtype: torch.dtype
) -> _Rotation | None:
    """Return rope's arguments for what Llama's rotary embedding returns."""
    for table in (cos, sin):
        if type(table) is not Tensor or table.dtype != dtype:
            return None
    if cos.shape != sin.shape or cos.dim() != 3 or cos.shape[2] != head_dim:
        return None
    return rope_tables(cos, sin) if cos.shape[0] in (1, batch) else None


def _mask(
    mask: Tensor | None, x: Tensor, keys: int
) -> tuple[Tensor | None, bool]:
    """Return the mask as torch_foo takes it, and whether it does."""
    batch, seq, _ = x.shape
    if mask is None:
        # Without one, transformers lets several queries attend as a prompt's.
        if seq > 1:
            mask = torch.ones(seq, keys, dtype=torch.bool).tril()
        return mask, True
    is_known = (
        type(mask) is Tensor
        and mask.dtype in (torch.bool, x.dtype)
        and mask.shape == (batch, 1, seq, keys)
    )
    return mask, is_known


# --- a model ----------------------------------------------------------------


def model_forward(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, *args: Any, **more: Any) -> Any:
        result = None
        if not args and _is_undisturbed():
            result = _compute_model(self, **more)
        return original(self, *args, **more) if result is None else result

    return forward


def _compute_model(
    model: Any,
    input_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    cache_position: Tensor | None = None,
    return_dict: bool | None = None,
    **more: Any,
) -> BaseModelOutputWithPast | None:
    """Return the model's result for one token of each sequence.

    It is None if something else is asked for.
    """
    if (
        type(input_ids) is not Tensor
        or not input_ids.is_cpu
        or input_ids.dim() != 2
        or input_ids.shape[1] != 1
        or not 0 < input_ids.shape[0] <= MOST_ROWS
        or inputs_embeds is not None
        or return_dict is False
        or not _are_known(more)
        or not _asks_for_one_result(model.config)
    ):
        return None
    plan = _plan(model, layers_of(model)[: model.config.num_hidden_layers])
    cache, batch = more.get(CACHE), len(input_ids)
    rooms = None if plan is None else plan.rooms(cache, batch, 1)
    if plan is None or rooms is None:
        return None
    if len({(room.first, room.end, room.window) for _, room in rooms}) != 1:
        return None
    first, room = rooms[0]
    keys = room.end - room.first + 1
    window = getattr(model.config, "sliding_window", None)
    if room.window != window and (
        room.window is not None or window is None or keys > window
    ):
        return None
    seen: int = first.get_seq_length()
    mask, is_known = _mask_of_padding(attention_mask, batch, seen + 1, keys)
    if not is_known:
        return None
    if position_ids is None:
        if cache_position is None or not _TAKES_CACHE_POSITION:
            cache_position = torch.tensor([seen])
        position_ids = cache_position.unsqueeze(0)
    x = model.embed_tokens(input_ids)
    tables = model.rotary_emb(x, position_ids)
    rotation = _rotation(*tables, batch, plan.head_dim, x.dtype)
    if rotation is None or not _is_plain(x) or x.dtype != plan.dtype:
        return None
    y = model.norm(plan(x, rooms, mask, rotation))
    return BaseModelOutputWithPast(last_hidden_state=y, **{CACHE: cache})


def _asks_for_one_result(config: Any) -> bool:
    """Whether nothing is recorded."""
    return (
        getattr(config, "return_dict", True)
        and not getattr(config, "output_attentions", False)
        and not getattr(config, "output_hidden_states", False)
    )


def _mask_of_padding(
    mask: Tensor | None, batch: int, tokens: int, keys: int
) -> tuple[Tensor | None, bool]:
    """Return the mask of the last keys, and whether torch_foo takes it.

    mask: (batch, tokens), 0 for what is padding.
    """
    if mask is None:
        return None, True
    if type(mask) is not Tensor or mask.shape != (batch, tokens):
        return None, False
    mask = mask.bool()
    return (None if mask.all() else mask[:, None, None, -keys:]), True


# --- what computes them -----------------------------------------------------


def _plan(owner: Any, layers: list[Any]) -> _Plan | None:
    """Return what computes the layers of an owner: of a model, or of itself.

    It is made anew if they have changed.
    """
    mark = vars(owner)[MARK]  # which a shallow copy of an owner shares
    prepared: Any = mark.prepared
    if type(prepared) is _Plan:
        if prepared.is_of(owner, layers):
            return prepared if prepared.is_free() else None
    elif prepared in layers and not _is_ours(prepared, owner):
        return None  # as it was the last time
    mark.prepared = None
    for layer in layers:
        if not _is_ours(layer, owner):
            mark.prepared = layer
            return None
    attentions = [layer.self_attn for layer in layers]
    if len({a.head_dim for a in attentions}) != 1 or (
        len({a.layer_idx for a in attentions}) != len(layers)
    ):
        return None
    plan = mark.prepared = _Plan(owner, layers)
    return plan if plan.is_free() else None


def _modules(layer: Any) -> list[Any]:
    """Return the modules in a layer that patch() lets compute by torch_foo."""
    inner = [layer.self_attn, layer.mlp]
    return [*inner, *norms_of(layer), *linears_of(layer)]


def _is_ours(layer: Any, owner: Any) -> bool:
    """Whether a layer computes with torch_foo, and with plain tensors."""
    if layer is not owner and (
        not _is_patched(layer) or layer._compiled_call_impl is not None
    ):
        return False
    if refuse_step(layer) is not None or gate_of(layer.mlp.act_fn) is None:
        return False
    modules = _modules(layer)
    tensors = [
        tensor
        for module in modules
        for kind in ("_parameters", "_buffers")
        for tensor in vars(module)[kind].values()
        if tensor is not None
    ]
    dtypes = (layer.input_layernorm.weight.dtype, torch.uint8)  # of blocks
    return all(map(_is_patched, modules)) and all(
        type(tensor) in PLAIN_TENSORS
        and tensor.is_cpu
        and tensor.layout == torch.strided
        and tensor.dtype in dtypes
        for tensor in tensors
    )


def _is_patched(module: nn.Module) -> bool:
    """Whether the module computes with torch_foo, and no other library."""
    if type(module) is QuantizedLinear:
        return "forward" not in vars(module)
    mark = vars(module).get(MARK)
    return (
        mark is not None
        and mark.enabled
        and mark.is_in_place()
        and type(module).forward is mark.original
    )


class _Plan:
    """What computes layers while their modules and tensors stay the same."""

    def __init__(self, owner: Any, layers: list[Any]) -> None:
        self.owner, self.layers = owner, layers
        self.attentions = [layer.self_attn for layer in layers]
        linears = [linear for layer in layers for linear in linears_of(layer)]
        norms = [norm for layer in layers for norm in norms_of(layer)]
        formats = [getattr(linear, "format", "") for linear in linears]
        biases = [linear.bias for linear in linears]
        if any(bias is not None for bias in biases):
            none = torch.empty(0)
            biases = [none if bias is None else bias for bias in biases]
        else:
            biases = []
        self.arguments = (
            [norm.weight for norm in norms],
            [norm.variance_epsilon for norm in norms],
            [linear.weight for linear in linears],
            biases,
            ",".join(formats),
            [attention.scaling for attention in self.attentions],
            [int(rotates(attention)) for attention in self.attentions],
            ",".join(str(gate_of(layer.mlp.act_fn)) for layer in layers),
        )
        self.is_quantized = all(formats)
        self.head_dim: int = self.attentions[0].head_dim
        #: Their key heads.
        self.heads = [
            attention.k_proj.out_features // self.head_dim
            for attention in self.attentions
        ]

        self.parts = [part for layer in layers for part in _parts(layer)]
        # Layers that their owner calls are not called in its step.
        self.uncalled = [] if owner is layers[0] else layers
        self.parts += self.uncalled
        self.fields = [vars(part) for part in self.parts]
        self.numbers = [vars(norm) for norm in norms]
        # Dicts of modules, parameters and hooks never change their identity,
        # but for what pickle and copy make.
        self.dicts = [fields["_parameters"] for fields in self.fields]
        for layer in layers:
            for module in (layer, layer.self_attn, layer.mlp):
                self.dicts.append(vars(module)["_modules"])
        self.hooks = [fields[name] for fields in self.fields for name in _HOOKS]
        self.hooks_seen = -1  # how many there were when none was here
        self.classes = list({type(part) for part in self.parts})
        self.objects = list(self._objects())

    # The checks of every call run in C: maps, and no loops.

    def _objects(self) -> Iterator[object]:
        """Return what must stay the same objects."""
        return chain(
            map(type, self.parts),
            map(dict.get, self.fields, repeat("forward")),
            map(attrgetter("_compiled_call_impl"), self.uncalled),
            map(attrgetter("forward"), self.classes),
            map(dict.get, self.numbers, repeat("variance_epsilon")),
            map(attrgetter("scaling"), self.attentions),
            chain.from_iterable(map(dict.values, self.dicts)),
        )

    def is_of(self, owner: Any, layers: list[Any]) -> bool:
        """Whether these are the owner's layers, and nothing has changed."""
        objects = list(self._objects())
        return (
            self.owner is owner
            and len(self.layers) == len(layers)
            and all(map(is_, self.layers, layers))
            and len(objects) == len(self.objects)
            and all(map(is_, objects, self.objects))
        )

    def is_free(self) -> bool:
        """Whether nothing observes the layers or wants them otherwise."""
        attention = self.attentions[0]
        return (
            self._is_silent()
            and not any(map(attrgetter("training"), self.attentions))
            and attention.config._attn_implementation == "sdpa"
            and ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
        )

    def _is_silent(self) -> bool:
        """Whether there are no hooks, or only such as do nothing now."""
        count = HookHandle.next_id
        if self.hooks_seen != count:
            if any(self.hooks):
                return _are_silent(self.hooks)
            self.hooks_seen = count
        return True

    @property
    def dtype(self) -> torch.dtype:
        weight: Tensor = self.arguments[0][0]
        return weight.dtype

    def rooms(
        self, cache: Any, batch: int, seq: int
    ) -> list[tuple[Any, Room]] | None:
        """Return the cache's layers, with room for more tokens.

        The result is None if this is not the way for the dtype or the cache.
        """
        if self.dtype == torch.float64 and not self.is_quantized:
            return None
        if not appends(cache):
            return None
        dtype = self.dtype
        if dtype == torch.float32:
            narrow = torch.float16 if self.is_quantized else dtype
            dtype = vars(self.owner)[MARK].option or narrow
        new = New(batch, seq, self.arguments[0][0], dtype)
        rooms = []
        for attention, heads in zip(self.attentions, self.heads, strict=True):
            found = layer_with_room(
                cache, attention.layer_idx, heads, self.head_dim, new
            )
            if found is None:
                return None
            rooms.append(found)
        return rooms

    def __call__(
        self,
        x: Tensor,
        rooms: list[tuple[Any, Room]],
        mask: Tensor | None,
        rotation: _Rotation,
    ) -> Tensor:
        """Return the result of the layers, and append to the cache's."""
        seq = x.shape[1]
        y: Tensor
        y, keys, values = _decoder_layers(
            x,
            [room.states for _, room in rooms],
            [room.first for _, room in rooms],
            [room.end + seq for _, room in rooms],
            mask,
            *rotation,
            *self.arguments,
        )
        for (layer, room), k, v in zip(rooms, keys, values, strict=True):
            room.give(layer, k, v)
        return y


def _parts(layer: Any) -> list[Any]:
    return [*_modules(layer), layer.mlp.act_fn]


def _are_silent(hooks: list[Any]) -> bool:
    """Whether hooks are transformers' own, which record nothing now.

    They stay on a model that was asked for attentions or hidden states once.
    """
    if _capturing is None:
        return False
    recorded = _capturing._active_collector.get() or {}
    return "attentions" not in recorded and all(
        getattr(hook, "__module__", None) == _capturing.__name__
        for registered in hooks
        for hook in registered.values()
    )
