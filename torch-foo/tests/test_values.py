"""Results against the reference formulas in float64."""

import itertools
import math
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch_foo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map_only
from torch_foo.operators import OPERATORS, Sample
from torch_foo.operators.blocks import rounded
from torch_foo.operators.elementwise import Elementwise

reference = SimpleNamespace(**{n: o.reference for n, o in OPERATORS.items()})

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
    got: Tensor,
    exact: Tensor,
    magnitude: Tensor | None = None,
    *,
    max_ulp: float | Tensor | None = None,
    slack: float | Tensor = 0.0,
) -> None:
    """Fail if `got` is further from float64's `exact` than promised.

    Args:
        got: the result.
        exact: what it should be.
        magnitude: that of the intermediate results, for operations where they
            may cancel: a * b against c.
        max_ulp: what is promised, if it is not MAX_ULP.
        slack: what is allowed beside that.
    """
    assert got.shape == exact.shape
    overflow = exact.abs() >= torch.finfo(got.dtype).max
    special = ~exact.isfinite() | overflow
    torch.testing.assert_close(
        got[special], exact[special].to(got.dtype), equal_nan=True
    )
    scale = exact if magnitude is None else magnitude.expand_as(exact)
    error = (got.double() - exact).abs() - slack
    limit = MAX_ULP[got.dtype] if max_ulp is None else max_ulp
    excess = error / ulp(scale, got.dtype) - limit
    worst = excess[~special].max().item() if (~special).any() else 0.0
    assert worst <= 0, f"{worst} ulp more than promised"


def on_cpu(value):
    return tree_map_only(Tensor, Tensor.cpu, value)


def moved(tensor: Tensor, device: str) -> Tensor:
    """The tensor on a device, with the same strides."""
    return torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device
    ).copy_(tensor)


def wide(args):
    return tree_map_only(
        Tensor, lambda a: a.double() if a.is_floating_point() else a, list(args)
    )


def exact_result(op: str, args) -> tuple[Tensor, Tensor | None]:
    dtype = args[0].dtype
    if op in BROADCASTING:
        a, b, *rest = args
        dtype = torch.result_type(a, b)
        args = [a.to(dtype), b.to(dtype), *rest]
    args = wide(args)
    exact = getattr(reference, op)(*args)
    # float32 takes the product of 16-bit numbers without error.
    if op == "muladd" and dtype.itemsize > 2:
        return exact, torch.maximum((args[0] * args[1]).abs(), exact.abs())
    return exact, None


def exact_gelu(x: Tensor, approximate: str) -> Tensor:
    """What torch's is, but for the cancellation where x is far below 0."""
    if approximate == "none":
        return x * (torch.special.erfc(-x * math.sqrt(0.5)) / 2)
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return x * torch.sigmoid(2 * inner)


def assert_gated(got, activation, gate, up) -> None:
    """Compare with activation(gate) * up."""
    arithmetic = torch.finfo(torch.promote_types(got.dtype, torch.float32))
    # The activation may be subnormal, which `up` then magnifies.
    slack = up.abs() * arithmetic.smallest_normal * arithmetic.eps
    max_ulp = MAX_ULP[got.dtype]
    if got.dtype == torch.float64:  # in which `activation` is no better
        max_ulp = max_ulp + 4 * gate.square()  # as exp(-x**2) is not
        slack = up.abs() * arithmetic.smallest_normal
    assert_accurate(got, activation(gate) * up, max_ulp=max_ulp, slack=slack)


def assert_results(op: str, got, args, named) -> None:
    """Fail if an operator's results are less accurate than promised.

    What they should be is computed on the CPU.
    """
    got, args = on_cpu((got, list(args)))
    if op == "add_rms_norm":
        x, residual, *rest = args
        y, residual_out = got
        assert torch.equal(residual_out, reference.add(x, residual))
        assert_accurate(y, reference.rms_norm(*wide([residual_out, *rest])))
    elif op in ("silu_mul", "gelu_mul"):
        gate, up = wide([*args, None][:2])
        if up is None:
            gate, up = gate.chunk(2, -1)
        if op == "silu_mul":
            assert_gated(got, F.silu, gate, up)
        else:
            approximate = named.get("approximate", "none")
            activation = partial(exact_gelu, approximate=approximate)
            assert_gated(got, activation, gate, up)
    elif op == "linear":
        assert_linear(got, args)
    elif op == "attention":
        assert_attention(got, args, named)
    elif op == "rope":
        assert_rope(got, args, named)
    elif op == "cross_entropy":
        assert_loss(got, args, named)
    elif op == "linear_quantized":
        assert_linear_quantized(got, args, named["format"])
    elif op in ("quantize_int8_rowwise", "quantize", "dequantize"):
        assert_equal(got, getattr(reference, op)(*args, **named))
    else:
        assert_accurate(got, *exact_result(op, args))


