"""CMake, Ninja and nvcc from their wheels, laid out as conda-forge does."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from standin.files import file_digest
from standin.packages.conda import Package
from standin.packages.toolchain import cuda_compiler
from standin.packages.wheels import Names, Wheel

CUDA_FOLDERS = {  # the wheels' = conda-forge's
    "bin": "bin",
    "include": "targets/x86_64-linux/include",
    "lib": "targets/x86_64-linux/lib",
    "nvvm": "nvvm",
}


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


def cuda_packages(wheel: Wheel, names: Names) -> list[Package]:
    """A part of the CUDA compiler; nvcc's wheel also brings the metapackages.

    nvcc itself does not load libnvvm.so, a quarter of its wheels.
    """

    def fill(root: Path) -> None:
        with tempfile.TemporaryDirectory(dir=root.parent) as folder:
            wheel.unpack(Path(folder), "site", lambda n: "libnvvm" not in n)
            for source in Path(folder).glob("site/nvidia/cu*/*"):
                if target := CUDA_FOLDERS.get(source.name):
                    (root / target).parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(source, root / target)

    package = tool_package(wheel, fill, names.conda(wheel.name))
    if wheel.name == "nvidia-cuda-nvcc":
        return [package, *cuda_compiler(wheel.version)]
    return [package]


def tool_package(
    wheel: Wheel, fill: Callable[[Path], None], name: str | None = None
) -> Package:
    """A package of programs that need no Python."""
    return Package(
        name or wheel.name,
        wheel.version,
        fill=fill,
        made_from=(file_digest(wheel.path),),
    )
