"""The cases that tests run on: every operator with each of its samples."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

# Read when torch is imported: threads that wait leave the processor to other
# processes, such as pytest-xdist's.
os.environ["OMP_WAIT_POLICY"] = "passive"

import pytest
import torch
import torch_foo
from hypothesis import HealthCheck, settings
from torch import Tensor
from torch_foo.operators import OPERATORS, Operator, Sample

sys.path.insert(0, str(Path(__file__).parent))  # modules that tests import

# Every run of the gate tries the same examples, however slow the machine is;
# pytest --hypothesis-profile=random tries others.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    # A case is the same in all examples, although its fixture is a test's own.
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
    ],
)
settings.register_profile(
    "random", settings.get_profile("repeatable"), derandomize=False
)
settings.load_profile("repeatable")

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def _no_cuda() -> str:
    """Why CUDA is not tested, or nothing."""
    if not torch.cuda.is_available():
        return "this machine or this torch has no CUDA device"
    if not torch_foo.build_info().cuda:
        return "foo_core was built without CUDA"
    return ""


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: needs CUDA in all libraries")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Without CUDA, skip its tests: one for all the parameters of each."""
    cases: dict[Any, list[pytest.Item]] = {}
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec and callspec.params.get("device") == "cuda":
            item.add_marker("cuda")
        if item.get_closest_marker("cuda"):
            cases.setdefault(item.function, []).append(item)
    if not _no_cuda():
        return
    dropped = set()
    for first, *others in cases.values():
        reason = f"{_no_cuda()} ({1 + len(others)} cases)"
        first.add_marker(pytest.mark.skip(reason=reason))
        config.hook.pytest_deselected(items=others)
        dropped.update(others)
    items[:] = [item for item in items if item not in dropped]


@pytest.fixture(params=DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _wait_for_the_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let a kernel that fails do so in its own test."""
    yield
    if not request.node.get_closest_marker("cuda"):
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        # No other kernel can run in this process: xdist starts another one.
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(1)
        raise


class _MallInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


@pytest.fixture
def bytes_kept() -> Callable[[Callable[[], Any]], float]:
    """Returns how many bytes of C's heap a call keeps for ever."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        pytest.skip("this C library does not count what is allocated")
    mallinfo.restype = _MallInfo

    def heap_growth(call: Callable[[], Any], count: int) -> float:
        before = mallinfo().uordblks
        for _ in range(count):
            call()
        return (mallinfo().uordblks - before) / count

    def kept(call: Callable[[], Any]) -> float:
        heap_growth(call, 300)  # until caches are full
        # Other threads of the process may allocate something in one of these.
        return median(heap_growth(call, 100) for _ in range(3))

    return kept


@dataclass(frozen=True)
class Case:
    """An operator with one of its samples."""

    operator: type[Operator]
    sample: Sample

    def __str__(self) -> str:
        return f"{self.op}-{self.sample.name}"

    @property
    def op(self) -> str:
        return self.operator.__name__

    @property
    def named(self) -> dict[str, Any]:
        return self.sample.named

    @property
    def packet(self) -> Any:
        return getattr(torch.ops.torch_foo, self.op)

    @property
    def function(self) -> Callable[..., Any]:
        return partial(getattr(torch_foo, self.op, self.packet), **self.named)

    @property
    def inplace(self) -> Callable[..., None] | None:
        """The function that writes to its arguments, if there is one."""
        function = getattr(torch_foo, f"{self.op}_", None)
        return function and partial(function, **self.named)

    @property
    def reference(self) -> Callable[..., Any]:
        return partial(self.operator.reference, **self.named)

    @property
    def has_gradient(self) -> bool:
        return self.operator.backward is not None

    @property
    def has_out(self) -> bool:
        return "out" in self.operator.variants

    @property
    def leaves(self) -> list[int]:
        """The positions of the random tensors, which have gradients."""
        arguments = enumerate(self.sample.arguments)
        return [i for i, a in arguments if isinstance(a, tuple)]

    @property
    def written(self) -> list[int]:
        """The positions of the arguments that the form in place writes to."""
        names = [a.name for a in self.packet.default._schema.arguments]
        return [names.index(name) for name in self.operator.inplace.values()]

    def args(
        self,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        requires_grad: bool = False,
    ) -> tuple[Any, ...]:
        return self.sample.args(
            dtype, device, requires_grad and self.has_gradient
        )

    def with_leaves(
        self, args: Iterable[Any], leaves: Iterable[Tensor]
    ) -> list:
        """Replace the random tensors among the arguments."""
        changed = list(args)
        for i, leaf in zip(self.leaves, leaves, strict=True):
            changed[i] = leaf
        return changed

    def of_leaves(self, args: Iterable[Any]) -> Callable[..., Any]:
        """The function of the random tensors alone."""
        return lambda *leaves: self.function(*self.with_leaves(args, leaves))


ALL = [Case(o, s) for o in OPERATORS.values() for s in o.samples()]
PUBLIC = [case for case in ALL if case.operator.is_public()]
CASES = [case for case in PUBLIC if not case.sample.is_large]
LARGE = [case for case in PUBLIC if case.sample.is_large]
TYPICAL = list({case.op: case for case in reversed(CASES)}.values())[::-1]


def _fixture(cases: Iterable[Case], doc: str) -> Any:
    def fixture(request: pytest.FixtureRequest) -> Case:
        return request.param

    fixture.__doc__ = doc
    return pytest.fixture(params=cases, ids=str)(fixture)


@pytest.fixture
def make_case() -> Callable[[str, Sample], Case]:
    """Make a case of a sample that is not the operator's own."""
    return lambda op, sample: Case(OPERATORS[op], sample)


@pytest.fixture
def all_typical() -> list[Case]:
    """Every operator, with one kind of arguments."""
    return TYPICAL


case = _fixture(
    CASES, "Every operator, over the kinds of arguments that it takes."
)
typical = _fixture(TYPICAL, "Every operator, with one kind of arguments.")
large = _fixture(LARGE, "Every operator, with many elements.")
gradient_kernel = _fixture(
    [c for c in ALL if not c.operator.is_public()],
    "Every operator that computes gradients for another one.",
)
differentiable = _fixture(
    [c for c in CASES if c.has_gradient], "As `case`, with a gradient."
)
typical_differentiable = _fixture(
    [c for c in TYPICAL if c.has_gradient], "As `typical`, with a gradient."
)
with_out = _fixture([c for c in CASES if c.has_out], "As `case`, with out=.")
typical_with_out = _fixture(
    [c for c in TYPICAL if c.has_out], "As `typical`, with out=."
)
with_inplace = _fixture(
    [c for c in CASES if c.inplace], "As `case`, also in place."
)
with_several = _fixture(
    [c for c in TYPICAL if len(c.leaves) > 1],
    "As `typical`, where dtypes may differ.",
)
mixed = _fixture(
    [c for c in CASES if c.sample.other is not None],
    "As `case`, where dtypes do differ.",
)
