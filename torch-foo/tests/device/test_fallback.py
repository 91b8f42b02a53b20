"""Operators of ATen on foo: results, errors and memory are the CPU's."""

import gc
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch_foo.device import _fallback

Call = Callable[..., Any]


def to(device: str, values: Any) -> Any:
    return tree_map_only(Tensor, lambda t: t.detach().to(device), values)


def outcome(call: Call, tensors: Any) -> Any:
    """Return what a call returns or raises, and what the tensors are now."""
    try:
        result = call(*tensors)
    except Exception as error:
        return type(error).__name__, str(error), to("cpu", tensors)
    return to("cpu", result), to("cpu", tensors)


def leaves(values: Any) -> list[Any]:
    return [x for x in tree_leaves(values) if not isinstance(x, str)]


def agree(call: Call, *tensors: Any) -> Any:
    """Check that a call does the same on foo as on the CPU."""
    expected = outcome(call, [t.clone() for t in tensors])
    got = outcome(call, [to("foo", t) for t in tensors])
    assert str(got[0]) == str(expected[0])  # of errors, better than a diff
    torch.testing.assert_close(
        leaves(got), leaves(expected), rtol=0, atol=0, equal_nan=True
    )
    return expected


def x() -> Tensor:
    return torch.arange(1.0, 13).reshape(3, 4)


# --- the two ways -----------------------------------------------------------


def test_the_table_is_used():
    """It describes the operators of the torch that it was generated for.

    Another torch has changed or dropped a few.
    """
    rows = [
        row.split(" ", 1) for row in torch.ops.torch_foo._device_fallbacks()
    ]
    operators = [_fallback.overload_of(name) for name, _ in rows]
    used = [
        op is not None and _fallback._description(op) == description
        for op, (_, description) in zip(operators, rows, strict=True)
    ]
    assert sum(used) > 0.95 * len(rows)