def assert_linear(got: Tensor, args) -> None:
    """Within the limit for the sum of the magnitudes of what is added up."""
    exact = reference.linear(*wide(args))
    magnitude = reference.linear(*tree_map_only(Tensor, abs, wide(args)))
    if got.dtype.itemsize > 2:
        assert_accurate(got, exact, magnitude)
    else:
        slack = MAX_ULP[torch.float32] * ulp(magnitude, torch.float32)
        assert_accurate(got, exact, slack=slack)


def assert_attention(got: Tensor, args, named) -> None:
    """Within the limit for the sum of the magnitudes of what is added up.

    The error of a score, which is at most that of its largest sum of
    magnitudes, is the relative error of a weight.
    """
    query, key, value, *mask = wide(args)
    exact = reference.attention(query, key, value, *mask, **named)
    magnitude = reference.attention(query, key, value.abs(), *mask, **named)
    score = query.norm(dim=-1).amax() if query.numel() else 0.0
    score = score * (key.norm(dim=-1).amax() if key.numel() else 0.0)
    arithmetic = torch.promote_types(got.dtype, torch.float32)
    steps = MAX_ULP[arithmetic] * (1 + score)
    slack = steps * ulp(magnitude, arithmetic)
    if got.dtype.itemsize == 2:
        slack = slack + 2**-18 * magnitude  # weights have as many bits
    assert_accurate(got, exact, slack=slack)


def assert_linear_quantized(got: Tensor, args, format: str) -> None:
    """What linear returns for x rounded as documented, and near to x itself."""
    x, blocks, *bias = args
    weight = reference.dequantize(blocks, format).double()
    if x.dtype == torch.float64:
        assert_linear(got, [x, weight, *bias])
        return
    is_near = rounded(x.float()).double()
    exact = reference.linear(is_near, weight, *wide(bias))
    magnitude = reference.linear(
        is_near.abs(), weight.abs(), *(b.double().abs() for b in bias)
    )
    # Beside the numbers, their block's minimum is added up.
    largest = weight.abs().max() if weight.numel() else 0.0
    magnitude = magnitude + is_near.abs().sum(-1, keepdim=True) * largest
    slack = MAX_ULP[torch.float32] * ulp(magnitude, torch.float32)
    assert_accurate(got, exact, max_ulp=0.51, slack=slack)
    groups = x.double().unflatten(-1, (x.shape[-1] // 32, 32))
    steps = groups.abs().amax(-1, keepdim=True) / 127
    bound = (steps / 2).expand_as(groups).flatten(-2) @ weight.abs().T
    exact = reference.linear(x.double(), weight, *wide(bias))
    error = (got.double() - exact).abs()
    assert (error <= bound * 1.0001 + ulp(magnitude, got.dtype)).all()


def assert_rope(got: Tensor, args, named) -> None:
    """Within the limit for the larger of the two products."""
    x, cos, sin, *rest = wide(args)
    exact = reference.rope(x, cos, sin, *rest, **named)
    zero = torch.zeros_like(cos)
    by_cos = reference.rope(x, cos, zero, *rest, **named).abs()
    by_sin = reference.rope(x, zero, sin, *rest, **named).abs()
    magnitude = by_cos.maximum(by_sin)
    if got.dtype.itemsize > 2:
        assert_accurate(got, exact, magnitude)
    elif args[1].dtype == got.dtype:  # the products are exact in float32
        assert_accurate(got, exact)
    else:
        assert_accurate(got, exact, slack=ulp(magnitude, torch.float32))


def assert_loss(got: Tensor, args, named) -> None:
    """Within 1e-6 of the loss, relative or, where it is tiny, absolute."""
    logits, target = wide(args)
    exact = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), target.reshape(-1), **named
    ).reshape(got.shape)
    dtype = args[0].dtype
    wanted = dtype if dtype == torch.float64 else torch.float32
    assert got.dtype == wanted
    finite = exact.abs() < torch.finfo(wanted).max
    torch.testing.assert_close(
        got[~finite], exact[~finite].to(wanted), equal_nan=True
    )
    error = (got - exact)[finite].abs()
    assert (error <= 1e-6 * exact[finite].abs().clamp(min=1)).all()


