"""libhwy and gtest, built from source on the spot."""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from standin.files import run
from standin.packages.compilers import Compiler
from standin.packages.conda import PLACEHOLDER, File, Package, walk

TOOLS = Path(sys.executable).parent
OPTIONS = (
    "-GNinja",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_INSTALL_LIBDIR=lib",
    f"-DCMAKE_INSTALL_PREFIX={PLACEHOLDER}",
    # contrib's library (sorting) takes minutes to build; its headers do not
    # need it.
    *(f"-DHWY_ENABLE_{x}=OFF" for x in ("CONTRIB", "EXAMPLES", "TESTS")),
)


def packages(trees: Path, compiler: Compiler) -> list[Package]:
    """Both packages, shared libraries as on conda-forge."""
    return [
        Package(
            name,
            version := version_of(trees / tree),
            depends=("libgcc", "libstdcxx"),
            run_exports={
                "weak": [f"{name} >={version},<{next_minor(version)}"]
            },
            files=lambda tree=tree: built(trees / tree, compiler),
            made_from=(trees.name, compiler),
        )
        for name, tree in (("libhwy", "highway"), ("gtest", "googletest"))
    ]


def version_of(tree: Path) -> str:
    """The version in CMakeLists.txt."""
    text = (tree / "CMakeLists.txt").read_text()
    pattern = r"(?:project\(hwy VERSION|GOOGLETEST_VERSION) ([\d.]+)"
    return re.findall(pattern, text)[0]


def next_minor(version: str) -> str:
    major, minor = version.split(".")[:2]
    return f"{major}.{int(minor) + 1}.0a0"


def built(tree: Path, compiler: Compiler) -> Iterator[File]:
    """Configure, build and install a CMake project; yield what it installs."""
    contrib = tree / "hwy/contrib"
    yield from walk(contrib, "include/hwy/contrib/", r".*(?<!\.h)")
    with tempfile.TemporaryDirectory() as folder:
        # The caller's own flags are left out.
        clean = ["env", "-i", f"CC={compiler.c}", f"CXX={compiler.cxx}"]
        clean += [f"PATH={TOOLS}:{os.environ['PATH']}"]
        clean += [f"DESTDIR={folder}/staged", sys.executable, "-m", "cmake"]
        for words in (
            ["-S", tree, "-B", folder, *OPTIONS],
            ["--build", folder],
            ["--install", folder],
        ):
            run([*clean, *words], f"building {tree.name}")
        yield from walk(Path(f"{folder}/staged{PLACEHOLDER}"))
