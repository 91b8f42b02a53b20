"""Wrong input: the message names operator, argument, expected and came.

On tensors without data, which torch.compile sees, the fake kernels refuse the
same input with one message for all.
"""

import itertools
import math
import re
from functools import partial

import pytest
import torch
import torch_foo
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

F64 = torch.float64


def wrong(op: str, message: str, *args, **kwargs) -> None:
    """Call an operator and compare the error, word by word."""
    with pytest.raises(RuntimeError) as caught:
        getattr(torch_foo, op)(*args, **kwargs)
    assert str(caught.value).split("\n")[0] == f"torch_foo.{op}: {message}"


def wrong_anywhere(op: str, message: str, *args, **kwargs) -> None:
    """The same, and refused as tensors without data."""
    wrong(op, message, *args, **kwargs)
    args, kwargs = tree_map_only(
        Tensor, lambda t: t.to("meta"), (list(args), kwargs)
    )
    refusal = r"( cannot take \w+ .*: expected \w+|: out is .*, expected )"
    with pytest.raises(RuntimeError, match=f"torch_foo.{op}{refusal}"):
        getattr(torch_foo, op)(*args, **kwargs)


def names(case) -> list[str]:
    return [a.name for a in case.packet.default._schema.arguments]


def floating(case) -> list[int]:
    """The positions of the floating-point tensors."""
    args = enumerate(case.args())
    return [
        i for i, a in args if isinstance(a, Tensor) and a.is_floating_point()
    ]


def replaced(args, position: int, value) -> list:
    return [value if i == position else a for i, a in enumerate(args)]


def sevens(case, device: str = "cpu") -> Tensor:
    """A tensor that the result of a case fits into."""
    return torch.full_like(case.function(*case.args(device=device)), 7.0)


# --- each tensor of each operator -------------------------------------------

UNSUPPORTED = [
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
]
SUPPORTED = "expected float32, float64, float16 or bfloat16"
NOT_DENSE = "is a sparse or otherwise not dense tensor, expected a dense one"


@pytest.mark.parametrize("bad", UNSUPPORTED, ids=str)
def test_unsupported_dtype(typical, bad, device):
    args = typical.args(device=device)
    message = f"has dtype {str(bad).removeprefix('torch.')}, {SUPPORTED}"
    for i in floating(typical):
        wrong_anywhere(
            typical.op,
            f"{names(typical)[i]} {message}",
            *replaced(args, i, args[i].to(bad)),
        )
    if typical.has_out:
        out = sevens(typical, device).to(bad)
        wrong_anywhere(typical.op, f"out {message}", *args, out=out)


def test_mixed_dtypes_of_linear(device):
    """torch.nn.functional.linear refuses them, too."""
    args = [
        torch.ones(shape, device=device) for shape in [(2, 3), (4, 3), (4,)]
    ]
    for i, name in [(1, "weight"), (2, "bias")]:
        wrong_anywhere(
            "linear",
            f"{name} has dtype float64, but x has float32",
            *replaced(args, i, args[i].double()),
        )


def test_mixed_dtypes_in_place():
    """Each result needs the dtype of the argument that takes it."""
    x, residual = torch.ones(2, 3).bfloat16(), torch.ones(2, 3)
    message = "residual has dtype float32, but x has bfloat16"
    with pytest.raises(RuntimeError, match=message):
        torch_foo.add_rms_norm_(x, residual)
    assert (x == 1).all()
    assert (residual == 1).all()


def test_out_has_the_dtype_of_the_result(mixed, device):
    if not mixed.has_out:
        return
    args = mixed.args(device=device)
    result = mixed.function(*args)
    for dtype in {torch.float32, torch.float64, torch.bfloat16} - {
        result.dtype
    }:
        out = torch.full_like(result, 7, dtype=dtype)
        with pytest.raises(RuntimeError, match="out has dtype"):
            mixed.function(*args, out=out)
        assert (out == 7).all()


def test_sparse(typical, device):
    args = typical.args(device=device)
    for i in floating(typical):
        if args[i].dim() > 0:
            message = f"{names(typical)[i]} {NOT_DENSE}"
            sparse = args[i].to_sparse()
            wrong(typical.op, message, *replaced(args, i, sparse))
    if typical.has_out:
        out = sevens(typical, device).to_sparse()
        wrong(typical.op, f"out {NOT_DENSE}", *args, out=out)


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize(
    "layout", [torch.sparse_csr, torch.sparse_csc], ids=str
)
def test_compressed_sparse(layout, device):
    x = torch.eye(3, device=device)
    wrong("mul", f"a {NOT_DENSE}", x.to_sparse(layout=layout), x)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantized(typical):
    first, *others = typical.args()
    quantized = torch.quantize_per_tensor(first.float(), 0.1, 0, torch.qint8)
    message = f"{names(typical)[0]} has dtype qint8, "
    message += SUPPORTED if first.is_floating_point() else "expected uint8"
    wrong(typical.op, message, quantized, *others)


