"""The decode step: a layer of a model that computes a few tokens.

A token of a small model takes transformers as long in Python as in its
products. Where nothing observes the inside of a layer, one operator computes
all of it, with one product for queries, keys and values and one for gate and
up, and appends to the cache in place.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from itertools import chain, repeat
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama as llama

from torch_foo._torch_internals import (
    PLAIN_TENSORS,
    autocast_is_enabled,
    count_dispatch_modes,
    forward_ad_state,
    global_hooks_are_set,
    operation,
    owners,
    transforms_are_active,
)
from torch_foo.integrations.transformers._forwards import (
    MOST_ROWS,
    gate_of,
    rope_tables,
)
from torch_foo.integrations.transformers._recognize import (
    MARK,
    linears_of,
    norms_of,
    projections_of,
    refuse_step,
    rotates,
)
from torch_foo.nn import QuantizedLinear

# Rows (sequences times tokens) of a decode step.
_MOST_ROWS = 16

# Names for what a cache's layer has, and room for how many tokens more.
_ROOM = "_torch_foo_room"
_MARGIN = 64
_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)

try:
    _capturing: Any = import_module("transformers.utils.output_capturing")
except ImportError:  # transformers 4 records in another way
    _capturing = None

_decoder_layer = operation(torch.ops.torch_foo._decoder_layer.default)

_Rotation = tuple[Tensor, Tensor, Tensor | None]

# The name of the cache among the arguments of a layer.
_CACHE = next(
    name
    for name in inspect.signature(llama.LlamaDecoderLayer.forward).parameters
    if name in ("cache", "past_key_values", "past_key_value")
)
_ARGUMENTS = {
    *("attention_mask", "position_ids", "position_embeddings", "use_cache"),
    *(_CACHE, "cache_position"),
}

# Those of the backward have nothing to do without gradients.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def layer_forward(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(
        self: Any, hidden_states: Tensor, *rest: Any, **more: Any
    ) -> Any:
        result = None
        if _is_plain(hidden_states) and not rest:
            result = _decode(self, hidden_states, more)
        if result is None:
            return original(self, hidden_states, *rest, **more)
        return result

    return forward


def _is_plain(x: Tensor) -> bool:
    """Whether nothing but a few rows on the CPU is asked for."""
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.dim() == 3
        and x.numel() <= _MOST_ROWS * x.shape[-1]
        and x.is_cpu
        and not torch.is_grad_enabled()
        and not transforms_are_active()
        and not count_dispatch_modes()
        and not autocast_is_enabled()
        and forward_ad_state._current_level < 0
        and not global_hooks_are_set()
    )


def _decode(layer: Any, x: Tensor, arguments: dict[str, Any]) -> Tensor | None:
    """Return the layer's result; None if something else is asked for."""
    for name, value in arguments.items():
        if name not in _ARGUMENTS and value is not None and value is not False:
            return None
    plan = _plan(layer)
    if plan is None or not plan.serves(x):
        return None
    rotation = _rotation(arguments.get("position_embeddings"), x, plan.head_dim)
    cached = _cached(arguments.get(_CACHE), plan, x)
    if rotation is None or cached is None:
        return None
    room = _room(cached, x)
    begin, end = room.extended(x.shape[1])
    mask, is_known = _mask(arguments.get("attention_mask"), x, end - begin)
    if not is_known:
        return None
    y, keys, values = plan(x, room.states, begin, end, mask, rotation)
    room.give(cached, keys, values)
    return y


def _rotation(tables: Any, x: Tensor, head_dim: int) -> _Rotation | None:
    """Return rope's arguments for what Llama's rotary embedding returns."""
    if type(tables) is not tuple or len(tables) != 2:
        return None
    cos, sin = tables
    if type(cos) is not Tensor or type(sin) is not Tensor:
        return None
    return _rope_arguments(cos, sin, x.shape[0], x.shape[1], head_dim, x.dtype)


@functools.lru_cache(maxsize=1)  # all layers of a model get the same tables
def _rope_arguments(
    cos: Tensor,
    sin: Tensor,
    batch: int,
    seq: int,
    head_dim: int,
    dtype: torch.dtype,
) -> _Rotation | None:
    shapes = ((1, seq, head_dim), (batch, seq, head_dim))
    if cos.shape != sin.shape or cos.shape not in shapes:
        return None
    if cos.dtype != dtype or sin.dtype != dtype:
        return None
    return rope_tables(cos, sin)


# --- a layer ----------------------------------------------------------------


def _plan(layer: Any) -> _Plan | None:
    """Return what computes a layer, made anew if the layer has changed."""
    mark = vars(layer)[MARK]  # which a shallow copy of a layer shares
    plan: _Plan | None = mark.prepared
    if plan is not None and plan.layer is layer and plan.is_valid():
        return plan
    mark.prepared = None
    if refuse_step(layer) is None and _is_ours(layer):
        plan = _Plan(layer)
        if plan.is_valid():
            mark.prepared = plan
            return plan
    return None


