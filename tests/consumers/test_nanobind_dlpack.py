"""Build, install and use a Python package over foo_core by DLPack.

The table of nanobind_dlpack/README.md is checked here cell by cell.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

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
    "torch float64",
    "torch float32",
    "torch float16",
    "torch bfloat16",
    "numpy float64",
    "numpy float32",
    "numpy float16",
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


@pytest.mark.parametrize("masked", [False, True])
def test_attention(foo, new, masked: bool) -> None:
    query, key, value, out = (
        new.normal(*shape)
        for shape in [(2, 4, 3, 8), (2, 2, 7, 8), (2, 2, 7, 5), (2, 4, 3, 5)]
    )
    attended = torch.arange(7) % 3 > 0
    mask = new.of(attended.to(torch.uint8)) if masked else None
    foo.attention(query, key, value, mask, 0.5, out, new.scratch())
    scores = 0.5 * wide(query) @ wide(key).repeat_interleave(2, 1).mT
    if masked:
        scores = scores.masked_fill(~attended, -torch.inf)
    new.check(out, scores.softmax(-1) @ wide(value).repeat_interleave(2, 1))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("positions", [None, [4, 0, 2], [[1, 1, 3], [0, 4, 2]]])
def test_rope(foo, new, interleaved: bool, positions) -> None:
    x, grad, out = new.normal(3, 2, 3, 4, 11)
    angles = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.3, 0.1, 0.03]))
    cos, sin = (
        new.of(angles.cos().to(new.dtype)),
        new.of(angles.sin().to(new.dtype)),
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


def test_block_formats(foo, new) -> None:
    """Check a product with weights of 8 bits, of which x has the steps."""
    weight, out = new.normal(5, 64), new.normal(3, 5)
    numbers = new.of(torch.empty(5, 64))
    # The last dimension of blocks is contiguous.
    blocks = torch.empty(5, 2 * 34, dtype=torch.uint8, device=new.device)
    format = foo.BlockFormat.Q8_0
    foo.quantize(weight, format, blocks)
    foo.dequantize(blocks, format, numbers)
    step = wide(weight).unflatten(-1, (2, 32)).abs().amax(-1) / 127
    error = (wide(numbers) - wide(weight)).abs().unflatten(-1, (2, 32))
    # Half a step, and 127 times the rounding of a step to float16.
    assert (error <= (0.5 + 127 * 2.0**-11) * 1.001 * step.unsqueeze(-1)).all()
    x = torch.randint(-127, 128, (3, 64), generator=new.generator)
    x[:, ::32] = 127
    x = new.of((x / 128).to(new.dtype))
    foo.linear_quantized(x, blocks, format, None, out, new.scratch())
    new.check(out, wide(x) @ wide(numbers).T)


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
    arguments = [grad, logits, target, lse, options, grad_logits]
    foo.cross_entropy_backward(*arguments, new.scratch())
    new.check(grad_logits, gradients(formula, grad, logits)[0])


# --- arrays -----------------------------------------------------------------


def test_functions_are_those_of_the_headers(foo, root: Path) -> None:
    """Check that all operators are there, with the parameters' names."""
    headers = (root / "libfoo/include/foo_core").glob("*.h")
    found = re.findall(
        r"^FOO_CORE_EXPORT void (\w+)\(([^)]*Executor& executor[^)]*)\);",
        "".join(header.read_text() for header in headers),
        re.MULTILINE,
    )
    assert len(found) >= 16
    for name, parameters in found:
        text = parameters.replace(" = {}", "").replace("executor", "stream")
        wanted = [parameter.split()[-1] for parameter in text.split(",")]
        signature = getattr(foo, name).__doc__.splitlines()[0]
        assert re.findall(r"(\w+): ", signature) == wanted


class Exporter:
    """An array that notes how it is exported, and may lie about its device."""

    def __init__(self, array: Array, device: tuple[int, int] = (1, 0)) -> None:
        self.array = array
        self.device = device
        self.asked: list[dict[str, object]] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **how: object) -> object:
        self.asked.append(how)
        return self.array.__dlpack__(**{**how, "stream": None})


CPU, PINNED, CUDA = (1, 0), (3, 0), (2, 0)
X = np.ones((2, 4), np.float32)
TARGET = np.zeros(2, np.int64)


