"""Tensors of more than 2**31 elements, which 32 bits cannot count."""

import re
from pathlib import Path

import pytest
import torch
import torch_foo
from torch.utils._pytree import tree_leaves

ROWS, COLUMNS = 2**19 + 1, 4096  # the last row begins at element 2**31
NEEDED = 9  # GiB: x and one more of its size

_ops = torch.ops.torch_foo
WEIGHT = torch.linspace(0.5, 2, COLUMNS).bfloat16()
TABLES = torch.tensor([[[0.6]], [[0.8]]]).expand(2, 1, 64).bfloat16()


def _heads(x):
    """The arguments of rope: each row is a token."""
    positions = torch.zeros(len(x), dtype=torch.int64)
    return x.view(1, len(x), 32, 128), *TABLES, positions


def _loss(x):
    """The loss of each row, with what the backward pass needs."""
    target = torch.full([len(x)], 7)
    return x, target, *_ops.cross_entropy(x, target, reduction="none")


def _loss_gradient(x):
    x, target, loss, lse = _loss(x)
    return _ops._cross_entropy_backward(
        torch.ones_like(loss), x, target, lse, -100, "none", 0.0
    )


def _add_rms_norm(x):
    residual = x.clone()
    torch_foo.add_rms_norm_(x, residual, WEIGHT)
    return x, residual


# Each row of the results follows from the same row of x alone.
CALLS = {
    "add": lambda x: torch_foo.add(x, x, out=x),
    "mul by a row": lambda x: torch_foo.mul(x, WEIGHT, out=x),
    "muladd": lambda x: torch_foo.muladd(x, WEIGHT, 0.5, out=x),
    "rms_norm": lambda x: torch_foo.rms_norm(x, WEIGHT, out=x),
    "rms_norm's gradient": lambda x: _ops._rms_norm_backward(
        x, x, WEIGHT, 1e-6, True, False
    )[0],
    "add_rms_norm_": _add_rms_norm,
    "linear": lambda x: torch_foo.linear(x, WEIGHT.repeat(5, 1)),
    "linear by many weights": lambda x: torch_foo.linear(WEIGHT, x),
    "silu_mul": lambda x: torch_foo.silu_mul(x, x, out=x),
    "packed silu_mul": torch_foo.silu_mul,
    "silu_mul's gradient": lambda x: _ops._silu_mul_backward(
        x[:, ::2], x, None, True, True
    )[0],
    "gelu_mul": lambda x: torch_foo.gelu_mul(x, x, approximate="tanh", out=x),
    "rope": lambda x: torch_foo.rope_(*_heads(x)) or x,
    "rope's gradient": lambda x: _ops._rope_backward(*_heads(x), False)[0],
    "cross_entropy": lambda x: _loss(x)[2:],
    "cross_entropy's gradient": _loss_gradient,
    "quantize_int8_rowwise": torch_foo.quantize_int8_rowwise,
}


def available() -> float:
    """GiB of memory that can be had without swapping."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return 0
    return int(re.search(r"MemAvailable: +(\d+)", text)[1]) / 2**20


def test_rows_beyond_32_bits():
    if available() < NEEDED:
        pytest.skip(f"needs {NEEDED} GiB, and {available():.1f} are available")
    x = torch.zeros(ROWS, COLUMNS, dtype=torch.bfloat16)
    edges = [0, 1, ROWS - 2, ROWS - 1]
    rows = torch.randn(len(edges), COLUMNS).bfloat16()
    for name, call in CALLS.items():
        x[edges] = rows
        expected = tree_leaves(call(rows.clone()))
        for got, want in zip(tree_leaves(call(x)), expected, strict=True):
            assert torch.equal(got[edges], want), name
            del got
