"""What PyTorch does around the kernels: autograd, compile, export, vmap."""

import itertools
import re

import pytest
import torch
import torch_foo
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

_ops = torch.ops.torch_foo


def detached(args):
    return tree_map_only(
        Tensor, lambda a: a.detach().requires_grad_(a.requires_grad), args
    )


def loss(result) -> Tensor:
    """A number that depends on all results, on each in its own way."""
    return sum(
        (i + r.square()).square().sum()
        for i, r in enumerate(tree_leaves(result))
    )


def gradients(function, args):
    """The result of a function and its gradients, as a flat list."""
    args = detached(args)
    result = function(*args)
    leaves = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
    return [
        *tree_leaves(result),
        *torch.autograd.grad(loss(result), leaves),
    ]


def split(sample, args):
    """The tensors with gradients, and the other arguments."""
    count = len(sample.shapes)
    return args[:count], args[count:]


def assert_equal(got, expected) -> None:
    """Fail unless all results are the same, bit for bit (or both nan)."""
    assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


# --- torch.library's own checks ---------------------------------------------


def test_opcheck(sample, device):
    args = sample.args(device=device, requires_grad=sample.has_gradient)
    torch.library.opcheck(sample.packet.default, args, sample.named)


def test_opcheck_without_gradients(typical_differentiable, device):
    sample = typical_differentiable
    args = sample.args(device=device)
    torch.library.opcheck(sample.packet.default, args, sample.named)


def test_opcheck_out(with_out, device):
    args = with_out.args(device=device)
    out = torch.empty_like(with_out.function(*args))
    torch.library.opcheck(
        with_out.packet.out, args, {**with_out.named, "out": out}
    )


def test_opcheck_inplace(with_inplace, device):
    overload = getattr(_ops, f"{with_inplace.op}_").default
    args = with_inplace.args(device=device)
    torch.library.opcheck(overload, args, with_inplace.named)


@pytest.mark.parametrize("wants_x", [False, True])
@pytest.mark.parametrize("wants_weight", [False, True])
@pytest.mark.parametrize("has_weight", [False, True])
def test_opcheck_rms_norm_backward(device, wants_x, wants_weight, has_weight):
    grad, x, other = torch.randn(3, 3, 5, device=device)
    weight = torch.randn(5, device=device) if has_weight else None
    wants = wants_x, wants_weight
    torch.library.opcheck(
        _ops._rms_norm_backward, (grad, x, weight, 1e-6, *wants)
    )
    for grad_residual in (None, other):
        torch.library.opcheck(
            _ops._add_rms_norm_backward,
            (grad, grad_residual, x, weight, 1e-6, *wants),
        )


@pytest.mark.parametrize("wants_gate", [False, True])
@pytest.mark.parametrize("wants_up", [False, True])
def test_opcheck_gated_backward(device, wants_gate, wants_up):
    grad, gate, up = torch.randn(3, 3, 5, device=device)
    packed = torch.cat([gate, up], -1)
    wants = wants_gate, wants_up
    for args in ((grad, gate, up), (grad, packed, None)):
        torch.library.opcheck(_ops._silu_mul_backward, (*args, *wants))
        for approximate in ("none", "tanh"):
            torch.library.opcheck(
                _ops._gelu_mul_backward, (*args, approximate, *wants)
            )


@pytest.mark.parametrize("interleaved", [False, True])
def test_opcheck_rope_backward(device, interleaved):
    grad = torch.randn(2, 3, 2, 5, device=device)
    cos, sin = torch.randn(2, 4, 2, device=device)
    positions = torch.tensor([3, 1, 0], device=device)
    for p in (None, positions):
        torch.library.opcheck(
            _ops._rope_backward, (grad, cos, sin, p, interleaved)
        )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_opcheck_cross_entropy_backward(device, reduction):
    logits = torch.randn(3, 5, device=device)
    target = torch.tensor([4, -100, 0], device=device)
    result, lse = _ops.cross_entropy(logits, target, reduction=reduction)
    torch.library.opcheck(
        _ops._cross_entropy_backward,
        (torch.ones_like(result), logits, target, lse, -100, reduction, 0.1),
    )


