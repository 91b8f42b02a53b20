"""`cmake` and `ninja` from their wheels, laid out as conda-forge does."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from standin.files import file_digest
from standin.packages.conda import Package
from standin.packages.wheels import Wheel


def cmake_package(wheel: Wheel) -> Package:
    """bin/cmake, bin/ctest, bin/cpack and their modules."""

    def fill(root: Path) -> None:
        with tempfile.TemporaryDirectory(dir=root.parent) as folder:
            wheel.unpack(Path(folder), "site")
            data = Path(folder) / "site/cmake/data"
            for name in ("bin", "share"):
                shutil.move(data / name, root / name)
        for tool in (root / "bin").iterdir():
            tool.chmod(0o755)

    return tool_package(wheel, fill)


def ninja_package(wheel: Wheel) -> Package:
    """bin/ninja."""

    def fill(root: Path) -> None:
        with tempfile.TemporaryDirectory(dir=root.parent) as folder:
            wheel.unpack(Path(folder), "site")
            shutil.move(Path(folder) / "bin", root / "bin")

    return tool_package(wheel, fill)


def tool_package(wheel: Wheel, fill: Callable[[Path], None]) -> Package:
    """A package of programs that need no Python."""
    return Package(
        wheel.name,
        wheel.version,
        fill=fill,
        made_from=(file_digest(wheel.path),),
    )
