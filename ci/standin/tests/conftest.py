"""Temporary workspaces for the tests of ci/pixi, and a way to run it there.

The tests run inside a task of ci/pixi and use its channel, without a network.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "ci"))
if tools := os.environ.get("CI_PIXI_TOOLS"):  # what the stand-in imports
    site = sysconfig.get_path("purelib", vars={"base": tools})
    sys.path.append(site)

Result = subprocess.CompletedProcess[str]
HEAD = """\
[workspace]
name = "sample"
channels = ["conda-forge"]
platforms = ["linux-64"]
"""


class Workspace:
    """A folder with a pixi.toml, in which ci/pixi is run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefix = folder / ".pixi/envs/default"

    def write(self, manifest: str) -> "Workspace":
        (self.folder / "pixi.toml").write_text(HEAD + manifest)
        return self

    def pixi(self, *words: str | Path, **variables: str | None) -> Result:
        """Run ci/pixi here; a variable that is None is unset."""
        environment = {**os.environ, **variables}
        return subprocess.run(
            [ROOT / "ci/pixi", *words],
            cwd=self.folder,
            env={k: v for k, v in environment.items() if v is not None},
            capture_output=True,
            text=True,
            timeout=300,
        )

    def fails(self, *words: str | Path, **variables: str | None) -> str:
        """Run ci/pixi, which must fail, and return its one line of error."""
        result = self.pixi(*words, **variables)
        assert result.returncode != 0, result.stdout + result.stderr
        assert "Traceback" not in result.stderr, result.stderr
        lines = [x for x in result.stderr.splitlines() if "error: " in x]
        assert len(lines) == 1, result.stderr
        return lines[0]

    def passes(self, *words: str | Path, **variables: str | None) -> str:
        """Run ci/pixi, which must succeed, and return its stdout."""
        result = self.pixi(*words, **variables)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout


@pytest.fixture(scope="session")
def new_workspace() -> type[Workspace]:
    if os.environ.get("CI_PIXI_STANDIN") != "1":
        pytest.skip("a real pixi is in use, not ci/pixi's stand-in")
    return Workspace


@pytest.fixture
def workspace(tmp_path: Path, new_workspace: type[Workspace]) -> Workspace:
    folder = tmp_path / "folder"
    folder.mkdir()
    return new_workspace(folder)
