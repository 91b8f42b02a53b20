"""Caches of transformers that the decode step appends to in place."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)
from transformers.models.llama import modeling_llama as llama

#: The name of the cache among the arguments of a layer and of a model.
CACHE = next(
    name
    for name in inspect.signature(llama.LlamaDecoderLayer.forward).parameters
    if name in ("cache", "past_key_values", "past_key_value")
)

#: The dtypes that a cache may have beside activations of float32.
CACHE_DTYPES = torch.float32, torch.float16, torch.bfloat16

# Names for what a cache's layer has, and room for how many tokens more.
_ROOM = "_torch_foo_room"
_MARGIN = 64
_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)


class New(NamedTuple):
    """What is to follow in a layer of a cache."""

    batch: int
    seq: int
    like: Tensor  #: of the same dtype and device
    dtype: torch.dtype  #: of the cache, which may be narrower


class Room:
    """Memory for the keys and values of a cache's layer, and for more.

    `keys` and `values` are the last that the layer was given. Others were put
    there by somebody else, and are copied to a new room first.
    """

    def __init__(self, layer: Any, new: New) -> None:
        self.keys, self.values = layer.keys, layer.values
        batch, heads, seq, head_dim = self.keys.shape
        self.begin = 0
        self.end: int = seq
        self.capacity = seq + new.seq + max(_MARGIN, seq // 4)
        self.window: int | None = getattr(layer, "sliding_window", None)
        #: (batch, 2 * heads, capacity, head_dim), keys before values
        self.states = new.like.new_empty(
            (batch, 2 * heads, self.capacity, head_dim), dtype=new.dtype
        )
        self.states[:, :heads, :seq] = self.keys
        self.states[:, heads:, :seq] = self.values

    def is_for(self, layer: Any, new: New) -> bool:
        return (
            layer.keys is self.keys
            and layer.values is self.values
            and self.end + new.seq <= self.capacity
            and self.states.dtype == new.dtype
        )

    @property
    def first(self) -> int:
        """The first token that the next one attends to."""
        if self.window is None:
            return self.begin
        return max(self.begin, self.end - self.window + 1)

    def give(self, layer: Any, keys: Tensor, values: Tensor) -> None:
        """Let the layer have the keys and values from the first on.

        The new ones are at the end. It has then what its own update would
        leave.
        """
        if self.window is None:
            self.end = keys.shape[2]
        else:
            end = self.first + keys.shape[2]
            layer.cumulative_length += end - self.end
            self.end = end
            if not getattr(layer, "record_past", False):
                self.begin = self.first
            keys, values = self.states[:, :, self.begin : end].chunk(2, 1)
        layer.keys = self.keys = keys
        layer.values = self.values = values


def appends(cache: Any) -> bool:
    """Whether this is a cache, and all it does is to ask its layers."""
    return (
        isinstance(cache, Cache)
        and type(cache).update is Cache.update
        and not cache.offloading
    )


def layer_with_room(
    cache: Any, index: int, heads: int, head_dim: int, new: New
) -> tuple[Any, Room] | None:
    """Return a layer of the cache, and its room for what is to follow.

    The room is made if there is none. The result is None if the layer does more
    than append, or has other states.
    """
    if index >= len(cache.layers):
        if cache.layer_class_to_replicate not in _LAYERS:
            return None
        _initialize(cache, index, heads, head_dim, new)
    layer: Any = cache.layers[index]
    room: Room | None = vars(layer).get(_ROOM)
    if room is None or not room.is_for(layer, new):
        if type(layer) not in _LAYERS:
            return None
        if not layer.is_initialized:
            _initialize(cache, index, heads, head_dim, new)
        if not _has_states(layer, heads, head_dim, new):
            return None
        room = Room(layer, new)
        setattr(layer, _ROOM, room)
    return layer, room


def _initialize(
    cache: Cache, index: int, heads: int, head_dim: int, new: New
) -> None:
    """Let a layer of the cache have the states of no tokens."""
    none = new.like.new_empty(new.batch, heads, 0, head_dim)
    cache.update(none, none, index)


def _has_states(layer: Any, heads: int, head_dim: int, new: New) -> bool:
    """Whether a layer has keys and values that others may follow."""
    return (
        getattr(layer, "sliding_window", 2) > 1  # else transformers keeps all
        and all(
            type(states) is Tensor
            and states.dim() == 4
            and states.shape[:2] == (new.batch, heads)
            and states.shape[3] == head_dim
            and states.dtype in (new.like.dtype, new.dtype)
            and states.is_cpu
            for states in (layer.keys, layer.values)
        )
    )
