"""Real conda, conda-build and conda-workspaces, if they are installed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conda_tools import DIST, channel_url

CONDA = shutil.which("conda")
needs_conda = pytest.mark.skipif(CONDA is None, reason="conda is not installed")


def has_subcommand(name: str) -> bool:
    return (
        CONDA is not None
        and not subprocess.run(
            [CONDA, name, "--help"], capture_output=True
        ).returncode
    )


@needs_conda
def test_conda_installs_torch_foo_by_name(run, tmp_path: Path) -> None:
    prefix = tmp_path / "env"
    run(
        CONDA,
        "create",
        "--yes",
        "--prefix",
        prefix,
        "--override-channels",
        "--channel",
        DIST.as_uri(),
        "--channel",
        channel_url(),
        "torch-foo",
        env={"CONDA_PKGS_DIRS": str(tmp_path / "pkgs")},
    )
    listed = json.loads(run(CONDA, "list", "--json", "--prefix", prefix))
    assert {"libfoo-core", "torch-foo"} <= {p["name"] for p in listed}
    code = "import torch, torch_foo; print(torch_foo.add(*torch.ones(2, 3)))"
    assert "2., 2., 2." in run(CONDA, "run", "-p", prefix, "python", "-c", code)


@pytest.mark.skipif(
    not has_subcommand("build"), reason="conda-build is not installed"
)
def test_conda_build_builds_the_same_recipes(run, root: Path) -> None:
    run(sys.executable, root / "ci/package_conda_build.py")
    built = {p.name for p in (root / "dist/conda-build").glob("*/*.conda")}
    assert {name.rsplit("-", 2)[0] for name in built} == {
        "libfoo-core",
        "torch-foo",
    }


@pytest.mark.skipif(
    not has_subcommand("task"), reason="conda-workspaces is not installed"
)
def test_conda_workspaces_reads_the_same_tasks(run, root: Path) -> None:
    listed = run(CONDA, "task", "list", cwd=root)
    for task in ("build", "demo", "package", "test"):
        assert task in listed
    assert "libfoo" in run(CONDA, "task", "run", "build-core", cwd=root)
