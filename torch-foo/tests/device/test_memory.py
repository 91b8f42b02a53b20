"""Memory of the device that ends: an error in torch's words, and no harm."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_foo
from torch import Tensor
from torch.utils._pytree import tree_map_only

CALLS: dict[str, Callable[[Tensor], Any]] = {
    "empty": lambda a: torch.empty(1000, device="foo"),
    "copied": lambda a: torch.ones(1000).to("foo"),
    "cloned": lambda a: a.clone(),
    "C++": lambda a: a.sin(),
    "foo_core": lambda a: F.silu(a * a),
    "Python": lambda a: a + 1,
    "composite": lambda a: F.cross_entropy(a, a.softmax(1)),
    "list": lambda a: torch.unique(a, return_inverse=True),
    "out": lambda a: torch.add(a, 1, out=torch.empty(0, device="foo")),
    "two out": lambda a: torch.sort(
        a,
        out=(
            torch.empty(0, device="foo"),
            torch.empty(0, dtype=torch.long, device="foo"),
        ),
    ),
    "resized": lambda a: a.clone().resize_(100, 100),
    "repeated": lambda a: a.repeat(2, 2),
    "torch_foo": lambda a: torch_foo.rms_norm(a),
    "gradient": lambda a: torch.autograd.grad(
        (F.gelu(a.requires_grad_()) ** 2).sum(), a
    ),
}


def result(call: Callable[[Tensor], Any], a: Tensor) -> Any:
    """Call, and return what it returns on the CPU."""
    return tree_map_only(Tensor, lambda t: t.cpu(), call(a))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_out_of_memory(call, settled):
    """Let each allocation of a call be the first that fails."""
    torch.manual_seed(0)
    a = torch.randn(32, 32).to("foo")
    content = a.cpu()
    before = torch.foo.memory_allocated()
    torch.foo.reset_peak_memory_stats()
    expected = result(call, a.detach())
    peak = torch.foo.max_memory_allocated()
    assert settled(before)
    for limit in range(before, peak, (peak - before) // 8):
        torch.foo.set_memory_limit(limit)
        words = "foo out of memory. (Tried to allocate|.*bytes)"
        try:
            with pytest.raises(RuntimeError, match=words) as caught:
                result(call, a.detach())
        finally:
            torch.foo.set_memory_limit(None)
        # C++ can raise nothing but RuntimeError.
        is_ours = str(caught.value).startswith("torch_foo.")
        assert is_ours or caught.type is torch.OutOfMemoryError
        caught.value.__traceback__ = None
        del caught
        assert settled(before)
        assert torch.equal(a.cpu(), content)
    got = result(call, a.detach())
    if call is not CALLS["empty"] and call is not CALLS["resized"]:
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_nothing_is_half_written():
    """out= takes all of its results, or none."""
    a = torch.randn(100, device="foo")
    values = torch.empty(0, device="foo")
    indices = torch.empty(0, dtype=torch.long, device="foo")
    # There is memory for the values, and not for the indices.
    torch.foo.set_memory_limit(torch.foo.memory_allocated() + 500)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.sort(a, out=(values, indices))
    finally:
        torch.foo.set_memory_limit(None)
    assert values.shape == indices.shape == (0,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.empty(2**50, device="foo"), "Tried to allocate"),
        (lambda: torch.empty(-1, device="foo"), "negative dimension"),
        (lambda: torch.empty(2**62, 8, device="foo"), "overflow"),
        (
            lambda: torch.empty_strided((2,), (-1,), device="foo"),
            "overflow",
        ),
        (
            lambda: torch.empty_strided((2,), (2**62,), device="foo"),
            "overflow",
        ),
        (lambda: torch.empty_strided((2, 2), (1,), device="foo"), "match"),
        (
            lambda: torch.empty(2, device="foo", pin_memory=True),
            "Only dense CPU tensors can be pinned",
        ),
    ],
)
def test_no_such_tensor(make, message):
    with pytest.raises(RuntimeError, match=message):
        make()


def test_peak_is_of_what_was_allocated():
    torch.foo.reset_peak_memory_stats()
    peak = torch.foo.max_memory_allocated()
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(2**50, device="foo")
    assert torch.foo.max_memory_allocated() == peak


def test_message_of_torch_foos_operators():
    x = torch.ones(100, device="foo")
    message = (
        r"^torch_foo.mul: foo out of memory. \(Tried to allocate 400 bytes on "
        r"foo:0\)$"
    )
    torch.foo.set_memory_limit(500)
    try:
        with pytest.raises(RuntimeError, match=message):
            torch_foo.mul(x, x)
    finally:
        torch.foo.set_memory_limit(None)


@pytest.mark.parametrize("limit", [-1, 1e9, "1"])
def test_limit_is_a_number_of_bytes(limit):
    with pytest.raises(ValueError, match="expected a number of bytes"):
        torch.foo.set_memory_limit(limit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int16])
def test_deterministic_algorithms_fill_memory(dtype):
    torch.use_deterministic_algorithms(True)
    try:
        filled = torch.empty(3, dtype=dtype, device="foo").cpu()
        expected = torch.empty(3, dtype=dtype)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(filled, expected, rtol=0, atol=0, equal_nan=True)
