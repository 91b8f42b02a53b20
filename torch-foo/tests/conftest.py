"""The operators' sample arguments, and the devices that tests run on."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

# Read when torch is imported: threads that wait leave the processor to other
# processes, such as pytest-xdist's.
os.environ["OMP_WAIT_POLICY"] = "passive"

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


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Without CUDA, skip its tests: one for all the parameters of each."""
    if not _no_cuda():
        return
    cases: dict[Any, list[pytest.Item]] = {}
    for item in items:
        if getattr(item, "callspec", None) is None:
            continue
        if item.callspec.params.get("device") == "cuda":
            cases.setdefault(item.function, []).append(item)
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


def _as_is(t: Tensor) -> Tensor:
    return t


@dataclass
class Sample:
    """An operator and arguments for it."""

    op: str
    name: str
    # The tensors that come first, of one dtype: those that gradients are of.
    shapes: tuple[tuple[int, ...], ...]
    # What follows them. A function takes the dtype and returns a tensor.
    others: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)
    layout: Callable[[Tensor], Tensor] = _as_is

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"

    @property
    def function(self) -> Callable[..., Any]:
        return partial(getattr(torch_foo, self.op), **self.named)

    @property
    def inplace(self) -> Callable[..., None] | None:
        """The operator that writes to its arguments, if there is one."""
        function = getattr(torch_foo, f"{self.op}_", None)
        return function and partial(function, **self.named)

    @property
    def reference(self) -> Callable[..., Any]:
        return partial(getattr(torch_foo.reference, self.op), **self.named)

    @property
    def packet(self) -> Any:
        return getattr(torch.ops.torch_foo, self.op)

    @property
    def has_gradient(self) -> bool:
        return self.op != "quantize_int8_rowwise"

    @property
    def has_out(self) -> bool:
        return "out" in self.packet.overloads()

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
        others = [
            other(dtype).to(device) if callable(other) else other
            for other in self.others
        ]
        return *tensors, *others


def _every_other(t: Tensor) -> Tensor:
    """The values of t in every other column of a wider tensor."""
    return t.repeat_interleave(2, -1)[..., ::2]


def _transposed(t: Tensor) -> Tensor:
    """The values of t, in memory in the opposite order of dimensions."""
    order = range(t.dim() - 1, -1, -1)
    return t.permute(*order).contiguous().permute(*order)


def _integers(values: Any) -> Callable[[torch.dtype], Tensor]:
    return lambda _: torch.tensor(values, dtype=torch.int64)


def _range(limit: int, *shape: int) -> Callable[[torch.dtype], Tensor]:
    """Integers below a limit, in an order that is not theirs."""
    return lambda _: (torch.arange(torch.Size(shape).numel()) * 7 % limit).view(
        shape
    )


def _tables(
    rows: int, columns: int, dtype: torch.dtype | None = None
) -> tuple[Callable[[torch.dtype], Tensor], ...]:
    """The tables cos and sin, of x's dtype or this one."""
    angles = torch.outer(
        torch.arange(rows), 10.0 ** -(torch.arange(columns) / max(columns, 1))
    )
    return (
        lambda x_dtype: angles.cos().to(dtype or x_dtype),
        lambda x_dtype: angles.sin().to(dtype or x_dtype),
    )


