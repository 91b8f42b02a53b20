"""Wrong input: the message names operator, argument, expected and came."""

import math
import re

import pytest
import torch
import torch_foo
from torch import Tensor

BINARY = {"add": (), "mul": (), "muladd": (0.5,)}


def wrong(op: str, message: str, *args, **kwargs) -> None:
    """Call an operator and compare the error, word by word."""
    with pytest.raises(RuntimeError) as caught:
        getattr(torch_foo, op)(*args, **kwargs)
    assert str(caught.value).split("\n")[0] == f"torch_foo.{op}: {message}"


def wrong_anywhere(op: str, message: str, *args, **kwargs) -> None:
    """The same, and again as tensors without data: as torch.compile sees it."""

    def to_meta(value):
        return value.to("meta") if isinstance(value, Tensor) else value

    wrong(op, message, *args, **kwargs)
    wrong(
        op,
        message,
        *map(to_meta, args),
        **{name: to_meta(value) for name, value in kwargs.items()},
    )


@pytest.fixture(params=BINARY)
def binary(request):
    """An element-wise operator and its further arguments."""
    return request.param, BINARY[request.param]


# The tests below give both tensors the same last dimension.
PAIRS = {
    **{op: ("a", "b", others) for op, others in BINARY.items()},
    "rms_norm": ("x", "weight", (1e-6,)),
}


@pytest.fixture(params=PAIRS)
def pair(request):
    """An operator with two tensors and out=: their names, what follows."""
    return request.param, *PAIRS[request.param]


# --- dtypes -----------------------------------------------------------------

UNSUPPORTED = [
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
]


@pytest.mark.parametrize("bad", UNSUPPORTED, ids=str)
def test_unsupported_dtype(pair, bad):
    op, first, second, others = pair
    name = str(bad).removeprefix("torch.")
    message = (
        f"has dtype {name}, expected float32, float64, float16 or bfloat16"
    )
    good, bad = torch.ones(3), torch.ones(3).to(bad)
    wrong_anywhere(op, f"{first} {message}", bad, good, *others)
    wrong_anywhere(op, f"{first} {message}", bad, bad, *others)
    wrong_anywhere(op, f"{second} {message}", good, bad, *others)
    wrong_anywhere(op, f"out {message}", good, good, *others, out=bad)


def test_mixed_dtypes(pair):
    op, first, second, others = pair
    good, other = torch.ones(3), torch.ones(3, dtype=torch.float64)
    wrong_anywhere(
        op,
        f"{second} has dtype float64, but {first} has float32",
        good,
        other,
        *others,
    )
    wrong_anywhere(
        op,
        f"out has dtype float64, but {first} has float32",
        good,
        good,
        *others,
        out=other,
    )


# --- shapes -----------------------------------------------------------------


def test_shapes_that_do_not_broadcast(binary):
    op, others = binary
    wrong_anywhere(
        op,
        "a has shape (2, 3), b has shape (4,): they do not broadcast",
        torch.ones(2, 3),
        torch.ones(4),
        *others,
    )
    wrong_anywhere(
        op,
        "a has shape (0,), b has shape (2,): they do not broadcast",
        torch.ones(0),
        torch.ones(2),
        *others,
    )


@pytest.mark.parametrize("shape", [(3,), (2, 3, 1), (3, 2), (1, 3), ()])
def test_out_is_not_resized(pair, shape):
    op, _, _, others = pair
    out = torch.full(shape, 7.0)
    wrong_anywhere(
        op,
        f"out has shape {shape}, expected (2, 3)",
        torch.ones(2, 3),
        torch.ones(3),
        *others,
        out=out,
    )
    assert (out == 7).all()


def test_weight_of_another_length():
    wrong_anywhere(
        "rms_norm",
        "weight has 4095 elements, but x's last dimension is 4096",
        torch.ones(1, 4096),
        torch.ones(4095),
    )


def test_weight_with_two_dimensions():
    wrong_anywhere(
        "rms_norm",
        "weight has 2 dimensions, expected 1",
        torch.ones(2, 3),
        torch.ones(1, 3),
    )


def test_x_without_dimensions():
    wrong_anywhere(
        "rms_norm",
        "x has no dimensions, expected at least 1",
        torch.tensor(1.0),
    )


def test_backward_with_another_shape():
    x = torch.ones(2, 3)
    backward = torch.ops.torch_foo._rms_norm_backward
    message = re.escape(
        "torch_foo.rms_norm_backward: grad has shape (3,), expected (2, 3)"
    )
    for device in ("cpu", "meta"):
        args = torch.ones(3).to(device), x.to(device)
        with pytest.raises(RuntimeError, match=message):
            backward(*args, None, 1e-6, True, False)