def assert_equal(got, expected) -> None:
    """Fail unless all results are the same, bit for bit (or both nan)."""
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def assert_equal_in_any_layout(got, expected) -> None:
    """The same, but on CUDA the order of a sum depends on the strides."""
    if any(r.is_cuda for r in tree_leaves(got)):
        torch.testing.assert_close(got, expected, equal_nan=True)
    else:
        assert_equal(got, expected)


def clones(args):
    return tree_map_only(Tensor, torch.clone, list(args))


def test_reference(case, dtype, device):
    args = case.args(dtype, device)
    got = case.function(*args)
    assert_results(case.op, got, args, case.named)
    expected = case.reference(*args)
    for g, e in zip(tree_leaves(got), tree_leaves(expected), strict=True):
        assert g.is_contiguous()
        assert g.dtype == e.dtype


def test_out(with_out, dtype, device):
    args = with_out.args(dtype, device)
    expected = with_out.function(*args)
    out = torch.empty_like(expected)
    assert with_out.function(*args, out=out) is out
    assert torch.equal(out, expected)


def test_out_strided(with_out, device):
    args = with_out.args(device=device)
    expected = with_out.function(*args)
    canvas = expected.new_full((*expected.shape, 2), 7.0)
    with_out.function(*args, out=canvas[..., 0])
    assert_equal_in_any_layout(canvas[..., 0], expected)
    assert (canvas[..., 1] == 7).all()  # what lies between is untouched


def test_out_is_input(with_out, dtype, device):
    """It works or is refused, as the operator's documentation says."""
    args = with_out.args(dtype, device)
    expected = with_out.function(*args)
    about_out = with_out.operator.__doc__.partition("out: ")[2]
    may_be = re.search(r"It may be ([\w ]+)[;.]", " ".join(about_out.split()))
    allowed = may_be[1].split(" or ") if may_be else []
    names = [a.name for a in with_out.packet.default._schema.arguments]
    for i in with_out.leaves:
        if args[i].shape != expected.shape or args[i].numel() == 0:
            continue
        if args[i].dtype != expected.dtype:
            continue
        fresh = clones(args)
        if names[i] in allowed:
            with_out.function(*fresh, out=fresh[i])
            assert_equal_in_any_layout(fresh[i], expected)
        else:
            with pytest.raises(RuntimeError, match=f"out overlaps {names[i]}"):
                with_out.function(*fresh, out=fresh[i])
            assert_equal(fresh, clones(args))


def test_inplace(with_inplace, dtype, device):
    args = with_inplace.args(dtype, device)
    expected = tree_leaves(with_inplace.function(*args))
    contiguous = clones(args)
    # A clone of a tensor with gaps has none, so these are the gaps.
    gaps = [
        torch.stack([a, a], -1)[..., 0] if isinstance(a, Tensor) else a
        for a in args
    ]
    written = with_inplace.written
    for fresh in (contiguous, gaps):
        assert with_inplace.inplace(*fresh) is None
        assert_equal_in_any_layout([fresh[i] for i in written], expected)
        for i in set(range(len(args))) - set(written):
            assert_equal(fresh[i], args[i])


def test_large(large, dtype, device):
    args = large.args(dtype, device)
    assert_results(large.op, large.function(*args), args, large.named)


SPECIAL = [0.0, -0.0, 1.0, -2.5, math.inf, -math.inf, math.nan, 1e38, 6e-8]


BROADCASTING = [
    name for name, o in OPERATORS.items() if issubclass(o, Elementwise)
]


@pytest.mark.parametrize("op", BROADCASTING)
def test_special_values(op, dtype, device):
    values = [*SPECIAL, torch.finfo(dtype).smallest_normal / 4]
    values = torch.tensor(values, dtype=torch.float64)
    values = values.to(dtype).to(device)
    args = [values[:, None], values, *OPERATORS[op].scalars]
    got = getattr(torch_foo, op)(*args).cpu()
    expected = getattr(reference, op)(*on_cpu(args))
    assert_equal(got, expected)
    zero = expected == 0
    assert_equal(1 / got[zero], 1 / expected[zero])  # of the same sign


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


def test_negative_eps_is_nan_like_torch(device):
    x = torch.ones(1, 2, device=device)
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
    sizes = [shape[i] * steps[i] for i in order]
    base = torch.randn(sizes, dtype=torch.float64).to(dtype)
    tensor = base.permute([order.index(i) for i in range(len(shape))])
    tensor = tensor[tuple(slice(None, None, step) for step in steps)]
    assert list(tensor.shape) == shape
    return tensor