# The first of each operator is the typical one.
SAMPLES = (
    [
        Sample(op, name, shapes, others, layout=layout)
        for op, others in [("add", ()), ("mul", ()), ("muladd", (-0.5,))]
        for name, shapes, layout in [
            ("row", ((3, 5), (5,)), _as_is),
            ("equal", ((3, 5), (3, 5)), _as_is),
            ("column", ((1, 3, 1), (2, 1, 5)), _as_is),
            ("scalar", ((), (2, 3)), _as_is),
            ("scalars", ((), ()), _as_is),
            ("empty", ((0, 3), (1, 3)), _as_is),
            ("transposed", ((4, 3), (4, 3)), _transposed),
            ("strided", ((3, 5), (3, 5)), _every_other),
        ]
    ]
    + [
        Sample("rms_norm", "weight", ((3, 5), (5,)), (1e-6,)),
        Sample("rms_norm", "plain", ((3, 5),)),
        Sample("rms_norm", "large-eps", ((3, 5),), (None, 0.5)),
        Sample("rms_norm", "row", ((7,), (7,)), (1e-6,)),
        Sample("rms_norm", "3d", ((2, 3, 4), (4,)), (1e-5,)),
        Sample("rms_norm", "one-column", ((3, 1), (1,)), (1e-6,)),
        Sample("rms_norm", "no-rows", ((0, 5), (5,)), (1e-6,)),
        Sample(
            "rms_norm", "strided", ((3, 5), (5,)), (1e-6,), layout=_every_other
        ),
        Sample(
            "rms_norm",
            "transposed",
            ((3, 4), (4,)),
            (1e-6,),
            layout=_transposed,
        ),
    ]
    + [
        Sample("add_rms_norm", name, shapes, others, layout=layout)
        for name, shapes, others, layout in [
            ("weight", ((3, 5), (3, 5), (5,)), (1e-6,), _as_is),
            ("plain", ((3, 5), (3, 5)), (), _as_is),
            ("large-eps", ((3, 5), (3, 5)), (None, 0.5), _as_is),
            ("row", ((7,), (7,), (7,)), (1e-6,), _as_is),
            ("3d", ((2, 3, 4), (2, 3, 4), (4,)), (1e-5,), _as_is),
            ("one-column", ((3, 1), (3, 1), (1,)), (1e-6,), _as_is),
            ("no-rows", ((0, 5), (0, 5), (5,)), (1e-6,), _as_is),
            ("strided", ((3, 5), (3, 5), (5,)), (1e-6,), _every_other),
            ("transposed", ((3, 4), (3, 4), (4,)), (1e-6,), _transposed),
        ]
    ]
    + [
        Sample("linear", name, shapes, layout=layout)
        for name, shapes, layout in [
            ("bias", ((3, 5), (4, 5), (4,)), _as_is),
            ("plain", ((3, 5), (4, 5)), _as_is),
            ("row", ((7,), (4, 7), (4,)), _as_is),
            ("3d", ((2, 3, 4), (5, 4), (5,)), _as_is),
            ("many-rows", ((17, 2, 5), (6, 5)), _as_is),
            ("no-rows", ((0, 5), (4, 5), (4,)), _as_is),
            ("no-columns", ((3, 5), (0, 5), (0,)), _as_is),
            ("no-products", ((3, 0), (4, 0), (4,)), _as_is),
            ("strided", ((3, 5), (4, 5), (4,)), _every_other),
            ("transposed", ((2, 3, 5), (4, 5), (4,)), _transposed),
        ]
    ]
    + [
        Sample(op, name + suffix, shapes, (), named, layout)
        for op, suffix, named in [
            ("silu_mul", "", {}),
            ("gelu_mul", "", {}),
            ("gelu_mul", "-tanh", {"approximate": "tanh"}),
        ]
        for name, shapes, layout in [
            ("two", ((3, 5), (3, 5)), _as_is),
            ("packed", ((3, 8),), _as_is),
            ("row", ((7,), (7,)), _as_is),
            ("packed-row", ((6,),), _as_is),
            ("scalars", ((), ()), _as_is),
            ("3d", ((2, 3, 4), (2, 3, 4)), _as_is),
            ("empty", ((0, 3), (0, 3)), _as_is),
            ("packed-empty", ((3, 0),), _as_is),
            ("strided", ((3, 5), (3, 5)), _every_other),
            ("transposed", ((4, 3), (4, 3)), _transposed),
            ("packed-strided", ((3, 4),), _every_other),
            ("packed-transposed", ((2, 3, 4),), _transposed),
        ]
    ]
    + [
        Sample("rope", name + suffix, (shape,), (*tables, *rest), named, layout)
        for suffix, named in [("", {}), ("-interleaved", {"interleaved": True})]
        for name, shape, tables, rest, layout in [
            (
                "positions",
                (2, 3, 2, 4),
                _tables(5, 2),
                (_integers([4, 0, 2]),),
                _as_is,
            ),
            ("plain", (2, 3, 2, 4), _tables(3, 2), (), _as_is),
            (
                "batch-positions",
                (2, 3, 1, 6),
                _tables(6, 3),
                (_range(6, 2, 3),),
                _as_is,
            ),
            ("partial", (1, 2, 3, 7), _tables(4, 2), (), _as_is),
            ("nothing-rotated", (1, 2, 1, 3), _tables(4, 0), (), _as_is),
            (
                "float32-tables",
                (1, 3, 2, 4),
                _tables(3, 2, torch.float32),
                (None,),
                _as_is,
            ),
            (
                "one-token",
                (1, 1, 2, 8),
                _tables(9, 4),
                (_integers([8]),),
                _as_is,
            ),
            ("empty", (2, 0, 1, 4), _tables(3, 2), (), _as_is),
            ("strided", (2, 3, 1, 4), _tables(3, 2), (), _every_other),
            ("transposed", (2, 3, 2, 4), _tables(3, 2), (), _transposed),
        ]
    ]
    + [
        Sample("cross_entropy", name, (shape,), (target,), named, layout)
        for name, shape, target, named, layout in [
            ("mean", (3, 5), _range(5, 3), {}, _as_is),
            ("sum", (3, 5), _range(5, 3), {"reduction": "sum"}, _as_is),
            ("none", (3, 5), _range(5, 3), {"reduction": "none"}, _as_is),
            ("ignored", (3, 5), _integers([1, -100, 4]), {}, _as_is),
            (
                "smoothed",
                (3, 5),
                _integers([1, 2, 4]),
                {"ignore_index": 2, "label_smoothing": 0.3},
                _as_is,
            ),
            ("uniform", (2, 3), _range(3, 2), {"label_smoothing": 1.0}, _as_is),
            (
                "smoothed-none",
                (3, 4),
                _integers([1, -100, 3]),
                {"reduction": "none", "label_smoothing": 0.1},
                _as_is,
            ),
            ("row", (7,), _integers(3), {}, _as_is),
            ("3d", (2, 3, 4), _range(4, 2, 3), {}, _as_is),
            (
                "3d-none",
                (2, 3, 4),
                _range(4, 2, 3),
                {"reduction": "none"},
                _as_is,
            ),
            ("one-class", (3, 1), _integers([0, 0, 0]), {}, _as_is),
            ("empty", (0, 5), _range(5, 0), {"reduction": "sum"}, _as_is),
            ("strided", (3, 5), _range(5, 3), {}, _every_other),
            ("transposed", (3, 2, 4), _range(4, 3, 2), {}, _transposed),
        ]
    ]
    + [
        Sample("quantize_int8_rowwise", name, (shape,), layout=layout)
        for name, shape, layout in [
            ("rows", (3, 5), _as_is),
            ("row", (7,), _as_is),
            ("3d", (2, 3, 4), _as_is),
            ("zeros", (2, 5), torch.zeros_like),
            ("empty", (0, 5), _as_is),
            ("no-columns", (3, 0), _as_is),
            ("strided", (3, 5), _every_other),
            ("transposed", (3, 4), _transposed),
        ]
    ]
)