@pytest.mark.parametrize("value", [3, 3.0, [1.0], "x"])
def test_not_a_tensor(typical, value):
    args, op = typical.args(), typical.op
    forms = [lambda *args: getattr(torch_foo, op)(*args)]
    if typical.has_out:
        out = sevens(typical)
        forms.append(lambda *args: getattr(torch_foo, op)(*args, out=out))
        with pytest.raises(RuntimeError, match="for argument 'out'"):
            typical.function(*args, out=value)
    if typical.inplace:
        forms.append(typical.inplace)
    for i in floating(typical):
        message = (
            rf"torch_foo::{op}_?\(\) Expected a value of type "
            rf"'(Optional\[)?Tensor\]?' for argument '{names(typical)[i]}' "
            rf"but instead found type '{type(value).__name__}'"
        )
        for form in forms:
            with pytest.raises(RuntimeError, match=message):
                form(*replaced(args, i, value))


def required(case) -> list[int]:
    """The positions of the tensors that may not be None."""
    arguments = enumerate(case.packet.default._schema.arguments)
    return [i for i, a in arguments if isinstance(a.type, torch.TensorType)]


def mapped(call, args):
    """Call with vmap over all tensors."""
    places = [i for i, a in enumerate(args) if isinstance(a, Tensor)]

    def function(*tensors):
        given = list(args)
        for i, tensor in zip(places, tensors, strict=True):
            given[i] = tensor
        return call(*given)

    if not places:
        return call(*args)
    return torch.vmap(function)(*(args[i][None] for i in places))


@pytest.mark.parametrize("where", ["cpu", "meta", "vmap"])
def test_none(typical, where):
    args, op = typical.args(), typical.op
    calls = [(op, typical.function)]
    if typical.has_out and where != "vmap":
        out = sevens(typical).to(where)
        calls.append((op, lambda *a: typical.function(*a, out=out)))
    if typical.inplace and where != "vmap":
        calls.append((f"{op}_", typical.inplace))
    for i in required(typical):
        for function, call in calls:
            given = replaced(args, i, None)
            if where == "meta":
                given = tree_map_only(Tensor, lambda t: t.to("meta"), given)
            message = rf"torch_foo.{function}(: {names(typical)[i]} is None, "
            message += rf"expected a tensor| .* as {names(typical)[i]})"
            with pytest.raises(RuntimeError, match=message):
                mapped(call, given) if where == "vmap" else call(*given)
    if typical.has_out and where != "vmap":
        overload = typical.packet.out
        args = tree_map_only(Tensor, lambda t: t.to(where), args)
        with pytest.raises(RuntimeError, match=f"torch_foo.{op}: out is None"):
            overload(*args, out=None)


def test_none_in_modules():
    nn, x = torch_foo.nn, torch.ones(2, 3, 2, 4)
    for module, args, message in [
        (nn.RMSNorm(4), (None,), "nn.RMSNorm: x is NoneType"),
        (nn.SwiGLU(), (None,), "silu_mul: gate is None"),
        (nn.GeGLU(), (None,), "gelu_mul: gate is None"),
        (nn.RotaryEmbedding(4, 3), (None,), "nn.RotaryEmbedding: x is None"),
        (nn.CrossEntropyLoss(), (x, None), "nn.CrossEntropyLoss: target is"),
        (nn.CrossEntropyLoss(), (None, x.long()), "cross_entropy: logits is"),
    ]:
        with pytest.raises((RuntimeError, TypeError), match=message):
            module(*args)


def forms(case):
    """Each overload of a case's operator, with all arguments by name."""
    ops, op = torch.ops.torch_foo, case.op
    arguments = case.packet.default._schema.arguments
    values = {a.name: a.default_value for a in arguments} | case.named
    values |= dict(zip(values, case.args(), strict=False))
    yield case.packet.default, values
    if hasattr(ops, f"_{op}"):
        yield getattr(ops, f"_{op}").default, values
    if case.has_out:
        values = {**values, "out": sevens(case)}
        yield case.packet.out, values
        yield getattr(ops, f"_{op}_out").default, values
    elif case.inplace:
        yield getattr(ops, f"{op}_").default, values
        yield getattr(ops, f"_{op}_").default, values


def call_by_name(overload, values):
    arguments = overload._schema.arguments
    return overload(
        *(values[a.name] for a in arguments if not a.kwarg_only),
        **{a.name: values[a.name] for a in arguments if a.kwarg_only},
    )


OTHER_TENSORS = {
    "meta": lambda t: t.to("meta"),
    "int32": lambda t: t.to(torch.int32),
    "float64": Tensor.double,
    "bfloat16": Tensor.bfloat16,
    "complex64": lambda t: t.to(torch.complex64),
    "None": lambda _: None,
    "empty": lambda t: t.new_empty(0),
    "scalar": lambda t: t.new_zeros(()),
    "stacked": lambda t: torch.stack([t, t]),
    "unsqueezed": lambda t: t[None],
    "flat": lambda t: t.reshape(-1),
    "many dimensions": lambda t: t[(None,) * 66],
    "sparse": lambda t: t.to_sparse() if t.dim() else t,
    "number": lambda _: 3,
}


def test_any_overload_with_another_tensor(typical):
    check_overloads(typical)


def test_gradient_kernel_with_another_tensor(gradient_kernel):
    check_overloads(gradient_kernel)


