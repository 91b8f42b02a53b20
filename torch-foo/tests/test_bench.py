"""What the benchmark compares has the same result, so that it is fair."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("benchmarks/ is not beside tests/", allow_module_level=True)


def _load(name: str) -> ModuleType:
    file = BENCHMARKS / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


cases = _load("cases")
# Several roundings to bfloat16 in the compositions, one in torch_foo.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def _error(actual: Tensor, expected: Tensor) -> float:
    """Of all elements together, relative."""
    actual, expected = actual.double(), expected.double()
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", cases.OPERATORS)
def test_all_ways_have_one_result(
    name: str, backward: bool, dtype: torch.dtype
) -> None:
    operator = cases.OPERATORS[name]
    if backward and not operator.gradients:
        pytest.skip(f"{name} has no gradients")
    # The second size: rope does nothing to the first token.
    case = cases.build(name, *operator.sizes[1], dtype, backward)
    with case.mode():
        results = {n: cases.flat(call()) for n, call in case.calls.items()}
    expected = results["torch_foo"]
    assert len(results) > 1
    assert case.read >= case.written > 0
    for call, actual in results.items():
        assert len(actual) == len(expected), call
        for a, e in zip(actual, expected, strict=True):
            assert a.shape == e.shape, call
            assert _error(a, e) < TOLERANCE[dtype], call