def _modules(layer: Any) -> list[Any]:
    """Return the modules in a layer that patch() lets compute by torch_foo."""
    inner = [layer.self_attn, layer.mlp]
    return [*inner, *norms_of(layer), *linears_of(layer)]


def _is_ours(layer: Any) -> bool:
    """Whether a layer computes with torch_foo, and with plain tensors."""
    if gate_of(layer.mlp.act_fn) is None:
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


class _Plan:
    """What computes a layer while its modules and tensors stay the same."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.layer = layer
        self.attention = attention
        self.head_dim: int = attention.head_dim
        self.rotates = rotates(attention)
        self.norms = norms_of(layer)
        linears = linears_of(layer)
        none = torch.empty(0)
        self.norm_weights = [norm.weight for norm in self.norms]
        self.weights = [linear.weight for linear in linears]
        self.biases = [
            none if linear.bias is None else linear.bias for linear in linears
        ]
        formats = [getattr(linear, "format", "") for linear in linears]
        self.formats = ",".join(formats)
        self.is_quantized = all(formats)
        self.key_heads = linears[1].out_features // self.head_dim
        self.gate = gate_of(mlp.act_fn)

        self.parts = [*_modules(layer), mlp.act_fn]
        self.fields = [vars(part) for part in self.parts]
        # Dicts of modules, parameters and hooks never change their identity,
        # but for what pickle and copy make.
        self.dicts = [vars(m)["_modules"] for m in (layer, attention, mlp)]
        self.hooks = []
        for fields in self.fields:
            self.dicts.append(fields["_parameters"])
            self.hooks += [fields[name] for name in _HOOKS]
        self.classes = list({type(part) for part in self.parts})
        self.objects = list(self._objects())

    def serves(self, x: Tensor) -> bool:
        """Whether this computes faster than the layer's modules."""
        dtype = x.dtype
        rows = _MOST_ROWS if self.is_quantized else MOST_ROWS.get(dtype, 0)
        return (
            dtype == self.norm_weights[0].dtype
            and x.numel() <= rows * x.shape[-1]
        )

    # The checks of every call run in C: maps, and no loops.

    def _objects(self) -> Iterator[object]:
        """Return what must stay the same objects."""
        return chain(
            map(type, self.parts),
            map(dict.get, self.fields, repeat("forward")),
            map(attrgetter("forward"), self.classes),
            chain.from_iterable(map(dict.values, self.dicts)),
        )

    def is_valid(self) -> bool:
        """Whether nothing in the layer has changed, and nothing observes it."""
        objects = list(self._objects())
        return (
            (not any(self.hooks) or _are_silent(self.hooks))
            and not self.attention.training
            and self.attention.config._attn_implementation == "sdpa"
            and ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
            and len(objects) == len(self.objects)
            and all(map(is_, objects, self.objects))
        )

    def __call__(
        self,
        x: Tensor,
        states: Tensor,
        begin: int,
        end: int,
        mask: Tensor | None,
        rotation: _Rotation,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the layer's result, and the keys and values it attended to.

        states: (batch, 2 * key heads, room, head_dim), keys before values.
        Those of x's tokens are written, so that the last is before `end`.
        """
        results: tuple[Tensor, Tensor, Tensor] = _decoder_layer(
            x,
            states,
            begin,
            end,
            mask,
            *(rotation if self.rotates else (None, None, None)),
            self.norm_weights,
            [norm.variance_epsilon for norm in self.norms],
            self.weights,
            self.biases,
            self.formats,
            self.attention.scaling,
            self.gate,
        )
        return results


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


# --- products ---------------------------------------------------------------


def join_weights(layer: Any) -> None:
    """Let one product compute queries, keys and values; and gate and up."""
    mlp = layer.mlp
    for linears in (projections_of(layer), [mlp.gate_proj, mlp.up_proj]):
        if len({getattr(linear, "format", None) for linear in linears}) == 1:
            with torch.inference_mode(False):  # the weights may be trained
                _join(linears)


def _join(layers: Sequence[nn.Linear]) -> None:
    """Let the weights of several layers be neighbours in memory.

    Parameters keep their identity. Where other tensors share a weight's memory,
    it stays where it is.
    """
    for name in ("weight", "bias"):
        tensors = [getattr(layer, name) for layer in layers]
        if (
            all(type(t) is nn.Parameter and _is_alone(t) for t in tensors)
            and len({(t.dtype, t.shape[1:]) for t in tensors}) == 1
            and not adjoin(tensors)
        ):
            parts = side_by_side([t.detach() for t in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.data = part


def side_by_side(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors one behind the other in memory.

    Each has a storage of its own, so that what saves it saves nothing else.
    """
    parts = torch.split(torch.cat([*tensors]), [len(t) for t in tensors])
    return [from_dlpack(part) for part in parts]


def _is_alone(tensor: Tensor) -> bool:
    """Whether nobody else can see the tensor's memory."""
    if not tensor.is_cpu or tensor.layout != torch.strided:
        return False
    storage = tensor.untyped_storage()
    return (
        tensor.is_contiguous()
        and not tensor.is_inference()
        and storage.nbytes() == tensor.nbytes
        and not storage.is_shared()
        and owners(storage) == 1
        # Blocks may be those of a mapped file, which stay there.
        and (tensor.is_floating_point() or storage.resizable())
    )


def adjoin(tensors: Sequence[Tensor]) -> bool:
    """Whether the rows of tensors follow each other in memory."""
    end = tensors[0].data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != end or not tensor.is_contiguous():
            return False
        end += tensor.nbytes
    return True


# --- the cache --------------------------------------------------------------


class _Room:
    """Memory for the keys and values of a cache's layer, and for more.

    `keys` and `values` are the last that the layer was given. Others were put
    there by somebody else, and are copied to a new room first.
    """

    def __init__(self, layer: Any, more: int, dtype: torch.dtype) -> None:
        self.keys, self.values = layer.keys, layer.values
        batch, heads, seq, head_dim = self.keys.shape
        self.begin, self.end = 0, seq
        self.capacity = seq + more + max(_MARGIN, seq // 4)
        self.window: int | None = getattr(layer, "sliding_window", None)
        self.states = self.keys.new_empty(
            (batch, 2 * heads, self.capacity, head_dim), dtype=dtype
        )
        self.states[:, :heads, :seq] = self.keys
        self.states[:, heads:, :seq] = self.values

    def is_for(self, layer: Any, x: Tensor, dtype: torch.dtype) -> bool:
        return (
            layer.keys is self.keys
            and layer.values is self.values
            and self.end + x.shape[1] <= self.capacity
            and self.states.shape[0] == x.shape[0]
            and self.states.dtype == dtype
            # These may change in inference mode only.
            and self.states.is_inference() <= torch.is_inference_mode_enabled()
        )

    def extended(self, more: int) -> tuple[int, int]:
        """Return where the states are that more tokens attend to."""
        return self._in_window(), self.end + more

    def give(self, layer: Any, keys: Tensor, values: Tensor) -> None:
        """Let the layer have extended states, as its own update would."""
        if self.window is None:
            self.end = keys.shape[2]
        else:
            end = self._in_window() + keys.shape[2]
            layer.cumulative_length += end - self.end
            self.end = end
            if not getattr(layer, "record_past", False):
                self.begin = self._in_window()
            states = self.states[:, :, self.begin : end]
            keys, values = states.chunk(2, 1)
        layer.keys = self.keys = keys
        layer.values = self.values = values

    def _in_window(self) -> int:
        """Return the first token that the next one attends to."""
        if self.window is None:
            return self.begin
        return max(self.begin, self.end - self.window + 1)


def _room(layer: Any, x: Tensor) -> _Room:
    """Return the room of a cache's layer, made if there is none."""
    room: _Room | None = getattr(layer, _ROOM, None)
    if room is None or not room.is_for(layer, x, x.dtype):
        room = _Room(layer, x.shape[1], x.dtype)
        setattr(layer, _ROOM, room)
    return room


def _cached(cache: Any, plan: _Plan, x: Tensor) -> Any:
    """Return the layer of the cache that the plan's layer has.

    It is None if the cache does more than append, or cannot append to what it
    has.
    """
    index: int = plan.attention.layer_idx
    if (
        not isinstance(cache, Cache)
        or type(cache).update is not Cache.update
        or cache.offloading
    ):
        return None
    if index >= len(cache.layers):
        if cache.layer_class_to_replicate not in _LAYERS:
            return None
        _initialize(cache, plan, x)
    layer: Any = cache.layers[index]
    if type(layer) not in _LAYERS:
        return None
    if not layer.is_initialized:
        _initialize(cache, plan, x)
    return layer if _has_states_for(layer, plan, x) else None


def _initialize(cache: Cache, plan: _Plan, x: Tensor) -> None:
    """Let a layer of the cache have the states of no tokens."""
    none = x.new_empty(x.shape[0], plan.key_heads, 0, plan.head_dim)
    cache.update(none, none, plan.attention.layer_idx)


def _has_states_for(layer: Any, plan: _Plan, x: Tensor) -> bool:
    """Whether a layer of a cache has keys and values that x may follow."""
    return (
        getattr(layer, "sliding_window", 2) > 1  # else transformers keeps all
        and all(
            type(states) is Tensor
            and states.dim() == 4
            and states.shape[:2] == (x.shape[0], plan.key_heads)
            and states.shape[3] == plan.head_dim
            and states.dtype == x.dtype
            and states.is_cpu
            for states in (layer.keys, layer.values)
        )
    )
