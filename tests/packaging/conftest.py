"""The versions of the packages."""

import re
import tomllib
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def versions(root: Path) -> dict[str, str]:
    """The version of each package, from the one place that holds it."""
    cmake = (root / "libfoo/CMakeLists.txt").read_text()
    core = re.search(r"project\(\s*foo_core\s+VERSION ([\d.]+)", cmake)
    assert core, "no version of foo_core in libfoo/CMakeLists.txt"
    pyproject = tomllib.loads((root / "torch-foo/pyproject.toml").read_text())
    return {
        "libfoo-core": core[1],
        "torch-foo": pyproject["project"]["version"],
    }


@pytest.fixture(scope="session")
def minor(versions: dict[str, str]) -> str:
    """libfoo-core's major and minor version: those of its SONAME."""
    return versions["libfoo-core"].rpartition(".")[0]
