"""libhwy and gtest, built from source on the spot."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from standin.downloads import Sources
from standin.files import run
from standin.packages.compilers import Compiler
from standin.packages.conda import PLACEHOLDER, File, Package, walk

CMAKE_OPTIONS = (
    "-GNinja",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_INSTALL_LIBDIR=lib",
    f"-DCMAKE_INSTALL_PREFIX={PLACEHOLDER}",
)


def packages(sources: Sources, compiler: Compiler) -> list[Package]:
    """Both packages, shared libraries as on conda-forge."""
    highway, gtest = sources.highway_version, sources.gtest_version
    major, minor = highway.split(".")[:2]

    def highway_files() -> Iterator[File]:
        # contrib's library (sorting) takes minutes to build; its headers do
        # not need it.
        options = [f"-DHWY_ENABLE_{x}=OFF" for x in ("CONTRIB", "TESTS")]
        options.append("-DHWY_ENABLE_EXAMPLES=OFF")
        yield from built(sources.highway, compiler, *options)
        contrib = sources.highway / "hwy/contrib"
        for file in walk(contrib, "include/hwy/contrib/"):
            if file.name.endswith(".h"):
                yield file

    return [
        Package(
            "libhwy",
            highway,
            files=highway_files,
            made_from=(sources.folder.name, compiler),
            depends=("libgcc", "libstdcxx"),
            run_exports={
                "weak": [f"libhwy >={highway},<{major}.{int(minor) + 1}.0a0"]
            },
        ),
        Package(
            "gtest",
            gtest,
            files=lambda: built(sources.googletest, compiler),
            made_from=(sources.folder.name, compiler),
            depends=("libgcc", "libstdcxx"),
            run_exports={"weak": [f"gtest >={gtest},<{gtest}.1.0a0"]},
        ),
    ]


def built(source: Path, compiler: Compiler, *options: str) -> Iterator[File]:
    """Configure, build and install a CMake project; yield what it installs."""
    tools = Path(sys.executable).parent
    env = {k: v for k, v in os.environ.items() if k in ("HOME", "LANG")}
    env["PATH"] = f"{tools}:{os.environ['PATH']}"
    env |= {"CC": compiler.c, "CXX": compiler.cxx}
    with tempfile.TemporaryDirectory() as folder:
        for words in (
            ["-S", source, "-B", folder, *CMAKE_OPTIONS, *options],
            ["--build", folder],
            ["--install", folder],
        ):
            env["DESTDIR"] = f"{folder}/staged"
            run([tools / "cmake", *words], f"building {source.name}", env=env)
        yield from walk(Path(f"{folder}/staged{PLACEHOLDER}"))