CALLS = {
    "C++": lambda a: (a * a, a.sin(), a.neg_(), a.sum(1), a.mul_(2)),
    "Python": lambda a: (a + 1, a.add_(a, alpha=2), a.clamp(2, 5), a > 3),
    "named tuples": lambda a: (a.sort(), a.max(0), torch.linalg.svd(a)),
    "lists of results": lambda a: (a.split(2), a.unbind(), a.histc(3)),
    "lists of arguments": lambda a: (torch.cat([a, a]), torch.stack([a, a])),
    "numbers": lambda a: (a * 2, 2 - a, a.int() * 2.5, a.int() / 2, a**2),
    "numbers on the CPU": lambda a: a * torch.tensor(2.0) + torch.tensor(1),
    "no weight": lambda a: F.layer_norm(a, (4,)),
    "a view": lambda a: a.t()[1:].unfold(1, 2, 1).mul_(3),
    "a view of a dtype": lambda a: a.view(torch.int32),
    "no elements": lambda a: (a[:0] * 2, a[:0].sum(), a[:0].sort()),
    "no dimensions": lambda a: (a[0, 0].exp(), a[0, 0] + a[0, 1]),
    "booleans": lambda a: (a[a > 3], torch.where(a > 3, a, -a), a.isnan()),
    "resized": lambda a: a.resize_(2, 3),
    "resized to more": lambda a: a.resize_(4, 4)[3].zero_(),
    "squeezed in place": lambda a: a.unsqueeze_(0).t_() if a.dim() < 2 else a,
    "indexed": lambda a: a[torch.tensor([0, 2])],
    "indexed on both": lambda a: a[torch.tensor([0, 2]), a[0, :2].long()],
    "written by index": lambda a: a.index_put_(
        (torch.tensor([0, 2]),), a[0, 0].clone(), accumulate=True
    ),
    "without elements": lambda a: a.set_(),
    "equal": lambda a: torch.equal(a, a.clone()) and a.is_set_to(a),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_agree(call):
    result = agree(call, x())
    assert not isinstance(result[0], str), result  # not an error


def test_results_are_on_foo():
    a = x().to("foo")
    for result in (a + 1, a * 2, a.t(), *a.sort(), torch.cat([a, a])):
        assert result.device == torch.device("foo", 0)
    assert type(a.sort()) is torch.return_types.sort
    assert a.mul_(2) is a
    assert a.add_(2) is a


def test_views_share_memory():
    a = torch.zeros(3, 4, device="foo")
    a.t()[1].fill_(1)
    a.view(-1)[4:8].add_(1)
    assert a.cpu().tolist() == [[0, 1, 0, 0], [1, 2, 1, 1], [0, 1, 0, 0]]


def test_lazy_bits():
    """Some kernels read that a tensor is conjugated, or negated, lazily."""
    z = torch.complex(x(), x() + 1)
    for call in (
        lambda z: z.conj().mm(z.mT),
        lambda z: z.conj()[0].dot(z[0]),
        lambda z: z.conj()[0, 0].item(),
        lambda z: z.conj().imag.clone(),
        lambda z: z.conj().imag.neg_(),
        lambda z: z.conj().imag.mul_(3),
        lambda z: z.conj().imag + 1,
        lambda z: z.conj().mul_(2j),
        lambda z: z.copy_(z.conj().clone()),
        lambda z: (z * z.conj(), z.exp(), z.cumsum(0), z.real.neg()),
        lambda z: torch.mm(z, z.mT, out=torch.empty_like(z @ z.mT).conj()),
    ):
        assert not isinstance(agree(call, z)[0], str)


# --- out= -------------------------------------------------------------------


def made(*shape: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.zeros(*shape, dtype=dtype or like.dtype, device=like.device)


OUT = {
    "right": lambda a: torch.add(a, 1, out=made(3, 4, like=a)),
    "empty": lambda a: torch.add(a, 1, out=made(0, like=a)),
    "strided": lambda a: torch.add(a, 1, out=made(4, 3, like=a).t()),
    "an argument": lambda a: torch.add(a, 1, out=a),
    "an argument in part": lambda a: torch.add(a[1:], 1, out=a[:-1]),
    "in itself": lambda a: torch.add(a, 1, out=made(1, like=a).expand(3, 4)),
    "wrong dtype": lambda a: torch.add(
        a, 1, out=made(3, 4, like=a, dtype=torch.int)
    ),
    "wider dtype": lambda a: torch.add(
        a, 1, out=made(3, 4, like=a, dtype=torch.double)
    ),
    "two": lambda a: torch.sort(
        a, out=(made(3, 4, like=a), made(0, like=a, dtype=torch.long))
    ),
    "a list": lambda a: torch.ops.aten.unbind_copy.int_out(
        a, 0, out=[made(4, like=a) for _ in a]
    ),
}


@pytest.mark.parametrize("call", OUT.values(), ids=OUT)
def test_out(call):
    agree(call, x())


@pytest.mark.parametrize("shape", [(2,), (50,), (3, 5), (12,)])
def test_out_of_another_shape(shape):
    def call(a):
        return torch.add(a, 1, out=made(*shape, like=a))

    with pytest.warns(UserWarning, match="An output with one or more elements"):
        agree(call, x())


def test_out_is_returned():
    a = x().to("foo")
    out = torch.empty(0, device="foo")
    assert torch.add(a, a, out=out) is out
    assert torch.equal(out.cpu(), x() * 2)


# --- errors -----------------------------------------------------------------

WRONG = {
    "IndexError": lambda a: a.sort(dim=7),
    "IndexError in Python": lambda a: a.index_add(7, a, a),
    "shapes": lambda a: a.mm(a),
    "shapes in Python": lambda a: a.addmm(a, a),
    "shapes in place": lambda a: a.mul_(a[0, :2]),
    "NotImplementedError": lambda a: a.bool().lerp(a.bool(), a.bool()),
    "LinAlgError": lambda a: torch.linalg.cholesky(-a[:3, :3]),
    "out of range": lambda a: a.index_select(0, made(1, like=a).long() + 9),
    "dtype": lambda a: a.long().mul_(0.5),
    "view": lambda a: a.t().view(-1),
    "negative size": lambda a: a.new_empty(-1),
    "alpha": lambda a: torch.add(a, a, alpha=True),
    "complex alpha": lambda a: torch.add(a, a, alpha=1 + 0j),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_error(call):
    error, text, _ = agree(call, x())
    with pytest.raises(Exception, match=re.escape(text)) as caught:
        call(x().to("foo"))
    assert type(caught.value).__name__ == error
    assert caught.value.__context__ is None  # such as an attempt in C++
    del caught


OVERLAPS = {
    "in part": lambda a: a.view(-1)[1:].mul_(a.view(-1)[:-1]),
    "in part, in Python": lambda a: a.view(-1)[1:].add_(a.view(-1)[:-1]),
    "in part, copied": lambda a: a.view(-1)[1:].copy_(a.view(-1)[:-1]),
    "in part, third": lambda a: a[1:].addcmul_(a[1:], a[:-1]),
    "in full": lambda a: a.mul_(a),
    "another view": lambda a: a[:, :3].mul_(a[:, :3].t()),
    "another dtype": lambda a: a[1:].add_(a.view(torch.int32)[:-1]),
    "in itself": lambda a: a[:1, :1].expand(3, 4).mul_(2),
    "in itself, in Python": lambda a: a[:1, :1].expand(3, 4).add_(2),
    "a mask": lambda a: a[1:].masked_fill_(a.view(torch.bool)[:-1, ::4], 0),
    "index": lambda a: a.index_copy_(0, a[:, 0].long() - 1, a),
    "scatter": lambda a: a.scatter_(0, a.long() % 3, a),
    "lists": lambda a: torch._foreach_mul_([a, a], [a, a]),
}


@pytest.mark.parametrize("call", OVERLAPS.values(), ids=OVERLAPS)
def test_overlap(call):
    agree(call, x())


# --- devices ----------------------------------------------------------------

MIXED = {
    "C++": lambda a, c: a * c,
    "Python": lambda a, c: a + c,
    "CPU first": lambda a, c: c * a,
    "in place": lambda a, c: a.mul_(c),
    "written on the CPU": lambda a, c: c.mul_(a),
    "number written": lambda a, c: c[0, 0].mul_(a[0, 0]),
    "number written, in Python": lambda a, c: c[0, 0].add_(a[0, 0]),
    "out": lambda a, c: torch.add(a, a, out=c),
    "out on foo": lambda a, c: torch.add(c, c, out=a),
    "list": lambda a, c: torch.cat([a, c]),
    "matrix": lambda a, c: a.mm(c.t()),
    "matrix, in Python": lambda a, c: torch.addmm(a[:, :3], a, c.t()),
    "index": lambda a, c: a.index_select(0, c[:, 0].long() * 0),
    "gather": lambda a, c: a.gather(0, c.long() * 0),
    "embedding": lambda a, c: F.embedding(c.long() * 0, a),
    "where": lambda a, c: torch.where(a > 3, a, c),
    "value": lambda a, c: a.index_put_((torch.tensor([0]),), c[0]),
    "foreach": lambda a, c: torch._foreach_mul([a], [c]),
}


@pytest.mark.parametrize("call", MIXED.values(), ids=MIXED)
def test_mixed_devices(call):
    a, c = x().to("foo"), x()
    with pytest.raises(
        RuntimeError, match="Expected all tensors to be on the same device"
    ):
        call(a, c)
    assert torch.equal(a.cpu(), x())
    assert torch.equal(c, x())


def test_devices_as_arguments():
    a = x().to("foo")
    for device in ("foo", "foo:0", "cpu", "meta"):
        for made in (
            torch.tril_indices(3, 3, device=device),
            torch.zeros_like(a, device=device),
            torch.zeros_like(x(), device=device),
            a.new_ones(2, device=device),
            torch.randn_like(a, device=device),
            a.to(device),
        ):
            assert made.device.type == device.partition(":")[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda device: torch.empty(2, device=device),
        lambda device: torch.empty_strided((2,), (1,), device=device),
        lambda device: torch.tril_indices(3, 3, device=device),
        lambda device: torch.tensor([1], device=device),
        lambda device: x().to(device),
        lambda device: x().to("foo").to(device),
        lambda device: torch.zeros_like(x().to("foo"), device=device),
    ],
)
def test_no_such_device(make):
    with pytest.raises(RuntimeError, match=r"expected foo:0, .* got foo:1"):
        make("foo:1")


def test_sizes_of_packed_sequences_stay_on_the_cpu():
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        x().unsqueeze(-1).to("foo"), torch.tensor([4, 2, 1]), batch_first=True
    )
    assert packed.data.device.type == "foo"
    assert packed.batch_sizes.device.type == "cpu"


def test_autocast_of_the_cpu_is_not_for_foo():
    a = x().to("foo")
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a.t()).dtype == torch.float32
        assert torch.addmm(a[:, :3], a, a.t()).dtype == torch.float32