# --- devices and kinds of tensors -------------------------------------------


def test_meta_beside_cpu(pair):
    op, first, second, others = pair
    cpu, meta = torch.ones(3), torch.ones(3, device="meta")
    message = f"{second} is on meta, but {first} is on cpu"
    wrong(op, message, cpu, meta, *others)
    message = f"{second} is on cpu, but {first} is on meta"
    wrong(op, message, meta, cpu, *others)
    message = f"out is on meta, but {first} is on cpu"
    wrong(op, message, cpu, cpu, *others, out=meta)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cpu_beside_cuda(pair):
    op, first, second, others = pair
    cpu, cuda = torch.ones(3), torch.ones(3, device="cuda")
    message = f"{second} is on cuda:0, but {first} is on cpu"
    wrong(op, message, cpu, cuda, *others)
    message = f"out is on cpu, but {first} is on cuda:0"
    wrong(op, message, cuda, cuda, *others, out=cpu)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch_foo.build_info().cuda,
    reason="needs a CUDA device and a foo_core without CUDA kernels",
)
def test_built_without_cuda(pair):
    op, _, _, others = pair
    x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match=f"torch_foo.{op}: .*without CUDA"):
        getattr(torch_foo, op)(x, x, *others)


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize:UserWarning")
@pytest.mark.parametrize(
    "convert",
    [
        lambda t: t.to_sparse(),
        lambda t: t.to_sparse_csr(),
        lambda t: t.to_sparse_csc(),
    ],
    ids=["coo", "csr", "csc"],
)
def test_sparse(pair, convert):
    op, first, second, others = pair
    dense = torch.eye(3)
    sparse = convert(dense)
    message = "is a sparse or otherwise not dense tensor, expected a dense one"
    wrong(op, f"{first} {message}", sparse, dense, *others)
    wrong(op, f"{second} {message}", dense, sparse, *others)
    wrong(op, f"out {message}", dense, dense, *others, out=sparse)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantized(pair):
    op, first, _, others = pair
    x = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    message = (
        f"{first} has dtype qint8, expected float32, float64, float16 or "
        "bfloat16"
    )
    wrong(op, message, x, torch.ones(3), *others)


@pytest.mark.parametrize("value", [3, 3.0, [1.0], "x"])
def test_not_a_tensor(pair, value):
    op, first, second, others = pair
    x = torch.ones(3)
    for name, args in [(first, (value, x)), (second, (x, value))]:
        message = (
            rf"torch_foo::{op}\(\) Expected a value of type "
            rf"'(Optional\[)?Tensor\]?' for argument '{name}' but instead "
            rf"found type '{type(value).__name__}'"
        )
        with pytest.raises(RuntimeError, match=message):
            getattr(torch_foo, op)(*args, *others)
        with pytest.raises(RuntimeError, match=message):
            getattr(torch_foo, op)(*args, *others, out=torch.ones(3))
    with pytest.raises(RuntimeError, match="for argument 'out'"):
        getattr(torch_foo, op)(x, x, *others, out=value)


def test_none():
    wrong("add", "a is None, expected a tensor", None, torch.ones(3))


def test_too_many_or_unknown_arguments():
    x = torch.ones(3)
    with pytest.raises(TypeError):
        torch_foo.add(x, x, x)
    with pytest.raises(TypeError):
        torch_foo.rms_norm(x, epsilon=1e-6)


# --- out= -------------------------------------------------------------------


def test_out_overlaps_itself(pair):
    op, _, _, others = pair
    out = torch.full((1, 3), 7.0).expand(2, 3)
    wrong(
        op,
        "out overlaps itself: two of its indices share memory",
        torch.ones(2, 3),
        torch.ones(3),
        *others,
        out=out,
    )
    assert (out == 7).all()


def test_out_overlaps_an_input(pair):
    op, first, second, others = pair
    memory = torch.full((5, 3), 2.0)
    x, row = memory[:4], torch.ones(3)
    message = f"out overlaps {first} without being exactly {first}"
    wrong(op, message, x, row, *others, out=memory[1:])
    message = f"out overlaps {first} without being exactly {first}"
    square = torch.full((3, 3), 2.0)
    wrong(op, message, square, row, *others, out=square.T)
    assert (memory == 2).all()
    assert (square == 2).all()

    memory = torch.full((6,), 2.0)
    with pytest.raises(RuntimeError, match=f"out overlaps {second}"):
        getattr(torch_foo, op)(row, memory[:3], *others, out=memory[1:4])
    assert (memory == 2).all()


