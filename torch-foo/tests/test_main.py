"""`python -m torch_foo`, which prints what a bug report needs."""

import platform
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch_foo
from torch_foo.__main__ import no_cuda
from torch_foo.operators import OPERATORS

DEVICES = ["cpu"] if no_cuda() else ["cpu", "cuda"]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[object, str, str]]:
    """Run the module in this process; return its exit status and output."""

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["torch_foo", *arguments])
        monkeypatch.delitem(sys.modules, "torch_foo.__main__")
        with pytest.raises(SystemExit) as exit_:
            runpy.run_module("torch_foo", run_name="__main__")
        return exit_.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def printed() -> str:
    done = subprocess.run(
        [sys.executable, "-m", "torch_foo"], text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def facts(printed: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w.*?): +(\S.*)$", printed, re.MULTILINE))


def test_facts(printed):
    found = facts(printed)
    info = torch_foo.build_info()
    folder = Path(torch_foo.__file__).parent
    assert found["torch_foo"] == f"{info.torch_foo} ({folder})"
    assert found["torch"].startswith(f"{torch.__version__} (")
    assert found["SIMD target"] == info.simd_target
    assert found["CUDA in foo_core"] == ("yes" if info.cuda else "no")
    assert found["CUDA in torch"] == (torch.version.cuda or "no")
    assert found["CUDA operators"] == f"no: {no_cuda()}" if no_cuda() else "yes"
    if torch.cuda.is_available():
        assert torch.cuda.get_device_name() in found["GPUs"]
    else:
        assert found["GPUs"] == "none that torch can use"
    assert found["Python"] == f"{platform.python_version()} ({sys.executable})"
    assert found["autoload"] == "yes"
    assert found.keys() >= {"threads", "transformers", "system"}


def test_libraries(printed):
    found = facts(printed)
    operators = Path(found["operators"])
    assert operators.name == "libtorch_foo.so"
    assert operators.is_file()
    version, path = re.fullmatch(r"(\S+) \((.*)\)", found["foo_core"]).groups()
    assert version == torch_foo.build_info().foo_core
    assert Path(path).name.startswith("libfoo_core.so")
    assert Path(path).is_file()


def test_every_operator_is_tested(printed):
    _, *tests = re.split(r"^(?:cpu|cuda), .*:$", printed, flags=re.MULTILINE)
    assert len(tests) == len(DEVICES)
    for test in tests:
        tested = re.findall(r"^  (\w+) +ok$", test, re.MULTILINE)
        assert tested == [n for n, o in OPERATORS.items() if o.is_public()]
    assert re.search(r"^all ok \(\d+\.\d\d s\)$", printed, re.MULTILINE)


def test_autoload_that_is_turned_off(run, monkeypatch):
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    _, output, _ = run()
    assert facts(output)["autoload"] == (
        "no: TORCH_DEVICE_BACKEND_AUTOLOAD is '0'"
    )


@pytest.mark.parametrize(
    ("op", "instead", "reason"),
    [
        ("add", lambda a, b: a + b + 1e-4, "AssertionError: Tensor-likes"),
        ("add_rms_norm", lambda x, *_: x[0], "AssertionError: The values"),
        (
            "quantize_int8_rowwise",
            lambda x: OPERATORS["quantize_int8_rowwise"].reference(x)[:1],
            "ValueError: zip",
        ),
        ("rope", lambda *_: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
    ids=["inexact", "wrong shape", "incomplete", "raises"],
)
def test_broken_operator(run, monkeypatch, op, instead, reason):
    monkeypatch.setattr(torch_foo, op, instead)
    status, output, _ = run()
    assert status == 1
    lines = re.findall(r"^.*FAILED: .*$", output, re.MULTILINE)
    assert len(lines) == len(DEVICES)
    for line in lines:
        assert line.startswith(f"  {op:<24}FAILED: torch.float32: {reason}")
    assert f"\n{len(DEVICES)} FAILED" in output


def old_driver() -> None:
    raise RuntimeError("old driver\nx")


@pytest.mark.parametrize(
    ("cuda", "init", "advice"),
    [
        (None, None, "conda install 'pytorch=*=cuda*'"),
        ("13", old_driver, "old driver"),
        ("13", lambda: None, "conda install 'libfoo-core=*=cuda*'"),
    ],
    ids=["torch", "driver", "foo_core"],
)
def test_why_nothing_runs_on_cuda(run, monkeypatch, cuda, init, advice):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "init", init)
    info = torch_foo.build_info()._replace(cuda=False)
    monkeypatch.setattr(torch_foo, "build_info", lambda: info)
    status, output, error = run()
    assert status == 0, output + error
    why = facts(output)["CUDA operators"]
    assert why.startswith("no: ")
    assert why.endswith(advice)


def test_help(run):
    status, output, _ = run("--help")
    assert status == 0
    assert "usage: python -m torch_foo" in output
    assert "What a bug report about torch_foo needs" in output


def test_unknown_argument(run):
    status, output, error = run("--verbose")
    assert (status, output) == (2, "")
    assert "unrecognized arguments: --verbose" in error