def check_overloads(case) -> None:
    """Replace each tensor of each overload: an error, or the right result."""
    for overload, values in forms(case):
        tensors = [n for n, v in values.items() if isinstance(v, Tensor)]
        for which, change in itertools.product(tensors, OTHER_TENSORS.values()):
            given = tree_map_only(Tensor, Tensor.clone, values)
            given[which] = change(given[which])
            if given[which] is None and len(tensors) == 1:
                continue  # torch finds no kernel for no tensor
            before = tree_map_only(Tensor, Tensor.clone, given)
            try:
                got = call_by_name(overload, given)
            except RuntimeError as error:
                check_refusal(case, error, before, given)
            else:
                check_value(case, before, given, got)


def check_refusal(case, error, before, given) -> None:
    """It names the operator and an argument, and nothing is written."""
    assert type(error) is RuntimeError
    name = case.op.strip("_")
    assert re.search(rf"torch_foo(\.|::)_?{name}", str(error))
    assert re.search(rf"\b({'|'.join(before)})\b", str(error))
    for name, value in before.items():
        if isinstance(value, Tensor) and not (value.is_meta or value.is_sparse):
            assert torch.equal(given[name], value)


def check_value(case, before, given, got) -> None:
    names = [a.name for a in case.packet.default._schema.arguments]
    tensors = [v for v in before.values() if isinstance(v, Tensor)]
    if any(t.is_meta for t in tensors):
        assert all(t.is_meta for t in tensors)
        return
    if any(t.dim() > 64 for t in tensors):
        return  # torch's formulas refuse them; test_values.py compares
    if got is None and "out" in given:
        got = given["out"]
    elif got is None:
        got = [given[name] for name in case.operator.inplace.values()]
    want = case.operator.reference(*(before[name] for name in names))
    results, wanted = tree_leaves(got), tree_leaves(want)
    results = results[: len(results) - len(case.operator.internal_results)]
    for result, expected in zip(results, wanted, strict=True):
        assert (result is None) == (expected is None)
        if result is not None:
            torch.testing.assert_close(result, expected, equal_nan=True)


def test_dtype_of_a_mask_without_data():
    args = _attention_args(mask=torch.ones(5, dtype=torch.int64))
    expected = "expected mask of dtype bool or float32"
    with pytest.raises(RuntimeError, match=expected):
        torch_foo.attention(*(t.to("meta") for t in args))


def test_meta_beside_cpu(typical):
    """The fake kernel refuses it, and tells all devices."""
    args = typical.args()
    refusal = f"torch_foo.{typical.op} cannot take "
    for i, a in enumerate(args):
        if i > 0 and isinstance(a, Tensor):
            message = (
                rf"{refusal}.*{names(typical)[i]} \w+ \(.*\) on meta.*: "
                rf"expected {names(typical)[0]} and {names(typical)[i]} on one "
                "device"
            )
            with pytest.raises(RuntimeError, match=message):
                typical.function(*replaced(args, i, a.to("meta")))
    if typical.has_out:
        out = sevens(typical).to("meta")
        with pytest.raises(RuntimeError, match=r"out is .* on meta, expected "):
            typical.function(*args, out=out)


@pytest.mark.cuda
def test_cpu_beside_cuda(typical):
    args = typical.args()
    for i, a in enumerate(args):
        if i > 0 and isinstance(a, Tensor):
            message = rf"{names(typical)[i]} is on cuda:0, but \w+ is on cpu"
            with pytest.raises(RuntimeError, match=message):
                typical.function(*replaced(args, i, a.to("cuda")))


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch_foo.build_info().cuda,
    reason="needs a CUDA device and a foo_core without CUDA kernels",
)
def test_built_without_cuda(typical):
    message = (
        "this build of foo_core has no CUDA kernels; install its cuda variant: "
        "conda install 'libfoo-core=*=cuda*'"
    )
    wrong(typical.op, message, *typical.args(device="cuda"))


def test_too_many_or_unknown_arguments(typical):
    args = typical.args()
    with pytest.raises(TypeError):
        typical.function(*args, *[None] * 9)
    with pytest.raises(TypeError):
        typical.function(*args, unknown=1)


# --- out= and forms in place ------------------------------------------------


def test_out_is_not_resized(typical_with_out, device):
    case, args = typical_with_out, typical_with_out.args(device=device)
    shape = tuple(sevens(case).shape)
    for other in [(), (7,), (*shape, 1), (1, *shape), (*shape[:-1], 9)]:
        out = torch.full(other, 7.0, device=device)
        message = f"out has shape {other}, expected {shape}"
        wrong_anywhere(case.op, message, *args, out=out)
        assert (out == 7).all()


def test_out_has_the_dtype_of_the_inputs(typical_with_out):
    case, out = typical_with_out, sevens(typical_with_out).double()
    message = f"out has dtype float64, but {names(case)[0]} has float32"
    wrong_anywhere(case.op, message, *case.args(), out=out)
    assert (out == 7).all()


def test_out_overlaps_itself(typical_with_out, device):
    case = typical_with_out
    out = sevens(case, device)[:1].expand(sevens(case).shape)
    message = "out overlaps itself: two of its indices share memory"
    wrong(case.op, message, *case.args(device=device), out=out)
    assert (out == 7).all()


