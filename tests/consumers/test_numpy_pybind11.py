"""Build, install and use a Python package over foo_core without PyTorch."""

from __future__ import annotations

import functools
import math
import re
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

PROJECT = Path(__file__).parent / "numpy_pybind11"
# Half a unit in the last place for 16-bit types, which are rounded once, and
# four units for the others.
TOLERANCE = {
    "float64": 4 * 2.0**-52,
    "float32": 4 * 2.0**-23,
    "float16": 0.51 * 2.0**-10,
    "bfloat16": 0.51 * 2.0**-7,
}


@pytest.fixture(scope="session")
def site(install) -> Path:
    """Return the folder in which the package is installed."""
    return install(PROJECT)


@pytest.fixture(scope="session")
def foo(site: Path) -> Iterator[ModuleType]:
    """Import foo_numpy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        import foo_numpy

        yield foo_numpy


@pytest.fixture(params=TOLERANCE)
def dtype(request: pytest.FixtureRequest) -> np.dtype[Any]:
    if request.param == "bfloat16":
        module = pytest.importorskip(
            "ml_dtypes", reason="bfloat16 needs ml_dtypes"
        )
        return np.dtype(module.bfloat16)
    return np.dtype(request.param)


def _every_other(x: np.ndarray) -> np.ndarray:
    wide = np.repeat(x, 2, axis=-1)
    wide[..., 1::2] = 99
    return wide[..., ::2]


def _at_an_offset(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x.ravel()[:1], x.ravel()])[1:].reshape(x.shape)


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": lambda x: x,
    "transposed": np.asfortranarray,
    "reversed": lambda x: np.ascontiguousarray(np.flip(x))[
        (slice(None, None, -1),) * x.ndim
    ],
    "every other": _every_other,
    "offset": _at_an_offset,
}


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Callable[..., np.ndarray]:
    return LAYOUTS[request.param]


@pytest.fixture
def normal(dtype, layout) -> Callable[..., np.ndarray]:
    """Return an array of normally distributed numbers."""
    rng = np.random.default_rng(0)
    return lambda *shape: layout(rng.standard_normal(shape).astype(dtype))


def wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64)


def check(got: np.ndarray, wanted: np.ndarray, dtype: np.dtype[Any]) -> None:
    """Check the dtype of `got`, and its values against float64 arithmetic."""
    assert type(got) is np.ndarray
    assert got.dtype == dtype
    assert got.shape == wanted.shape
    # A sum that cancels keeps the error of its type of computation.
    small = 8 * (2.0**-52 if dtype == np.float64 else 2.0**-23)
    np.testing.assert_allclose(
        wide(got), wanted, rtol=TOLERANCE[dtype.name], atol=small
    )


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    return x * np.vectorize(math.erfc)(-x / math.sqrt(2)) / 2


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def rms(x: np.ndarray, eps: float = 1e-6) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps)


def test_elementwise(foo, normal, dtype) -> None:
    a, b = normal(2, 1, 7), normal(3, 1)
    check(foo.add(a, b), wide(a) + wide(b), dtype)
    check(foo.mul(a, b), wide(a) * wide(b), dtype)
    check(foo.muladd(a, b, 0.5), wide(a) * wide(b) + 0.5, dtype)


def test_broadcast_strides_and_scalars(foo, dtype) -> None:
    a = np.arange(5).astype(dtype)
    repeated = np.broadcast_to(a, (3, 5))
    scalar = np.array(2, dtype)
    check(foo.mul(repeated, scalar), wide(repeated) * 2, dtype)
    check(foo.mul(scalar, scalar), np.array(4.0), dtype)
    check(foo.rms_norm(repeated), rms(wide(repeated)), dtype)


def test_empty(foo, dtype) -> None:
    x = np.empty((0, 3), dtype)
    check(foo.add(x, np.ones((1, 3), dtype)), wide(x), dtype)
    check(foo.rms_norm(x), wide(x), dtype)
    bias = np.ones(2, dtype)
    check(foo.linear(x, np.ones((2, 3), dtype), bias), np.ones((0, 2)), dtype)
    check(foo.linear(x.T, np.ones((2, 0), dtype), bias), np.ones((3, 2)), dtype)


def test_gated_linear_units(foo, normal, dtype) -> None:
    packed = normal(3, 2, 38)
    halves = gate, up = packed[..., :19], packed[..., 19:]
    x, y = map(wide, halves)
    check(foo.silu_mul(gate, up), silu(x) * y, dtype)
    check(foo.silu_mul(packed), silu(x) * y, dtype)
    check(foo.gelu_mul(gate, up), gelu(x) * y, dtype)
    check(foo.gelu_mul(packed), gelu(x) * y, dtype)
    tanh = foo.gelu_mul(gate, up, approximate="tanh")
    check(tanh, gelu_tanh(x) * y, dtype)


def test_norms(foo, normal, dtype) -> None:
    x, residual, weight = normal(2, 3, 19), normal(2, 3, 19), normal(19)
    check(foo.rms_norm(x), rms(wide(x)), dtype)
    weighted = rms(wide(x), 0.5) * wide(weight)
    check(foo.rms_norm(x, weight, 0.5), weighted, dtype)
    y, residual_out = foo.add_rms_norm(x, residual, weight)
    check(residual_out, wide(x) + wide(residual), dtype)
    check(y, rms(wide(residual_out)) * wide(weight), dtype)


def test_linear(foo, normal, dtype) -> None:
    x, weight, bias = normal(2, 3, 19), normal(5, 19), normal(5)
    product = wide(x) @ wide(weight).T
    check(foo.linear(x, weight), product, dtype)
    check(foo.linear(x, weight, bias), product + wide(bias), dtype)
    one = foo.linear(x[0, 0], weight, bias=bias)
    check(one, product[0, 0] + wide(bias), dtype)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("positions", [None, [4, 0, 2], [[1, 1, 3], [0, 4, 2]]])
def test_rope(foo, normal, dtype, interleaved: bool, positions) -> None:
    x = normal(2, 3, 4, 11)
    angles = np.outer(np.arange(5), [1.0, 0.3, 0.1, 0.03])
    cos, sin = np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
    where = None if positions is None else np.array(positions)
    got = foo.rope(x, cos, sin, where, interleaved=interleaved)

    rows = np.arange(3) if where is None else where
    c, s = wide(cos)[rows][..., None, :], wide(sin)[rows][..., None, :]
    first, second = np.arange(4), np.arange(4) + 4
    if interleaved:
        first, second = np.arange(0, 8, 2), np.arange(1, 8, 2)
    wanted = wide(x)
    x1, x2 = wanted[..., first], wanted[..., second]
    wanted[..., first] = x1 * c - x2 * s
    wanted[..., second] = x2 * c + x1 * s
    check(got, wanted, dtype)


def test_quantize_int8_rowwise(foo, normal, dtype) -> None:
    """Check every bit: computed in float32, or in float64 for float64."""
    x = normal(3, 2, 19)
    x[0, 0] = 0
    number = x.astype(np.float64 if dtype == np.float64 else np.float32)
    scale = np.abs(number).max(-1, keepdims=True) / number.dtype.type(127)
    scale = np.where(scale == 0, 1, scale).astype(np.float32)
    q, got_scale = foo.quantize_int8_rowwise(x)
    assert q.dtype == np.int8
    assert got_scale.dtype == np.float32
    np.testing.assert_array_equal(got_scale, scale, strict=True)
    np.testing.assert_array_equal(q, np.rint(number / scale))


def test_cross_entropy(foo, normal, dtype) -> None:
    logits = normal(2, 3, 19)
    target = np.array([[0, 5, -100], [18, 7, 7]])
    classes = np.maximum(target, 0)
    x = wide(logits)
    lse = np.log(np.exp(x).sum(-1))
    picked = np.take_along_axis(x, classes[..., None], -1)[..., 0]
    loss_dtype = np.dtype("f8" if dtype == np.float64 else "f4")

    rows = np.where(target != -100, lse - picked, 0)
    for reduction, wanted in [
        ("none", rows),
        ("mean", rows.sum() / 5),
        ("sum", rows.sum()),
    ]:
        got = foo.cross_entropy(logits, target, reduction=reduction)
        check(got, wanted, loss_dtype)

    smooth = lse - 0.9 * picked - 0.1 * x.mean(-1)
    wanted = np.where(classes != 7, smooth, 0)
    options = {"ignore_index": 7, "reduction": "none", "label_smoothing": 0.1}
    check(foo.cross_entropy(logits, classes, **options), wanted, loss_dtype)


ANGLES = [np.ones((64, 32), np.float32), np.zeros((64, 32), np.float32)]
# Operators with out=, and the arguments that may be exactly it.
WITH_OUT: dict[str, tuple[str, Callable[..., np.ndarray]]] = {
    "add": ("a b", lambda foo, x, y, **out: foo.add(x, y, **out)),
    "mul": ("a b", lambda foo, x, y, **out: foo.mul(x, y, **out)),
    "muladd": ("a b", lambda foo, x, y, **out: foo.muladd(x, y, 0.5, **out)),
    "silu_mul": ("gate up", lambda foo, x, y, **out: foo.silu_mul(x, y, **out)),
    "gelu_mul": ("gate up", lambda foo, x, y, **out: foo.gelu_mul(x, y, **out)),
    "rms_norm": ("x", lambda foo, x, y, **out: foo.rms_norm(x, **out)),
    "rope": ("x", lambda foo, x, y, **out: foo.rope(x, *ANGLES, **out)),
}


def images(layout: Callable[..., np.ndarray]) -> list[np.ndarray]:
    """Return two arrays of 4 MiB."""
    rng = np.random.default_rng(0)
    shape = (4, 64, 64, 64)
    return [layout(rng.standard_normal(shape, "f4")) for _ in range(2)]


@pytest.mark.parametrize("op", WITH_OUT)
def test_out_is_written_and_returned(foo, layout, op: str) -> None:
    names, call = WITH_OUT[op]
    wanted = call(foo, *images(layout))
    for place in range(len(names.split())):
        inputs = images(layout)
        out = inputs[place]
        memory, strides = out.ctypes.data, out.strides
        assert call(foo, *inputs, out=out) is out
        assert (out.ctypes.data, out.strides) == (memory, strides)
        np.testing.assert_array_equal(out, wanted)
        other = inputs[1 - place]
        np.testing.assert_array_equal(other, images(layout)[1 - place])


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the peak of the memory that NumPy and Python add in a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_out_of_linear(foo, layout) -> None:
    """Check that out= is written and returned, without other memory."""
    x, y = images(layout)
    weight = y[0, 0]
    wanted = foo.linear(x, weight)
    out = y[1:]  # weight's neighbour, and for some layouts between its rows
    with_out = functools.partial(foo.linear, x[1:], weight, out=out)
    assert peak_bytes(with_out) < 2**16
    assert with_out() is out
    np.testing.assert_array_equal(out, wanted[1:])
    np.testing.assert_array_equal(y[0], images(layout)[1][0])


@pytest.mark.parametrize("op", WITH_OUT)
def test_out_takes_no_other_memory(foo, layout, op: str) -> None:
    _, call = WITH_OUT[op]
    x, y = images(layout)
    out = layout(np.empty_like(x))
    assert peak_bytes(lambda: call(foo, x, y, out=out)) < 2**16


def test_results_take_no_memory_but_their_own(foo, layout) -> None:
    x, y = images(layout)
    target = np.zeros(x.shape[:-1], np.int64)

    def excess(call: Callable[[], np.ndarray], *others: int) -> int:
        results = call()
        several = results if isinstance(results, tuple) else (results,)
        own = sum(result.nbytes for result in several)
        return peak_bytes(call) - own

    assert excess(lambda: foo.add(x, y)) < 2**16
    assert excess(lambda: foo.add_rms_norm(x, y)) < 2**16
    assert excess(lambda: foo.quantize_int8_rowwise(x)) < 2**16
    assert excess(lambda: foo.linear(x, y[0, 0])) < 2**16
    # The gradient would need a float64 for each row.
    lse = target.size * 8
    assert excess(lambda: foo.cross_entropy(x, target)) < lse + 2**16


X = np.ones((2, 4), np.float32)
SQUARE = np.ones((4, 4), np.float32)
UNALIGNED = np.zeros(33, np.uint8)[1:].view(np.float32)
# One field of records that are longer than a multiple of it.
INTERLOCKED = np.zeros(3, "f4, i2")["f0"]
TARGET = np.zeros(2, np.int64)
WRONG: list[tuple[type[Exception], str, Callable[[ModuleType], object]]] = [
    (
        TypeError,
        "add: a is list, expected numpy.ndarray",
        lambda foo: foo.add([1.0], X),
    ),
    (
        TypeError,
        "mul: b is numpy.float32, expected numpy.ndarray",
        lambda foo: foo.mul(X, X[0, 0]),
    ),
    (
        TypeError,
        "add: out is tuple, expected numpy.ndarray",
        lambda foo: foo.add(X, X, out=()),
    ),
    (
        TypeError,
        "silu_mul: gate is NoneType, expected numpy.ndarray",
        lambda foo: foo.silu_mul(None, X),
    ),
    (
        ValueError,
        "muladd: a is complex128, expected float32, float64, float16 or "
        "bfloat16",
        lambda foo: foo.muladd(X.astype(complex), X, 1),
    ),
    (
        ValueError,
        "rms_norm: x is int8, expected float32, float64, float16 or bfloat16",
        lambda foo: foo.rms_norm(X.astype(np.int8)),
    ),
    (
        ValueError,
        "cross_entropy: target is int32, expected int64",
        lambda foo: foo.cross_entropy(X, TARGET.astype(np.int32)),
    ),
    (
        ValueError,
        "rope: positions is uint64, expected int64",
        lambda foo: foo.rope(
            X.reshape(1, 2, 1, 4), *ANGLES, TARGET.astype(np.uint64)
        ),
    ),
    (
        ValueError,
        "add: b is float64, but a is float32",
        lambda foo: foo.add(X, X.astype(np.float64)),
    ),
    (
        ValueError,
        "rms_norm: weight is >f4, expected the machine's own byte order",
        lambda foo: foo.rms_norm(X, X[0].astype(">f4")),
    ),
    (
        ValueError,
        "add_rms_norm: residual is not aligned, expected elements at multiples "
        "of 4 bytes",
        lambda foo: foo.add_rms_norm(X, UNALIGNED),
    ),
    (
        ValueError,
        "add: a is not aligned, expected elements at multiples of 4 bytes",
        lambda foo: foo.add(INTERLOCKED, INTERLOCKED),
    ),
    (
        ValueError,
        "add: a has shape (2, 4), b has shape (3, 4): they do not broadcast",
        lambda foo: foo.add(X, np.ones((3, 4), np.float32)),
    ),
    (
        ValueError,
        "rms_norm: weight has 3 elements, but x's last dimension is 4",
        lambda foo: foo.rms_norm(X, X[0, :3]),
    ),
    (
        TypeError,
        "linear: bias is float, expected numpy.ndarray",
        lambda foo: foo.linear(X, X, 1.0),
    ),
    (
        ValueError,
        "linear: weight is float64, but x is float32",
        lambda foo: foo.linear(X, X.astype(np.float64)),
    ),
    (
        ValueError,
        "linear: x has no dimensions, expected at least 1",
        lambda foo: foo.linear(X[0, 0, ...], X),
    ),
    *(
        (
            ValueError,
            f"linear: weight has shape {weight.shape}, expected (n, 4), as x's "
            "last dimension is 4",
            lambda foo, weight=weight: foo.linear(X, weight),
        )
        for weight in (X[0], X[:, :3], X[None], X[0, 0, ...])
    ),
    (
        ValueError,
        "linear: bias has shape (3,), expected (2,)",
        lambda foo: foo.linear(X, X, X[0, :3]),
    ),
    (
        ValueError,
        "linear: out has shape (2, 4), expected (2, 2)",
        lambda foo: foo.linear(X, X, out=np.zeros_like(X)),
    ),
    (
        ValueError,
        "linear: out overlaps x, expected memory of its own",
        lambda foo: foo.linear(SQUARE, SQUARE.copy(), out=SQUARE),
    ),
    (
        ValueError,
        "linear: out overlaps weight, expected memory of its own",
        lambda foo: foo.linear(SQUARE.copy(), SQUARE, out=SQUARE),
    ),
    (
        ValueError,
        "linear: out overlaps bias, expected memory of its own",
        lambda foo: foo.linear(
            X, np.eye(4, dtype="f4"), SQUARE[0], out=SQUARE[:2]
        ),
    ),
    (
        ValueError,
        "quantize_int8_rowwise: x has no dimensions, expected at least 1",
        lambda foo: foo.quantize_int8_rowwise(np.array(1.0)),
    ),
    (
        ValueError,
        "silu_mul: gate has shape (2, 3), expected an even last dimension, of "
        "gate and up together",
        lambda foo: foo.silu_mul(X[:, :3]),
    ),
    (
        ValueError,
        "gelu_mul: approximate is 'erf', expected 'none' or 'tanh'",
        lambda foo: foo.gelu_mul(X, X, approximate="erf"),
    ),
    (
        ValueError,
        "cross_entropy: reduction is 'max', expected 'none', 'mean' or 'sum'",
        lambda foo: foo.cross_entropy(X, TARGET, reduction="max"),
    ),
    (
        ValueError,
        "cross_entropy: target is 4 at index (1,), expected 0 to 3 or "
        "ignore_index (-100)",
        lambda foo: foo.cross_entropy(X, np.array([0, 4])),
    ),
]


@pytest.mark.parametrize(
    ("kind", "message", "call"), WRONG, ids=[message for _, message, _ in WRONG]
)
def test_wrong_argument(foo, kind, message: str, call) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$") as caught:
        call(foo)
    assert caught.type is kind


def test_wrong_number_is_refused(foo) -> None:
    """Check that pybind11 shows the signature of rms_norm."""
    with pytest.raises(TypeError, match=r"rms_norm\(\): .*\n.*eps: "):
        foo.rms_norm(X, eps="small")


@pytest.mark.parametrize("op", WITH_OUT)
def test_wrong_out_is_not_written(foo, op: str) -> None:
    names, call = WITH_OUT[op]
    name = names.split()[0]
    x, y = images(LAYOUTS["contiguous"])

    def check_refused(out: np.ndarray, message: str) -> None:
        before = out.copy()
        pattern = f"^{op}: {re.escape(message)}$"
        with pytest.raises(ValueError, match=pattern):
            call(foo, x, y, out=out)
        np.testing.assert_array_equal(out, before)

    fixed = np.zeros_like(x)
    fixed.flags.writeable = False
    check_refused(fixed, "out is read-only, expected a writeable array")
    short = np.zeros_like(x[1:])
    shapes = f"{short.shape}, expected {x.shape}"
    check_refused(short, f"out has shape {shapes}")
    double = np.zeros(x.shape)
    check_refused(double, f"out is float64, but {name} is float32")
    flipped = x[..., ::-1]
    overlap = f"out overlaps {name} without being exactly {name}"
    check_refused(flipped, overlap)


LONG_CALLS: dict[str, Callable[[ModuleType, np.ndarray], object]] = {
    "cross_entropy": lambda foo, x: foo.cross_entropy(
        x, np.zeros(len(x), np.int64)
    ),
    "linear": lambda foo, x: foo.linear(x, x[:8]),
}


@pytest.mark.parametrize("call", LONG_CALLS.values(), ids=LONG_CALLS)
def test_kernels_run_without_the_gil(foo, check_without_gil, call) -> None:
    check_without_gil(functools.partial(call, foo))


def test_example_runs_without_torch(run, site: Path) -> None:
    """Run the README's example."""
    readme = (PROJECT / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    code = f"{example}\nimport sys; print('torch' in sys.modules)"
    path = {"PYTHONPATH": str(site)}
    assert run(sys.executable, "-c", code, env=path) == "False\n"