def test_rms_norm_out_is_not_weight():
    x, weight = torch.ones(3), torch.full((3,), 2.0)
    with pytest.raises(RuntimeError, match="out overlaps weight"):
        torch_foo.rms_norm(x, weight, out=weight)


def test_neighbours_do_not_overlap(pair):
    op, _, _, others = pair
    memory = torch.ones(4, 6)
    row = torch.ones(3)
    x, out = memory[:, ::2], memory[:, 1::2]  # interleaved columns
    expected = getattr(torch_foo, op)(x, row, *others)
    getattr(torch_foo, op)(x, row, *others, out=out)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("which", ["first", "second", "out"])
def test_out_with_requires_grad(pair, which):
    op, _, _, others = pair
    tensors = {k: torch.ones(3) for k in ("first", "second", "out")}
    tensors[which].requires_grad_()
    first, second, out = tensors.values()
    wrong(
        op,
        "out= does not support automatic differentiation, but one of the "
        "tensors requires grad; leave out= away or use torch.no_grad()",
        first,
        second,
        *others,
        out=out,
    )
    expected = getattr(torch_foo, op)(first, second, *others)
    with torch.no_grad():
        getattr(torch_foo, op)(first, second, *others, out=out)
    assert torch.equal(out, expected)


def test_out_is_a_negated_view(pair):
    op, _, _, others = pair
    x = torch.ones(3)
    out = torch._neg_view(torch.full((3,), -7.0))
    message = "out is a negated view, expected a plain tensor"
    wrong(op, message, x, x, *others, out=out)
    assert (out == 7).all()


# --- vmap -------------------------------------------------------------------


def test_vmap_takes_no_out(pair):
    op, _, _, others = pair
    x, out = torch.ones(2, 3), torch.empty(2, 3)

    def f(x, out):
        return getattr(torch_foo, op)(x, x, *others, out=out)

    message = f"Batching rule not implemented for torch_foo::{op}.out"
    with pytest.raises(RuntimeError, match=message):
        torch.vmap(f)(x, out)


# --- operators of transformers ----------------------------------------------


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


def _loss_args(**changes):
    args = {"logits": torch.ones(2, 3), "target": torch.tensor([0, 1])}
    return list((args | changes).values())


def _gated_args(**changes):
    args = {"gate": torch.full((2, 3), 7.0), "up": torch.full((2, 3), 7.0)}
    return list((args | changes).values())


# Operator, its arguments but for these, names of its floating-point tensors.
FLOATING = [
    ("rope", _rope_args, ["x", "cos", "sin"]),
    ("add_rms_norm", _norm_args, ["x", "residual", "weight"]),
    ("linear", _linear_args, ["x", "weight", "bias"]),
    ("silu_mul", _gated_args, ["gate", "up"]),
    ("gelu_mul", _gated_args, ["gate", "up"]),
    ("cross_entropy", _loss_args, ["logits"]),
    ("quantize_int8_rowwise", lambda x=None: [x], ["x"]),
]
CASES = [(op, args, name) for op, args, names in FLOATING for name in names]


def _of(make, name: str) -> Tensor:
    """The argument of this name, as it should be."""
    probe = torch.zeros(())
    position = next(
        i for i, a in enumerate(make(**{name: probe})) if a is probe
    )
    value = make()[position]
    return torch.ones(2, 3) if value is None else value


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[2]}")
def case(request):
    return request.param


@pytest.mark.parametrize("bad", UNSUPPORTED, ids=str)
def test_unsupported_dtype_of_each(case, bad):
    op, make, name = case
    dtype = str(bad).removeprefix("torch.")
    wrong_anywhere(
        op,
        f"{name} has dtype {dtype}, expected float32, float64, float16 or "
        "bfloat16",
        *make(**{name: _of(make, name).to(bad)}),
    )


def test_each_is_dense(case):
    op, make, name = case
    wrong(
        op,
        f"{name} is a sparse or otherwise not dense tensor, expected a dense "
        "one",
        *make(**{name: _of(make, name).to_sparse()}),
    )


@pytest.mark.parametrize("value", [3, 3.0, [1.0], "x"])
def test_each_is_a_tensor(case, value):
    op, make, name = case
    message = rf"torch_foo::_?{op}\(\) Expected a value of type .*'{name}'"
    for function in (op, f"{op}_"):
        if hasattr(torch_foo, function):
            message = message.replace(op, f"{op}_?")
            with pytest.raises(RuntimeError, match=message):
                getattr(torch_foo, function)(*make(**{name: value}))


