"""The benchmark compares calls that have the same result."""

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch_foo
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
    assert case.written > 0
    assert case.read >= (1 if name == "dequantize" else case.written)
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


class _Event:
    """Stand in for torch.cuda.Event of a GPU that works while it is called."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.time = time.perf_counter()

    def query(self) -> bool:
        return _Event.is_early

    def synchronize(self) -> None:
        assert self.time

    def elapsed_time(self, end: "_Event") -> float:
        return (end.time - self.time) * 1e3

    is_early = False


@pytest.fixture
def fake_gpu(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the benchmark of a GPU run on the CPU."""
    import bench

    build, randn = bench.cases.build, torch.randn
    properties = SimpleNamespace(
        name="none",
        total_memory=1 << 30,
        L2_cache_size=1 << 10,
        multi_processor_count=1,
    )
    for name, value in {
        "Event": _Event,
        "_sleep": lambda cycles: None,
        "synchronize": lambda: None,
        "is_available": lambda: True,
        "get_device_properties": lambda device: properties,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    info = torch_foo.build_info()._replace(cuda=True)
    monkeypatch.setattr(torch_foo, "build_info", lambda: info)
    monkeypatch.setattr(
        bench.cases,
        "build",
        lambda *a, **kw: build(*a, **kw | {"device": "cpu"}),
    )
    monkeypatch.setattr(
        torch, "randn", lambda *a, **kw: randn(*a, **kw | {"device": "cpu"})
    )
    monkeypatch.setattr(bench, "COPY", 1 << 10)
    goals = [
        bench.cases.Goal("add_rms_norm", (4, 8), share=1e-9),
        bench.cases.Goal("silu_mul", (4, 8), backward=True, microseconds=1e-9),
        bench.cases.Goal("rope", (4, 128)),
    ]
    monkeypatch.setattr(bench, "GOALS", goals)


GOALS = ("bench", "--device", "cuda", "--goals", "--no-compile")


def test_goals_of_a_gpu(run, fake_gpu, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    file = tmp_path / "cuda.json"
    options = ("--seconds", "0.001", "--json", str(file))
    status, output, error = run(*GOALS, *options)
    torch.set_num_threads(threads)
    assert status == 0, error
    written = json.loads(file.read_text())
    assert written["environment"]["gpu"] == "none"
    rate = written["environment"]["copy_gb_per_s"]
    results = {(r["operator"], r["direction"]): r for r in written["results"]}
    norm = results["add_rms_norm", "in place"]
    assert norm["goal_is_met"]
    assert set(norm["median_us"]) == {
        "torch_foo",
        "eager",
        "built-in",
        "probe: copy",
    }
    assert set(norm["host_us"]) == {"torch_foo", "eager", "built-in"}
    # Four tensors of 4 x 8 elements in bfloat16, and a weight.
    floor = (4 * 4 * 8 + 8) * 2 / rate / 1e3
    assert norm["median_us"]["probe: copy"] == pytest.approx(floor, rel=0.01)
    assert not results["silu_mul", "forward+backward"]["goal_is_met"]
    assert "goal" not in results["rope", "forward"]
    assert output.count("goal: ") == 2
    _, output, _ = run("table", str(file))
    assert "of a copy; goal: 1e-09 us, missed" in output


def test_failure_on_a_gpu(
    run, fake_gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Go on with the other operators, and tell at the end."""
    threads = torch.get_num_threads()
    monkeypatch.delattr(torch_foo, "silu_mul")
    monkeypatch.setattr(_Event, "is_early", True)
    status, output, error = run(*GOALS, "--seconds", "0.001")
    torch.set_num_threads(threads)
    assert status == 1
    assert "4x8 torch.bfloat16 failed" in output
    assert "has no attribute 'silu_mul'" in error
    # Whatever began before it was all in the queue has no time of the host.
    assert output.splitlines()[-1].split()[-1] == "-"


def test_weight_cases() -> None:
    """All ways run, and find copies of their weights in turn."""
    made = list(cases.weight_cases(sizes=((128, 256),), total=1 << 20))
    assert len(made) == 6
    for case in made:
        for call in case.calls.values():
            call()
            call()
            first, second = call.results
            assert first.shape == second.shape
            assert first.data_ptr() != second.data_ptr()


def test_rotation() -> None:
    """Use other arguments and results until they exceed the caches."""
    calls = [lambda i=i: torch.full((2,), i) for i in range(3)]
    rotation = cases.Rotation(calls)
    for _ in range(5):
        rotation()
    assert [int(r[0]) for r in rotation.results] == [2, 0, 1]

    def make() -> cases.Case:
        return cases.build("mul", 4, 8, torch.float32, False)

    case = cases.rotated(make, 1024)  # bytes; a and b have 256
    rotation = case.calls["torch_foo"]
    made = [next(rotation.calls) for _ in range(14)]
    assert len({call.args[0].data_ptr() for call in made}) == 13


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", cases.OPERATORS)
def test_case_is_made_on_its_device(
    name: str, backward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing goes there from the CPU, which takes seconds for a large size."""
    operator = cases.OPERATORS[name]
    moved, to = set(), Tensor.to

    def spy(tensor: Tensor, *args: object) -> Tensor:
        moved.add(tensor.device.type)
        return to(tensor, *args)

    backward = backward and cases.has_backward(operator)
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "to", spy)
        case = cases.build(
            name, *operator.sizes[1], torch.bfloat16, backward, device="meta"
        )
    assert moved == {"meta"}
    with case.mode():
        for call in case.calls.values():
            assert {r.device.type for r in cases.flat(call())} == {"meta"}


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
        (["--goals"], "--goals needs --device cuda"),
        (["--calls", "--weights"], "--calls and --weights: one of them"),
        (["--device", "cuda", "--calls"], "--calls, --scaling and --weights n"),
    ],
)
def test_wrong_options(run, arguments: list[str], message: str) -> None:
    status, _, error = run("bench", *arguments)
    assert status == 2
    assert error.startswith(f"bench: {message}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(run) -> None:
    status, _, error = run("bench", "--device", "cuda")
    assert status == 2
    assert error.startswith(f"bench: --device cuda: torch {torch.__version__} ")
    assert error.count("\n") == 1