@settings(max_examples=200)
@given(_tensors(2), st.sampled_from(BROADCASTING))
def test_any_shape(device, tensors, op):
    scalars = OPERATORS[op].scalars
    got = getattr(torch_foo, op)(*(moved(t, device) for t in tensors), *scalars)
    assert_accurate(got.cpu(), *exact_result(op, [*tensors, *scalars]))


@st.composite
def _resized(draw, sample: Sample) -> Sample:
    """The sample with other sizes, which are equal where they were equal.

    A size of 1 may broadcast and an even one hold two halves, so they still do,
    and one that is a number of blocks stays.
    """
    if any(callable(a) for a in sample.arguments):
        return sample  # whose other tensors have sizes that fit these
    sizes = {n for shape in sample.shapes for n in shape}
    new = {
        n: n
        if n == 1 or (n and n % 32 == 0)
        else 2 * draw(st.integers(0, 4)) + n % 2
        for n in sizes
    }
    arguments = [
        tuple(new[n] for n in a) if isinstance(a, tuple) else a
        for a in sample.arguments
    ]
    return Sample(
        sample.name,
        *arguments,
        other=sample.other,
        dtypes=sample.dtypes,
        **sample.named,
    )


@settings(max_examples=20)
@given(st.data(), st.sampled_from(list(MAX_ULP)))
def test_any_size_and_layout(case, make_case, device, data, dtype):
    """Results, and gradients for incoming ones of any layout."""
    case = make_case(case.op, data.draw(_resized(case.sample)))

    def laid(like):
        layout = data.draw(_layout(list(like.shape), like.dtype))
        return moved(layout, device)

    def relaid(tensor):
        return laid(tensor).copy_(tensor)

    args = tree_map_only(Tensor, relaid, list(case.args(dtype)))
    got = case.function(*args)
    assert_results(case.op, got, args, case.named)
    if not case.has_gradient:
        return
    grads = [laid(r) for r in tree_leaves(got)]

    def gradients(function, args, grads):
        leaves = [args[i].detach().requires_grad_() for i in case.leaves]
        results = function(*case.with_leaves(args, leaves), **case.named)
        return torch.autograd.grad(tree_leaves(results), leaves, grads)

    definition = exact_function(case.op, dtype)
    exact = gradients(definition, wide(args), wide(grads))
    ours = gradients(getattr(torch_foo, case.op), args, grads)
    for g, e in zip(ours, exact, strict=True):
        torch.testing.assert_close(
            g, e.to(g.dtype), rtol=2e-2, atol=1e-2, equal_nan=True
        )


def exact_function(op: str, dtype: torch.dtype):
    """The reference, for wide numbers that are `dtype`'s in the operator.

    Where that rounds on the way, so does this; the gradient passes by.
    """
    if op != "add_rms_norm":
        return getattr(reference, op)

    def add_rms_norm(x, residual, *rest):
        exact = x + residual
        total = exact + (exact.to(dtype).to(exact.dtype) - exact).detach()
        return reference.rms_norm(total, *rest), total

    return add_rms_norm


def _relative_error(got: Tensor, exact: Tensor) -> float:
    return ((got.double() - exact).norm() / exact.norm()).item()


def _check_gradients(case, args):
    """At most 1.1 times the error of eager PyTorch in float32."""
    dtype, device = args[0].dtype, args[0].device
    definition = partial(exact_function(case.op, dtype), **case.named)
    grads = [
        torch.randn(r.shape, device=device).to(r.dtype)
        for r in tree_leaves(case.function(*args))
    ]

    def gradients(function, to):
        converted = tree_map_only(Tensor, to, list(args))
        leaves = [converted[i].detach().requires_grad_() for i in case.leaves]
        results = function(*case.with_leaves(converted, leaves))
        return torch.autograd.grad(
            tree_leaves(results), leaves, [to(g) for g in grads]
        )

    def to_float32(a):
        return a.float() if a.is_floating_point() else a

    exact = gradients(definition, lambda a: wide([a])[0])
    eager = gradients(definition, to_float32)
    ours = gradients(case.function, lambda a: a)
    for i, (o, t, e) in enumerate(zip(ours, eager, exact, strict=True)):
        assert o.dtype == args[case.leaves[i]].dtype
        error = _relative_error(o, e)
        limit = 1.1 * _relative_error(t.to(o.dtype), e)
        assert error <= limit, f"gradient {i}: {error} > {limit}"


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_gradient_accuracy(large, dtype, device, request):
    if not large.has_gradient:
        return
    no_fma = torch_foo.build_info().simd_target in ("SSE2", "SSE4")
    if no_fma and large.op == "gelu_mul" and dtype == torch.float32:
        why = "1.1004 times eager's error without a fused multiply-add"
        request.applymarker(pytest.mark.xfail(reason=why, strict=False))
    _check_gradients(large, large.args(dtype, device))


