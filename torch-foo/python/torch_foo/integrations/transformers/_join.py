"""Weights that one product multiplies with: neighbours in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from torch_foo._torch_internals import owners
from torch_foo.integrations.transformers._recognize import projections_of


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
