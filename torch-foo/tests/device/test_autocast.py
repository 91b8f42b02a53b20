"""torch.autocast("foo") and GradScaler: as CUDA's."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_foo.device import _autocast


def names_with_a_rule() -> set[str]:
    lists = (
        _autocast.LOWER_PRECISION,
        _autocast.FLOAT32,
        _autocast.FLOAT32_RESULT,
        _autocast.WIDEST,
        "binary_cross_entropy norm.Scalar norm.ScalarOpt_dim",
    )
    return {f"aten::{name}" for names in lists for name in names.split()}


def test_rules_are_for_the_operators_of_cuda():
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    every = torch._C._dispatch_get_all_op_names()
    on_cuda = {
        name
        for name in every
        if name.startswith("aten::")
        and "cudnn" not in name
        and has_kernel(name, "AutocastCUDA")
    }
    # Torch before 2.13 has some for dimensions with names.
    named = ("imname", "imnameList", "names_ScalarOpt_dim")
    on_cuda = {name for name in on_cuda if not name.endswith(named)}
    # Torch 2.14 has it for CUDA, but not in the list for all devices.
    on_cuda.discard("aten::linalg_matrix_sqrth")
    on_foo = {name for name in every if has_kernel(name, "AutocastPrivateUse1")}
    assert on_cuda <= names_with_a_rule()
    # Torch 2.11 has no rule for it.
    on_foo.discard("aten::rms_norm")
    on_cuda.discard("aten::rms_norm")
    assert on_cuda == {name for name in on_foo if name.startswith("aten::")}


HALF, BFLOAT16, SINGLE, DOUBLE = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)


def square(dtype):
    return torch.rand(4, 4, dtype=dtype, device="foo")


X, H, D = (partial(square, dtype) for dtype in (SINGLE, HALF, DOUBLE))

RULES = {
    "linear": (lambda: F.linear(X(), X()), HALF),
    "@": (lambda: X() @ H(), HALF),
    "einsum": (lambda: torch.einsum("ij,jk", [X(), X()]), HALF),
    "attention": (
        lambda: F.scaled_dot_product_attention(X()[None], H()[None], X()[None]),
        HALF,
    ),
    "double is kept": (lambda: D() @ D(), DOUBLE),
    "exp": (lambda: H().exp(), SINGLE),
    "layer_norm": (lambda: F.layer_norm(H(), (4,)), SINGLE),
    "mse_loss": (lambda: F.mse_loss(H(), X()), SINGLE),
    "softmax": (lambda: H().softmax(-1), SINGLE),
    "softmax of a dtype": (lambda: H().softmax(-1, dtype=DOUBLE), DOUBLE),
    "sum": (lambda: H().sum(), SINGLE),
    "sum of integers": (lambda: H().to(torch.int32).sum(0), torch.int64),
    "norm": (lambda: H().norm(), SINGLE),
    "norm along": (lambda: torch.norm(H(), 2, [0]), SINGLE),
    "addcmul": (lambda: torch.addcmul(H(), X(), H()), SINGLE),
    "index_put": (
        lambda: H().index_put((torch.tensor([0], device="foo"),), X()[0]),
        SINGLE,
    ),
    "no rule": (lambda: H() + 1, HALF),
}


@pytest.mark.parametrize(("call", "dtype"), RULES.values(), ids=RULES)
def test_rule(call, dtype):
    with torch.autocast("foo"):
        assert call().dtype is dtype
    with torch.autocast("foo", enabled=False):
        pass


def test_dtypes():
    assert torch.foo.is_bf16_supported()
    with torch.autocast("foo", dtype=BFLOAT16):
        assert (X() @ X()).dtype is BFLOAT16
        with torch.autocast("foo", enabled=False):
            assert (X() @ X()).dtype is SINGLE
    with (
        pytest.warns(UserWarning, match="foo Autocast only supports"),
        torch.autocast("foo", dtype=DOUBLE),
    ):
        assert (X() @ X()).dtype is SINGLE


def test_binary_cross_entropy_is_refused():
    with (
        torch.autocast("foo"),
        pytest.raises(RuntimeError, match="unsafe to autocast"),
    ):
        F.binary_cross_entropy(X(), X())


def test_autocast_of_the_cpu_is_not_of_foo():
    with torch.autocast("cpu"):
        assert (X() @ X()).dtype is SINGLE
    with torch.autocast("foo"):
        assert (X().cpu() @ X().cpu()).dtype is SINGLE


def test_training_with_a_scaler():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1)).to("foo")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("foo", init_scale=2.0**40)
    x, y = torch.randn(16, 4, device="foo"), torch.randn(16, 1, device="foo")
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast("foo", dtype=HALF):
            loss = F.mse_loss(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert scaler.get_scale() < 2.0**40  # it overflowed at first
    assert losses[0] == losses[1]  # and then took no step
    assert losses[-1] < 0.8 * losses[0]
    assert model[0].weight.dtype is model[0].weight.grad.dtype is SINGLE
