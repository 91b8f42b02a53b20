"""torch_foo's own operators on foo: foo_core's kernels, as on the CPU."""

import pytest
import torch
import torch.nn.functional as F
import torch_foo
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


def to(device, values):
    return tree_map_only(
        Tensor,
        lambda t: t.detach().to(device).requires_grad_(t.requires_grad),
        values,
    )


def check(got, expected):
    for a, b in zip(tree_leaves(got), tree_leaves(expected), strict=True):
        assert a.device.type == "foo"
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=0, equal_nan=True)


def test_result(case, dtype):
    args = case.args(dtype)
    check(case.function(*to("foo", args)), case.function(*args))


def test_inference_mode(typical):
    args = typical.args()
    with torch.inference_mode():
        check(typical.function(*to("foo", args)), typical.function(*args))


def test_gradient(case):
    if not case.has_gradient:
        pytest.skip("it has no gradient")
    grads = []
    for args in (to("foo", given := case.args(requires_grad=True)), given):
        results = tree_leaves(case.function(*args))
        ones = [torch.ones_like(r) for r in results]
        leaves = [args[i] for i in case.leaves]
        grads.append(torch.autograd.grad(results, leaves, ones))
    check(*grads)


def test_out(typical):
    if not typical.has_out:
        pytest.skip("it has no out=")
    args = typical.args()
    expected = typical.function(*args)
    out = torch.empty_like(expected, device="foo")
    assert typical.function(*to("foo", args), out=out) is out
    check(out, expected)


def test_in_place(typical):
    if typical.inplace is None:
        pytest.skip("it has no form in place")
    args = typical.args()
    foo_args = to("foo", args)
    typical.inplace(*foo_args)
    typical.inplace(*args)
    for i in typical.written:
        check(foo_args[i], args[i])


def test_vmap(typical):
    if not typical.leaves:
        pytest.skip("it has no floating-point argument")
    args = typical.args()
    dims = tuple(0 if i in typical.leaves else None for i in range(len(args)))
    batched = tuple(
        a if dim is None else torch.stack([a, a + 1])
        for a, dim in zip(args, dims, strict=True)
    )
    vmapped = torch.vmap(typical.function, dims)
    check(vmapped(*to("foo", batched)), vmapped(*batched))


def test_autocast():
    """Autocast lets linear mix dtypes, as it does on the CPU."""
    x, weight = torch.randn(3, 4, device="foo"), torch.randn(5, 4, device="foo")
    with pytest.raises(RuntimeError, match="has dtype"):
        torch_foo.linear(x.bfloat16(), weight)
    with torch.autocast("foo", torch.bfloat16):
        y = torch_foo.linear(x.bfloat16(), weight)
    assert y.dtype == torch.float32


def test_opcheck(typical):
    torch.library.opcheck(
        typical.packet.default,
        to("foo", typical.args()),
        typical.named,
        test_utils=("test_schema", "test_faketensor"),
    )


def test_mixed_devices(typical):
    args = typical.args()
    if len(typical.leaves) < 2:
        pytest.skip("it has one tensor")
    first = typical.leaves[0]
    mixed = [to("foo", a) if i == first else a for i, a in enumerate(args)]
    with pytest.raises(
        RuntimeError, match=rf"torch_foo\.{typical.op}: .* is on"
    ):
        typical.function(*mixed)


# --- ATen's operators that foo_core has a kernel for ------------------------

ATEN = {
    "add": lambda a: a + a,
    "mul": lambda a: a * a,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu by tanh": lambda a: F.gelu(a, approximate="tanh"),
}


@pytest.mark.parametrize("function", ATEN.values(), ids=ATEN)
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(5, 7),
        lambda: torch.randn(5, 7).t(),
        lambda: torch.randn(5, 14)[:, ::2],
        lambda: torch.randn(1).expand(3, 4),
        lambda: torch.randn(()),
        lambda: torch.randn(0, 3),
        lambda: torch.randn((1,) * 70),
        lambda: torch.tensor([0.0, -0.0, 1e30, -1e30, torch.nan]),
    ],
)
def test_kernel_of_aten(function, make, dtype):
    """Strided, or none of foo_core's, it is what the CPU computes."""
    tolerance = {
        torch.float32: 1e-6,
        torch.float64: 1e-14,
        torch.bfloat16: 1.6e-2,
        torch.float16: 2e-3,
    }[dtype]
    a = make().to(dtype)
    torch.testing.assert_close(
        function(a.to("foo")).cpu().flatten(),
        function(a).flatten(),
        rtol=tolerance,
        atol=tolerance,
        equal_nan=True,
    )
    grads = []
    for device in ("foo", "cpu"):
        leaf = a.to(device).requires_grad_()
        function(leaf).sum().backward()
        grads.append(leaf.grad.cpu().flatten())
    torch.testing.assert_close(
        *grads, rtol=tolerance, atol=tolerance, equal_nan=True
    )


@pytest.mark.parametrize("function", ATEN.values(), ids=ATEN)
def test_foo_core_is_used(function, monkeypatch):
    """Its result is that of torch_foo's operator, to the bit."""
    a = torch.randn(1000)
    ones = torch.ones_like(a)
    expected = {
        "add": lambda: torch_foo.add(a, a),
        "mul": lambda: torch_foo.mul(a, a),
        "silu": lambda: torch_foo.silu_mul(a, ones),
        "gelu": lambda: torch_foo.gelu_mul(a, ones),
        "gelu by tanh": lambda: torch_foo.gelu_mul(a, ones, approximate="tanh"),
    }
    name = next(n for n, f in ATEN.items() if f is function)
    check(function(a.to("foo")), expected[name]())
