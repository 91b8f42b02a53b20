"""What a C++ torch::nn::Module over foo_core can do, and what it cannot.

The limits are those that torch_python/README.md tells. When one of their tests
fails, PyTorch has changed, and the README has to.
"""

from __future__ import annotations

import copy
import importlib
import importlib.machinery
import io
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

PROJECT = Path(__file__).parent / "torch_python"
README = " ".join((PROJECT / "README.md").read_text().split())
DIM, HIDDEN, EPS = 48, 80, 1e-5


@pytest.fixture(scope="module")
def package(install) -> Iterator[ModuleType]:
    """Build and import the project."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(install(PROJECT))
        yield importlib.import_module("gated_mlp")


@pytest.fixture
def block(package: ModuleType) -> nn.Module:
    torch.manual_seed(0)
    return package.GatedMLP(DIM, HIDDEN, EPS)


class Eager(nn.Module):
    """The block in plain PyTorch."""

    def __init__(self, dim: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.norm = nn.Parameter(torch.ones(dim))
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.square().mean(-1, keepdim=True)
        n = x * (mean + self.eps).rsqrt() * self.norm
        hidden = nn.functional.silu(self.gate(n)) * self.up(n)
        return x + self.down(hidden)


def eager_copy(block: nn.Module, dtype: torch.dtype = torch.float64) -> Eager:
    """Return a block of PyTorch's with the same values."""
    eager = Eager(DIM, HIDDEN, EPS).to(dtype)
    eager.load_state_dict(dict(block.named_parameters().items()))
    return eager


def randomize_norm(block: nn.Module) -> None:
    with torch.no_grad():
        block.norm.uniform_(0.5, 1.5)