def test_out_overlaps_an_input(typical_with_out, device):
    """Nothing is written where out shares a part of an argument."""
    case, args = typical_with_out, typical_with_out.args(device=device)
    shape = sevens(case).shape
    for i, a in enumerate(args):
        if not isinstance(a, Tensor):
            continue
        memory = a.new_zeros(a.numel() + shape.numel() + 1)
        memory[: a.numel()] = a.flatten()
        before = memory.clone()
        given = replaced(args, i, memory[: a.numel()].view(a.shape))
        out = memory.view(torch.float32)[1 : 1 + shape.numel()].view(shape)
        message = rf"torch_foo.{case.op}: out (may )?overlaps? {names(case)[i]}"
        with pytest.raises(RuntimeError, match=message):
            case.function(*given, out=out)
        assert torch.equal(memory, before)


def test_out_beside_an_input(typical_with_out, device):
    """Interleaved columns share no memory."""
    case, args = typical_with_out, typical_with_out.args(device=device)
    memory = torch.zeros(*sevens(case).shape, 2, device=device)
    for i in case.leaves:
        if args[i].shape == sevens(case).shape:
            memory[..., 0] = args[i]
            given = replaced(args, i, memory[..., 0])
            case.function(*given, out=memory[..., 1])
            exact = {"rtol": 0, "atol": 0} if device == "cpu" else {}
            torch.testing.assert_close(
                memory[..., 1], case.function(*args), **exact
            )


def test_out_with_requires_grad(typical_with_out, device):
    case, args = typical_with_out, typical_with_out.args(device=device)
    expected = case.function(*args)
    message = (
        "out= does not support automatic differentiation, but one of the "
        "tensors requires grad; omit out= or use torch.no_grad()"
    )
    for which in [*floating(case), "out"]:
        given, out = [*args], sevens(case, device)
        if which == "out":
            out.requires_grad_()
        else:
            given[which] = args[which].clone().requires_grad_()
        wrong(case.op, message, *given, out=out)
        assert (out == 7).all()
        with torch.no_grad():
            case.function(*given, out=out)
        assert torch.equal(out, expected)


def test_inplace_with_requires_grad(with_inplace, device):
    case, args = with_inplace, with_inplace.args(device=device)
    message = (
        rf"{case.op}_ does not support automatic differentiation, but one of "
        rf"the tensors requires grad; use torch_foo.{case.op} or use"
    )
    for i in floating(case):
        given = [a.clone() if isinstance(a, Tensor) else a for a in args]
        given[i].requires_grad_()
        with pytest.raises(RuntimeError, match=message):
            case.inplace(*given)
        assert all(torch.equal(given[j], args[j]) for j in case.written)
        with torch.no_grad():
            case.inplace(*given)


def test_out_is_a_negated_view(typical_with_out, device):
    case = typical_with_out
    out = torch._neg_view(-sevens(case, device))
    message = "out is a negated view, expected a plain tensor"
    wrong(case.op, message, *case.args(device=device), out=out)
    assert (out == 7).all()


def test_inplace_of_a_negated_view(with_inplace, device):
    case, args = with_inplace, with_inplace.args(device=device)
    for i in case.written:
        view = torch._neg_view(-args[i])
        message = f"{names(case)[i]} is a negated view, expected a plain tensor"
        with pytest.raises(RuntimeError, match=message):
            case.inplace(*replaced(args, i, view))
        assert torch.equal(view, args[i])


def test_out_is_an_inference_tensor(typical_with_out):
    """Torch refuses it too, but after it has written."""
    case, args = typical_with_out, typical_with_out.args()
    with torch.inference_mode():
        out, inference_args = sevens(case), case.args()
    message = "out is an inference tensor, which can only be written to in "
    for given in (args, inference_args):
        wrong(case.op, f"{message}inference mode; clone it", *given, out=out)
        with pytest.raises(RuntimeError, match=message):
            case.packet.out(*given, out=out)
    assert (out == 7).all()
    with torch.inference_mode():
        assert torch.equal(case.function(*args, out=out), case.function(*args))


def test_inplace_of_an_inference_tensor(with_inplace):
    case, args = with_inplace, with_inplace.args()
    overload = getattr(torch.ops.torch_foo, f"{case.op}_")
    for i in case.written:
        with torch.inference_mode():
            x = args[i].clone()
        given = replaced(args, i, x)
        message = f"torch_foo.{case.op}_: {names(case)[i]} is an inference "
        for function in (case.inplace, overload):
            with pytest.raises(RuntimeError, match=message):
                function(*given)
        assert torch.equal(x, args[i])
        with torch.inference_mode():
            case.inplace(*given)


def test_refused_changes_do_not_count(typical_with_out):
    case = typical_with_out
    out = sevens(case)[None]
    with pytest.raises(RuntimeError, match="out has shape"):
        case.function(*case.args(), out=out)
    with pytest.raises(RuntimeError, match="out has shape"):
        case.packet.out(*case.args(), out=out)
    assert out._version == 0