@pytest.mark.parametrize("rows", range(1, 9))
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_linear_accuracy(rows, dtype, device):
    """At most 1.1 times the error of PyTorch's, of many products."""
    for seed in range(4):
        torch.manual_seed(seed)
        x = torch.randn(rows, 4096, device=device).to(dtype)
        weight = torch.randn(256, 4096, device=device).to(dtype)
        exact = F.linear(x.double(), weight.double())
        limit = 1.1 * _relative_error(F.linear(x, weight), exact)
        assert _relative_error(torch_foo.linear(x, weight), exact) <= limit


@pytest.mark.parametrize("shape", [(64, 512), (2048, 128), (3, 4099)], ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm"])
def test_norm_gradient_accuracy(op, make_case, shape, dtype, device):
    tensors = [shape] * (1 if op == "rms_norm" else 2)
    case = make_case(op, Sample("shape", *tensors, shape[-1:], 1e-6))
    _check_gradients(case, case.args(dtype, device))


def test_broadcast_gradient_accuracy(dtype, device):
    """A sum over a broadcast dimension rounds once, not per element."""
    a, grad = (torch.randn(500, 7, device=device).to(dtype) for _ in range(2))
    b = torch.randn(7, device=device).to(dtype).requires_grad_()
    (ours,) = torch.autograd.grad(torch_foo.mul(a, b), b, grad)
    exact = (a.double() * grad.double()).sum(0)
    eager = (a.to(torch.promote_types(dtype, torch.float32)) * grad).sum(0)
    limit = 1.1 * _relative_error(eager.to(dtype), exact)
    assert _relative_error(ours, exact) <= limit


def test_thread_count_changes_nothing(large, dtype):
    args = large.args(dtype, requires_grad=True)

    def results():
        values = tree_leaves(large.function(*args))
        if not large.has_gradient or large.op in ("linear", "attention"):
            return values  # the gradients are products of torch's
        torch.manual_seed(1)
        grads = [torch.randn_like(v) for v in values]
        leaves = [args[i] for i in large.leaves]
        return [*values, *torch.autograd.grad(values, leaves, grads)]

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


# --- magnitudes and special values ------------------------------------------


def _all_magnitudes(dtype: torch.dtype, device: str) -> Tensor:
    """Numbers of both signs, from the least subnormal to the largest."""
    info = torch.finfo(dtype)
    lowest = math.log2(info.smallest_normal * info.eps)
    exponents = torch.linspace(
        lowest, math.log2(info.max) - 1e-3, 997, dtype=torch.float64
    )
    near_one = torch.linspace(0, 200, 2003, dtype=torch.float64)
    values = torch.cat([exponents.exp2(), near_one]).to(dtype)
    return torch.cat([values, -values]).to(device)


GATED = [
    ("silu_mul", {}),
    ("gelu_mul", {}),
    ("gelu_mul", {"approximate": "tanh"}),
]


@pytest.mark.parametrize(("op", "named"), GATED)
@pytest.mark.parametrize("up", [1.0, -3.0, 1e-3, 1e3])
def test_gate_of_all_magnitudes(op, named, up, dtype, device):
    gate = _all_magnitudes(dtype, device)
    args = [gate, torch.full_like(gate, up)]
    got = getattr(torch_foo, op)(*args, **named)
    assert_results(op, got, args, named)


@pytest.mark.parametrize(("op", "named"), GATED)
def test_special_values_of_gates(op, named, dtype, device):
    """NaN and Inf are as PyTorch makes them."""
    values = torch.tensor(SPECIAL, dtype=torch.float64).to(dtype).to(device)
    args = [values[:, None].expand(9, 9), values.expand(9, 9)]
    got = getattr(torch_foo, op)(*args, **named)
    assert_results(op, got, args, named)


def test_add_rms_norm_is_the_norm_of_the_sum(dtype, device):
    """Also where it overflows or is not a number; on the CPU bit for bit.

    On CUDA, the squares of a row are added in another order.
    """
    inf, nan = math.inf, math.nan
    x = torch.randn(9, 131, device=device).to(dtype)
    for row, value in enumerate([0, inf, -inf, nan, 1e38, 1e-40, 6e-8, 1e4]):
        x[row] = value
    residual = torch.randn(9, 131, device=device).to(dtype)
    residual[0] = 0
    weight = torch.randn(131, device=device).to(dtype)
    for w in (weight, None):
        y, total = torch_foo.add_rms_norm(x, residual, w)
        assert_equal(total, torch_foo.add(x, residual))
        norm = torch_foo.rms_norm(total, w)
        if device == "cpu":
            assert_equal(y, norm)
        else:
            torch.testing.assert_close(y, norm, equal_nan=True)


def test_special_values_of_rope(dtype, device):
    pairs = [[a, b] for a in SPECIAL for b in SPECIAL]
    x = torch.tensor(pairs, dtype=torch.float64).to(dtype).to(device)
    x = x.view(1, 1, -1, 2)
    for c, s in [(1.0, 0.0), (0.6, 0.8), (math.nan, 0.0), (0.0, math.inf)]:
        cos, sin = (
            torch.full((1, 1), v, dtype=dtype, device=device) for v in (c, s)
        )
        got = torch_foo.rope(x, cos, sin)
        assert_results("rope", got, [x, cos, sin], {})


def test_rope_of_all_magnitudes(dtype, device):
    x = _all_magnitudes(dtype, device)
    x = x.view(1, 1, -1, 4)
    angles = torch.tensor([[0.3, 2.0]], device=device)
    for to in {dtype, torch.float32}:
        args = [x, angles.cos().to(to), angles.sin().to(to)]
        assert_results("rope", torch_foo.rope(*args), args, {})


def test_rope_copies_the_rest(dtype, device):
    x = torch.randn(1, 2, 3, 7, device=device).to(dtype)
    x[..., 4:] = torch.tensor([math.nan, -0.0, math.inf])
    cos, sin = torch.zeros(2, 2, 2, device=device).to(dtype)
    got = torch_foo.rope(x, cos, sin)
    assert_equal(got[..., 4:], x[..., 4:])


LOSSES = [
    {"reduction": reduction, "label_smoothing": label_smoothing}
    for reduction in ("none", "mean", "sum")
    for label_smoothing in (0.0, 0.1, 1.0)
]


@pytest.mark.parametrize("named", LOSSES, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 30.0, 3e4])
def test_cross_entropy_of_all_magnitudes(named, scale, dtype, device):
    for classes in (1, 2, 3, 17, 1021):
        logits = (torch.randn(6, classes) * scale).to(dtype).to(device)
        target = torch.arange(6, device=device) % classes
        target[2] = -100
        args = [logits, target]
        got = torch_foo.cross_entropy(*args, **named)
        assert_results("cross_entropy", got, args, named)