def test_no_copy_is_made(foo) -> None:
    x = np.ones((64, 64, 64), np.float32)
    tracemalloc.start()
    try:
        foo.add(x[0], x[1, :, ::-1], x[2].T)
        foo.rms_norm(x, None, 1e-6, x)
        assert tracemalloc.get_traced_memory()[1] < 2**16
    finally:
        tracemalloc.stop()
    np.testing.assert_allclose(x, 1, rtol=1e-6)
    out = Exporter(np.empty_like(x))
    foo.add(x, x, out)
    how = {"stream": None, "max_version": (1, 0), "copy": False}
    assert out.asked == [how]
    np.testing.assert_allclose(out.array, 2, rtol=1e-6)


def test_libraries_mix(foo) -> None:
    out = torch.zeros(2, 4)
    foo.add(X, torch.ones(4), out)
    assert torch.equal(out, torch.full((2, 4), 2.0))


def test_strides_of_numpy(foo) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    out = np.zeros((4, 3), np.float32)
    foo.add(x[::-1], np.broadcast_to(np.float32(1), (3, 4)), out.T[:, ::-1])
    np.testing.assert_array_equal(out.T[:, ::-1], x[::-1] + 1)
    empty = np.zeros((0, 4), np.float32)
    foo.add(empty, empty, empty)
    scalar = np.array(3, np.float32)
    foo.mul(scalar, scalar, scalar)
    assert scalar == 9


def test_read_only(foo) -> None:
    fixed = X.copy()
    fixed.flags.writeable = False
    out = np.empty_like(X)
    foo.add(fixed, fixed, out)
    np.testing.assert_array_equal(out, 2 * X)
    with pytest.raises(ValueError, match=r"^add: out is read-only"):
        foo.add(X, X, fixed)
    np.testing.assert_array_equal(fixed, X)


def test_jax(foo) -> None:
    jnp = pytest.importorskip("jax.numpy", reason="JAX is not installed")
    x = jnp.ones((2, 4), jnp.bfloat16)
    out = torch.zeros(2, 4, dtype=torch.bfloat16)
    foo.add(x, x, out)
    assert torch.equal(out, torch.full_like(out, 2))
    with pytest.raises(ValueError, match=r"^add: out is read-only"):
        foo.add(x, x, x)


def test_cupy(foo, cuda) -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        x = cupy.ones((2, 4), cupy.float32)
        foo.add(x, x, x, stream=stream.ptr)
        assert (x == 2).all()


# --- devices and streams ----------------------------------------------------


def test_pinned_memory_is_the_cpus(foo) -> None:
    pinned, out = Exporter(X, PINNED), np.empty_like(X)
    foo.add(pinned, X, out)
    assert pinned.asked[0]["stream"] is None
    np.testing.assert_array_equal(out, 2 * X)


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="memory of the CPU as if it were CUDA's"
)
@pytest.mark.parametrize(
    ("options", "handle"),
    [({}, 1), ({"stream": 0}, 1), ({"stream": 1}, 1), ({"stream": 7}, 7)],
)
def test_stream_is_handed_on(foo, options, handle: int) -> None:
    """Check what arrays on CUDA are asked, up to the error of the kernel."""
    arrays = [Exporter(X, CUDA) for _ in range(3)]
    with pytest.raises(RuntimeError, match=r"^add: "):
        foo.add(*arrays, **options)
    for array in arrays:
        assert [how["stream"] for how in array.asked] == [handle]


