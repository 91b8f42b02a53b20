"""Recompute cheap results in the backward instead of keeping them.

A matrix product keeps its input for the backward. If that input is the output
of a norm or a gate, recomputing it takes a small part of the product's time,
and the arguments of the norm or gate are kept anyway.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from torch_foo._torch_internals import (
    saved_tensor_hooks_are_active,
    transforms_are_active,
)

# Each recomputable result, with its version and the call that yields it.
_recipes: MutableMapping[Tensor, tuple[int, Callable[[], Tensor]]]
_recipes = WeakTensorKeyDictionary()


def recomputable(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call a function and remember how, for :func:`recomputed`."""
    result = function(*arguments)
    if _can_be_recomputed(result):
        detached = (
            a.detach() if isinstance(a, Tensor) else a for a in arguments
        )
        compute = functools.partial(function, *detached)
        _recipes[result] = (result._version, compute)
    return result


def _can_be_recomputed(tensor: Tensor) -> bool:
    # A compiler decides by itself what to recompute, torch.func refuses hooks
    # on saved tensors, and other libraries' tensors may have no memory.
    return (
        tensor.requires_grad
        and type(tensor) is Tensor
        and not torch.compiler.is_compiling()
        and not transforms_are_active()
    )


def recomputed(tensor: Tensor) -> AbstractContextManager[object]:
    """Save no copy of a :func:`recomputable` result in this context."""
    if not _can_be_recomputed(tensor):
        return nullcontext()
    version, compute = _recipes.get(tensor, (None, None))
    if (
        compute is None
        or version != tensor._version  # a module's hook changed it in place
        or saved_tensor_hooks_are_active()  # which expect to get every tensor
    ):
        return nullcontext()
    memory, numel = tensor.data_ptr(), tensor.numel()

    def pack(saved: Tensor) -> Tensor | torch.Size:
        if (
            saved.data_ptr() == memory
            and saved.numel() == numel
            and saved.is_contiguous()
        ):
            return saved.shape  # a product may have merged dimensions
        return saved

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        return packed if isinstance(packed, Tensor) else compute().view(packed)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