# Operator, message, arguments, keyword arguments: wrong on real tensors and on
# meta tensors alike. Of a NAME_ the message is the same.
F64 = torch.float64
WRONG = [
    ("add_rms_norm", m, _norm_args(**changes), {})
    for m, changes in [
        (
            "residual has dtype float64, but x has float32",
            {"residual": torch.ones(2, 3, dtype=F64)},
        ),
        (
            "weight has dtype float64, but x has float32",
            {"weight": torch.ones(3, dtype=F64)},
        ),
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
            "up has dtype float64, but gate has float32",
            [torch.ones(3), torch.ones(3, dtype=F64)],
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
            "cos is float64, but x is float32",
            {
                "cos": torch.ones(3, 2, dtype=F64),
                "sin": torch.ones(3, 2, dtype=F64),
            },
        ),
        (
            "sin has dtype float64, but cos has float32",
            {"sin": torch.ones(3, 2, dtype=F64)},
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
def test_wrong_input(op, message, args, named):
    wrong_anywhere(op, message, *args, **named)
    if "out" in named:
        assert (named["out"] == 7).all()
    elif hasattr(torch_foo, f"{op}_"):
        before = [a.clone() for a in args if isinstance(a, Tensor)]
        # Without data it is checked as NAME.
        for device, name in [("cpu", f"{op}_"), ("meta", op)]:
            given = [a.to(device) if isinstance(a, Tensor) else a for a in args]
            with pytest.raises(
                RuntimeError, match=f"torch_foo.{name}: {re.escape(message)}"
            ):
                getattr(torch_foo, f"{op}_")(*given, **named)
        after = [a for a in args if isinstance(a, Tensor)]
        assert all(map(torch.equal, before, after))


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


def test_meta_beside_cpu_of_each():
    def meta(make, name):
        return make(**{name: _of(make, name).to("meta")})

    for op, make, names in FLOATING:
        for name in names[1:]:
            with pytest.raises(RuntimeError, match=f"torch_foo.{op}: .* is on"):
                getattr(torch_foo, op)(*meta(make, name))
    target = torch.tensor([0, 1], device="meta")
    message = "target is on meta, but logits is on cpu"
    wrong("cross_entropy", message, torch.ones(2, 3), target)
    message = "positions is on meta, but x is on cpu"
    positions = torch.zeros(3, dtype=torch.int64, device="meta")
    wrong("rope", message, *_rope_args(positions=positions))


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


@pytest.mark.parametrize("op", ["silu_mul", "gelu_mul", "rope"])
def test_out_memory(op):
    """Nothing is written where out overlaps, but is not, an argument."""
    memory = torch.full((3, 3, 1, 4), 7.0)
    x, tables = memory[:2], [torch.ones(3, 2)] * 2
    rest = tables if op == "rope" else [torch.ones(2, 3, 1, 4)]
    function = getattr(torch_foo, op)
    name = "x" if op == "rope" else "gate"
    message = f"out overlaps {name} without being exactly {name}"
    wrong(op, message, x, *rest, out=memory[1:])
    message = "out overlaps itself: two of its indices share memory"
    wrong(op, message, x, *rest, out=memory[:1].expand(2, 3, 1, 4))
    assert (memory == 7).all()
    if op != "rope":  # the halves of a packed tensor
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


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("op", ["add_rms_norm", "rope"])
def test_inplace_with_requires_grad(op, which):
    args = (_norm_args if op == "add_rms_norm" else _rope_args)()
    args[which].requires_grad_()
    inplace = getattr(torch_foo, f"{op}_")
    with pytest.raises(
        RuntimeError,
        match=rf"{op}_ does not support automatic differentiation, but one of "
        rf"the tensors requires grad; use torch_foo.{op} or use",
    ):
        inplace(*args)
    assert (args[0] == 7).all()
    with torch.no_grad():
        inplace(*args)
    assert not (args[0] == 7).all()


def test_inplace_of_a_negated_view():
    x = torch._neg_view(torch.full((2, 3, 2, 4), -7.0))
    with pytest.raises(RuntimeError, match="x is a negated view"):
        torch_foo.rope_(*_rope_args(x=x))
    residual = torch._neg_view(torch.full((2, 3), -7.0))
    with pytest.raises(RuntimeError, match="residual is a negated view"):
        torch_foo.add_rms_norm_(*_norm_args(residual=residual))
    assert (x == 7).all()
    assert (residual == 7).all()
