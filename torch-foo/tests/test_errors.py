"""Wrong input: the message names operator, argument, expected and came."""

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


@pytest.fixture(params=[*BINARY, "rms_norm"])
def pair(request):
    """Any operator with two tensors: their names, the further arguments."""
    op = request.param
    if op == "rms_norm":
        return op, "x", "weight", (1e-6,)
    return op, "a", "b", BINARY[op]


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
            rf"torch_foo::_?{op}(_out)?\(\) Expected a value of type "
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

    message = f"Batching rule not implemented for torch_foo::_{op}_out"
    with pytest.raises(RuntimeError, match=message):
        torch.vmap(f)(x, out)