# --- dtypes and layouts -----------------------------------------------------

DTYPES = [
    getattr(torch, name)
    for name in [
        "bool",
        "uint8",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "complex32",
        "complex64",
        "complex128",
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3fnuz",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "float4_e2m1fn_x2",
    ]
]


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtype(dtype):
    bits = torch.arange(64, dtype=torch.uint8)
    a = (bits % 2 if dtype is torch.bool else bits).view(dtype)
    b = a.to("foo")
    assert b.dtype is dtype
    assert (
        b[1:3]
        .clone()
        .cpu()
        .view(torch.uint8)
        .equal(a[1:3].clone().view(torch.uint8))
    )
    assert torch.empty(3, dtype=dtype, device="foo").dtype is dtype
    assert torch.zeros_like(a, device="foo").cpu().view(torch.uint8).sum() == 0


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.qint8, "Quantizedfoo"),
        (torch.quint4x2, "Quantizedfoo"),
        (torch.bits8, "foo has no tensors of torch.bits8"),
        (torch.int1, "foo has no tensors of torch.int1"),
    ],
    ids=str,
)
def test_no_such_dtype(dtype, message):
    with pytest.raises(NotImplementedError, match=message):
        torch.empty(3, dtype=dtype, device="foo")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda a: a.to_sparse(), "torch.sparse_coo"),
        (
            lambda a: torch.quantize_per_tensor(a, 0.1, 0, torch.quint8),
            "torch.quint8",
        ),
        (lambda a: a.to_mkldnn(), "torch._mkldnn"),
    ],
)
def test_no_such_layout(make, what):
    with pytest.raises(NotImplementedError, match=what):
        make(x().to("foo"))