def test_streams_of_cuda(foo, cuda) -> None:
    """Check that the kernel waits for work that another stream has."""
    ours, theirs = torch.cuda.Stream(), torch.cuda.Stream()
    x, out = torch.zeros(2, 2**20, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(theirs):
        torch.cuda._sleep(10**8)
        x.fill_(1)
        foo.add(x, x, out, stream=ours.cuda_stream)
    assert not ours.query()  # nobody has waited
    ours.synchronize()
    assert (out == 2).all()


def test_scratch(foo) -> None:
    losses, lse = np.empty((), np.float32), np.empty(2)
    options = foo.CrossEntropyOptions()

    def loss(**scratch: Array) -> float:
        foo.cross_entropy(X, TARGET, options, losses, lse, **scratch)
        return float(losses)

    wanted = pytest.approx(math.log(4))
    assert loss() == wanted
    memory = torch.full((128,), 99, dtype=torch.int8)
    assert loss(scratch=memory) == wanted
    assert (memory[:16] != 99).any()
    assert (memory[16:] == 99).all()
    message = (
        "^cross_entropy: scratch does not fit, expected 16 contiguous int8, "
        "aligned to 64 bytes, on cpu$"
    )
    for wrong in [
        memory[:15],
        memory[1:],
        memory[::2],
        memory.view(2, 64),
        torch.zeros(16),
    ]:
        with pytest.raises(ValueError, match=message):
            loss(scratch=wrong)


def on_cuda(*arrays: np.ndarray) -> list[Exporter]:
    return [Exporter(array, CUDA) for array in arrays]


UNALIGNED = np.zeros(33, np.uint8)[1:].view(np.float32).reshape(2, 4)
WRONG: list[tuple[type[Exception], str, Callable[[ModuleType], object]]] = [
    (
        TypeError,
        "add: a is list, expected a DLPack array",
        lambda foo: foo.add([1.0], X, X),
    ),
    (
        TypeError,
        "add: b is on cuda:0, but a is on cpu",
        lambda foo: foo.add(X, *on_cuda(X), X),
    ),
    (
        TypeError,
        "rms_norm: out is on cpu, but x is on cuda:0",
        lambda foo: foo.rms_norm(*on_cuda(X), None, 1e-6, X),
    ),
    (
        TypeError,
        "add: out is on cuda:1, but a is on cuda:0",
        lambda foo: foo.add(*on_cuda(X, X), Exporter(X, (2, 1))),
    ),
    (
        TypeError,
        "add: a is on a device of DLPack's type 8, expected cpu or cuda",
        lambda foo: foo.add(Exporter(X, (8, 0)), X, X),
    ),
    (
        ValueError,
        "cross_entropy: scratch is None, expected 16 contiguous int8, aligned "
        "to 64 bytes, on cuda:0",
        lambda foo: foo.cross_entropy(
            *on_cuda(X, TARGET),
            foo.CrossEntropyOptions(),
            *on_cuda(np.zeros((), np.float32), np.zeros(2)),
        ),
    ),
    (
        BufferError,
        "add: a cannot be used: Can't export tensors that require gradient, "
        "use tensor.detach()",
        lambda foo: foo.add(torch.ones(4, requires_grad=True), X, X),
    ),
    *(
        (
            ValueError,
            f"add: a is {name}, expected float32, float64, float16, bfloat16, "
            "int8, uint8 or int64",
            lambda foo, dtype=dtype: foo.add(X.astype(dtype), X, X),
        )
        for name, dtype in [
            ("complex64", np.complex64),
            ("int32", np.int32),
            ("bool8", np.bool_),
        ]
    ),
    (
        ValueError,
        "add: a is not aligned to 4 bytes",
        lambda foo: foo.add(UNALIGNED, X, X),
    ),
    # foo_core's own:
    (
        ValueError,
        "add: b is float64, but a is float32",
        lambda foo: foo.add(X, X.astype(np.float64), X),
    ),
    (
        ValueError,
        "rms_norm: weight has 3 elements, but x's last dimension is 4",
        lambda foo: foo.rms_norm(X, X[0, :3], 1e-6, X),
    ),
    (
        ValueError,
        "add: out has shape (2, 3), expected (2, 4)",
        lambda foo: foo.add(X, X, X[:, :3]),
    ),
]


@pytest.mark.parametrize(
    ("kind", "message", "call"), WRONG, ids=[message for _, message, _ in WRONG]
)
def test_wrong_argument(foo, kind, message: str, call) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        call(foo)
    np.testing.assert_array_equal(X, 1)


@pytest.mark.parametrize("arguments", [(None, X, X), (X, X, X, -1), (X, X)])
def test_nanobind_shows_the_signature(foo, arguments) -> None:
    with pytest.raises(TypeError, match=r"add\(a: object, b: object, out: "):
        foo.add(*arguments)


def test_kernels_run_without_the_gil(foo, check_without_gil) -> None:
    def call(x: np.ndarray) -> None:
        out = np.empty((len(x), 8), np.float32)
        foo.linear(x, x[:8], None, out)

    check_without_gil(call)


# --- the binary -------------------------------------------------------------


def later_pythons() -> list[str]:
    """Return all interpreters from 3.12 on, with headers, that can be found."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    tried = [
        sys.executable,
        *(f"python3.{minor}" for minor in range(12, 16)),
        *map(str, sorted(pyenv.glob("versions/3.*/bin/python3"))),
    ]
    code = """
import sys, sysconfig, os
header = os.path.join(sysconfig.get_path("include"), "Python.h")
if sys.version_info >= (3, 12) and os.path.exists(header):
    print(os.path.realpath(sys.executable))
"""
    found = []
    for python in filter(shutil.which, tried):
        done = subprocess.run(
            [python, "-c", code], text=True, capture_output=True, check=False
        )
        found += done.stdout.splitlines()
    return sorted(set(found))


def test_one_binary_for_python_3_12_and_later(run, tmp_path: Path) -> None:
    """Build with one interpreter and import in all."""
    pythons = later_pythons()
    if not pythons:
        pytest.skip("needs Python 3.12 or later, with headers")
    nanobind = importlib.import_module("nanobind")
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "Python_EXECUTABLE": pythons[0],
        "nanobind_DIR": nanobind.cmake_dir(),
    }
    defines = [f"-D{name}={value}" for name, value in options.items()]
    prefixes = f"{os.environ.get('CMAKE_PREFIX_PATH', '')}:{sys.prefix}"
    configure = ["cmake", "-G", "Ninja", "-S", PROJECT, "-B", tmp_path]
    run(*configure, *defines, env={"CMAKE_PREFIX_PATH": prefixes})
    run("cmake", "--build", tmp_path)
    library = tmp_path / "foo_dlpack.abi3.so"
    assert library.exists()
    libraries = f"{os.environ.get('LD_LIBRARY_PATH', '')}:{sys.prefix}/lib"
    env = {"PYTHONPATH": str(tmp_path), "LD_LIBRARY_PATH": libraries}
    code = "import foo_dlpack; print(foo_dlpack.add.__doc__)"
    for python in pythons:
        assert "add(a: object" in run(python, "-c", code, env=env)
    if audit := shutil.which("abi3audit"):
        flags = ["--strict", "--assume-minimum-abi3", "3.12"]
        run(audit, *flags, library)


def test_example_runs_without_torch(run, install) -> None:
    """Run the README's example."""
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    shown = "import sys; print(f'{y[0, 0]:.5f}', 'torch' in sys.modules)"
    code = f"{example}\n{shown}"
    path = {"PYTHONPATH": str(install(PROJECT))}
    assert run(sys.executable, "-c", code, env=path) == "0.73106 False\n"


# --- the table of the README ------------------------------------------------

TABLE = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in README.splitlines()
    if line.startswith("|") and not line.startswith("|---")
]
COLUMNS = TABLE[0][1:]
ROWS = {row[0]: dict(zip(COLUMNS, row[1:], strict=True)) for row in TABLE[1:]}
MODULES = {
    "torch-foo": "torch_foo",
    "torch_python": "gated_mlp",
    "numpy_pybind11": "foo_numpy",
    "nanobind_dlpack": "foo_dlpack",
}
Call = Callable[[Any], Any]


