"""What PyTorch does around the kernels: autograd, compile, export, vmap."""

import contextlib
import functools
import itertools
import tempfile
from functools import partial

import pytest
import torch
import torch_foo
from functorch.compile import (
    make_boxed_func,
    min_cut_rematerialization_partition,
)
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.checkpoint import (
    checkpoint,
    create_selective_checkpoint_contexts,
)
from torch.utils.flop_counter import FlopCounterMode
from torch_foo.operators import OPERATORS

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


def assert_equal(got, expected) -> None:
    """Fail unless all results are the same, bit for bit (or both nan)."""
    assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


# --- torch.library's own checks ---------------------------------------------


def test_opcheck(case, device):
    args = case.args(device=device, requires_grad=True)
    torch.library.opcheck(case.packet.default, args, case.named)


def test_opcheck_without_gradients(typical_differentiable, device):
    case = typical_differentiable
    args = case.args(device=device)
    torch.library.opcheck(case.packet.default, args, case.named)


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


def test_opcheck_gradient_kernel(gradient_kernel, device):
    args = gradient_kernel.args(device=device)
    torch.library.opcheck(gradient_kernel.packet.default, args)


def test_gradient_kernel_is_its_reference(gradient_kernel, device):
    args = gradient_kernel.args(torch.float64, device)
    assert_close(
        gradient_kernel.function(*args), gradient_kernel.reference(*args)
    )


# --- autograd ---------------------------------------------------------------


def test_gradcheck(differentiable, device):
    args = differentiable.args(torch.float64, device, requires_grad=True)
    assert torch.autograd.gradcheck(differentiable.function, args)


def test_gradgradcheck(differentiable, device):
    args = differentiable.args(torch.float64, device, requires_grad=True)
    assert torch.autograd.gradgradcheck(differentiable.function, args)


def test_gradients_that_can_be_differentiated_again(differentiable, device):
    """They are formulas in place of kernels, and the same numbers."""
    case = differentiable
    args = case.args(torch.float64, device, requires_grad=True)
    leaves = [args[i] for i in case.leaves]
    got, expected = (
        torch.autograd.grad(
            loss(case.function(*args)), leaves, create_graph=again
        )
        for again in (True, False)
    )
    assert_close(got, expected)


def test_only_wanted_gradients(differentiable, device):
    """Of each choice of arguments, and of each choice of results."""
    case = differentiable
    full = case.args(torch.float64, device, requires_grad=True)
    results = tree_leaves(case.reference(*full))
    for chosen in range(len(results)):
        gradients = torch.autograd.grad(
            loss(results[chosen]),
            [full[i] for i in case.leaves],
            retain_graph=True,
            materialize_grads=True,
        )
        expected = dict(zip(case.leaves, gradients, strict=True))
        for wants in itertools.product([False, True], repeat=len(expected)):
            wanted = list(itertools.compress(case.leaves, wants))
            if not wanted:
                continue
            args = detached(full)
            for i in case.leaves:
                args[i].requires_grad_(i in wanted)
            result = tree_leaves(case.function(*args))[chosen]
            if not result.requires_grad:  # the sum, of the weight
                assert not any(expected[i].any() for i in wanted)
                continue
            got = torch.autograd.grad(
                loss(result),
                [args[i] for i in wanted],
                materialize_grads=True,
            )
            assert_close(got, tuple(expected[i] for i in wanted))


def test_gradient_of_expanded_gradient(typical_differentiable, device):
    """sum() hands backward a gradient whose strides are all 0."""
    case = typical_differentiable
    args = case.args(device=device, requires_grad=True)
    leaves = [args[i] for i in case.leaves]

    def gradients_of_sum(function):
        results = tree_leaves(function(*args))
        return torch.autograd.grad(sum(r.sum() for r in results), leaves)

    assert_close(
        gradients_of_sum(case.function), gradients_of_sum(case.reference)
    )


def test_backward_uses_the_kernel(typical_differentiable, device):
    case = typical_differentiable
    if f"_{case.op}_backward" not in OPERATORS:
        return  # its gradients are products and sums
    args = case.args(device=device, requires_grad=True)
    cpu = torch.profiler.ProfilerActivity.CPU  # which calls the kernels
    with torch.profiler.profile(activities=[cpu]) as profile:
        loss(case.function(*args)).backward()
    names = {event.name for event in profile.events()}
    assert f"torch_foo::_{case.op}_backward" in names


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