# --- autograd ---------------------------------------------------------------


def test_gradcheck(differentiable, device):
    args = differentiable.args(torch.float64, device, requires_grad=True)
    assert torch.autograd.gradcheck(differentiable.function, args)


def test_gradgradcheck(differentiable, device):
    args = differentiable.args(torch.float64, device, requires_grad=True)
    assert torch.autograd.gradgradcheck(differentiable.function, args)


def test_gradients_that_can_be_differentiated_again(differentiable):
    """They are formulas in place of kernels, and the same numbers."""
    sample, count = differentiable, len(differentiable.shapes)
    args = sample.args(torch.float64, requires_grad=True)
    got, expected = (
        torch.autograd.grad(
            loss(sample.function(*args)), args[:count], create_graph=again
        )
        for again in (True, False)
    )
    assert_close(got, expected)


def test_only_wanted_gradients(differentiable):
    """Of each choice of arguments, and of each choice of results."""
    sample, count = differentiable, len(differentiable.shapes)
    full = sample.args(torch.float64, requires_grad=True)
    results = tree_leaves(sample.reference(*full))
    for chosen in range(len(results)):
        expected = torch.autograd.grad(
            loss(results[chosen]),
            full[:count],
            retain_graph=True,
            materialize_grads=True,
        )
        for wants in itertools.product([False, True], repeat=count):
            if not any(wants):
                continue
            args = detached(full)
            for arg, want in zip(args, wants, strict=False):
                arg.requires_grad_(want)
            result = tree_leaves(sample.function(*args))[chosen]
            wanted = [i for i in range(count) if wants[i]]
            if not result.requires_grad:  # the sum, of the weight
                assert not any(expected[i].any() for i in wanted)
                continue
            got = torch.autograd.grad(
                loss(result),
                [args[i] for i in wanted],
                materialize_grads=True,
            )
            assert_close(got, tuple(expected[i] for i in wanted))


def test_gradient_of_expanded_gradient(typical_differentiable):
    """sum() hands backward a gradient whose strides are all 0."""
    sample = typical_differentiable
    args = sample.args(requires_grad=True)
    leaves, _ = split(sample, args)

    def gradients_of_sum(function):
        results = tree_leaves(function(*args))
        return torch.autograd.grad(sum(r.sum() for r in results), leaves)

    assert_close(
        gradients_of_sum(sample.function), gradients_of_sum(sample.reference)
    )


def test_backward_uses_the_kernel(typical_differentiable):
    sample = typical_differentiable
    if sample.op in ("add", "mul", "muladd", "linear"):
        return  # whose gradients are products and sums
    args = sample.args(requires_grad=True)
    with torch.profiler.profile() as profile:
        loss(sample.function(*args)).backward()
    names = {event.name for event in profile.events()}
    assert f"torch_foo::_{sample.op}_backward" in names


def test_no_gradients_of_what_has_none(device):
    """Not a warning, nor a wrong number: no grad_fn."""
    x = torch.randn(2, 3, 1, 4, device=device, requires_grad=True)
    for result in torch_foo.quantize_int8_rowwise(x):
        assert not result.requires_grad
    tables = torch.randn(2, 3, 2, device=device, requires_grad=True)
    y = torch_foo.rope(x.detach(), *tables)
    assert not y.requires_grad or all(
        g is None
        for g in torch.autograd.grad(y.sum(), tables, allow_unused=True)
    )


def test_batched_gradients(typical_differentiable):
    """torch.autograd.functional.jacobian(vectorize=True) runs vmap."""
    sample = typical_differentiable
    leaves, others = split(sample, sample.args(torch.float64))

    def jacobian(vectorize):
        return torch.autograd.functional.jacobian(
            lambda *t: sample.function(*t, *others),
            leaves,
            vectorize=vectorize,
        )

    assert_close(jacobian(True), jacobian(False))