TYPICAL = list({sample.op: sample for sample in reversed(SAMPLES)}.values())

# Sizes that are shared among threads, with odd tails.
LARGE = [
    *(
        Sample(op, "large", ((67, 4099), (4099,)), others)
        for op, others in [("add", ()), ("mul", ()), ("muladd", (-0.5,))]
    ),
    Sample("rms_norm", "large", ((67, 4099), (4099,)), (1e-6,)),
    Sample("rms_norm", "tall", ((2049, 131), (131,)), (1e-6,)),
    Sample("add_rms_norm", "large", ((67, 4099), (67, 4099), (4099,)), (1e-6,)),
    Sample("linear", "large", ((3, 1031), (517, 1031), (517,))),
    *(
        Sample(op, name, shapes, named=named)
        for op, named in [
            ("silu_mul", {}),
            ("gelu_mul", {}),
            ("gelu_mul", {"approximate": "tanh"}),
        ]
        for name, shapes in [
            ("large", ((67, 4099), (67, 4099))),
            ("packed", ((67, 8198),)),
        ]
    ),
    *(
        Sample(
            "rope",
            "large",
            ((2, 67, 17, 129),),
            (*_tables(67, 61, dtype), _range(67, 2, 67)),
            {"interleaved": interleaved},
        )
        for interleaved in (False, True)
        for dtype in (None, torch.float32)
    ),
    Sample("cross_entropy", "large", ((67, 4099),), (_range(4099, 67),)),
    Sample(
        "cross_entropy",
        "smoothed",
        ((67, 4099),),
        (_range(4099, 67),),
        {"label_smoothing": 0.1, "reduction": "none"},
    ),
    Sample("quantize_int8_rowwise", "large", ((67, 4099),)),
]


def _fixture(samples: Iterable[Sample], doc: str) -> Any:
    def fixture(request: pytest.FixtureRequest) -> Sample:
        return request.param

    fixture.__doc__ = doc
    return pytest.fixture(params=samples, ids=str)(fixture)


@pytest.fixture
def norm_over() -> Callable[..., Sample]:
    """A norm over a shape, with a weight."""

    def make(op: str, shape: tuple[int, ...]) -> Sample:
        tensors = [shape] * (2 if op == "add_rms_norm" else 1)
        return Sample(op, "shape", (*tensors, shape[-1:]), (1e-6,))

    return make


sample = _fixture(
    SAMPLES, "Every operator, over the kinds of arguments that it takes."
)
typical = _fixture(TYPICAL, "Every operator, with one kind of arguments.")
large = _fixture(LARGE, "Every operator, with many elements.")
differentiable = _fixture(
    [s for s in SAMPLES if s.has_gradient], "As `sample`, with a gradient."
)
typical_differentiable = _fixture(
    [s for s in TYPICAL if s.has_gradient], "As `typical`, with a gradient."
)
with_out = _fixture(
    [s for s in SAMPLES if s.has_out], "As `sample`, with out=."
)
typical_with_out = _fixture(
    [s for s in TYPICAL if s.has_out], "As `typical`, with out=."
)
with_inplace = _fixture(
    [s for s in SAMPLES if s.inplace], "As `sample`, also in place."
)
mixable = _fixture(
    [s for s in TYPICAL if len(s.shapes) > 1],
    "As `typical`, where autocast may find several dtypes.",
)


@pytest.fixture
def sampled_operators() -> set[str]:
    return {sample.op for sample in SAMPLES}
