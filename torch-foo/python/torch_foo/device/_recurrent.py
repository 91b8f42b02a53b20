"""The cells of LSTM and GRU, which ATen asks of an accelerator but not a CPU.

They are made of operators with gradients, and so have none of their own.
"""

# mypy: allow-untyped-calls
# (parts of torch have no types)

import torch
from torch import Tensor


def register(aten: torch.library.Library) -> None:
    for key in ("AutogradPrivateUse1", "PrivateUse1"):
        aten.impl("_thnn_fused_lstm_cell", lstm_cell, key)
        aten.impl("_thnn_fused_gru_cell", gru_cell, key)


def lstm_cell(
    input_gates: Tensor,
    hidden_gates: Tensor,
    cx: Tensor,
    input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    gates = _plus(input_gates, input_bias) + _plus(hidden_gates, hidden_bias)
    i, f, g, o = gates.chunk(4, 1)
    cy = f.sigmoid() * cx + i.sigmoid() * g.tanh()
    return o.sigmoid() * cy.tanh(), cy, _no_workspace(cx)


def gru_cell(
    input_gates: Tensor,
    hidden_gates: Tensor,
    hx: Tensor,
    input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    ir, iz, i_new = _plus(input_gates, input_bias).chunk(3, 1)
    hr, hz, h_new = _plus(hidden_gates, hidden_bias).chunk(3, 1)
    new = (i_new + h_new * (ir + hr).sigmoid()).tanh()
    return (hx - new) * (iz + hz).sigmoid() + new, _no_workspace(hx)


def _plus(gates: Tensor, bias: Tensor | None) -> Tensor:
    return gates if bias is None else gates + bias


def _no_workspace(like: Tensor) -> Tensor:
    """Return what only a fused gradient would read."""
    return like.new_empty(0)
