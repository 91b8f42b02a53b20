"""What PyTorch does around the kernels: autograd, compile, export, vmap."""

import re

import pytest
import torch
import torch_foo
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode


def detached(args):
    return [
        a.detach().requires_grad_(a.requires_grad)
        if isinstance(a, Tensor)
        else a
        for a in args
    ]


def gradients(function, args):
    """The result of a function and its gradients, as a flat list."""
    args = detached(args)
    result = function(*args)
    leaves = [a for a in args if isinstance(a, Tensor)]
    return [result, *torch.autograd.grad(result.square().sum(), leaves)]


# --- torch.library's own checks ---------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(sample, device, requires_grad):
    args = sample.args(device=device, requires_grad=requires_grad)
    torch.library.opcheck(sample.packet.default, args)


def test_opcheck_out(sample, device):
    args = sample.args(device=device)
    out = torch.empty_like(sample.function(*args))
    torch.library.opcheck(sample.packet.out, args, {"out": out})


@pytest.mark.parametrize("wants_x", [False, True])
@pytest.mark.parametrize("wants_weight", [False, True])
@pytest.mark.parametrize("has_weight", [False, True])
def test_opcheck_backward(device, wants_x, wants_weight, has_weight):
    grad, x = torch.randn(2, 3, 5, device=device)
    weight = torch.randn(5, device=device) if has_weight else None
    torch.library.opcheck(
        torch.ops.torch_foo._rms_norm_backward,
        (grad, x, weight, 1e-6, wants_x, wants_weight),
    )


# --- autograd ---------------------------------------------------------------


def test_gradcheck(sample, device):
    args = sample.args(torch.float64, device, requires_grad=True)
    assert torch.autograd.gradcheck(sample.function, args)


def test_gradgradcheck(sample, device):
    args = sample.args(torch.float64, device, requires_grad=True)
    assert torch.autograd.gradgradcheck(sample.function, args)


def test_only_wanted_gradients(sample):
    count = len(sample.shapes)
    full = sample.args(torch.float64, requires_grad=True)
    _, *expected = gradients(sample.function, full)
    for i in range(count):
        args = detached(full)
        for j in range(count):
            args[j].requires_grad_(i == j)
        result = sample.function(*args)
        (grad,) = torch.autograd.grad(result.square().sum(), args[i])
        torch.testing.assert_close(grad, expected[i])


def test_gradient_of_expanded_gradient(typical):
    """sum() hands backward a gradient whose strides are all 0."""
    args = typical.args(requires_grad=True)
    grads = torch.autograd.grad(typical.function(*args).sum(), args[:2])
    expected = torch.autograd.grad(typical.reference(*args).sum(), args[:2])
    torch.testing.assert_close(grads, expected)


def test_backward_uses_the_kernel():
    x = torch.randn(2, 4, requires_grad=True)
    with torch.profiler.profile() as profile:
        torch_foo.rms_norm(x).sum().backward()
    names = {event.name for event in profile.events()}
    assert "torch_foo::_rms_norm_backward" in names


def test_batched_gradients(typical):
    """torch.autograd.functional.jacobian(vectorize=True) runs vmap."""
    args = typical.args(torch.float64)
    tensors, others = args[:2], args[2:]

    def jacobian(vectorize):
        return torch.autograd.functional.jacobian(
            lambda *t: typical.function(*t, *others),
            tensors,
            vectorize=vectorize,
        )

    torch.testing.assert_close(jacobian(True), jacobian(False))