# --- operators of other libraries -------------------------------------------


def test_operator_of_another_library():
    """One with a kernel for the CPU runs on foo, too."""
    library = torch.library.Library("other", "DEF")
    library.define("scaled(Tensor x, float by) -> Tensor")
    library.define("scale_(Tensor(a!) x, float by) -> ()")
    library.define("only_cuda(Tensor x) -> Tensor")
    library.impl(
        "scaled", lambda x, by: torch.from_numpy(x.numpy() * by), "CPU"
    )
    library.impl("scale_", lambda x, by: np.copyto(x.numpy(), x * by), "CPU")
    library.impl("only_cuda", lambda x: x, "CUDA")
    a = x().to("foo")
    assert torch.equal(torch.ops.other.scaled(a, 2).cpu(), x() * 2)
    torch.ops.other.scale_(a, 3)
    assert torch.equal(a.cpu(), x() * 3)
    with pytest.raises(NotImplementedError, match=r"'other::only_cuda'.*'foo'"):
        torch.ops.other.only_cuda(a)
    library._destroy()


# --- memory -----------------------------------------------------------------


def test_no_cycles():
    """Results are freed at once, not when Python looks for garbage."""
    a = x().to("foo")
    gc.collect()
    gc.disable()
    before = torch.foo.memory_allocated()
    try:
        for call in (*CALLS.values(), *OUT.values(), *WRONG.values()):
            outcome(call, [a.clone()])
            assert torch.foo.memory_allocated() == before
        for mixed in MIXED.values():
            outcome(mixed, [a.clone(), x()])
            assert torch.foo.memory_allocated() == before
    finally:
        gc.enable()


def numbers(a: Tensor) -> Tensor:
    return torch.zeros(3, dtype=torch.long, device=a.device)


#: Values of each kind that C++ owns: lists, None, strings, numbers.
OWNED = {
    "tensors": lambda a: torch.cat([a, a]),
    "tensors of the CPU": lambda a: torch.cat([a, a.cpu()]),
    "list": lambda a: a.flip([0, 1]),
    "list, beside the CPU": lambda a: F.layer_norm(a, (4,), a[0].cpu()),
    "list, wrong": lambda a: a.flip([7]),
    "None": lambda a: a[numbers(a), :, None],
    "None, of the CPU": lambda a: a[:, numbers(a).cpu()],
    "string": lambda a: F.gelu(a, approximate="tanh"),
    "string, wrong": lambda a: F.gelu(a.int(), approximate="tanh"),
    "string or None": lambda a: a.div(a, rounding_mode="floor"),
    "shared": lambda a: a[1:].mul_(a[:-1]),
    "in place": lambda a: a.mul_(a.clone()),
    "named tuple": lambda a: a.sort(stable=True),
    "Python": lambda a: torch.add(a, 2, out=torch.empty(0, device="foo")),
}


@pytest.mark.parametrize("call", OWNED.values(), ids=OWNED)
def test_calls_keep_no_memory(call, bytes_kept):
    a = x().to("foo")
    assert bytes_kept(lambda: outcome(call, [a])) < 8


def test_threads():
    a = torch.randn(64, 64)
    expected = ((a @ a).sin() + 1).sum()
    wrong = []

    def work():
        for _ in range(50):
            b = a.to("foo")
            if not torch.equal(((b @ b).sin() + 1).sum().cpu(), expected):
                wrong.append(b)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
