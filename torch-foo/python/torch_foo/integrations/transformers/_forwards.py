"""The forward methods and the loss that compute with torch_foo.

Each `*_forward` takes the original method, which the new one falls back to: at
every call, since the weights and inputs of a model may change after patch().
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.models.llama import modeling_llama as llama

from torch_foo import (
    build_info,
    cross_entropy,
    gelu_mul,
    linear,
    rms_norm,
    rope,
    silu_mul,
)
from torch_foo._torch_internals import (
    PLAIN_TENSORS,
    forward_ad_state,
    global_hooks_are_set,
)
from torch_foo.integrations.transformers._rebind import with_global
from torch_foo.integrations.transformers._recompute import (
    recomputable,
    recomputed,
)
from torch_foo.operators.base import DTYPES

#: The gated operators.
GATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": silu_mul,
    "gelu": gelu_mul,
    "gelu_tanh": functools.partial(gelu_mul, approximate="tanh"),
}

#: The name of the gated operator for each type of activation module.
GATE_NAMES: dict[type, str] = {
    nn.SiLU: "silu",
    type(ACT2FN["silu"]): "silu",
    type(ACT2FN["gelu"]): "gelu",
    type(ACT2FN["gelu_new"]): "gelu_tanh",
    type(ACT2FN["gelu_pytorch_tanh"]): "gelu_tanh",
}

#: The global function that attention calls to rotate queries and keys.
ROTATE = "apply_rotary_pos_emb"

# Another library may replace it later.
_ROTATE_AS_LLAMA = llama.apply_rotary_pos_emb

#: torch_foo.linear beats torch up to this many rows, but for float64.
MOST_ROWS = 16

_DEVICES = {"cpu", "foo"} | ({"cuda"} if build_info().cuda else set())


def _serves(*tensors: Tensor) -> bool:
    """Whether torch_foo computes with these tensors, and no other library.

    Libraries that quantize, shard or offload replace weights by tensors of
    their own classes, dtypes and devices, also after patch().
    """
    dtype, device = tensors[0].dtype, tensors[0].device
    if (
        dtype not in DTYPES
        or device.type not in _DEVICES
        or forward_ad_state._current_level >= 0  # no forward-mode derivatives
    ):
        return False
    for tensor in tensors:
        if (
            type(tensor) not in PLAIN_TENSORS
            or tensor.dtype != dtype
            or tensor.device != device
            or tensor.layout != torch.strided
        ):
            return False
    return True


def rms_norm_forward(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        x, weight = hidden_states, self.weight
        # Of two dtypes, transformers returns the wider.
        if not _serves(x, weight) or x.shape[-1:] != weight.shape:
            return original(self, x)
        return recomputable(rms_norm, x, weight, self.variance_epsilon)

    return forward


def mlp_forward(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        gate = gate_of(self.act_fn)
        if gate is None:
            return original(self, x)
        with recomputed(x):
            left, right = self.gate_proj(x), self.up_proj(x)
        if _serves(left, right) and left.shape == right.shape:
            y = recomputable(GATES[gate], left, right)
        else:
            y = self.act_fn(left) * right
        with recomputed(y):
            down: Tensor = self.down_proj(y)
        return down

    return forward


def gate_of(activation: Any) -> str | None:
    """Name the gated operator, unless something else wants to be called."""
    gate = GATE_NAMES.get(type(activation))
    if gate is not None and (
        activation._forward_pre_hooks
        or activation._forward_hooks
        or activation._backward_pre_hooks
        or activation._backward_hooks
        or "forward" in vars(activation)
        or global_hooks_are_set()
    ):
        return None
    return gate


def linear_forward(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: Any, input: Tensor) -> Tensor:
        # Read once: a parametrization computes it, and may count how often.
        weight, bias = self.weight, self.bias
        if (
            input.numel() > MOST_ROWS * weight.shape[-1]
            or input.dtype == torch.float64
            or not input.is_cpu
            or not (
                _serves(input, weight)
                if bias is None
                else _serves(input, weight, bias)
            )
            or torch.is_autocast_enabled("cpu")
        ):
            return nn.functional.linear(input, weight, bias)
        return linear(input, weight, bias)

    return forward


def attention_forward(original: FunctionType) -> Callable[..., Any]:
    rotated = with_global(original, ROTATE, _rotate)
    assert rotated is not None

    def forward(
        self: Any, hidden_states: Tensor, *rest: Any, **more: Any
    ) -> Any:
        with recomputed(hidden_states):
            return rotated(self, hidden_states, *rest, **more)

    return forward


def _rotate(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *rest: Any,
    unsqueeze_dim: int = 1,
    **more: Any,
) -> tuple[Tensor, Tensor]:
    """Compute transformers' apply_rotary_pos_emb with torch_foo.rope.

    q and k: (batch, heads, seq, n), or (batch, seq, heads, n) if unsqueeze_dim
    is 2. cos and sin: (batch or 1, seq, n), whose second half of n repeats the
    first.
    """
    if (
        rest  # unsqueeze_dim, or position_ids in transformers 4
        or more
        or unsqueeze_dim not in (1, 2)
        or not _serves(q, k, cos, sin)  # of two dtypes, the wider is returned
        or (q.dim(), k.dim(), cos.dim()) != (4, 4, 3)
        or not q.shape[-1] == k.shape[-1] == cos.shape[-1]
    ):
        if unsqueeze_dim != 1:
            more["unsqueeze_dim"] = unsqueeze_dim
        q, k = _ROTATE_AS_LLAMA(q, k, cos, sin, *rest, **more)
        return q, k
    tables = rope_tables(cos, sin)
    if unsqueeze_dim == 1:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    q, k = rope(q, *tables), rope(k, *tables)
    if unsqueeze_dim == 1:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    return q, k


def rope_tables(
    cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return tables of transformers as rope takes them, and the positions."""
    batch, seq, n = cos.shape
    cos, sin = (t.reshape(-1, n)[:, : n // 2] for t in (cos, sin))
    positions = None
    if batch > 1:
        positions = torch.arange(batch * seq, device=cos.device)
        positions = positions.view(batch, seq)
    return cos, sin, positions


def causal_lm_loss(
    logits: Tensor,
    labels: Tensor | None,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    **_: object,
) -> Tensor:
    """Compute transformers' ForCausalLMLoss, which ignores `**_` too."""
    if not _serves(logits) or logits.dtype == torch.float64:  # made float32
        loss: Tensor = ForCausalLMLoss(
            logits,
            labels,
            vocab_size,
            num_items_in_batch,  # type: ignore[arg-type] # it takes int too
            ignore_index,
            shift_labels,
        )
        return loss
    if shift_labels is None:  # token i predicts token i + 1
        assert labels is not None
        labels = nn.functional.pad(labels, (0, 1), value=ignore_index)
        shift_labels = labels[..., 1:]
    loss = cross_entropy(
        logits.view(-1, vocab_size),
        shift_labels.reshape(-1).to(logits.device),
        ignore_index=ignore_index,
        reduction="mean" if num_items_in_batch is None else "sum",
    )
    if num_items_in_batch is None:
        return loss
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(loss.device)
    return loss / num_items_in_batch