def test_vmap_takes_no_out(typical_with_out):
    case, args = typical_with_out, typical_with_out.args()
    first, out = torch.stack([args[0]] * 2), torch.stack([sevens(case)] * 2)

    def f(first, out):
        return case.function(first, *args[1:], out=out)

    message = f"Batching rule not implemented for torch_foo::{case.op}.out"
    with pytest.raises(RuntimeError, match=message):
        torch.vmap(f)(first, out)


def test_vmap_checks_each_example(device):
    """Its rules would broadcast, reshape or take what no example may be."""
    x, target = torch.ones(2, 3, 4, device=device), torch.zeros(2, 3).long()
    target = target.to(device)
    for op, dims, *args in (
        ("rms_norm", (0, 0), x, x),
        ("rms_norm", (0, None), x, x[0]),
        ("rms_norm", (0, 0), x, x[:, 0].long()),
        ("add_rms_norm", (0, 0, 0), x, x, x),
        ("silu_mul", (0, None), x, x[0, 0]),
        ("cross_entropy", (0, 0, None), x, target[:, :1]),
    ):
        function = getattr(torch_foo, op)
        with pytest.raises(RuntimeError, match=f"torch_foo.{op} cannot take"):
            torch.vmap(function, dims[: len(args)])(*args)
    with pytest.raises(RuntimeError, match=r"cannot take .*'Mean'"):
        torch.vmap(partial(torch_foo.cross_entropy, reduction="Mean"))(
            x, target
        )


# --- what only one operator or family refuses --------------------------------


def _binary_args(**changes):
    return list(
        ({"a": torch.ones(2, 3), "b": torch.ones(3)} | changes).values()
    )


def _rope_args(**changes):
    """What rope takes, but for these."""
    args = {
        "x": torch.full((2, 3, 2, 4), 7.0),
        "cos": torch.ones(3, 2),
        "sin": torch.ones(3, 2),
        "positions": None,
    }
    return list((args | changes).values())


def _norm_args(**changes):
    args = {
        "x": torch.full((2, 3), 7.0),
        "residual": torch.full((2, 3), 7.0),
        "weight": torch.ones(3),
    }
    return list((args | changes).values())


def _linear_args(**changes):
    args = {"x": torch.ones(2, 4), "weight": torch.ones(3, 4)}
    return list((args | {"bias": torch.ones(3)} | changes).values())


def _attention_args(**changes):
    args = {
        "query": torch.ones(2, 4, 3, 8),
        "key": torch.ones(2, 2, 5, 8),
        "value": torch.ones(2, 2, 5, 6),
        "mask": None,
    }
    return list((args | changes).values())


def _loss_args(**changes):
    args = {"logits": torch.ones(2, 3), "target": torch.tensor([0, 1])}
    return list((args | changes).values())


def _gated_args(**changes):
    args = {"gate": torch.full((2, 3), 7.0), "up": torch.full((2, 3), 7.0)}
    return list((args | changes).values())


