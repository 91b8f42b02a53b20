"""The benchmark compares calls that have the same result."""

import importlib.util
import json
import sys
from collections.abc import Callable
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
    """Return the relative error of all elements together."""
    actual, expected = actual.double(), expected.double()
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", cases.OPERATORS)
def test_all_ways_have_one_result(
    name: str, backward: bool, dtype: torch.dtype
) -> None:
    operator = cases.OPERATORS[name]
    if backward and not cases.has_backward(operator):
        pytest.skip(f"no gradients of {name} are timed")
    # The first size has one row, which may be special: position 0.
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


@pytest.mark.parametrize(
    ("function", "read", "written"),
    [(torch.add, 0, 0), (torch.mul, 3, 2), (torch.sigmoid, 2, 1)],
    ids=["hands its gradient on", "saves arguments", "saves its result"],
)
def test_bytes_of_gradients(
    function: Callable[..., Tensor], read: int, written: int
) -> None:
    """Count them in tensors of 4 float32."""
    leaves = [torch.randn(4, requires_grad=True) for _ in range(2)]
    leaves = leaves[: 1 if function is torch.sigmoid else 2]
    got = cases.backward_bytes(
        lambda: function(*leaves), leaves, [torch.randn(4)]
    )
    assert got == (16 * read, 16 * written)


def test_operator_without_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    name, operator = next(iter(cases.OPERATORS.items()))
    monkeypatch.setattr(operator, "benchmark", None)
    loaded = _load("cases")
    assert name in loaded.PUBLIC
    assert name not in loaded.OPERATORS


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[object, str, str]]:
    """Run a program of benchmarks/; return its exit status and output."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def run(program: str, *arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        status: object = 0
        try:
            importlib.import_module(program).main()
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return run


def test_results_are_written_as_they_come(run, tmp_path: Path) -> None:
    file = tmp_path / "calls.json"
    threads = torch.get_num_threads()
    status, _, _ = run(
        "bench", "--calls", "--seconds", "0.001", "--json", str(file)
    )
    torch.set_num_threads(threads)
    assert status == 0
    written = json.loads(file.read_text())
    assert written["environment"]["threads"] == 1
    assert len(written["results"]) == len(cases.call_cases())
    assert all(r["ratio_of_medians"] for r in written["results"])
    assert list(tmp_path.iterdir()) == [file]
    status, _, _ = run("table", str(file))
    assert status == f"table: {file} holds no comparison of operators"


def test_table(run, tmp_path: Path) -> None:
    def result(
        size: str,
        dtype: str,
        direction: str,
        ratio: float,
        operator: str = "mul",
    ) -> dict:
        return {
            "case": f"{operator} {size} {dtype} {direction}",
            "operator": operator,
            "size": size,
            "dtype": dtype,
            "direction": direction,
            "ratio_of_medians": {"eager": ratio, "compile": 9.0},
            "torch_foo_to_roofline_of_medians": 1.25,
        }

    file = tmp_path / "results.json"
    results = [
        result("16x4096", "float32", "forward", 2.0),
        result("16x4096", "bfloat16", "forward", 1.25),
        result("512x4096", "float32", "out=", 3.0),
        result("4x4096", "float32", "forward", 4.0, "linear"),
    ]
    file.write_text(json.dumps({"environment": {}, "results": results}))
    status, output, _ = run("table", str(file))
    assert status == 0
    assert "| `mul` | 2.0 · 1.2 (80 · 80 %) |" in output
    assert "| `mul` | 3.0 (80 %) |" in output
    # Operators of other sizes have a table of their own.
    assert "| | 4 x 4096 |\n|---|---|\n| `linear` | 4.0 (80 %) |" in output
    assert output.endswith(
        "Below 1.5:\n\n- mul 16x4096 bfloat16 forward: 1.25 x eager, 80 % of "
        "the probe's speed\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing"], "--only: 'nothing' is in none of "),
        (["--only", "("], "--only: not a regular expression"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--scaling"], "--scaling needs --threads of at least 2"),
        (["--seconds", "-1"], "--seconds must be more than 0"),
        (["--json", "missing/x.json"], "--json: cannot write to missing/x"),
        (["--plot", "x.txt"], "--plot: the file must end in .png"),
        (["--plot", "x.png", "--calls"], "--plot: there is none of --calls"),
    ],
)
def test_wrong_options(run, arguments: list[str], message: str) -> None:
    status, _, error = run("bench", *arguments)
    assert status == 2
    assert error.startswith(f"bench: {message}")
