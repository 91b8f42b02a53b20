"""Fixtures that all tests below this folder share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "ci"))  # the modules that the tests import

# Tests delete packages from the cache (conda_tools.forget), which a test in
# another process may be about to install.
WORKER = os.environ.get("PYTEST_XDIST_WORKER")
if WORKER and "RATTLER_CACHE_DIR" in os.environ:
    os.environ["RATTLER_CACHE_DIR"] += f"-{WORKER}"

Run = Callable[..., str]


def _run(
    *command: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT
) -> str:
    """Run a command and return its output; fail the test if it fails."""
    done = subprocess.run(
        command,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        line = " ".join(map(str, command))
        pytest.fail(
            f"{line}: exit status {done.returncode}\n{done.stdout[-6000:]}"
        )
    return done.stdout


@pytest.fixture(scope="session")
def run() -> Run:
    return _run


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