# Operator, message, arguments, keyword arguments: wrong on real tensors, and
# refused without data. The message of a NAME_ is the same.
WRONG = [
    (op, m, _binary_args(**changes), {})
    for op in ("add", "mul")
    for m, changes in [
        (
            "a has shape (2, 3), b has shape (4,): they do not broadcast",
            {"b": torch.ones(4)},
        ),
        (
            "a has shape (0,), b has shape (2,): they do not broadcast",
            {"a": torch.ones(0), "b": torch.ones(2)},
        ),
    ]
]
WRONG += [
    ("rms_norm", m, args, {})
    for m, args in [
        (
            "weight has 4095 elements, but x's last dimension is 4096",
            [torch.ones(1, 4096), torch.ones(4095)],
        ),
        (
            "weight has 2 dimensions, expected 1",
            [torch.ones(2, 3), torch.ones(1, 3)],
        ),
        ("x has no dimensions, expected at least 1", [torch.tensor(1.0)]),
    ]
]
WRONG += [
    ("add_rms_norm", m, _norm_args(**changes), {})
    for m, changes in [
        (
            "residual has shape (3,), expected (2, 3)",
            {"residual": torch.ones(3)},
        ),
        (
            "residual has shape (1, 3), expected (2, 3)",
            {"residual": torch.ones(1, 3)},
        ),
        (
            "weight has 4 elements, but x's last dimension is 3",
            {"weight": torch.ones(4)},
        ),
        (
            "weight has 2 dimensions, expected 1",
            {"weight": torch.ones(1, 3)},
        ),
        (
            "x has no dimensions, expected at least 1",
            {
                "x": torch.tensor(7.0),
                "residual": torch.tensor(7.0),
                "weight": None,
            },
        ),
    ]
]
WRONG += [
    ("linear", m, _linear_args(**changes), {})
    for m, changes in [
        (
            "x has no dimensions, expected at least 1",
            {"x": torch.tensor(7.0)},
        ),
        *(
            (
                f"weight has shape {shape}, expected (n, 4), as x's last "
                "dimension is 4",
                {"weight": torch.ones(shape)},
            )
            for shape in [(), (4,), (2, 3), (4, 3), (3, 1), (0, 0), (1, 3, 4)]
        ),
        *(
            (
                f"bias has shape {shape}, expected (3,)",
                {"bias": torch.ones(shape)},
            )
            for shape in [(), (1,), (4,), (1, 3), (2, 3), (3, 1)]
        ),
        (
            "weight has dtype float64, but x has float32",
            {"weight": torch.ones(3, 4, dtype=F64)},
        ),
        (
            "bias has dtype float64, but x has float32",
            {"bias": torch.ones(3, dtype=F64)},
        ),
    ]
]
WRONG += [
    ("linear", m, _linear_args(), {"out": out})
    for m, out in [
        *(
            (
                f"out has shape {shape}, expected (2, 3)",
                torch.full(shape, 7.0),
            )
            for shape in [(), (3,), (2, 4), (3, 2), (6,), (1, 2, 3)]
        ),
        (
            "out has dtype float64, but x has float32",
            torch.full((2, 3), 7.0, dtype=F64),
        ),
    ]
]
WRONG += [
    # The first that is wrong is named, whichever else is.
    (
        "linear",
        "bias has shape (3,), expected (5,)",
        _linear_args(weight=torch.ones(5, 4)),
        {"out": torch.full((2, 3), 7.0)},
    ),
]
WRONG += [
    ("attention", m, _attention_args(**changes), {})
    for m, changes in [
        *(
            (
                f"query has shape {shape}, expected (batch, heads, queries, "
                "size)",
                {"query": torch.ones(shape)},
            )
            for shape in [(), (8,), (2, 3, 8), (1, 2, 4, 3, 8)]
        ),
        *(
            (
                f"key has shape {shape}, expected (2, key heads, keys, 8), "
                "where query's 4 heads are a multiple of key heads",
                {"key": torch.ones(shape)},
            )
            for shape in [
                *((), (2, 5, 8), (1, 2, 2, 5, 8), (1, 2, 5, 8), (2, 2, 5, 1)),
                *((2, 3, 5, 8), (2, 0, 5, 8), (2, 8, 5, 8)),
            ]
        ),
        *(
            (
                f"value has shape {shape}, expected (2, 2, 5, value size)",
                {"value": torch.ones(shape)},
            )
            for shape in [(), (2, 5, 6), (1, 2, 5, 6), (2, 1, 5, 6)]
        ),
        *(
            (
                f"mask has shape {shape}, which does not broadcast to "
                "(2, 4, 3, 5)",
                {"mask": torch.ones(shape, dtype=dtype)},
            )
            for shape in [(4,), (2, 5), (0,), (2, 2, 1, 1), (1, 2, 4, 3, 5)]
            for dtype in (torch.bool, torch.float32)
        ),
        (
            "key has dtype float64, expected float32, float16 or bfloat16, as "
            "query has float32",
            {"key": torch.ones(2, 2, 5, 8, dtype=F64)},
        ),
        *(
            (
                f"key has dtype float32, but query has {name}",
                {"query": torch.ones(2, 4, 3, 8, dtype=getattr(torch, name))},
            )
            for name in ("float64", "float16", "bfloat16")
        ),
        *(
            (
                f"value has dtype {name}, but key has float16",
                {
                    "key": torch.ones(2, 2, 5, 8, dtype=torch.float16),
                    "value": torch.ones(2, 2, 5, 6, dtype=getattr(torch, name)),
                },
            )
            for name in ("float64", "float32", "bfloat16")
        ),
        (
            "value has dtype float16, but key has float32",
            {"value": torch.ones(2, 2, 5, 6, dtype=torch.float16)},
        ),
        (
            "mask has dtype float16, but query has float32",
            {
                "key": torch.ones(2, 2, 5, 8, dtype=torch.float16),
                "value": torch.ones(2, 2, 5, 6, dtype=torch.float16),
                "mask": torch.ones(5, dtype=torch.float16),
            },
        ),
        (
            "mask has dtype float64, but query has float32",
            {"mask": torch.ones(5, dtype=F64)},
        ),
        (
            "mask has dtype uint8, expected bool or that of query, float32",
            {"mask": torch.ones(5, dtype=torch.uint8)},
        ),
    ]
]
WRONG += [
    ("attention", m, _attention_args(), {"out": out})
    for m, out in [
        *(
            (
                f"out has shape {shape}, expected (2, 4, 3, 6)",
                torch.full(shape, 7.0),
            )
            for shape in [(), (6,), (2, 4, 3, 8), (2, 3, 4, 6)]
        ),
        (
            "out has dtype float64, but query has float32",
            torch.full((2, 4, 3, 6), 7.0, dtype=F64),
        ),
    ]
]
for op in ("silu_mul", "gelu_mul"):
    odd = "expected an even last dimension, of gate and up together"
    WRONG += [
        (op, f"gate has shape (2, 3), {odd}", [torch.ones(2, 3)], {}),
        (op, f"gate has shape (), {odd}", [torch.tensor(1.0)], {}),
        (
            op,
            "up has shape (3,), expected (2, 3)",
            [torch.ones(2, 3), torch.ones(3)],
            {},
        ),
        (
            op,
            "out has shape (2, 4), expected (2, 2)",
            [torch.ones(2, 4)],
            {"out": torch.full((2, 4), 7.0)},
        ),
        (
            op,
            "out has dtype float64, but gate has float32",
            [torch.ones(2, 4)],
            {"out": torch.full((2, 2), 7.0, dtype=F64)},
        ),
    ]