def settings(column: str) -> dict[str, Any]:
    folder = CONSUMERS / column
    if column == "torch-foo":
        folder = CONSUMERS.parents[1] / column
    return tomllib.loads((folder / "pyproject.toml").read_text())


@pytest.fixture
def site(install, column: str) -> Path | None:
    """Return where the column's module is, if not in the environment."""
    return None if column == "torch-foo" else install(CONSUMERS / column)


@pytest.fixture
def module(site, column: str) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        if site:
            patch.syspath_prepend(site)
        yield importlib.import_module(MODULES[column])


@pytest.fixture
def call(module: ModuleType, column: str) -> Call:
    """Return a function of one array, of shape (2, 8), in the column's way."""
    if column == "torch_python":
        blocks = {
            dtype: module.GatedMLP(8, 16, 1e-6)
            for dtype in (torch.float32, torch.bfloat16)
        }
        for dtype, block in blocks.items():
            block.to(dtype)
        default = blocks[torch.float32]
        return lambda x: blocks.get(x.dtype, default)(x)
    if column == "nanobind_dlpack":

        def into_new_memory(x: Array) -> Array:
            numpy = not isinstance(x, torch.Tensor)
            out = np.empty((2, 8), np.float32) if numpy else torch.empty_like(x)
            module.rms_norm(x, None, 1e-6, out)
            return out

        return into_new_memory
    return module.rms_norm


