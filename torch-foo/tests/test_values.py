"""Results against the reference formulas in float64."""

import math

import pytest
import torch
import torch_foo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_foo import reference

# The accuracy that is promised, in units in the last place.
MAX_ULP = {
    torch.float64: 64,  # against a reference that is no better
    torch.float32: 4,
    torch.bfloat16: 0.51,
    torch.float16: 0.51,
}


def ulp(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbours of `exact` in `dtype`, as float64."""
    info = torch.finfo(dtype)
    _, exponent = exact.frexp()
    return torch.ldexp(torch.full_like(exact, info.eps), exponent - 1).clamp(
        min=info.smallest_normal * info.eps
    )


def assert_accurate(
    got: Tensor, exact: Tensor, magnitude: Tensor | None = None
) -> None:
    """Fail if `got` is further from float64's `exact` than promised.

    `magnitude` is that of the intermediate results, for operations where they
    may cancel: a * b against c.
    """
    assert got.shape == exact.shape
    overflow = exact.abs() >= torch.finfo(got.dtype).max
    special = ~exact.isfinite() | overflow
    torch.testing.assert_close(
        got[special], exact[special].to(got.dtype), equal_nan=True
    )
    scale = exact if magnitude is None else magnitude.expand_as(exact)
    error = (got.double() - exact).abs() / ulp(scale, got.dtype)
    worst = error[~special].max().item() if (~special).any() else 0.0
    assert worst <= MAX_ULP[got.dtype], f"{worst} ulp"


def wide(args):
    return [a.double() if isinstance(a, Tensor) else a for a in args]


def exact_result(op: str, args) -> tuple[Tensor, Tensor | None]:
    dtype, args = args[0].dtype, wide(args)
    exact = getattr(reference, op)(*args)
    # float32 takes the product of 16-bit numbers without error.
    if op == "muladd" and dtype.itemsize > 2:
        return exact, torch.maximum((args[0] * args[1]).abs(), exact.abs())
    return exact, None


def test_reference(sample, dtype, device):
    args = sample.args(dtype, device)
    got = sample.function(*args)
    assert got.dtype == dtype
    assert got.is_contiguous()
    assert_accurate(got, *exact_result(sample.op, args))


def test_out(sample, dtype, device):
    args = sample.args(dtype, device)
    expected = sample.function(*args)
    out = torch.empty_like(expected)
    assert sample.function(*args, out=out) is out
    assert torch.equal(out, expected)


def test_out_strided(sample, device):
    args = sample.args(device=device)
    expected = sample.function(*args)
    canvas = torch.full((*expected.shape, 2), 7.0, device=device)
    sample.function(*args, out=canvas[..., 0])
    assert torch.equal(canvas[..., 0], expected)
    assert (canvas[..., 1] == 7).all()  # what lies between is untouched


def test_out_is_input(sample, dtype, device):
    args = sample.args(dtype, device)
    expected = sample.function(*args)
    for i in range(1 if sample.op == "rms_norm" else 2):
        if args[i].shape == expected.shape:
            fresh = [a.clone() if isinstance(a, Tensor) else a for a in args]
            sample.function(*fresh, out=fresh[i])
            assert torch.equal(fresh[i], expected)


def test_large(typical, dtype, device):
    """A size that is shared among threads, with odd tails."""
    x = torch.randn(67, 4099, device=device).to(dtype)
    row = torch.randn(4099, device=device).to(dtype)
    args = [x, row, *typical.others]
    assert_accurate(typical.function(*args), *exact_result(typical.op, args))


SPECIAL = [0.0, -0.0, 1.0, -2.5, math.inf, -math.inf, math.nan, 1e38, 6e-8]


@pytest.mark.parametrize("op", ["add", "mul", "muladd"])
def test_special_values(op, dtype, device):
    values = [*SPECIAL, torch.finfo(dtype).smallest_normal / 4]
    values = torch.tensor(values, dtype=torch.float64)
    values = values.to(dtype).to(device)
    args = [values[:, None], values, *([0.5] if op == "muladd" else [])]
    got = getattr(torch_foo, op)(*args)
    expected = getattr(reference, op)(*args)
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(
        got.signbit() & ~got.isnan(), expected.signbit() & ~expected.isnan()
    )


def test_special_values_rms_norm(dtype, device):
    nan, inf = math.nan, math.inf
    x = torch.tensor(
        [[1, nan, 2], [1, inf, -2], [0, 0, 0], [-0.0, 0, 0], [1, 2, 3]],
        dtype=dtype,
        device=device,
    )
    torch.testing.assert_close(
        torch_foo.rms_norm(x), reference.rms_norm(x), equal_nan=True
    )
    no_eps = torch_foo.rms_norm(x, eps=0.0)
    assert no_eps[2].isnan().all()


def test_rms_norm_of_subnormals(device):
    x = torch.full((2, 8), 1e-40, device=device)
    expected = reference.rms_norm(x.double())
    torch.testing.assert_close(torch_foo.rms_norm(x).double(), expected)


def test_negative_eps_is_nan_like_torch():
    x = torch.ones(1, 2)
    expected = torch.nn.functional.rms_norm(x, (2,), eps=-4.0)
    assert expected.isnan().all()
    assert torch_foo.rms_norm(x, eps=-4.0).isnan().all()


def test_pending_negation(device):
    z = torch.randn(3, dtype=torch.complex64, device=device)
    x = z.conj().imag
    assert x.is_neg()
    assert torch.equal(torch_foo.add(x, x), 2 * x)
    assert torch.equal(torch_foo.rms_norm(x), torch_foo.rms_norm(x.clone()))


@st.composite
def _tensors(draw, count: int) -> list[Tensor]:
    """Tensors that broadcast together, of one dtype and of any layout."""
    dtype = draw(st.sampled_from(list(MAX_ULP)))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    tensors = []
    for _ in range(count):
        own = [1 if draw(st.booleans()) else n for n in shape]
        if own and draw(st.booleans()):
            own = own[draw(st.integers(0, len(own))) :]
        tensors.append(draw(_layout(own, dtype)))
    return tensors


@st.composite
def _layout(draw, shape: list[int], dtype: torch.dtype) -> Tensor:
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.integers(1, 3)) for _ in shape]
    base = torch.randn([shape[i] * steps[i] for i in order]).to(dtype)
    tensor = base.permute([order.index(i) for i in range(len(shape))])
    tensor = tensor[tuple(slice(None, None, step) for step in steps)]
    assert list(tensor.shape) == shape
    return tensor


@settings(deadline=None, max_examples=150)
@given(_tensors(2), st.sampled_from(["add", "mul", "muladd"]), st.floats(-2, 2))
def test_any_layout_elementwise(tensors, op, c):
    args = [*tensors, *([c] if op == "muladd" else [])]
    got = getattr(torch_foo, op)(*args)
    assert_accurate(got, *exact_result(op, args))


@settings(deadline=None, max_examples=150)
@given(st.data(), st.sampled_from(list(MAX_ULP)), st.booleans())
def test_any_layout_rms_norm(data, dtype, has_weight):
    shape = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    x = data.draw(_layout(shape, dtype))
    weight = data.draw(_layout(shape[-1:], dtype)) if has_weight else None
    args = [x, weight, 1e-5]
    assert_accurate(torch_foo.rms_norm(*args), *exact_result("rms_norm", args))

    grad = data.draw(_layout(shape, dtype))
    got = torch.ops.torch_foo._rms_norm_backward(
        grad, x, weight, 1e-5, True, has_weight
    )
    expected = reference.rms_norm_backward(
        *wide([grad, x, weight]), 1e-5, True, has_weight
    )
    for g, e in zip(got, expected, strict=True):
        if e is not None:
            torch.testing.assert_close(g, e.to(dtype), rtol=2e-2, atol=1e-2)


def _relative_error(got: Tensor, exact: Tensor) -> float:
    return ((got.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("shape", [(64, 512), (2048, 128), (3, 4099)], ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_rms_norm_gradient_accuracy(shape, dtype, device):
    """At most 1.1 times the error of eager PyTorch in float32."""
    x, grad = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    weight = torch.randn(shape[-1:], device=device).to(dtype)
    leaves = [x, weight]

    def gradients(function, tensors, grad):
        tensors = [t.clone().requires_grad_() for t in tensors]
        return torch.autograd.grad(function(*tensors), tensors, grad)

    def in_float32(x, weight):
        return torch.nn.functional.rms_norm(
            x.float(), shape[-1:], weight.float(), 1e-6
        )

    exact = gradients(reference.rms_norm, wide(leaves), grad.double())
    ours = gradients(torch_foo.rms_norm, leaves, grad)
    eager = gradients(in_float32, leaves, grad.float())
    for name, o, t, e in zip(("x", "weight"), ours, eager, exact, strict=True):
        assert o.dtype == dtype
        error, limit = _relative_error(o, e), 1.1 * _relative_error(t, e)
        assert error <= limit, f"gradient of {name}: {error} > {limit}"


def test_broadcast_gradient_accuracy(dtype, device):
    """A sum over a broadcast dimension rounds once, not per element."""
    a, grad = (torch.randn(500, 7, device=device).to(dtype) for _ in range(2))
    b = torch.randn(7, device=device).to(dtype).requires_grad_()
    (ours,) = torch.autograd.grad(torch_foo.mul(a, b), b, grad)
    exact = (a.double() * grad.double()).sum(0)
    eager = (a.to(torch.promote_types(dtype, torch.float32)) * grad).sum(0)
    limit = 1.1 * _relative_error(eager.to(dtype), exact)
    assert _relative_error(ours, exact) <= limit


def test_thread_count_changes_nothing(dtype):
    x, grad = (torch.randn(513, 1021).to(dtype) for _ in range(2))
    weight = torch.randn(1021).to(dtype)

    def results():
        return [
            torch_foo.add(x, weight),
            torch_foo.muladd(x, grad, 0.5),
            torch_foo.rms_norm(x, weight),
            *torch.ops.torch_foo._rms_norm_backward(
                grad, x, weight, 1e-6, True, True
            ),
        ]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = results()
        for threads in (2, 3, 8):
            torch.set_num_threads(threads)
            for got, want in zip(results(), expected, strict=True):
                assert torch.equal(got, want)
    finally:
        torch.set_num_threads(before)