@pytest.mark.parametrize("named", LOSSES, ids=str)
def test_special_values_of_cross_entropy(named, dtype, device):
    inf, nan = math.inf, math.nan
    big = torch.finfo(dtype).max / 8
    rows = [
        [1, nan, 2],
        [1, inf, 2],
        [1, -inf, 2],
        [-inf, -inf, -inf],
        [-inf, 5, -inf],
        [big, -big, big],
        [0, 0, 0],
    ]
    logits = torch.tensor(rows, dtype=dtype, device=device)
    for row, t in itertools.product(range(len(rows)), [0, 1, 2, -100]):
        args = [logits[row : row + 1], torch.tensor([t], device=device)]
        got = torch_foo.cross_entropy(*args, **named)
        assert_results("cross_entropy", got, args, named)


@pytest.mark.parametrize("named", LOSSES, ids=str)
def test_ignored_targets_have_no_gradient(named, dtype, device):
    logits = torch.randn(4, 7, device=device).to(dtype)
    logits[1] = math.nan  # whose target is ignored
    target = torch.tensor([3, 6, 6, 0], device=device)
    logits.requires_grad_()
    loss = torch_foo.cross_entropy(logits, target, ignore_index=6, **named)
    (got,) = torch.autograd.grad(loss.sum(), logits)
    assert (got[1:3] == 0).all()
    assert got[0].any()
    assert loss.isfinite().all()
    none = torch_foo.cross_entropy(
        logits, torch.full_like(target, 6), ignore_index=6, **named
    )
    if named["reduction"] == "mean":
        assert none.isnan()
    else:
        assert (none == 0).all()


