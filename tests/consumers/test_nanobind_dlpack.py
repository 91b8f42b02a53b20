"""Build, install and use a Python package over foo_core by DLPack.

The table of nanobind_dlpack/README.md is checked here cell by cell.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

CONSUMERS = Path(__file__).parent
PROJECT = CONSUMERS / "nanobind_dlpack"
README = (PROJECT / "README.md").read_text()
# Half a unit in the last place for 16-bit types, which are rounded once, and
# four units for the others.
TOLERANCE = {
    torch.float64: 4 * 2.0**-52,
    torch.float32: 4 * 2.0**-23,
    torch.float16: 0.51 * 2.0**-10,
    torch.bfloat16: 0.51 * 2.0**-7,
}
Array = Any  # a torch.Tensor or a numpy.ndarray


@pytest.fixture(scope="session")
def foo(install) -> Iterator[ModuleType]:
    """Import foo_dlpack."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(install(PROJECT))
        yield importlib.import_module("foo_dlpack")


@pytest.fixture(scope="session")
def cuda(foo) -> None:
    """Skip a test that needs CUDA where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    x = torch.empty(0, device="cuda")
    try:
        foo.add(x, x, x)
    except RuntimeError as error:
        pytest.skip(str(error))


# --- values -----------------------------------------------------------------

SOURCES = [
    *(f"torch {name}" for name in "float64 float32 float16 bfloat16".split()),
    *(f"numpy {name}" for name in "float64 float32 float16".split()),
    "cuda float32",
    "cuda bfloat16",
]
LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "transposed": lambda x: x.mT.contiguous().mT if x.ndim > 1 else x,
    "every other": lambda x: torch.stack([x, x + 99], -1)[..., 0],
}


class Arrays:
    """Make arrays of one library, dtype and layout, and check results."""

    def __init__(self, source: str, layout: str) -> None:
        self.library, name = source.split()
        self.dtype = getattr(torch, name)
        self.layout = LAYOUTS[layout]
        self.device = "cuda" if self.library == "cuda" else "cpu"
        self.generator = torch.Generator().manual_seed(0)

    def of(self, x: torch.Tensor) -> Array:
        x = self.layout(x.to(self.device))
        return x.numpy() if self.library == "numpy" else x

    def normal(self, *shape: int) -> Array:
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return self.of(x.to(self.dtype))

    def check(self, got: Array, wanted: torch.Tensor, **bounds: float) -> None:
        """Check against float64 arithmetic."""
        # A sum that cancels keeps the error of its type of computation.
        double = self.dtype == torch.float64
        bounds.setdefault("rtol", TOLERANCE[torch.as_tensor(got).dtype])
        bounds.setdefault("atol", 16 * 2.0 ** (-52 if double else -23))
        torch.testing.assert_close(wide(got), wanted, **bounds)

    def scratch(self) -> torch.Tensor | None:
        """Return scratch memory, of which the binding has its own on a CPU."""
        if self.device == "cpu":
            return None
        return torch.empty(2**20, dtype=torch.int8, device=self.device)


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> str:
    if request.param.startswith("cuda"):
        request.getfixturevalue("cuda")
    return request.param


@pytest.fixture(params=LAYOUTS)
def new(source: str, request: pytest.FixtureRequest) -> Arrays:
    return Arrays(source, request.param)


def wide(x: Array) -> torch.Tensor:
    return torch.as_tensor(x).cpu().double()


def gradients(
    formula: Callable[..., torch.Tensor], grad: Array, *inputs: Array
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of sum(grad * formula(*inputs)) in the inputs."""
    leaves = [wide(x).clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(formula(*leaves), leaves, wide(grad))


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | float = 1.0, eps: float = 1e-6
) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def test_elementwise(foo, new) -> None:
    a, b, out = new.normal(2, 1, 7), new.normal(3, 1), new.normal(2, 3, 7)
    foo.add(a, b, out)
    new.check(out, wide(a) + wide(b))
    foo.mul(a, b, out)
    new.check(out, wide(a) * wide(b))
    foo.muladd(a, b, 0.5, out)
    new.check(out, wide(a) * wide(b) + 0.5)