def test_out_counts_as_a_modification(typical):
    args = typical.args()
    out = torch.empty_like(typical.function(*args))
    leaf = torch.ones_like(out).requires_grad_()
    product = leaf * out  # saves out
    typical.function(*args, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_functorch_gradients(typical):
    a, b, *others = typical.args(torch.float64)

    def loss(function):
        return lambda a, b: function(a, b, *others).square().sum()

    for transform in (torch.func.grad, torch.func.jacrev):
        got = transform(loss(typical.function), (0, 1))(a, b)
        expected = transform(loss(typical.reference), (0, 1))(a, b)
        torch.testing.assert_close(got, expected)


def test_functorch_hessian(typical):
    a, b, *others = typical.args(torch.float64)

    def hessian(function):
        return torch.func.jacrev(
            torch.func.jacrev(lambda a: function(a, b, *others).square().sum())
        )(a)

    torch.testing.assert_close(
        hessian(typical.function), hessian(typical.reference)
    )


def test_functorch_gradients_of_each_example(typical):
    a, b, *others = typical.args(torch.float64)
    examples = batched(a, 0)

    def gradients_of_each(function):
        grad = torch.func.grad(
            lambda b, a: function(a, b, *others).square().sum()
        )
        return torch.vmap(grad, (None, 0))(b, examples)

    torch.testing.assert_close(
        gradients_of_each(typical.function),
        gradients_of_each(typical.reference),
    )


def test_functorch_gradients_of_raw_operators_are_not_supported(typical):
    """The limit of torch.library.register_autograd in torch 2.10 to 2.15."""
    a, b, *others = typical.args()
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda a: typical.packet(a, b, *others).sum())(a)