def test_quantize_by_numpy(dtype, device):
    """The definition once more, without PyTorch's arithmetic."""
    np = pytest.importorskip("numpy")
    x = torch.cat(
        [
            torch.randn(2, 1003),
            1e-3 * torch.randn(2, 1003),
            torch.zeros(1, 1003),
        ]
    ).to(dtype)
    x[0, :9] = torch.tensor([-127, 0.5, 1.5, 2.5, -0.5, -1.5, 64, 63.5, 0])
    wanted = np.float64 if dtype == torch.float64 else np.float32
    values = x.to(torch.float64).numpy().astype(wanted)
    scale = np.abs(values).max(-1, keepdims=True) / wanted(127)
    scale = scale.astype(np.float32)
    scale[scale == 0] = 1
    q, got = torch_foo.quantize_int8_rowwise(x.to(device))
    assert (got.cpu().numpy() == scale).all()
    expected = np.rint(values / scale.astype(wanted))
    assert (q.cpu().numpy() == expected).all()


def test_quantize_of_all_magnitudes(dtype, device):
    values = _all_magnitudes(dtype, device)
    special = [[math.nan, 1, 2], [math.inf, 1, -2], [0.0, -0.0, 0], [3, -3, 3]]
    for x in (
        values,
        values[:, None],
        torch.stack([values, values.flip(0)], -1),
        torch.tensor(special, dtype=dtype, device=device),
    ):
        got = torch_foo.quantize_int8_rowwise(x)
        assert_results("quantize_int8_rowwise", got, [x], {})


# --- many dimensions --------------------------------------------------------

FLAT = {"weight", "bias"}  # have a dimension or two, whatever x has
MANY = (None,) * 70


def with_many_dims(names, args, where: int) -> list:
    """Insert dimensions of size 1 at the same place of each tensor of rows."""
    return [
        a[(slice(None),) * where + MANY]
        if isinstance(a, Tensor) and name not in FLAT
        else a
        for name, a in zip(names, args, strict=True)
    ]


def names_of(overload) -> list[str]:
    return [a.name for a in overload._schema.arguments if not a.kwarg_only]


@pytest.mark.parametrize("where", [0, 1])
def test_many_dimensions(case, where, device):
    """More than the 64 of foo_core's views: nested vmap makes them."""
    args = case.args(device=device, requires_grad=True)
    ndims = {a.dim() for a in args if isinstance(a, Tensor)}
    if case.op in ("rope", "attention") or (
        where and min(ndims - {1}, default=0) < 2
    ):
        return
    if where and case.sample.name in ("row", "column", "packed-row", "other-a"):
        return  # broadcasts, or has no dimension before the last one
    if case.sample.other is not None and () in case.sample.shapes:
        return  # a scalar widens no tensor that has dimensions
    names = names_of(case.packet.default)[: len(args)]
    many = with_many_dims(names, args, where)
    expected, got = case.function(*args), case.function(*many)
    meta = case.function(*tree_map_only(Tensor, lambda a: a.to("meta"), many))
    leaves = [args[i] for i in case.leaves]
    for want, result, like in zip(
        *map(tree_leaves, (expected, got, meta)), strict=True
    ):
        assert result.shape == like.shape
        assert torch.equal(result.flatten(), want.flatten())
        if result.requires_grad:
            gradients = (
                torch.autograd.grad(
                    (y * y).sum(), leaves, retain_graph=True, allow_unused=True
                )
                for y in (result, want)
            )
            torch.testing.assert_close(*gradients)
    with torch.no_grad():
        if case.has_out:
            out = torch.empty_like(got)
            assert torch.equal(case.function(*many, out=out), got)
        if case.inplace:
            written = [m.clone() if isinstance(m, Tensor) else m for m in many]
            case.inplace(*written)
            for i, result in zip(case.written, tree_leaves(got), strict=True):
                assert torch.equal(written[i], result)


def test_gradient_kernels_of_many_dimensions(gradient_kernel):
    case, args = gradient_kernel, gradient_kernel.args()
    if case.op == "_rope_backward":
        return
    names = names_of(case.packet.default)
    many = with_many_dims(names, args, 0)
    if case.op == "_cross_entropy_backward" and args[0].dim() == 0:
        many[0] = args[0]
    for got, want in (
        zip(case.function(*many), case.function(*args), strict=True)
        if "norm" in case.op or "mul" in case.op
        else [(case.function(*many), case.function(*args))]
    ):
        assert (got is None) == (want is None)
        if got is not None:
            torch.testing.assert_close(
                got.flatten(), want.flatten(), rtol=0, atol=0
            )


def test_nested_vmap():
    function = torch_foo.rms_norm
    for _ in range(70):
        function = torch.vmap(function)
    x = torch.randn(3)
    got = function(x[MANY])
    assert torch.equal(got, torch_foo.rms_norm(x)[MANY])