def test_batched_gradients(typical_differentiable, device):
    """torch.autograd.functional.jacobian(vectorize=True) runs vmap."""
    case = typical_differentiable
    args = case.args(torch.float64, device)
    leaves = tuple(args[i] for i in case.leaves)

    def jacobian(vectorize):
        return torch.autograd.functional.jacobian(
            case.of_leaves(args), leaves, vectorize=vectorize
        )

    assert_close(jacobian(True), jacobian(False))


@pytest.mark.parametrize("count", [None, 0], ids=["all", "none"])
def test_vmap_over_gradients(typical_differentiable, count, device):
    """A Jacobian, row by row: the rules of the operators of gradients."""
    case = typical_differentiable
    args = case.args(torch.float64, device, requires_grad=True)
    leaves = [args[i] for i in case.leaves]

    def jacobian(function, count=None):
        output = function(*args)
        output = output[0] if isinstance(output, tuple) else output
        rows = torch.eye(output.numel()).to(output)[:count]
        return torch.vmap(
            lambda row: torch.autograd.grad(
                output, leaves, row.view_as(output), retain_graph=True
            )
        )(rows)

    expected = tuple(j[:count] for j in jacobian(case.reference))
    assert_close(jacobian(case.function, count), expected)


def test_out_counts_as_a_modification(typical_with_out, device):
    case = typical_with_out
    args = case.args(device=device)
    out = torch.empty_like(case.function(*args))
    leaf = torch.ones_like(out).requires_grad_()
    product = leaf * out  # saves out
    case.function(*args, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_inplace_counts_as_a_modification(with_inplace, device):
    for i in with_inplace.written:
        args = with_inplace.args(device=device)
        leaf = torch.ones_like(args[i]).requires_grad_()
        product = leaf * args[i]
        with_inplace.inplace(*args)
        with pytest.raises(RuntimeError, match="modified by an inplace"):
            product.sum().backward()


TRANSFORMS = {
    "grad": torch.func.grad,
    "vjp": lambda f: lambda x: torch.func.vjp(f, x)[1](torch.ones_like(f(x))),
    "grad of grad": lambda f: torch.func.grad(
        lambda x: torch.func.grad(f)(x).square().sum()
    ),
    "Hessian": lambda f: torch.func.jacrev(torch.func.jacrev(f)),
    "examples' gradients": lambda f: (
        lambda x: torch.vmap(torch.func.grad(f))(torch.stack([x, x + 1]))
    ),
    "gradient of examples": lambda f: torch.func.grad(
        lambda x: torch.vmap(f)(torch.stack([x, x + 1])).square().sum()
    ),
}


def test_functorch_gradients(typical_differentiable, device):
    case = typical_differentiable
    args = case.args(torch.float64, device)

    def gradients_by(transform, function):
        return transform(
            lambda *t: loss(function(*case.with_leaves(args, t))),
            tuple(range(len(case.leaves))),
        )(*(args[i] for i in case.leaves))

    for transform in (torch.func.grad, torch.func.jacrev):
        assert_close(
            gradients_by(transform, case.function),
            gradients_by(transform, case.reference),
        )


def test_functorch_hessian(typical_differentiable, device):
    case = typical_differentiable
    x, *others = case.args(torch.float64, device)

    def hessian(function):
        return torch.func.jacrev(
            torch.func.jacrev(lambda x: loss(function(x, *others)))
        )(x)

    assert_close(hessian(case.function), hessian(case.reference))


def test_functorch_gradients_of_each_example(typical_differentiable, device):
    case = typical_differentiable
    args = case.args(torch.float64, device)
    first, *rest = (args[i] for i in case.leaves)
    examples = batched(first, 0)

    def gradients_of_each(function):
        grad = torch.func.grad(
            lambda *t: loss(function(*case.with_leaves(args, t))), len(rest)
        )
        in_dims = (0, *[None] * len(rest))
        return torch.vmap(grad, in_dims)(examples, *rest)

    assert_close(
        gradients_of_each(case.function), gradients_of_each(case.reference)
    )


def test_functorch_gradients_of_operators(typical_differentiable, device):
    """torch.ops.torch_foo.NAME, which torch.library's gradients would refuse.

    Nested, each level of a transform sees the operator.
    """
    case = typical_differentiable
    x, *others = case.args(torch.float64, device)

    def value(function):
        return lambda x: loss(tree_leaves(function(x, *others))[0])

    def operator(*args):
        return case.packet(*args, **case.named)

    for transform in TRANSFORMS.values():
        assert_close(
            transform(value(operator))(x), transform(value(case.reference))(x)
        )


def test_forward_mode_is_not_supported(typical_differentiable):
    case = typical_differentiable
    x, *others = case.args()
    raises = pytest.raises(
        NotImplementedError, match=f"torch_foo.{case.op} does not support for"
    )

    def value(x):
        return loss(case.function(x, *others))

    with raises:
        torch.func.jvp(value, (x,), (x,))
    with raises:
        torch.func.hessian(value)(x)  # forward over reverse
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with raises:
            value(dual)
        if case.has_out:
            with raises:
                case.function(dual, *others, out=torch.empty_like(x))
        if case.inplace:
            with raises:
                case.inplace(dual, *others)


def test_inference_mode(typical, device):
    args = typical.args(device=device)
    expected = typical.function(*args)
    with torch.inference_mode():
        assert_equal(typical.function(*args), expected)
        if typical.has_out:
            out = torch.empty_like(expected)
            typical.function(*args, out=out)
            assert_equal(out, expected)
        if typical.inplace:
            typical.inplace(*args)
            written = [args[i] for i in typical.written]
            assert_equal(written, tree_leaves(expected))


def test_parameters_and_subclasses(typical, device):
    class Subclass(torch.Tensor):
        pass

    args = typical.args(device=device)
    expected = typical.function(*args)
    parameters = [torch.nn.Parameter(args[i]) for i in typical.leaves]
    assert_close(typical.of_leaves(args)(*parameters), expected)
    result = typical.function(args[0].as_subclass(Subclass), *args[1:])
    assert all(type(r) is Subclass for r in tree_leaves(result))
    assert_close(tree_map(lambda r: r.as_subclass(Tensor), result), expected)


LOSSES = [
    {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": i}
    for reduction in ("mean", "sum", "none")
    for smoothing, i in ((0.0, -100), (0.1, 2))
]


@pytest.mark.parametrize("named", LOSSES, ids=str)
def test_gradients_of_padded_samples(named, device):
    """By each way to gradients, of rows, of padding alone and of no rows."""
    ignored = named["ignore_index"]
    logits = torch.randn(4, 3, 5, dtype=torch.float64, device=device)
    target = torch.tensor(
        [[0, 1, 4], [3, ignored, 0], [ignored] * 3, [1, 3, ignored]]
    ).to(device)

    def of(function, logits, target):
        """A number, which weights rows apart."""
        loss = function(logits, target, **named).flatten()
        return (loss * torch.arange(1.0, 1 + loss.numel()).to(loss)).sum()

    ours = partial(of, torch_foo.cross_entropy)
    torchs = partial(of, OPERATORS["cross_entropy"].reference)
    exact = {"rtol": 1e-12, "atol": 1e-14, "equal_nan": True}

    def by_autograd(function, x, y):
        x = x.clone().requires_grad_()
        first, again = (
            torch.autograd.grad(function(x, y), x, create_graph=again)[0]
            for again in (False, True)
        )
        second = torch.autograd.grad(again.square().sum(), x)[0]
        return first, again.detach(), second

    def by_transforms(function, x, y):
        gradient = torch.func.grad(function)
        return gradient(x, y), torch.func.jacrev(gradient)(x, y)

    for way in (by_autograd, by_transforms):
        for x, y in [*zip(logits, target, strict=True), (logits, target)]:
            assert_close(way(ours, x, y), way(torchs, x, y), **exact)
        empty = logits[:, :0], target[:, :0]
        assert_close(way(ours, *empty), way(torchs, *empty), **exact)

    for x, y, dims in [
        (logits, target, (0, 0)),
        (logits, target[1], (0, None)),
        (logits, target[2], (0, None)),
        (logits[0], target, (None, 0)),
    ]:
        each = [
            torch.func.grad(torchs)(
                x if dims[0] is None else x[i],
                y if dims[1] is None else y[i],
            )
            for i in range(4)
        ]
        got = torch.vmap(torch.func.grad(ours), dims)(x, y)
        assert_close(got, torch.stack(each), **exact)


# --- modes and checkpointing ------------------------------------------------


@pytest.fixture
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Model(torch.nn.Module):
    """Operators, each between operations that inductor generates code for.

    Every operator gets its typical arguments, scaled by an element of x.
    """

    def __init__(self, cases, device):
        super().__init__()
        # In float64, where another order of operations does not show.
        self.calls = [(c, c.args(torch.float64, device)) for c in cases]

    def forward(self, x):
        total = x.sin().sum()
        for case, args in self.calls:
            leaves = [args[i] * x.mean().cos() for i in case.leaves]
            for result in tree_leaves(case.of_leaves(args)(*leaves)):
                total = total + result.to(x.dtype).square().mean()
        return x.relu() + total


def rows_of(count: int, device: str, requires_grad: bool = True) -> Tensor:
    return torch.randn(
        count,
        4,
        dtype=torch.float64,
        device=device,
        requires_grad=requires_grad,
    )


class Seen(TorchDispatchMode):
    """The operators of torch_foo that a mode sees, and their arguments."""

    def __init__(self):
        super().__init__()
        self.operators, self.arguments = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "torch_foo":
            self.operators.append(func)
            self.arguments.append(args)
        return func(*args, **(kwargs or {}))


def test_modes_see_the_documented_operator(case, device):
    """Not the raw one, which runs without them."""
    args = case.args(device=device, requires_grad=True)
    expected = case.function(*args)
    with Seen() as seen:
        assert_equal(case.function(*args), expected)
        with torch.no_grad():
            assert_equal(case.function(*args), expected)
            documented = [case.packet.default] * 2
            if case.has_out:
                case.function(*args, out=torch.empty_like(expected))
                documented.append(case.packet.out)
            if case.inplace:
                case.inplace(*(detached(args)))
                documented.append(getattr(_ops, f"{case.op}_").default)
    assert seen.operators == documented


@pytest.mark.parametrize("saved", [True, False], ids=["saved", "recomputed"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.usefixtures("_fresh_dynamo")
def test_selective_checkpointing(all_typical, saved, compiled, device):
    """The backward runs what the policy does not keep a second time."""
    # Gradients call mul.
    cases = [c for c in all_typical if c.has_gradient and c.op != "mul"]
    model = Model(cases, device)
    documented = [c.packet.default for c in cases]
    contexts = functools.partial(
        create_selective_checkpoint_contexts, documented if saved else []
    )

    def function(x):
        return checkpoint(
            model, x, use_reentrant=False, context_fn=contexts
        ).sum()

    run = []

    def count(graph, _):
        run.extend(node.target for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=count,
        bw_compiler=count,
        partition_fn=min_cut_rematerialization_partition,
    )
    if compiled:
        function = torch.compile(function, fullgraph=True, backend=backend)
    with Seen() if not compiled else contextlib.nullcontext() as seen:
        function(rows_of(4, device)).backward()
    if seen:
        run = seen.operators
    for operator in documented:
        assert run.count(operator) == (1 if saved else 2)


def test_flops(device):
    """As many as torch counts for its own, forward and backward."""

    def flops(linear, *shapes):
        args = [
            torch.ones(shape, device=device, requires_grad=True)
            for shape in shapes
        ]
        with FlopCounterMode(display=False) as counter:
            linear(*args).sum().backward()
        return counter.get_total_flops()

    for shapes in (
        [(2, 3, 5), (7, 5), (7,)],
        [(3, 5), (7, 5)],
        [(5,), (7, 5)],
        [(0, 5), (7, 5)],
    ):
        expected = flops(torch.nn.functional.linear, *shapes)
        assert flops(torch_foo.linear, *shapes) == expected
    x, weight = torch.ones(3, 5, device=device), torch.ones(7, 5, device=device)
    out = torch.empty(3, 7, device=device)
    with FlopCounterMode(display=False) as counter:
        torch_foo.linear(x, weight, out=out)
        torch.compile(torch_foo.linear, backend="aot_eager")(x, weight)
    assert counter.get_total_flops() == 2 * 2 * 3 * 5 * 7


# --- torch.compile and torch.export -----------------------------------------


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile(all_typical, backend, device):
    model = Model(all_typical, device)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    x = [rows_of(4, device)]
    assert_close(gradients(compiled, x), gradients(model, x))


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_compile_functorch(all_typical, transform, device):
    model = Model([c for c in all_typical if c.has_gradient], device)
    function = TRANSFORMS[transform](lambda x: loss(model(x)))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    x = rows_of(2, device, False)
    assert_close(compiled(x), function(x))


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile_functorch_dynamic_shapes(backend, device):
    weight = torch.randn(4, dtype=torch.float64, device=device)
    module = torch_foo.nn.RMSNorm(4, device=device, dtype=torch.float64)

    def function(parameters, x):
        return torch.func.functional_call(module, parameters, x).square().sum()

    gradient = torch.func.grad(function)
    compiled = torch.compile(
        gradient, fullgraph=True, dynamic=True, backend=backend
    )
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (5, 6, 9):
            args = {"weight": weight}, rows_of(rows, device, False)
            assert_close(compiled(*args), gradient(*args))


@pytest.mark.usefixtures("_fresh_dynamo")
def test_compile_reports_forward_mode():
    compiled = torch.compile(
        lambda x: torch.func.jvp(torch_foo.rms_norm, (x,), (x,)),
        fullgraph=True,
        backend="eager",
    )
    with pytest.raises(Exception, match=r"rms_norm does not support forward"):
        compiled(torch.ones(2, 3))


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_dynamic_shapes(typical, backend, device):
    """One compilation serves all numbers of rows."""
    function = getattr(torch_foo, typical.op)
    compiled = torch.compile(
        function, fullgraph=True, dynamic=True, backend=backend
    )
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (4, 5, 9):
            sample = typical.operator.benchmark(rows, 256)
            args = sample.args(torch.float64, device, typical.has_gradient)
            if typical.has_gradient:
                got, expected = (
                    gradients(compiled, args),
                    gradients(function, args),
                )
            else:
                got, expected = compiled(*args), function(*args)
            assert_close(got, expected)


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile_out(all_typical, backend, device):
    """Arguments, views and fresh tensors are written to in a graph."""
    cases = [c for c in all_typical if c.has_out or c.inplace]
    calls = [(c, c.args(device=device)) for c in cases]

    def write(x, tensors):
        results = []
        for (case, args), leaves in zip(calls, tensors, strict=True):
            given = case.with_leaves(args, [t[0] for t in leaves])
            if case.has_out:
                out = torch.empty_like(case.function(*given))
                case.function(*given, out=out)
                results.append(out * 2)
            if case.inplace:
                case.inplace(*given)
                results.append(given[0] + x)
        return results

    def fresh():
        return [[args[i][None].clone() for i in c.leaves] for c, args in calls]

    x = torch.ones((), device=device)
    expected_tensors, tensors = fresh(), fresh()
    expected = write(x, expected_tensors)
    compiled = torch.compile(write, fullgraph=True, backend=backend)
    assert_close(compiled(x, tensors), expected)
    assert_close(tensors, expected_tensors)


@pytest.mark.usefixtures("_fresh_dynamo")
def test_compile_reports_wrong_input():
    compiled = torch.compile(torch_foo.add, fullgraph=True, backend="eager")
    message = "torch_foo.add cannot take a float32"
    with pytest.raises(Exception, match=message):
        compiled(torch.ones(2), torch.ones(3))


def test_export_dynamic_shapes(all_typical, device):
    model = Model(all_typical, device)
    program = torch.export.export(
        model,
        (rows_of(4, device, False),),
        dynamic_shapes=({0: torch.export.Dim("rows")},),
    )
    targets = {str(node.target) for node in program.graph.nodes}
    for case in all_typical:
        assert f"torch_foo.{case.op}.default" in targets
    x = rows_of(11, device, False)
    assert_close(program.module()(x), model(x))


def test_aot_inductor(all_typical):
    """A package of every operator with the defaults of its arguments."""
    calls = [(case, case.args()) for case in all_typical]

    class Model(torch.nn.Module):
        def forward(self, *tensors):
            given = iter(tensors)
            return [
                case.function(
                    *(next(given) if isinstance(a, Tensor) else a for a in args)
                )
                for case, args in calls
            ]

    tensors = tuple(
        a for _, args in calls for a in args if isinstance(a, Tensor)
    )
    program = torch.export.export(Model(), tensors)
    with tempfile.TemporaryDirectory() as folder:
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=f"{folder}/model.pt2"
        )
        got = torch._inductor.aoti_load_package(path)(*tensors)
    assert_equal(got, Model()(*tensors))


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


def test_fake_and_meta_tensors(case):
    args = case.args()
    expected = tree_leaves(case.function(*args))
    with FakeTensorMode() as mode:
        fakes = tree_map_only(Tensor, mode.from_tensor, args)
        fake = case.function(*fakes)
    meta = case.function(*tree_map_only(Tensor, lambda a: a.to("meta"), args))
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
    if tensor.dtype == torch.uint8:  # blocks, which stay whole
        return torch.stack([tensor.roll(i, 0) for i in range(size)], dim)
    factors = [1.0 + i for i in range(size)]
    return torch.stack([tensor * f + f for f in factors], dim)


def mappable(case, args):
    """The random and the integer tensors, and a function of them."""
    indices = [
        i
        for i, a in enumerate(args)
        if i in case.leaves
        or (isinstance(a, Tensor) and not a.is_floating_point())
    ]

    def function(*tensors):
        given = list(args)
        for i, tensor in zip(indices, tensors, strict=True):
            given[i] = tensor
        return case.function(*given)

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


def test_vmap(case, device):
    tensors, function = mappable(case, case.args(device=device))
    for in_dims in itertools.product([None, 0, -1], repeat=len(tensors)):
        if any(dim is not None for dim in in_dims):
            check_vmap(function, tensors, in_dims)


def test_vmap_out_dims(typical, device):
    tensors, function = mappable(typical, typical.args(device=device))
    has_dims = all(r.dim() > 0 for r in tree_leaves(function(*tensors)))
    dims = (1, 0, 0)[: len(tensors)]
    check_vmap(function, tensors, dims, -1 if has_dims else 0)


def test_vmap_nested(typical, device):
    """The last tensor is mapped over by the outer, the inner or both."""
    tensors, f = mappable(typical, typical.args(device=device))
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


def test_second_gradients_without_classes(device):
    logits = torch.ones(0, 0, device=device, requires_grad=True)
    target = torch.ones(0, device=device, dtype=torch.int64)
    result = torch_foo.cross_entropy(logits, target, reduction="sum")
    (grad,) = torch.autograd.grad(result, logits, create_graph=True)
    assert grad.shape == logits.shape


def test_vmap_of_no_examples(case, device):
    """The results have the shapes that they have of some examples."""
    tensors, function = mappable(case, case.args(device=device))
    examples = [batched(t, 0) for t in tensors]
    some = tree_leaves(torch.vmap(function)(*examples))
    none = tree_leaves(torch.vmap(function)(*(e[:0] for e in examples)))
    for result, empty in zip(some, none, strict=True):
        assert (empty.shape, empty.dtype) == (result[:0].shape, result.dtype)


@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm"])
def test_vmap_rounds_once(op, device):
    """A weight per example takes two steps, but one rounding."""
    x, residual, weight = torch.randn(3, 4, 64, device=device).bfloat16()
    args = (x, weight) if op == "rms_norm" else (x, residual, weight)
    function = getattr(torch_foo, op)
    got = torch.vmap(function)(*args)
    for row in range(4):
        expected = function(*(a[row] for a in args))
        assert_equal(tree_map(lambda r, row=row: r[row], got), expected)


def test_vmap_gradients(typical_differentiable, device):
    """In float64, where the order in which torch adds does not show."""
    case = typical_differentiable
    args = case.args(torch.float64, device=device, requires_grad=True)
    f = case.of_leaves(args)
    first, *rest = (args[i] for i in case.leaves)
    a = batched(first, 0).detach().requires_grad_()

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


# --- mixed dtypes and autocast ----------------------------------------------


MIXES = [
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float16),
    (torch.float16, torch.bfloat16),
    (torch.float64, torch.float32),
    (torch.bfloat16, torch.float64),
]


#: Keys and values of 16 bits, which attention takes beside a float32 query.
NARROW = [torch.float32, torch.float16, torch.float16]


def mixed_leaves(case, dtypes, device):
    """Yield the random tensors, the last or all but the first of dtypes[1]."""
    args = case.args(device=device)
    tensors = [args[i] for i in case.leaves]
    for count in sorted({1, len(tensors) - 1}):
        yield (
            args,
            [
                t.to(dtypes[0] if i < count else dtypes[1])
                for i, t in enumerate(tensors)
            ],
        )


@pytest.mark.parametrize("dtypes", MIXES, ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_mixed_dtypes(with_several, device, dtypes, autocast):
    """The dtype is that of torch's formula, and so are gradients'."""
    case = with_several
    for args, tensors in mixed_leaves(case, dtypes, device):
        function = case.of_leaves(args)
        leaves = [t.requires_grad_() for t in tensors]
        is_product = case.op in ("linear", "linear_quantized", "attention")
        if case.op == "attention" and [t.dtype for t in tensors] == NARROW:
            is_product = False  # that it takes as it is
        if is_product and not autocast:
            with pytest.raises(RuntimeError, match="has dtype"):
                function(*leaves)
            continue
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            got = tree_leaves(function(*leaves))
        formula = case.reference
        if is_product:  # autocast brings them to the widest
            leaves = [t.to(torch.promote_types(*dtypes)) for t in leaves]
        expected = tree_leaves(formula(*case.with_leaves(args, leaves)))
        assert_close(got, expected)
        if not case.has_gradient:
            continue
        ours, theirs = (
            torch.autograd.grad(loss([r.double() for r in results]), tensors)
            for results in (got, expected)
        )
        assert [g.dtype for g in ours] == [t.dtype for t in tensors]
        assert_close(ours, theirs, rtol=3e-2, atol=3e-2)


def test_mixed_dtypes_are_computed_by_the_formula(mixed, device):
    """Results and gradients, also in torch.func and with create_graph."""
    args = mixed.args(device=device, requires_grad=mixed.has_gradient)
    if not mixed.has_gradient:
        return
    # The formula rounds products before they are added up.
    close = {"rtol": 1e-2, "atol": 1e-2}
    expected = gradients(mixed.reference, args)
    assert_close(gradients(mixed.function, args), expected, **close)
    leaves = [args[i] for i in mixed.leaves]
    again = torch.autograd.grad(
        loss(mixed.function(*args)), leaves, create_graph=True
    )
    assert_close(again, tuple(expected[-len(leaves) :]), **close)
    assert all(g.dtype == a.dtype for g, a in zip(again, leaves, strict=True))
    by_func = torch.func.grad(
        lambda *t: loss(mixed.of_leaves(args)(*t)), tuple(range(len(leaves)))
    )(*(a.detach() for a in leaves))
    assert_close(by_func, again, **close)


def test_autocast_leaves_equal_dtypes_alone(typical, dtype, device):
    args = typical.args(dtype, device)
    expected = typical.function(*args)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert_equal(typical.function(*args), expected)


@pytest.mark.parametrize(
    ("given", "wide"),
    [
        ("float32 float16 float16", ""),
        ("float32 bfloat16 bfloat16 float32", ""),
        ("float32 bfloat16 bfloat16 float16", "float32 - - float32"),
        ("bfloat16 bfloat16 bfloat16 float32", "float32 - - float32"),
        ("float16 bfloat16 bfloat16", "float32 float32 float32"),
        ("float32 float16 bfloat16", "float32 float32 float32"),
        ("float32 float16 float32", "float32 float32 float32"),
        ("bfloat16 float32 float32", "float32 float32 float32"),
        ("float64 float16 float16", "float64 float64 float64"),
    ],
)
def test_autocast_leaves_a_narrow_cache_alone(given, wide, device):
    """Query and a mask are promoted without it, where that is enough."""
    before = given.split()
    after = [
        old if new == "-" else new
        for old, new in zip(before, wide.split() or before, strict=True)
    ]
    args = [
        torch.randn(1, 2, 3, 3, device=device).to(getattr(torch, name))
        for name in before
    ]
    expected = OPERATORS["attention"].reference(*(a.double() for a in args))
    for function in (
        torch_foo.attention,
        lambda *args: torch.vmap(torch_foo.attention)(*(a[None] for a in args)),
    ):
        with torch.autocast(device, torch.bfloat16), Seen() as seen:
            got = function(*args)
        (call,) = seen.arguments
        assert [a.dtype for a in call[: len(args)]] == [
            getattr(torch, name) for name in after
        ]
        assert got.dtype == getattr(torch, after[0])
        got = got.double().view_as(expected)
        assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_fresh_dynamo")
def test_autocast_compiles(device):
    linear = torch.nn.Linear(8, 8, device=device)
    weight = torch.ones(8, device=device)

    def f(x):
        with torch.autocast(device, dtype=torch.bfloat16):
            return torch_foo.rms_norm(linear(x), weight)

    x = torch.randn(4, 8, device=device)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), f(x))


def test_calls_keep_no_memory(typical, bytes_kept):
    """PyTorch's conversions of strings, before 2.14, did."""
    args = typical.args()
    assert bytes_kept(lambda: typical.function(*args)) < 8