WRONG += [
    (
        "gelu_mul",
        f"approximate is '{name}', expected 'none' or 'tanh'",
        [torch.ones(2, 4)],
        {"approximate": name},
    )
    for name in ("Tanh", "", "it's")
]
WRONG += [
    ("rope", m, _rope_args(**changes), {})
    for m, changes in [
        (
            "x has shape (3, 2, 4), expected (batch, seq, heads, head_dim)",
            {"x": torch.full((3, 2, 4), 7.0)},
        ),
        (
            "cos has shape (2,), expected (max_position, rotary_dim / 2)",
            {"cos": torch.ones(2)},
        ),
        ("sin has shape (2, 2), expected (3, 2)", {"sin": torch.ones(2, 2)}),
        (
            "cos has 3 columns, which rotate 6 elements, but x's last "
            "dimension is 4",
            {"cos": torch.ones(3, 3), "sin": torch.ones(3, 3)},
        ),
        (
            "x has 3 positions, but cos has 2 rows",
            {"cos": torch.ones(2, 2), "sin": torch.ones(2, 2)},
        ),
        (
            "cos has dtype int64, expected float32, float64, float16 or "
            "bfloat16",
            {"cos": torch.ones(3, 2, dtype=torch.int64)},
        ),
        *(
            (
                f"positions has shape {shape}, expected (3,) or (2, 3)",
                {"positions": torch.zeros(shape, dtype=torch.int64)},
            )
            for shape in [(), (2,), (1, 3), (3, 3), (1, 2, 3)]
        ),
        *(
            (
                f"positions has dtype {name}, expected int64",
                {"positions": torch.zeros(3, dtype=getattr(torch, name))},
            )
            for name in ("int32", "float32", "bool")
        ),
    ]
]
WRONG += [
    ("rope", m, _rope_args(), {"out": out})
    for m, out in [
        (
            "out has shape (2, 3, 2, 5), expected (2, 3, 2, 4)",
            torch.full((2, 3, 2, 5), 7.0),
        ),
        (
            "out has dtype float64, but x has float32",
            torch.full((2, 3, 2, 4), 7.0, dtype=F64),
        ),
    ]
]
WRONG += [
    ("cross_entropy", m, _loss_args(**changes), named)
    for m, changes, named in [
        (
            "target has dtype int32, expected int64",
            {"target": torch.zeros(2, dtype=torch.int32)},
            {},
        ),
        (
            "target has dtype float32, expected int64",
            {"target": torch.ones(2, 3)},
            {},
        ),
        (
            "target has shape (3,), expected (2,)",
            {"target": torch.zeros(3, dtype=torch.int64)},
            {},
        ),
        (
            "target has shape (2, 1), expected (2,)",
            {"target": torch.zeros(2, 1, dtype=torch.int64)},
            {},
        ),
        (
            "logits has no dimensions, expected at least 1",
            {"logits": torch.tensor(1.0)},
            {},
        ),
        *(
            (
                "logits has shape (2, 0), expected at least 1 class",
                {
                    "logits": torch.ones(2, 0),
                    "target": torch.full((2,), target),
                },
                {},
            )
            for target in (0, -100)
        ),
        *(
            (
                f"reduction is '{name}', expected 'none', 'mean' or 'sum'",
                {},
                {"reduction": name},
            )
            for name in ("average", "", "Mean")
        ),
        *(
            (
                f"label_smoothing is {value:g}, expected 0 to 1",
                {},
                {"label_smoothing": value},
            )
            for value in (1.5, -1e-9, math.nan, math.inf)
        ),
        # The first that is wrong is named, whichever else is.
        (
            "logits has dtype int64, expected float32, float64, float16 or "
            "bfloat16",
            {"logits": torch.ones(2, 3, dtype=torch.int64)},
            {"reduction": "average", "label_smoothing": 2.0},
        ),
    ]
]
WRONG += [
    (
        "quantize_int8_rowwise",
        "x has no dimensions, expected at least 1",
        [torch.tensor(1.0)],
        {},
    )
]


@pytest.mark.parametrize(
    ("op", "message", "args", "named"), WRONG, ids=lambda v: str(v)[:60]
)
def test_wrong_input(op, message, args, named, device):
    args, named = tree_map_only(Tensor, lambda t: t.to(device), (args, named))
    wrong_anywhere(op, message, *args, **named)
    if "out" in named:
        assert (named["out"] == 7).all()
    elif hasattr(torch_foo, f"{op}_"):
        before = [a.clone() for a in args if isinstance(a, Tensor)]
        expected = f"torch_foo.{op}_: {re.escape(message)}"
        with pytest.raises(RuntimeError, match=expected):
            getattr(torch_foo, f"{op}_")(*args, **named)
        after = [a for a in args if isinstance(a, Tensor)]
        assert all(map(torch.equal, before, after))