def outputs(
    block: nn.Module, x: torch.Tensor, grad: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the result and all gradients, in float64."""
    leaf = x.detach().requires_grad_()
    out = block(leaf)
    parameters = dict(block.named_parameters())
    inputs = [leaf, *parameters.values()]
    gradients = torch.autograd.grad(out, inputs, grad)
    names = ["out", "x", *parameters]
    values = [out.detach(), *gradients]
    return {n: v.double() for n, v in zip(names, values, strict=True)}


# --- values -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [
        (torch.float64, 4e-15),
        (torch.float32, 1e-6),
        (torch.float16, 2e-3),
        (torch.bfloat16, 1.5e-2),
    ],
)
def test_result_and_gradients(
    block: nn.Module, dtype: torch.dtype, bound: float
) -> None:
    """Check errors relative to the largest element of PyTorch's in float64."""
    randomize_norm(block)
    block.to(dtype)
    # The last dimension is not contiguous.
    x, grad = torch.randn(2, DIM, 2, 400, dtype=dtype).unbind(2)
    x, grad = x.transpose(1, 2), grad.transpose(1, 2)
    ours = outputs(block, x, grad)
    exact = outputs(eager_copy(block), x.double(), grad.double())
    assert ours.keys() == exact.keys()
    for name, value in exact.items():
        error = (ours[name] - value).abs().max() / value.abs().max()
        assert error <= bound, f"{name}: {error:.1e}"


def test_gradcheck(package: ModuleType) -> None:
    block = package.GatedMLP(5, 7, EPS)
    block.double()
    randomize_norm(block)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)

    def call(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return block(x)

    torch.autograd.gradcheck(call, (x, *block.parameters()))


def test_results_do_not_depend_on_the_number_of_threads(
    block: nn.Module,
) -> None:
    x, grad = torch.randn(2, 2000, DIM)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append(outputs(block, x, grad)["norm"])
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


def test_a_tensor_that_is_yet_to_be_negated(block: nn.Module) -> None:
    x = torch.randn(3, DIM, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    assert torch.equal(block(x), block(x.resolve_neg()))


def test_gradients_that_nobody_wants(block: nn.Module) -> None:
    block.norm.requires_grad_(False)
    block(torch.randn(3, DIM)).sum().backward()
    names = [n for n, p in block.named_parameters().items() if p.grad is None]
    assert names == ["norm"]


# --- what works -------------------------------------------------------------


def test_a_step_of_training(block: nn.Module) -> None:
    """Check that SGD changes all parameters like those of PyTorch's block."""
    block.double()
    eager = eager_copy(block)
    x, target = torch.randn(2, 64, DIM, dtype=torch.float64)

    def step(module: nn.Module) -> float:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(module(x), target)
        loss.backward()
        optimizer.step()
        return loss.item()

    before = [p.detach().clone() for p in block.parameters()]
    losses = [step(block), step(eager)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    expected = dict(eager.named_parameters())
    named = block.named_parameters().items()
    for (name, after), old in zip(named, before, strict=True):
        assert not torch.equal(after, old), name
        torch.testing.assert_close(after, expected[name])
    assert nn.functional.mse_loss(block(x), target) < losses[0]


def test_inside_sequential(block: nn.Module) -> None:
    model = nn.Sequential(block, nn.Linear(DIM, 2))
    names = [name for name, _ in model.named_parameters()]
    ours = ["0.norm", "0.gate.weight", "0.up.weight", "0.down.weight"]
    assert names == [*ours, "1.weight", "1.bias"]
    assert model.to(torch.float64) is model
    assert {p.dtype for p in block.parameters()} == {torch.float64}
    model(torch.randn(3, DIM, dtype=torch.float64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    model.eval()
    assert not block.training
    model.train()
    assert block.training


def test_as_a_module_of_its_own(block: nn.Module) -> None:
    assert isinstance(block, nn.Module)
    block.eval()
    assert not block.training
    block.train()
    assert block.training
    calls = []
    block.register_forward_hook(lambda *_: calls.append(1))
    block(torch.randn(3, DIM)).sum().backward()
    assert calls == [1]
    assert all(p.grad is not None for p in block.parameters())
    block.zero_grad()
    assert all(p.grad is None for p in block.parameters())


# --- what does not ----------------------------------------------------------

X = torch.ones(3, DIM)
Limit = tuple[Callable[[nn.Module], object], type[Exception], str]
LIMITS: dict[str, Limit] = {
    "state_dict": (
        lambda block: block.state_dict(),
        AttributeError,
        "'torch._C.cpp.nn.Module' object has no attribute 'state_dict'",
    ),
    "load_state_dict": (
        lambda block: block.load_state_dict({}),
        AttributeError,
        "'torch._C.cpp.nn.Module' object has no attribute "
        "'_load_from_state_dict'",
    ),
    "deepcopy": (
        copy.deepcopy,
        TypeError,
        "cannot pickle 'gated_mlp._C.cpp.GatedMLP' object",
    ),
    "pickle": (
        pickle.dumps,
        pickle.PicklingError,
        "Can't pickle <class 'importlib._bootstrap.GatedMLP'>",
    ),
    "torch.save": (
        lambda block: torch.save(block, io.BytesIO()),
        pickle.PicklingError,
        "Can't pickle <class 'importlib._bootstrap.GatedMLP'>",
    ),
    "apply": (
        lambda block: block.apply(print),
        AttributeError,
        "'torch._C.cpp.nn.Module' object has no attribute 'apply'",
    ),
    "torch.export": (
        lambda block: torch.export.export(block, (X,)),
        TypeError,
        "named_parameters(): incompatible function arguments.",
    ),
    "torch.compile": (
        lambda block: torch.compile(block, backend="eager")(X),
        AssertionError,
        "getfile returned None for function/method",
    ),
    "torch.compile(fullgraph=True)": (
        lambda block: torch.compile(
            nn.Sequential(block), backend="eager", fullgraph=True
        )(X),
        RuntimeError,
        "Attempted to call function marked as skipped",
    ),
    "torch.func": (
        lambda block: torch.func.grad(lambda x: block(x).sum())(X),
        RuntimeError,
        "cannot use C++ torch::autograd::Function with functorch transforms",
    ),
    "create_graph=True": (
        lambda block: torch.autograd.grad(
            block(X).sum(), block.norm, create_graph=True
        ),
        RuntimeError,
        "GatedMLP: backward with create_graph=True is not implemented",
    ),
}


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
@pytest.mark.parametrize("limit", LIMITS)
def test_limit(block: nn.Module, limit: str) -> None:
    """Check the first line of the error against the README."""
    call, error, message = LIMITS[limit]
    torch.compiler.reset()
    with pytest.raises(error) as caught:
        call(block)
    if torch.__version__.startswith("2.13."):  # others may word it otherwise
        assert str(caught.value).strip().startswith(message)
    assert f"`{message}`" in README


def test_limit_to_returns_nothing(block: nn.Module) -> None:
    assert block.to(torch.float64) is None
    assert block.eval() is None
    assert block.train() is None


def test_limit_one_python_and_one_torch(package: ModuleType) -> None:
    """Check that no stable ABI is used: not Python's, not libtorch's."""
    library = Path(package._C.__file__)
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    assert library.name == f"_C{suffix}"
    maps = Path("/proc/self/maps").read_text()
    torch_python = re.search(r"\S+/libtorch_python\.so", maps)
    assert torch_python
    internals = [
        set(re.findall(rb"__pybind11_internals_v\d+", path.read_bytes()))
        for path in (library, Path(torch_python[0]))
    ]
    assert internals[0]
    assert internals[0] == internals[1]
    # These are mangled names of functions of torch::nn::Module.
    assert b"_ZN5torch2nn6Module" in library.read_bytes()


# --- wrong arguments --------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.ones(2, 3),
            "GatedMLP: rms_norm: weight has 48 elements, "
            "but x's last dimension is 3",
        ),
        (
            torch.tensor(1.0),
            "GatedMLP: rms_norm: x has no dimensions, expected at least 1",
        ),
        (X.double(), "GatedMLP: x has dtype Double, but norm has Float"),
        (
            X.long(),
            "GatedMLP: x has dtype Long, expected Float, Double, Half or "
            "BFloat16",
        ),
        (
            X.to("meta"),
            "GatedMLP: x is a Strided tensor on meta, expected a Strided one "
            "on cpu",
        ),
        (
            X.to_sparse(),
            "GatedMLP: x is a Sparse tensor on cpu, expected a Strided one "
            "on cpu",
        ),
    ],
    ids=["shape", "scalar", "other dtype", "integers", "device", "sparse"],
)
def test_wrong_x(block: nn.Module, x: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=r"^GatedMLP: ") as caught:
        block(x)
    assert str(caught.value) == message


def test_no_tensor(block: nn.Module) -> None:
    with pytest.raises(TypeError, match=r"arg0: torch\.Tensor"):
        block(None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8), "GatedMLP: dim is 0, expected at least 1"),
        ((8, -1), "GatedMLP: hidden is -1, expected at least 1"),
        ((8, 8, -1e-6), "GatedMLP: eps is -1e-06, expected at least 0"),
        ((8, 8, float("nan")), "GatedMLP: eps is nan, expected at least 0"),
    ],
)
def test_wrong_constructor_argument(
    package: ModuleType, arguments: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=r"^GatedMLP: ") as caught:
        package.GatedMLP(*arguments)
    assert str(caught.value) == message
