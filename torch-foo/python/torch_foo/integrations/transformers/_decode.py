"""The decode step: a layer of a model that computes a few tokens.

A token of a small model takes transformers as long in Python as in its
products. Where nothing observes the inside of a layer, these functions call the
operators in a row, with one product for queries, keys and values and one for
gate and up, and append to the cache in place.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from itertools import chain, repeat
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
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

_ops = torch.ops.torch_foo
_add = operation(_ops._add.default)
_add_rms_norm = operation(_ops._add_rms_norm.default)
_attention = operation(_ops._attention.default)
_linear = operation(_ops._linear.default)
_linear_quantized = operation(_ops._linear_quantized.default)
_rms_norm = operation(_ops._rms_norm.default)
_rms_norm_out = operation(_ops._rms_norm_out.default)
_rope_ = operation(_ops._rope_.default)

_Product = Callable[[Tensor], Tensor]
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
        and not autocast_is_enabled()
        and forward_ad_state._current_level < 0
        and not global_hooks_are_set()
    )


def _decode(layer: Any, x: Tensor, arguments: dict[str, Any]) -> Tensor | None:
    """Return the layer's result; None if something else is asked for."""
    for name, value in arguments.items():
        if name not in _ARGUMENTS and value is not None and value is not False:
            return None
    cache: Any = arguments.get(_CACHE)
    tables: Any = arguments.get("position_embeddings")
    plan = _plan(layer)
    if (
        plan is None
        or x.dtype != plan.dtype
        or not _appends(cache, plan.attention.layer_idx)
    ):
        return None
    rotation = _rotation(tables, x, plan.head_dim)
    if rotation is None:
        return None
    return plan(x, arguments.get("attention_mask"), cache, rotation)


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
        self.norm, self.norm_after, *self.head_norms = norms_of(layer)
        self.head_dim: int = attention.head_dim
        self.rotates = rotates(attention)
        projections = projections_of(layer)
        query, key, _ = (p.out_features // self.head_dim for p in projections)
        self.heads = query, key
        self.joined: list[Tensor] = []  # parts of the weights of one product
        self.project = self._product(*projections)
        self.output = self._product(attention.o_proj)
        self.gate_up = self._product(mlp.gate_proj, mlp.up_proj)
        self.gate: Any = gate_of(mlp.act_fn)
        self.down = self._product(mlp.down_proj)
        self.dtype = self.norm.weight.dtype

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
        self.places = self._places()

    def _product(self, *layers: Any) -> _Product:
        """Return what multiplies by weights of layers, one after the other."""
        weights = [layer.weight for layer in layers]
        biases = [layer.bias for layer in layers if layer.bias is not None]
        formats = [getattr(layer, "format", None) for layer in layers]
        weight = _adjoining(weights)
        bias = _adjoining(biases) if len(biases) == len(layers) else None
        if (
            len(layers) > 1
            and weight is not None
            and (bias is not None or not biases)
            and len(set(formats)) == 1
        ):
            self.joined += weights + biases
            return _times(weight, bias, formats[0])
        products = [
            _times(layer.weight, layer.bias, format)
            for layer, format in zip(layers, formats, strict=True)
        ]
        if len(products) == 1:
            return products[0]
        return lambda x: torch.cat([product(x) for product in products], -1)

    # The checks of every call run in C: maps, and no loops.

    def _objects(self) -> Iterator[object]:
        """Return what must stay the same objects."""
        return chain(
            map(type, self.parts),
            map(dict.get, self.fields, repeat("forward")),
            map(attrgetter("forward"), self.classes),
            chain.from_iterable(map(dict.values, self.dicts)),
        )

    def _places(self) -> list[object]:
        """Return where the parts of joined weights are, and what."""
        kinds = Tensor.data_ptr, Tensor.size, Tensor.stride, attrgetter("dtype")
        return [x for kind in kinds for x in map(kind, self.joined)]

    def is_valid(self) -> bool:
        """Whether nothing in the layer has changed, and nothing observes it."""
        objects = list(self._objects())
        return (
            (not any(self.hooks) or _are_silent(self.hooks))
            and not self.attention.training
            and self.attention.config._attn_implementation == "sdpa"
            and len(objects) == len(self.objects)
            and all(map(is_, objects, self.objects))
            and self._places() == self.places
        )

    def __call__(
        self,
        x: Tensor,
        mask: Tensor | None,
        cache: Cache,
        rotation: _Rotation,
    ) -> Tensor:
        batch, seq, _ = x.shape
        attention = self.attention
        query, key = self.heads
        normed = _rms_norm(x, self.norm.weight, self.norm.variance_epsilon)
        heads = self.project(normed).view(batch, seq, -1, self.head_dim)
        begin = 0
        for norm, count in zip(self.head_norms, self.heads, strict=False):
            part = heads.narrow(2, begin, count)
            _rms_norm_out(part, norm.weight, norm.variance_epsilon, part)
            begin += count
        if self.rotates:
            rotated = heads.narrow(2, 0, query + key)
            _rope_(rotated, *rotation, False)
        keys, values = _append(
            cache, attention.layer_idx, heads.narrow(2, query, 2 * key)
        )
        queries = heads.narrow(2, 0, query).transpose(1, 2)
        attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
        if attend is sdpa_attention_forward and _is_mask(mask, queries, keys):
            attended = _attention(
                queries, keys, values, mask, attention.scaling
            ).transpose(1, 2)
        else:
            attended, _ = attend(
                attention,
                queries,
                keys,
                values,
                mask,
                dropout=0.0,
                scaling=attention.scaling,
            )
        y, residual = _add_rms_norm(
            self.output(attended.reshape(batch, seq, -1)),
            x,
            self.norm_after.weight,
            self.norm_after.variance_epsilon,
        )
        y = self.down(self.gate(self.gate_up(y), None))
        result: Tensor = _add(residual, y)
        return result


def _is_mask(mask: Tensor | None, queries: Tensor, keys: Tensor) -> bool:
    """Whether torch_foo takes a mask as it is.

    Without one, transformers lets several queries attend as a prompt's do.
    """
    batch, _, seq, _ = queries.shape
    if mask is None:
        return seq == 1
    return (
        type(mask) is Tensor
        and mask.dtype in (torch.bool, queries.dtype)
        and mask.shape == (batch, 1, seq, keys.shape[2])
    )


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
            and _adjoining(tensors) is None
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


def _adjoining(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return one tensor of all rows if they follow each other in memory.

    It keeps the memory of all alive.
    """
    first = tensors[0].detach()
    end = begin = first.data_ptr()
    for tensor in tensors:
        if (
            tensor.data_ptr() != end
            or not tensor.is_cpu
            or not tensor.numel()
            or tensor.dtype != first.dtype
            or tensor.shape[1:] != first.shape[1:]
            or not tensor.is_contiguous()
        ):
            return None
        end += tensor.nbytes
    # A tensor of torch cannot reach from one storage into another.
    memory: Any = (ctypes.c_char * (end - begin)).from_address(begin)
    memory.owners = [tensor.detach() for tensor in tensors]
    with torch.inference_mode(False):
        rows = torch.frombuffer(memory, dtype=first.dtype)
    return rows.view(-1, *first.shape[1:])


def _times(weight: Tensor, bias: Tensor | None, format: str | None) -> _Product:
    if format is not None:
        return lambda x: _linear_quantized(x, weight, bias, format)
    most = MOST_ROWS.get(weight.dtype, 0) * weight.shape[1]
    return lambda x: (
        _linear(x, weight, bias)
        if x.numel() <= most
        else functional.linear(x, weight, bias)
    )


# --- the cache --------------------------------------------------------------


def _appends(cache: Any, index: int) -> bool:
    """Whether a layer of the cache only appends what it is given."""
    if (
        not isinstance(cache, Cache)
        or type(cache).update is not Cache.update
        or cache.offloading
    ):
        return False
    if index < len(cache.layers):
        return type(cache.layers[index]) in _LAYERS
    return cache.layer_class_to_replicate in _LAYERS


class _Room:
    """Memory of keys and values that has room for more.

    `keys` and `values` are the last that were given out. Other tensors of a
    cache were put there by somebody else, and are copied first.
    """

    def __init__(self, layer: Any, more: int) -> None:
        self.keys, self.values = layer.keys, layer.values
        batch, heads, seq, head_dim = self.keys.shape
        self.seq, self.heads = seq, heads
        self.capacity = seq + more + max(_MARGIN, seq // 4)
        self.states = self.keys.new_empty(
            batch, 2 * heads, self.capacity, head_dim
        )
        self.states[:, :heads, :seq] = self.keys
        self.states[:, heads:, :seq] = self.values

    def is_for(self, layer: Any, new: Tensor) -> bool:
        batch, more, heads, head_dim = new.shape
        return (
            layer.keys is self.keys
            and layer.values is self.values
            and self.seq + more <= self.capacity
            and self.states.shape == (batch, heads, self.capacity, head_dim)
            and self.states.dtype == new.dtype
            # These may change in inference mode only.
            and self.states.is_inference() <= torch.is_inference_mode_enabled()
        )

    def append(self, layer: Any, new: Tensor) -> tuple[Tensor, Tensor]:
        more = new.shape[1]
        self.states.narrow(2, self.seq, more).copy_(new.transpose(1, 2))
        self.seq += more
        states = self.states.narrow(2, 0, self.seq)
        layer.keys = self.keys = states.narrow(1, 0, self.heads)
        layer.values = self.values = states.narrow(1, self.heads, self.heads)
        return self.keys, self.values


def _append(cache: Cache, index: int, new: Tensor) -> tuple[Tensor, Tensor]:
    """Append to a layer of the cache, and return all keys and values.

    new: (batch, seq, 2 * heads, head_dim), keys before values.
    """
    layer: Any = cache.layers[index] if index < len(cache.layers) else None
    room: _Room | None = getattr(layer, _ROOM, None)
    if room is not None and room.is_for(layer, new):
        return room.append(layer, new)
    if _has_states_like(layer, new):
        room = _Room(layer, new.shape[1])
        setattr(layer, _ROOM, room)
        return room.append(layer, new)
    keys, values = new.transpose(1, 2).chunk(2, 1)
    states: tuple[Tensor, Tensor] = cache.update(keys, values, index)
    return states


def _has_states_like(layer: Any, new: Tensor) -> bool:
    """Whether a layer of a cache has keys and values to append to."""
    batch, _, heads, head_dim = new.shape
    return type(layer) is DynamicLayer and all(
        type(states) is Tensor
        and states.dim() == 4
        and states.shape[:2] == (batch, heads // 2)
        and states.shape[3] == head_dim
        and states.dtype == new.dtype
        and states.is_cpu
        for states in (layer.keys, layer.values)
    )