@pytest.mark.parametrize(
    "sizes", [[0] * 70, [1, 0] * 40, [0] + [1] * 70, [1] * 70 + [0]], ids=len
)
def test_many_dimensions_of_size_0(sizes):
    x, ones = torch.ones(sizes), torch.ones([1] * len(sizes))
    assert torch_foo.add(x, x).shape == x.shape
    assert torch_foo.mul(x, ones).shape == x.shape
    assert torch_foo.silu_mul(x, x).shape == x.shape
    assert torch_foo.rms_norm(x, torch.ones(sizes[-1])).shape == x.shape
    assert torch_foo.linear(x, torch.ones(2, sizes[-1])).shape == (
        *x.shape[:-1],
        2,
    )


@pytest.mark.parametrize("where", [0, 30, 69])
def test_many_dimensions_that_differ(where):
    """What is left out never makes wrong shapes right."""
    ones = [1] * 70
    x, y = torch.ones(*ones, 3), torch.ones(*ones, 3)
    one_less, one_more = y.squeeze(where), y.unsqueeze(where)
    two = torch.ones(*ones[:where], 2, *ones[where:-1], 3)
    target = torch.zeros(ones, dtype=torch.int64)
    for wrong in (one_less, one_more, two):
        for call in (
            lambda wrong=wrong: torch_foo.add(x, y, out=wrong),
            lambda wrong=wrong: torch_foo.silu_mul(x, wrong),
            lambda wrong=wrong: torch_foo.rms_norm(x, out=wrong),
            lambda wrong=wrong: torch_foo.rms_norm(x, wrong),
            lambda wrong=wrong: torch_foo.add_rms_norm(x, wrong),
            lambda wrong=wrong: torch_foo.linear(x, wrong),
            lambda wrong=wrong: torch_foo.rope(wrong, x, x),
            lambda wrong=wrong: torch_foo.cross_entropy(wrong, target),
        ):
            with pytest.raises(RuntimeError, match="of size 1 are left out"):
                call()
        assert (wrong.flatten() == 1).all()


# --- memory -----------------------------------------------------------------


def allocations(function) -> list[int]:
    """The bytes of each block that PyTorch's CPU allocator hands out.

    From the profiler, which the allocator itself reports to.
    """
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    return [
        event.nbytes()
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.nbytes() > 0
    ]


def test_allocations_are_seen():
    assert 4096 in allocations(lambda: torch.empty(1024))
    size = 4096 * 4
    assert size in allocations(lambda: torch_foo.rms_norm(torch.zeros(4096)))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_cross_entropy_allocates_one_gradient(reduction, dtype):
    logits = torch.randn(64, 4096).to(dtype).requires_grad_()
    target = torch.arange(64)

    def step():
        loss = torch_foo.cross_entropy(logits, target, reduction=reduction)
        torch.autograd.grad(loss.sum(), logits)

    step()  # what is allocated once
    size = logits.numel() * dtype.itemsize
    # A float64 for each row is 1/4096 of it, or 1/1024 of 16-bit logits.
    found = [n for n in allocations(step) if n > size // 64]
    assert found == [size]


def _flags_of_memory(address: int) -> list[str]:
    """VmFlags of the mapping that an address is in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            begin, end = (int(bound, 16) for bound in bounds.groups())
            inside = begin <= address < end
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    return []


def test_large_results_ask_for_huge_pages():
    if not Path("/sys/kernel/mm/transparent_hugepage").is_dir():
        pytest.skip("the system has no transparent huge pages")
    x = torch.ones(12, 2**20)  # more than malloc recycles
    y = torch_foo.add(x, x)
    assert "hg" in _flags_of_memory(y.data_ptr() + 2**20)
    assert "hg" not in _flags_of_memory(x.data_ptr() + 2**20)


def test_out_and_inplace_allocate_nothing(large, dtype):
    args = large.args(dtype)
    with torch.no_grad():
        if large.has_out:
            out = torch.empty_like(large.function(*args))
            step = partial(large.function, *args, out=out)
            step()
            # The scratch memory is x in 8 bits, or results for parts of keys.
            most = {
                "linear_quantized": args[0].numel() * 2,
                "attention": out.numel() * 10 * args[0].itemsize * 2,
            }.get(large.op, 0)
            assert sum(allocations(step)) <= most
        if large.inplace:
            step = partial(large.inplace, *args)
            step()
            assert allocations(step) == []