@pytest.mark.parametrize("count", [None, 0], ids=["all", "none"])
def test_vmap_over_gradients(typical_differentiable, count):
    """A Jacobian, row by row: the rules of the operators of gradients."""
    sample = typical_differentiable
    leaves, others = split(sample, sample.args(torch.float64))
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def jacobian(function, count=None):
        output = function(*leaves, *others)
        output = output[0] if isinstance(output, tuple) else output
        rows = torch.eye(output.numel(), dtype=output.dtype)[:count]
        return torch.vmap(
            lambda row: torch.autograd.grad(
                output, leaves, row.view_as(output), retain_graph=True
            )
        )(rows)

    expected = tuple(j[:count] for j in jacobian(sample.reference))
    assert_close(jacobian(sample.function, count), expected)


def test_out_counts_as_a_modification(typical_with_out):
    sample = typical_with_out
    args = sample.args()
    out = torch.empty_like(sample.function(*args))
    leaf = torch.ones_like(out).requires_grad_()
    product = leaf * out  # saves out
    sample.function(*args, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_inplace_counts_as_a_modification(with_inplace):
    for i in range(2 if with_inplace.op == "add_rms_norm" else 1):
        args = with_inplace.args()
        leaf = torch.ones_like(args[i]).requires_grad_()
        product = leaf * args[i]
        with_inplace.inplace(*args)
        with pytest.raises(RuntimeError, match="modified by an inplace"):
            product.sum().backward()


def test_functorch_gradients(typical_differentiable):
    sample = typical_differentiable
    leaves, others = split(sample, sample.args(torch.float64))

    def gradients_by(transform, function):
        return transform(
            lambda *t: loss(function(*t, *others)), tuple(range(len(leaves)))
        )(*leaves)

    for transform in (torch.func.grad, torch.func.jacrev):
        assert_close(
            gradients_by(transform, sample.function),
            gradients_by(transform, sample.reference),
        )


def test_functorch_hessian(typical_differentiable):
    sample = typical_differentiable
    x, *others = sample.args(torch.float64)

    def hessian(function):
        return torch.func.jacrev(
            torch.func.jacrev(lambda x: loss(function(x, *others)))
        )(x)

    assert_close(hessian(sample.function), hessian(sample.reference))


def test_functorch_gradients_of_each_example(typical_differentiable):
    sample = typical_differentiable
    leaves, others = split(sample, sample.args(torch.float64))
    examples = batched(leaves[0], 0)

    def gradients_of_each(function):
        grad = torch.func.grad(
            lambda *t: loss(function(*t, *others)), len(leaves) - 1
        )
        in_dims = (0, *[None] * (len(leaves) - 1))
        return torch.vmap(grad, in_dims)(examples, *leaves[1:])

    assert_close(
        gradients_of_each(sample.function), gradients_of_each(sample.reference)
    )


def test_functorch_gradients_of_raw_operators_are_not_supported(
    typical_differentiable,
):
    """The limit of torch.library.register_autograd in torch 2.10 to 2.15."""
    sample = typical_differentiable
    x, *others = sample.args()
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(
            lambda x: tree_leaves(sample.packet(x, *others, **sample.named))[
                0
            ].sum()
        )(x)


def test_forward_mode_is_not_supported(typical_differentiable):
    sample = typical_differentiable
    x, *others = sample.args()
    with pytest.raises(NotImplementedError, match="forward mode AD"):
        torch.func.jvp(lambda x: sample.function(x, *others), (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(RuntimeError, match="forward mode AD"):
            sample.function(dual, *others)


def test_inference_mode(typical):
    args = typical.args()
    expected = typical.function(*args)
    with torch.inference_mode():
        assert_equal(typical.function(*args), expected)
        if typical.has_out:
            out = torch.empty_like(expected)
            typical.function(*args, out=out)
            assert_equal(out, expected)
        if typical.inplace:
            typical.inplace(*args)
            written = args[: len(tree_leaves(expected))]
            assert_equal(list(written), tree_leaves(expected))


def test_parameters_and_subclasses(typical):
    class Subclass(torch.Tensor):
        pass

    leaves, others = split(typical, typical.args())
    expected = typical.function(*leaves, *others)
    parameters = [torch.nn.Parameter(leaf) for leaf in leaves]
    assert_close(typical.function(*parameters, *others), expected)
    result = typical.function(
        leaves[0].as_subclass(Subclass), *leaves[1:], *others
    )
    assert all(type(r) is Subclass for r in tree_leaves(result))
    assert_close(tree_map(lambda r: r.as_subclass(Tensor), result), expected)


# --- torch.compile and torch.export -----------------------------------------


@pytest.fixture
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def model(a, b, w):
    """All operators, between operations that inductor generates code for."""
    y = torch_foo.muladd(a.sin(), b, 2.0)
    y = torch_foo.rms_norm(torch_foo.mul(y, a), w)
    y = torch_foo.rms_norm(torch_foo.add(y, b), None, 1e-3)
    gate = torch_foo.silu_mul(y.cos(), a)
    packed = torch.cat([gate, y], -1)
    y = torch_foo.gelu_mul(packed, approximate="tanh")
    y = torch_foo.linear(y, torch.outer(b, w), w)
    y, residual = torch_foo.add_rms_norm(y, gate, w)
    angles = torch.arange(16, dtype=a.dtype).view(8, 2) / 7
    heads = y.view(-1, 2, 1, 4)
    positions = torch.tensor([7, 1])
    y = torch_foo.rope(heads, angles.cos(), angles.sin(), positions)
    y = y.view(-1, 8) + residual
    target = (a.detach()[:, 0] > 0).long()
    loss = torch_foo.cross_entropy(y, target, reduction="none")
    q, scale = torch_foo.quantize_int8_rowwise(w.detach())
    return (y * (q * scale) + loss[:, None]).relu()


def model_args(rows: int = 4, requires_grad: bool = True):
    # In float64, where another order of operations does not show.
    return [
        torch.randn(shape, dtype=torch.float64, requires_grad=requires_grad)
        for shape in ((rows, 8), (8,), (8,))
    ]


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile(backend):
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    args = model_args()
    assert_close(gradients(compiled, args), gradients(model, args))


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_dynamic_shapes(backend):
    compiled = torch.compile(
        model, fullgraph=True, dynamic=True, backend=backend
    )
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (4, 5, 9):
            args = model_args(rows)
            assert_close(gradients(compiled, args), gradients(model, args))


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile_out(backend):
    def in_place(a, b, w):
        y = torch.empty_like(a)
        torch_foo.add(a, b, out=y)
        torch_foo.mul(y, b, out=y)
        torch_foo.muladd(y, b, 0.5, out=y)
        torch_foo.rms_norm(y, w, out=a)  # an argument is written to
        torch_foo.silu_mul(a, y, out=y)
        torch_foo.gelu_mul(y, a, out=y)
        torch_foo.linear(a + y, torch.outer(b, w), b, out=y)
        torch_foo.add_rms_norm_(a, y, w)
        heads = a.view(1, 4, 2, 4)
        cos, sin = y.cos()[:, :2], y.sin()[:, :2]
        torch_foo.rope_(heads, cos, sin)  # a view of it is
        torch_foo.rope(heads, cos, sin, out=heads)
        return a * 2, y

    args = model_args(requires_grad=False)
    expected_args = [a.clone() for a in args]
    expected = in_place(*expected_args)
    compiled = torch.compile(in_place, fullgraph=True, backend=backend)
    assert_close(compiled(*args), expected)
    assert_close(args, expected_args)


@pytest.mark.usefixtures("_fresh_dynamo")
def test_compile_reports_wrong_input():
    compiled = torch.compile(torch_foo.add, fullgraph=True, backend="eager")
    message = re.escape("a has shape (2,), b has shape (3,)")
    with pytest.raises(Exception, match=message):
        compiled(torch.ones(2), torch.ones(3))


def test_export_dynamic_shapes():
    class Model(torch.nn.Module):
        def forward(self, a, b, w):
            return model(a, b, w)

    rows = torch.export.Dim("rows")
    program = torch.export.export(
        Model(),
        tuple(model_args(requires_grad=False)),
        dynamic_shapes=({0: rows}, None, None),
    )
    targets = {str(node.target) for node in program.graph.nodes}
    for op in torch_foo.ops.__all__:
        if not op.endswith("_"):
            assert f"torch_foo.{op}.default" in targets
    args = model_args(11, requires_grad=False)
    assert_close(program.module()(*args), model(*args))


def test_export_data_dependent_shapes():
    class Model(torch.nn.Module):
        def forward(self, x, w, target):
            kept = x[:, 0] > 0  # nobody knows how many
            y = torch_foo.add(torch_foo.rms_norm(x[kept], w), w)
            y = torch_foo.gelu_mul(torch_foo.silu_mul(y, y + 1), y)
            y = torch_foo.linear(y, torch.outer(w, w), w)
            y, residual = torch_foo.add_rms_norm(y, y, w)
            heads = y.view(-1, 1, 2, 2)
            angles = torch.arange(1.0).view(1, 1)
            y = torch_foo.rope(heads, angles.cos(), angles.sin())
            y = y.view(-1, 4) + residual
            q, scale = torch_foo.quantize_int8_rowwise(y)
            return torch_foo.cross_entropy(q * scale, target[kept])

    args = torch.randn(6, 4), torch.randn(4), torch.arange(6) % 4
    program = torch.export.export(Model(), args, strict=False)
    assert_close(program.module()(*args), Model()(*args))


def test_fake_and_meta_tensors(sample):
    args = sample.args()
    expected = tree_leaves(sample.function(*args))
    with FakeTensorMode() as mode:
        fakes = tree_map_only(Tensor, mode.from_tensor, args)
        fake = sample.function(*fakes)
    meta = sample.function(*tree_map_only(Tensor, lambda a: a.to("meta"), args))
    for results in (fake, meta):
        for got, want in zip(tree_leaves(results), expected, strict=True):
            assert got.shape == want.shape
            assert got.dtype == want.dtype
            assert got.stride() == want.stride()


# --- vmap -------------------------------------------------------------------


def batched(tensor: Tensor, dim: int | None, size: int = 3) -> Tensor:
    """Different tensors like this one, stacked along a new dimension."""
    if dim is None:
        return tensor
    if tensor.dtype == torch.int64:  # indices, which stay in their range
        return torch.stack([tensor.roll(i) for i in range(size)], dim)
    factors = [1.0 + i for i in range(size)]
    return torch.stack([tensor * f + f for f in factors], dim)


def mappable(sample, args):
    """All tensors but rope's tables as a list, and a function of them."""
    count = len(sample.shapes)
    indices = [
        i
        for i, a in enumerate(args)
        if isinstance(a, Tensor) and (i < count or not a.is_floating_point())
    ]

    def function(*tensors):
        given = list(args)
        for i, tensor in zip(indices, tensors, strict=True):
            given[i] = tensor
        return sample.function(*given)

    return [args[i] for i in indices], function


def check_vmap(function, tensors, in_dims, out_dim=0):
    tensors = [batched(t, d) for t, d in zip(tensors, in_dims, strict=True)]
    got = torch.vmap(function, tuple(in_dims), out_dim)(*tensors)
    slices = [
        [
            t if d is None else t.select(d, i)
            for t, d in zip(tensors, in_dims, strict=True)
        ]
        for i in range(3)
    ]
    expected = tree_map(
        lambda *results: torch.stack(results, out_dim),
        *[function(*s) for s in slices],
    )
    assert_close(got, expected, equal_nan=True)


def test_vmap(sample):
    tensors, function = mappable(sample, sample.args())
    for in_dims in itertools.product([None, 0, -1], repeat=len(tensors)):
        if any(dim is not None for dim in in_dims):
            check_vmap(function, tensors, in_dims)


def test_vmap_out_dims(typical):
    tensors, function = mappable(typical, typical.args())
    if typical.op == "cross_entropy":  # whose result has no dimensions
        check_vmap(function, tensors, (1, 0), 0)
    else:
        check_vmap(function, tensors, (1, 0, 0)[: len(tensors)], -1)


def test_vmap_nested(typical):
    """The last tensor is mapped over by the outer, the inner or both."""
    tensors, f = mappable(typical, typical.args())
    *first, last = tensors
    first = [batched(batched(t, 0), 0) for t in first]
    for outer, inner in [(0, 0), (0, None), (None, 0)]:
        if not first and (outer, inner) != (0, 0):
            continue
        b = batched(batched(last, inner), outer)
        got = torch.vmap(
            torch.vmap(f, (*[0] * len(first), inner)),
            (*[0] * len(first), outer),
        )(*first, b)
        expected = [
            [
                f(*(t[i, j] for t in first), at(at(b, outer, i), inner, j))
                for j in range(3)
            ]
            for i in range(3)
        ]
        for k, result in enumerate(tree_leaves(got)):
            want = [[tree_leaves(e)[k] for e in row] for row in expected]
            assert_close(
                result, torch.stack([torch.stack(row) for row in want])
            )


def at(tensor: Tensor, dim: int | None, index: int) -> Tensor:
    return tensor if dim is None else tensor.select(dim, index)


@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm"])
def test_vmap_rounds_once(op):
    """A weight per example takes two steps, but one rounding."""
    x, residual, weight = torch.randn(3, 4, 64).bfloat16()
    args = (x, weight) if op == "rms_norm" else (x, residual, weight)
    function = getattr(torch_foo, op)
    got = torch.vmap(function)(*args)
    for row in range(4):
        expected = function(*(a[row] for a in args))
        assert_equal(tree_map(lambda r, row=row: r[row], got), expected)


def test_vmap_gradients(typical_differentiable):
    sample = typical_differentiable
    leaves, others = split(sample, sample.args(requires_grad=True))
    a = batched(leaves[0], 0).detach().requires_grad_()
    rest = leaves[1:]

    def f(a, *rest):
        return sample.function(a, *rest, *others)

    mapped = torch.vmap(f, (0, *[None] * len(rest)))(a, *rest)
    got = torch.autograd.grad(loss(mapped), (a, *rest))
    looped = tree_map(
        lambda *results: torch.stack(results),
        *[f(a[i], *rest) for i in range(3)],
    )
    expected = torch.autograd.grad(loss(looped), (a, *rest))
    assert_close(got, expected)


@pytest.mark.parametrize("which", ["cos", "sin"])
def test_vmap_over_tables_is_not_supported(which):
    x = torch.ones(1, 3, 1, 2)
    table = torch.ones(3, 1)
    dims = (0, None) if which == "cos" else (None, 0)
    tables = [batched(table, d) for d in dims]
    with pytest.raises(NotImplementedError, match="vmap over cos or sin"):
        torch.vmap(lambda c, s: torch_foo.rope(x, c, s), dims)(*tables)


# --- autocast ---------------------------------------------------------------


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float16),
        (torch.float16, torch.bfloat16),
        (torch.float64, torch.float32),
    ],
    ids=str,
)
def test_autocast_promotes(mixable, device, dtypes):
    tensors, others = split(mixable, mixable.args(device=device))
    # All but the last of the first dtype, and all but the first of the second.
    for count in {1, len(tensors) - 1}:
        mixed = [
            t.to(dtypes[0] if i < count else dtypes[1])
            for i, t in enumerate(tensors)
        ]
        widest = torch.promote_types(*dtypes)
        with pytest.raises(RuntimeError, match="has dtype"):
            mixable.function(*mixed, *others)
        with torch.autocast(device, dtype=torch.bfloat16):
            got = mixable.function(*mixed, *others)
        assert all(r.dtype == widest for r in tree_leaves(got))
        expected = mixable.function(*(t.to(widest) for t in mixed), *others)
        assert_equal(got, expected)


def test_autocast_leaves_equal_dtypes_alone(typical, dtype, device):
    args = typical.args(dtype, device)
    expected = typical.function(*args)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert_equal(typical.function(*args), expected)


def test_autocast_gradients(mixable, device):
    args = mixable.args(device=device, requires_grad=True)
    a = args[0].detach().bfloat16().requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        loss(mixable.function(a, *args[1:])).backward()
    assert a.grad.dtype == torch.bfloat16
    for other in args[1 : len(mixable.shapes)]:
        assert other.grad.dtype == torch.float32


@pytest.mark.usefixtures("_fresh_dynamo")
def test_autocast_compiles():
    linear = torch.nn.Linear(8, 8)
    weight = torch.ones(8)

    def f(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return torch_foo.rms_norm(linear(x), weight)

    x = torch.randn(4, 8)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), f(x))