def test_forward_mode_is_not_supported(typical):
    a, b, *others = typical.args()
    with pytest.raises(NotImplementedError, match="forward mode AD"):
        torch.func.jvp(lambda a: typical.function(a, b, *others), (a,), (a,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(a, a)
        with pytest.raises(RuntimeError, match="forward mode AD"):
            typical.function(dual, b, *others)


def test_inference_mode(typical):
    args = typical.args()
    expected = typical.function(*args)
    with torch.inference_mode():
        assert torch.equal(typical.function(*args), expected)
        out = torch.empty_like(expected)
        typical.function(*args, out=out)
    assert torch.equal(out, expected)


def test_parameters_and_subclasses(typical):
    class Subclass(torch.Tensor):
        pass

    a, b, *others = typical.args()
    expected = typical.function(a, b, *others)
    parameter = torch.nn.Parameter(b)
    torch.testing.assert_close(
        typical.function(a, parameter, *others), expected
    )
    result = typical.function(a.as_subclass(Subclass), b, *others)
    assert type(result) is Subclass
    torch.testing.assert_close(result.as_subclass(Tensor), expected)


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
    return y.relu()


def model_args(rows: int = 4, requires_grad: bool = True):
    shapes = (rows, 8), (8,), (8,)
    return [torch.randn(s, requires_grad=requires_grad) for s in shapes]


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile(backend):
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    args = model_args()
    torch.testing.assert_close(
        gradients(compiled, args), gradients(model, args)
    )


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_dynamic_shapes(backend):
    compiled = torch.compile(
        model, fullgraph=True, dynamic=True, backend=backend
    )
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (4, 5, 9):
            args = model_args(rows)
            torch.testing.assert_close(
                gradients(compiled, args), gradients(model, args)
            )


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile_out(backend):
    def in_place(a, b, w):
        y = torch.empty_like(a)
        torch_foo.add(a, b, out=y)
        torch_foo.mul(y, b, out=y)
        torch_foo.muladd(y, b, 0.5, out=y)
        torch_foo.rms_norm(y, w, out=a)  # an argument is written to
        return a * 2, y

    args = model_args(requires_grad=False)
    expected_args = [a.clone() for a in args]
    expected = in_place(*expected_args)
    compiled = torch.compile(in_place, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(*args), expected)
    torch.testing.assert_close(args, expected_args)


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
    for op in ("add", "mul", "muladd", "rms_norm"):
        assert f"torch_foo.{op}.default" in targets
    args = model_args(11, requires_grad=False)
    torch.testing.assert_close(program.module()(*args), model(*args))


def test_export_data_dependent_shapes():
    class Model(torch.nn.Module):
        def forward(self, x, w):
            rows = x[x[:, 0] > 0]  # nobody knows how many
            return torch_foo.add(torch_foo.rms_norm(rows, w), w)

    args = torch.randn(6, 4), torch.randn(4)
    program = torch.export.export(Model(), args, strict=False)
    torch.testing.assert_close(program.module()(*args), Model()(*args))


def test_fake_and_meta_tensors(sample):
    args = sample.args()
    expected = sample.function(*args)
    with FakeTensorMode() as mode:
        fakes = [
            mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args
        ]
        got = sample.function(*fakes)
    meta = [a.to("meta") if isinstance(a, Tensor) else a for a in args]
    for result in (got, sample.function(*meta)):
        assert result.shape == expected.shape
        assert result.dtype == expected.dtype
        assert result.stride() == expected.stride()


# --- vmap -------------------------------------------------------------------


def batched(tensor: Tensor, dim: int | None, size: int = 3) -> Tensor:
    """Different tensors like this one, stacked along a new dimension."""
    if dim is None:
        return tensor
    factors = [1.0 + i for i in range(size)]
    return torch.stack([tensor * f + f for f in factors], dim)


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
    expected = torch.stack([function(*s) for s in slices], out_dim)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("first", [None, 0, -1])
@pytest.mark.parametrize("second", [None, 0, -1])
def test_vmap(sample, first, second):
    tensors = sample.args()[: len(sample.shapes)]
    others = sample.args()[len(sample.shapes) :]
    in_dims = [first, second][: len(tensors)]
    if in_dims.count(None) == len(in_dims):
        return  # nothing to map over
    check_vmap(lambda *t: sample.function(*t, *others), tensors, in_dims)


def test_vmap_out_dims(typical):
    a, b, *others = typical.args()
    check_vmap(lambda *t: typical.function(*t, *others), (a, b), (1, 0), -1)


def test_vmap_nested(typical):
    a, b, *others = typical.args()
    a, b = batched(batched(a, 0), 0), batched(b, 0)

    def f(a, b):
        return typical.function(a, b, *others)

    got = torch.vmap(torch.vmap(f, (0, None)), (0, 0))(a, b)
    expected = torch.stack(
        [torch.stack([f(a[i, j], b[i]) for j in range(3)]) for i in range(3)]
    )
    torch.testing.assert_close(got, expected)
    got = torch.vmap(torch.vmap(f, (None, 0)), (0, None))(a[0], b)
    expected = torch.stack(
        [torch.stack([f(a[0, i], b[j]) for j in range(3)]) for i in range(3)]
    )
    torch.testing.assert_close(got, expected)


def test_vmap_rounds_once():
    """A weight per example takes two steps, but one rounding."""
    x = torch.randn(4, 64).bfloat16()
    weight = torch.randn(4, 64).bfloat16()
    got = torch.vmap(torch_foo.rms_norm)(x, weight)
    for row in range(4):
        assert torch.equal(got[row], torch_foo.rms_norm(x[row], weight[row]))


def test_vmap_gradients(typical):
    a, b, *others = typical.args()
    a = batched(a, 0).requires_grad_()
    b.requires_grad_()

    def f(a, b):
        return typical.function(a, b, *others)

    got = torch.autograd.grad(torch.vmap(f, (0, None))(a, b).sum(), (a, b))
    looped = torch.stack([f(a[i], b) for i in range(3)])
    expected = torch.autograd.grad(looped.sum(), (a, b))
    torch.testing.assert_close(got, expected)


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
def test_autocast_promotes(typical, device, dtypes):
    a, b, *others = typical.args(device=device)
    a, b = a.to(dtypes[0]), b.to(dtypes[1])
    widest = torch.promote_types(*dtypes)
    with pytest.raises(RuntimeError, match="has dtype"):
        typical.function(a, b, *others)
    with torch.autocast(device, dtype=torch.bfloat16):
        got = typical.function(a, b, *others)
    assert got.dtype == widest
    expected = typical.function(a.to(widest), b.to(widest), *others)
    assert torch.equal(got, expected)


def test_autocast_leaves_equal_dtypes_alone(typical, dtype, device):
    args = typical.args(dtype, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert typical.function(*args).dtype == dtype


def test_autocast_gradients(typical, device):
    args = typical.args(device=device, requires_grad=True)
    a = args[0].detach().bfloat16().requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        typical.function(a, *args[1:]).sum().backward()
    assert a.grad.dtype == torch.bfloat16
    assert args[1].grad.dtype == torch.float32


@pytest.mark.usefixtures("_fresh_dynamo")
def test_autocast_compiles():
    linear = torch.nn.Linear(8, 8)
    weight = torch.ones(8)

    def f(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return torch_foo.rms_norm(linear(x), weight)

    x = torch.randn(4, 8)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), f(x))