def tensor(**options: Any) -> torch.Tensor:
    return torch.ones(2, 8, **options)


def jax_array() -> Any:
    jnp = pytest.importorskip("jax.numpy", reason="JAX is not installed")
    return jnp.ones((2, 8))


def bfloat16_of_numpy() -> np.ndarray:
    module = pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    return np.ones((2, 8), module.bfloat16)


def backward(call: Call) -> None:
    x = tensor(requires_grad=True)
    call(x).sum().backward()
    assert x.grad is not None


def compiled(call: Call) -> None:
    torch.compiler.reset()
    torch.compile(call, backend="eager", fullgraph=True)(tensor())


INPUTS: dict[str, Callable[[], Array]] = {
    "PyTorch's tensors": tensor,
    "NumPy's arrays": lambda: np.ones((2, 8), np.float32),
    "JAX's arrays, as inputs": jax_array,
    "bfloat16 of PyTorch": lambda: tensor(dtype=torch.bfloat16),
    "bfloat16 of NumPy (ml_dtypes)": bfloat16_of_numpy,
    "PyTorch's tensors on CUDA": lambda: tensor(device="cuda"),
}
USES: dict[str, Callable[[Call], object]] = {
    "autograd": backward,
    "`torch.func.vmap`": lambda call: torch.func.vmap(call)(tensor()[None]),
    "`torch.compile(fullgraph=True)`": compiled,
}


def test_table_is_complete() -> None:
    others = {"results without `out`", "without PyTorch", "one binary for"}
    assert ROWS.keys() == {*INPUTS, *USES, *others}
    assert list(MODULES) == COLUMNS


def works(use: Callable[[], object]) -> str:
    try:
        use()
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
        return "no"
    return "yes"


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", [*INPUTS, *USES])
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
def test_cell(request, call: Call, column: str, row: str) -> None:
    if "CUDA" in row:
        request.getfixturevalue("cuda")
    if row in INPUTS:
        x = INPUTS[row]()
        assert works(lambda: call(x)) == ROWS[row][column]
    else:
        assert works(lambda: USES[row](call)) == ROWS[row][column]


@pytest.mark.parametrize("column", COLUMNS)
def test_cell_of_results(module: ModuleType, call: Call, column: str) -> None:
    if column == "nanobind_dlpack":
        call = functools.partial(module.rms_norm, weight=None, eps=1e-6)
    x = np.ones((2, 8), np.float32)
    x = x if column == "numpy_pybind11" else torch.from_numpy(x)
    row = ROWS["results without `out`"]
    assert works(lambda: call(x)) == row[column]


@pytest.mark.parametrize("column", COLUMNS)
def test_cell_without_torch(run, site: Path | None, column: str) -> None:
    """Check the build's requirements, and that `import torch` is not needed."""
    requires = settings(column)["build-system"]["requires"]
    built = "no" if any(r.startswith("torch") for r in requires) else "yes"
    code = f"import sys; sys.modules['torch'] = None; import {MODULES[column]}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(site or "")},
        check=False,
        capture_output=True,
    )
    ran = "no" if done.returncode else "yes"
    assert built == ran == ROWS["without PyTorch"][column]


@pytest.mark.parametrize("column", COLUMNS)
def test_cell_of_one_binary(module: ModuleType, column: str) -> None:
    """Check what the project says of its binary, and the binary's name."""
    project = settings(column)
    abi = project["tool"]["scikit-build"].get("wheel", {}).get("py-api", "")
    cell = f"Python ≥ 3.{abi.removeprefix('cp3')}" if abi else "one Python"
    for requirement in project["project"]["dependencies"]:
        if requirement.startswith("torch>="):
            cell += f", PyTorch ≥ {requirement[7:].split(',')[0]}"
        elif requirement.startswith("torch"):
            cell += ", one PyTorch"
    assert cell == ROWS["one binary for"][column]
    library = getattr(module, "_C", module).__file__
    oldest = (3, int(abi.removeprefix("cp3") or 99))
    assert library.endswith(".abi3.so") == (sys.version_info >= oldest)
