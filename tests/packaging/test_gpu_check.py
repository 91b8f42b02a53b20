"""ci/gpu-check where there is no GPU; what it counts in the output of tests."""

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A folder with one empty wheel."""
    wheel = tmp_path / "wheels" / "nothing-1-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        info = "nothing-1.dist-info"
        name = "Metadata-Version: 2.1\nName: nothing\nVersion: 1\n"
        tag = "Wheel-Version: 1.0\nTag: py3-none-any\nRoot-Is-Purelib: true\n"
        archive.writestr(f"{info}/METADATA", name)
        archive.writestr(f"{info}/WHEEL", tag)
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    manifest = {"wheels": {f"wheels/{wheel.name}": digest}}
    (tmp_path / "prepared.json").write_text(json.dumps(manifest))
    return tmp_path


def gpu_check(
    root: Path, folder: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    hidden = {"CUDA_VISIBLE_DEVICES": "", "OUT": str(folder / "results")}
    return subprocess.run(
        [sys.executable, root / "ci" / "gpu-check", folder, *options],
        env={**os.environ, **hidden},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_without_a_gpu(root: Path, prepared: Path) -> None:
    done = gpu_check(root, prepared)
    assert done.returncode == 0, done.stdout
    assert "no CUDA device that torch can use: 0 run" in done.stdout
    assert (prepared / "site" / "nothing-1.dist-info").is_dir()
    summary = json.loads((prepared / "results/summary.json").read_text())
    assert summary["steps"] == []
    assert len(summary["prepared wheels"]) == 1


def test_another_wheel_than_prepared(root: Path, prepared: Path) -> None:
    (wheel,) = prepared.glob("wheels/*.whl")
    wheel.write_bytes(wheel.read_bytes() + b"\n")
    done = gpu_check(root, prepared)
    assert done.returncode == 1
    assert "holds other wheels than were prepared" in done.stdout


def test_nothing_prepared(root: Path, tmp_path: Path) -> None:
    done = gpu_check(root, tmp_path)
    assert done.returncode == 1
    assert re.search(r"is not prepared: run .*gpu-check --prep", done.stdout)


def test_prepare_spares_what_it_did_not_fill(
    root: Path, tmp_path: Path
) -> None:
    """Also a folder with this script in it, such as ci/."""
    file = tmp_path / "gpu-check"
    file.write_text("mine")
    done = gpu_check(root, tmp_path, "--prepare")
    assert done.returncode == 1
    assert "was not filled by gpu-check" in done.stdout
    assert file.read_text() == "mine"


@pytest.mark.parametrize("steps", ["nonsense", "", "python,,cpp"])
def test_steps_that_there_are_not(
    root: Path, tmp_path: Path, steps: str
) -> None:
    done = gpu_check(root, tmp_path, "--steps", steps)
    assert done.returncode == 2
    assert re.search(r"--steps: no step is named \['\w*'\], only", done.stdout)


@pytest.fixture(scope="module")
def script(root: Path) -> ModuleType:
    loader = SourceFileLoader("gpu_check", str(root / "ci" / "gpu-check"))
    spec = spec_from_loader(loader.name, loader)
    assert spec
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("output", "counts"),
    [
        ("  add          ok\n  mul   FAILED: x\n", {"passed": 1, "failed": 1}),
        ("4 passed in 1.20s\n", {"passed": 4}),
        (
            "1 failed, 4 passed, 2 skipped, 9 deselected in 61.5s (0:01:01)\n",
            {"passed": 4, "failed": 1, "skipped": 2},
        ),
        ("== 4 passed, 1 error in 2s ==\n", {"passed": 4, "failed": 1}),
        ("[  PASSED  ] 12 tests.\n", {"passed": 12}),
        (
            "[  PASSED  ] 1 test.\n[  SKIPPED ] 3 tests, listed below:\n"
            "[  SKIPPED ] A.b\n[  FAILED  ] 1 test, listed below:\n",
            {"passed": 1, "failed": 1, "skipped": 3},
        ),
        ("there is no GPU here\n[  PASSED  ] 0 tests.\n", {"failed": 1}),
        ("========= ERROR SUMMARY: 2 errors\n", {"errors": 2}),
        (
            "========= RACECHECK SUMMARY: 1 hazard displayed (1 error)\n",
            {"hazards": 1},
        ),
    ],
)
def test_counts(
    script: ModuleType, output: str, counts: dict[str, int]
) -> None:
    assert {k: v for k, v in script.count(output).items() if v} == counts
