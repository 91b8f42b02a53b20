"""A program that uses every operator: mypy accepts it, and knows the types."""

import torch_foo
from torch import Tensor
from typing_extensions import assert_type


def elementwise(a: Tensor, b: Tensor) -> None:
    assert_type(torch_foo.add(a, b), Tensor)
    assert_type(torch_foo.add(a, b=b, out=a), Tensor)
    assert_type(torch_foo.mul(a, b), Tensor)
    assert_type(torch_foo.mul(a, b, out=None), Tensor)
    assert_type(torch_foo.muladd(a, b, 1), Tensor)
    assert_type(torch_foo.muladd(a, b, c=0.5, out=a), Tensor)
    assert_type(torch_foo.silu_mul(a), Tensor)
    assert_type(torch_foo.silu_mul(a, b, out=a), Tensor)
    assert_type(torch_foo.gelu_mul(a, None), Tensor)
    assert_type(torch_foo.gelu_mul(a, b, approximate="tanh", out=a), Tensor)


def rows(x: Tensor, residual: Tensor, weight: Tensor | None) -> None:
    assert_type(torch_foo.rms_norm(x), Tensor)
    assert_type(torch_foo.rms_norm(x, weight, 1e-5), Tensor)
    assert_type(torch_foo.rms_norm(x, eps=1, out=residual), Tensor)
    assert_type(
        torch_foo.add_rms_norm(x, residual, weight), tuple[Tensor, Tensor]
    )
    torch_foo.add_rms_norm_(x, residual, eps=1e-5)
    assert_type(torch_foo.linear(x, residual), Tensor)
    assert_type(torch_foo.linear(x, residual, bias=weight, out=x), Tensor)
    assert_type(torch_foo.quantize_int8_rowwise(x), tuple[Tensor, Tensor])


def positions(x: Tensor, cos: Tensor, sin: Tensor, at: Tensor | None) -> None:
    assert_type(torch_foo.rope(x, cos, sin), Tensor)
    assert_type(torch_foo.rope(x, cos, sin, at, interleaved=True), Tensor)
    torch_foo.rope_(x, cos, sin, positions=at)


def losses(logits: Tensor, target: Tensor) -> None:
    assert_type(torch_foo.cross_entropy(logits, target), Tensor)
    assert_type(
        torch_foo.cross_entropy(
            logits,
            target,
            ignore_index=0,
            reduction="sum",
            label_smoothing=0.1,
        ),
        Tensor,
    )
