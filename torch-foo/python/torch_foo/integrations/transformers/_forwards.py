"""The forward methods and the loss that compute with torch_foo.

Each `*_forward` takes the original method, which the new one falls back to.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from torch_foo import (
    cross_entropy,
    gelu_mul,
    linear,
    rms_norm,
    rope,
    silu_mul,
)
from torch_foo.integrations.transformers._rebind import with_global
from torch_foo.integrations.transformers._recompute import (
    recomputable,
    recomputed,
)

#: The gated operator for each type of activation module.
GATES: dict[type, Callable[[Tensor, Tensor], Tensor]] = {
    nn.SiLU: silu_mul,
    type(ACT2FN["silu"]): silu_mul,
    type(ACT2FN["gelu"]): gelu_mul,
}
for _tanh in ("gelu_new", "gelu_pytorch_tanh"):
    GATES[type(ACT2FN[_tanh])] = functools.partial(gelu_mul, approximate="tanh")

# torch_foo.linear beats torch up to this many rows (AVX-512, AVX2).
_MOST_ROWS = {torch.float32: 16, torch.bfloat16: 1}


def rms_norm_forward(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        x, weight = hidden_states, self.weight
        # Of two dtypes, transformers returns the wider, and so does autocast.
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(
            x.device.type
        ):
            return original(self, x)
        return recomputable(rms_norm, x, weight, self.variance_epsilon)

    return forward


def mlp_forward(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        gate = GATES.get(type(self.act_fn))
        if gate is None:  # only where a class was patched
            return original(self, x)
        with recomputed(x):
            left, right = self.gate_proj(x), self.up_proj(x)
        y = recomputable(gate, left, right)
        with recomputed(y):
            down: Tensor = self.down_proj(y)
        return down

    return forward


def linear_forward(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: Any, input: Tensor) -> Tensor:
        weight = self.weight
        most = _MOST_ROWS.get(input.dtype, 0)
        if (
            input.numel() > most * weight.shape[1]
            or input.dtype != weight.dtype
            or not input.is_cpu
            or torch.is_autocast_enabled("cpu")
        ):
            return original(self, input)
        return linear(input, weight, self.bias)

    return forward


def attention_forward(original: FunctionType) -> Callable[..., Any]:
    rotated = with_global(original, "apply_rotary_pos_emb", _rotate)

    def forward(
        self: Any, hidden_states: Tensor, *rest: Any, **more: Any
    ) -> Any:
        with recomputed(hidden_states):
            return rotated(self, hidden_states, *rest, **more)

    return forward


def _rotate(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Compute transformers' apply_rotary_pos_emb with torch_foo.rope.

    q and k: (batch, heads, seq, n), or (batch, seq, heads, n) if unsqueeze_dim
    is 2. cos and sin: (batch or 1, seq, n), whose second half of n repeats the
    first.
    """
    batch, seq, n = cos.shape
    cos, sin = (t.reshape(-1, n)[:, : n // 2] for t in (cos, sin))
    positions = None
    if batch > 1:
        positions = torch.arange(batch * seq, device=cos.device)
        positions = positions.view(batch, seq)
    if unsqueeze_dim == 1:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    q = rope(q, cos, sin, positions)
    k = rope(k, cos, sin, positions)
    if unsqueeze_dim == 1:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    return q, k


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