def test_silu_mul(foo, new) -> None:
    def formula(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return gate / (1 + torch.exp(-gate)) * up

    gate, up, grad, out, grad_gate, grad_up = new.normal(6, 3, 2, 19)
    foo.silu_mul(gate, up, out)
    new.check(out, formula(wide(gate), wide(up)))
    foo.silu_mul_backward(grad, gate, up, grad_gate, grad_up)
    wanted = gradients(formula, grad, gate, up)
    new.check(grad_gate, wanted[0])
    new.check(grad_up, wanted[1])


@pytest.mark.parametrize("approximation", ["NONE", "TANH"])
def test_gelu_mul(foo, new, approximation: str) -> None:
    def formula(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        if approximation == "NONE":
            return gate / 2 * torch.erfc(-gate / math.sqrt(2)) * up
        inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
        return gate / 2 * (1 + torch.tanh(inner)) * up

    kind = foo.GeluApproximation[approximation]
    gate, up, grad, out, grad_gate, grad_up = new.normal(6, 3, 2, 19)
    foo.gelu_mul(gate, up, kind, out)
    new.check(out, formula(wide(gate), wide(up)))
    foo.gelu_mul_backward(grad, gate, up, kind, grad_gate, grad_up)
    wanted = gradients(formula, grad, gate, up)
    new.check(grad_gate, wanted[0])
    new.check(grad_up, wanted[1])


def test_rms_norm(foo, new) -> None:
    x, grad, out, grad_x = new.normal(4, 3, 2, 19)
    weight, grad_weight = new.normal(2, 19)
    foo.rms_norm(x, None, 1e-6, out)
    new.check(out, rms_norm(wide(x)))
    foo.rms_norm(x, weight, 0.5, out)
    new.check(out, rms_norm(wide(x), wide(weight), 0.5))

    foo.rms_norm_backward(
        grad, x, weight, 1e-6, grad_x, grad_weight, new.scratch()
    )
    wanted = gradients(rms_norm, grad, x, weight)
    new.check(grad_x, wanted[0])
    new.check(grad_weight, wanted[1])
    # Without grad_weight, no scratch memory is needed on any device.
    foo.rms_norm_backward(grad, x, None, 1e-6, grad_x, None)
    new.check(grad_x, gradients(rms_norm, grad, x)[0])


def test_add_rms_norm(foo, new) -> None:
    x, residual, out, residual_out, grad, grad_residual, grad_x = new.normal(
        7, 3, 2, 19
    )
    weight, grad_weight = new.normal(2, 19)
    foo.add_rms_norm(x, residual, weight, 1e-6, out, residual_out)
    new.check(residual_out, wide(x) + wide(residual))
    new.check(out, rms_norm(wide(residual_out), wide(weight)))

    arguments = [residual_out, weight, 1e-6, grad_x, grad_weight]
    foo.add_rms_norm_backward(grad, grad_residual, *arguments, new.scratch())
    wanted = gradients(rms_norm, grad, residual_out, weight)
    new.check(grad_x, wanted[0] + wide(grad_residual))
    new.check(grad_weight, wanted[1])


def test_linear(foo, new) -> None:
    x, weight, bias, out = (
        new.normal(*shape) for shape in [(2, 3, 19), (5, 19), (5,), (2, 3, 5)]
    )
    foo.linear(x, weight, None, out)
    new.check(out, wide(x) @ wide(weight).T)
    foo.linear(x, weight, bias, out)
    new.check(out, wide(x) @ wide(weight).T + wide(bias))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("positions", [None, [4, 0, 2], [[1, 1, 3], [0, 4, 2]]])
def test_rope(foo, new, interleaved: bool, positions) -> None:
    x, grad, out = new.normal(3, 2, 3, 4, 11)
    angles = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.3, 0.1, 0.03]))
    cos, sin = new.of(angles.cos().to(new.dtype)), new.of(
        angles.sin().to(new.dtype)
    )
    rows = torch.tensor([0, 1, 2] if positions is None else positions)
    where = None if positions is None else new.of(rows)

    def formula(x: torch.Tensor) -> torch.Tensor:
        c, s = (wide(table)[rows][..., None, :] for table in (cos, sin))
        first, second = slice(0, 4), slice(4, 8)
        if interleaved:
            first, second = slice(0, 8, 2), slice(1, 8, 2)
        x1, x2, result = x[..., first], x[..., second], x.clone()
        result[..., first] = x1 * c - x2 * s
        result[..., second] = x2 * c + x1 * s
        return result

    foo.rope(x, cos, sin, where, foo.RopeOptions(interleaved=interleaved), out)
    new.check(out, formula(wide(x)))
    options = foo.RopeOptions(interleaved=interleaved, inverse=True)
    foo.rope(grad, cos, sin, where, options, out)
    new.check(out, gradients(formula, grad, x)[0])


def test_quantize_int8_rowwise(foo, new) -> None:
    """Check every bit: computed in float32, or in float64 for float64."""
    x = new.normal(3, 2, 19)
    x[0, 0] = 0
    q = new.of(torch.empty(3, 2, 19, dtype=torch.int8))
    scale = new.of(torch.empty(3, 2, 1))
    foo.quantize_int8_rowwise(x, q, scale)
    number = wide(x) if new.dtype == torch.float64 else wide(x).float()
    wanted = (number.abs().amax(-1, keepdim=True) / 127).float()
    wanted[wanted == 0] = 1
    torch.testing.assert_close(wide(scale), wanted.double(), rtol=0, atol=0)
    rounded = (number / wanted).round().double()
    torch.testing.assert_close(wide(q), rounded, rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["NONE", "MEAN", "SUM"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(foo, new, reduction: str, smoothing: float) -> None:
    classes = torch.tensor([0, 5, 7, 18, 7, 3])
    logits, grad_logits = new.normal(2, 6, 19)
    target = new.of(classes)
    kind = new.dtype if new.dtype == torch.float64 else torch.float32
    shape = (6,) if reduction == "NONE" else ()
    loss, grad = (new.of(torch.ones(shape, dtype=kind)) for _ in range(2))
    lse = new.of(torch.empty(6, dtype=torch.float64))
    options = foo.CrossEntropyOptions(
        ignore_index=7,
        reduction=foo.Reduction[reduction],
        label_smoothing=smoothing,
    )

    def formula(logits: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(
            logits,
            classes,
            ignore_index=7,
            reduction=reduction.lower(),
            label_smoothing=smoothing,
        )

    foo.cross_entropy(logits, target, options, loss, lse, new.scratch())
    new.check(loss, formula(wide(logits)))
    foo.cross_entropy_backward(grad, logits, target, lse, options, grad_logits)
    new.check(grad_logits, gradients(formula, grad, logits)[0])
