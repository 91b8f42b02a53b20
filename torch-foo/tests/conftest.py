"""The operators' sample arguments, and the devices that tests run on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch_foo
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def _no_cuda() -> str:
    """Why CUDA is not tested, or nothing."""
    if not torch.cuda.is_available():
        return "this machine or this torch has no CUDA device"
    if not torch_foo.build_info().cuda:
        return "foo_core was built without CUDA"
    return ""


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(bool(_no_cuda()), reason=_no_cuda()),
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@dataclass
class Sample:
    """An operator and arguments for it."""

    op: str
    name: str
    shapes: tuple[tuple[int, ...], ...]
    others: tuple[Any, ...] = ()
    layout: Callable[[Tensor], Tensor] = lambda t: t

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"

    @property
    def function(self) -> Callable[..., Tensor]:
        return getattr(torch_foo, self.op)

    @property
    def reference(self) -> Callable[..., Tensor]:
        return getattr(torch_foo.reference, self.op)

    @property
    def packet(self) -> Any:
        return getattr(torch.ops.torch_foo, self.op)

    def args(
        self,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        requires_grad: bool = False,
    ) -> tuple[Any, ...]:
        tensors = [
            self.layout(torch.randn(shape, dtype=torch.float64))
            .to(device, dtype)
            .requires_grad_(requires_grad)
            for shape in self.shapes
        ]
        return *tensors, *self.others


def _every_other(t: Tensor) -> Tensor:
    """The values of t in every other column of a wider tensor."""
    return t.repeat_interleave(2, -1)[..., ::2]


SAMPLES = [
    Sample(op, name, shapes, others, layout)
    for op, others in [("add", ()), ("mul", ()), ("muladd", (-0.5,))]
    for name, shapes, layout in [
        ("equal", ((3, 5), (3, 5)), lambda t: t),
        ("row", ((3, 5), (5,)), lambda t: t),
        ("column", ((1, 3, 1), (2, 1, 5)), lambda t: t),
        ("scalar", ((), (2, 3)), lambda t: t),
        ("scalars", ((), ()), lambda t: t),
        ("empty", ((0, 3), (1, 3)), lambda t: t),
        ("transposed", ((4, 3), (4, 3)), lambda t: t.mT),
        ("strided", ((3, 5), (3, 5)), _every_other),
    ]
] + [
    Sample("rms_norm", "weight", ((3, 5), (5,)), (1e-6,)),
    Sample("rms_norm", "plain", ((3, 5),)),
    Sample("rms_norm", "large-eps", ((3, 5),), (None, 0.5)),
    Sample("rms_norm", "row", ((7,), (7,)), (1e-6,)),
    Sample("rms_norm", "3d", ((2, 3, 4), (4,)), (1e-5,)),
    Sample("rms_norm", "one-column", ((3, 1), (1,)), (1e-6,)),
    Sample("rms_norm", "no-rows", ((0, 5), (5,)), (1e-6,)),
    Sample("rms_norm", "strided", ((3, 5), (5,)), (1e-6,), _every_other),
]


@pytest.fixture(params=SAMPLES, ids=str)
def sample(request: pytest.FixtureRequest) -> Sample:
    """Every operator, over the kinds of arguments that it takes."""
    return request.param


@pytest.fixture(
    params=[
        s
        for s in SAMPLES
        if s.name == ("weight" if s.op == "rms_norm" else "row")
    ],
    ids=str,
)
def typical(request: pytest.FixtureRequest) -> Sample:
    """Every operator, with one kind of arguments."""
    return request.param