def test_backward_with_another_shape():
    x = torch.ones(2, 3)
    backward = torch.ops.torch_foo._rms_norm_backward
    for device, message in [
        ("cpu", r": grad has shape \(3,\), expected \(2, 3\)"),
        ("meta", r" cannot take grad float32 \(3,\)"),
    ]:
        args = torch.ones(3).to(device), x.to(device)
        with pytest.raises(
            RuntimeError, match=f"torch_foo.rms_norm_backward{message}"
        ):
            backward(*args, None, 1e-6, True, False)


@pytest.mark.parametrize(
    ("values", "where"),
    [([0, 3, 2], "3 at (1,)"), ([0, 1, -1], "-1 at (2,)")],
)
def test_positions_out_of_range(values, where):
    message = f"positions holds {where}, but cos has 3 rows"
    args = _rope_args(positions=torch.tensor(values))
    out = torch.full((2, 3, 2, 4), 7.0)
    wrong("rope", message, *args)
    wrong("rope", message, *args, out=out)
    with pytest.raises(RuntimeError, match=re.escape(message)):
        torch_foo.rope_(*args)
    assert (out == 7).all()
    assert (args[0] == 7).all()
    args[3] = torch.stack([torch.zeros_like(args[3]), args[3]])
    where = where.replace("(", "(1, ").replace(",)", ")")
    message = f"positions holds {where}, but cos has 3 rows"
    wrong("rope", message, *args)


@pytest.mark.parametrize("bad", [-1, 3, 2**40, -(2**63)])
def test_target_out_of_range(bad):
    expected = "expected 0 to 2 or ignore_index (-100)"
    target = torch.tensor([[0, bad]])
    wrong(
        "cross_entropy",
        f"target is {bad} at index (0, 1), {expected}",
        torch.ones(1, 2, 3),
        target,
    )
    # What is ignored may be anything.
    torch_foo.cross_entropy(torch.ones(1, 2, 3), target, ignore_index=bad)


def test_inplace_memory():
    """Nothing is written where arguments of an in-place form overlap."""

    def check(function, message, memory, *args):
        before = memory.clone()
        message = f"torch_foo.{function.__name__}: {message}"
        with pytest.raises(RuntimeError, match=message):
            function(*args)
        assert torch.equal(memory, before)

    norm, rope = torch_foo.add_rms_norm_, torch_foo.rope_
    x, rows = torch.full((2, 3), 7.0), torch.full((3, 3), 7.0)
    other = torch.ones(2, 3)
    check(norm, "x overlaps residual,", x, x, x)
    check(norm, "x overlaps residual without", rows, rows[:2], rows[1:])
    check(norm, "x overlaps weight", rows, rows[:2], other, rows[0])
    check(norm, "residual overlaps weight", rows, other, rows[:2], rows[1])
    row = torch.full((1, 3), 7.0)
    check(norm, "x overlaps itself", row, row.expand(2, 3), other)
    check(
        norm, "residual overlaps itself", row, other.clone(), row.expand(2, 3)
    )

    memory, table = torch.full((12,), 7.0), torch.ones(3, 2)
    x = memory.view(1, 3, 1, 4)
    same = memory[:6].view(3, 2)
    check(rope, "x may overlap cos", memory, x, same, table)
    check(rope, "x may overlap sin", memory, x, table, same)
    head = memory.view(1, 3, 1, 4)[:, :1].expand(1, 3, 1, 4)
    check(rope, "x overlaps itself", memory, head, table, table)


@pytest.mark.parametrize("op", ["silu_mul", "gelu_mul"])
def test_out_is_a_half_of_a_packed_gate(op):
    memory = torch.full((3, 3, 1, 4), 7.0)
    function = getattr(torch_foo, op)
    with pytest.raises(RuntimeError, match=r"out overlaps (gate|up)"):
        function(memory, out=memory[..., 1:3])
    assert (memory == 7).all()
    function(memory, out=memory[..., 2:])  # exactly up
    assert not (memory == 7).all()


def test_out_memory_of_linear():
    """It is no argument's, not even exactly: each is read again and again."""
    memory = torch.full((4, 4), 7.0)
    x, weight, bias = _linear_args()
    square, row = torch.ones(4, 4), memory[0]

    def check(message, *args, out):
        wrong(
            "linear", f"{message}, expected memory of its own", *args, out=out
        )
        assert (memory == 7).all()

    check("out overlaps x", memory, square, out=memory)
    check("out overlaps x", memory[:3], square, out=memory[1:])
    check("out overlaps weight", square, memory, out=memory)
    check("out overlaps weight", square[:2], memory, out=memory[2:])
    check("out overlaps bias", square, square, row, out=memory)
    check("out overlaps bias", row.clone(), square, row, out=row)
    check("out overlaps x", memory[:2], weight, bias, out=memory[:2, :3])
    check("out overlaps weight", x, memory[1:], bias, out=memory[1:3, 1:])
    itself = "out overlaps itself: two of its indices share memory"
    wrong("linear", itself, x, weight, out=memory[:1, :3].expand(2, 3))
    assert (memory == 7).all()
    # Neighbours are none of it.
    torch_foo.linear(memory[:2], weight, bias, out=memory[2:, 1:])
    assert (memory[2:, 1:] == 29).all()
    assert (memory[:, 0] == 7).all()
