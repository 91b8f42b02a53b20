"""Packages built from source on the spot: libhwy and gtest.

Highway's whole source tree comes inside NumPy's source distribution, and
GoogleTest's in the Debian package googletest.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from pathlib import Path

from standin.commands import run
from standin.files import file_digest
from standin.packages.conda import PLACEHOLDER, Package
from standin.packages.toolchain import Compiler
from standin.progress import StandinError

HIGHWAY_IN_NUMPY = "numpy/_core/src/highway"
HIGHWAY_VERSION = "1.3.0"
CMAKE_OPTIONS = (
    "-GNinja",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_INSTALL_LIBDIR=lib",
    f"-DCMAKE_INSTALL_PREFIX={PLACEHOLDER}",
)


def cmake_install(
    source: Path, root: Path, compiler: Compiler, bin_folder: Path, *args: str
) -> None:
    """Configure, build and install a CMake project."""
    environment = {
        key: os.environ[key] for key in ("HOME", "LANG") if key in os.environ
    }
    environment["PATH"] = f"{bin_folder}:{os.environ['PATH']}"
    environment |= {"CC": compiler.c, "CXX": compiler.cxx}
    cmake = bin_folder / "cmake"
    with tempfile.TemporaryDirectory(dir=root.parent) as build:
        for words in (
            ["-S", source, "-B", build, *CMAKE_OPTIONS, *args],
            ["--build", build],
        ):
            run([cmake, *words], f"building {source.name}", env=environment)
        staged = dict(environment, DESTDIR=str(Path(build) / "staged"))
        run([cmake, "--install", build], "cmake --install", env=staged)
        for entry in Path(f"{build}/staged{PLACEHOLDER}").iterdir():
            shutil.move(entry, root / entry.name)


def unpack_highway(sdist: Path, target: Path) -> None:
    """Highway's source tree, out of NumPy's source distribution."""
    with tarfile.open(sdist) as archive:
        top = sdist.name.removesuffix(".tar.gz")
        start = f"{top}/{HIGHWAY_IN_NUMPY}/"
        for member in archive:
            if member.name.startswith(start) and member.isfile():
                member.name = member.name.removeprefix(start)
                archive.extract(member, target)
    if not (target / "CMakeLists.txt").is_file():
        raise StandinError(f"{sdist.name} has no {HIGHWAY_IN_NUMPY}")


def highway_package(
    sdist: Path, tree: Path, compiler: Compiler, bin_folder: Path
) -> Package:
    """libhwy, shared."""

    def fill(root: Path) -> None:
        # contrib's library (sorting) takes minutes to build; its headers do
        # not need it.
        cmake_install(
            tree,
            root,
            compiler,
            bin_folder,
            "-DHWY_ENABLE_CONTRIB=OFF",
            "-DHWY_ENABLE_EXAMPLES=OFF",
            "-DHWY_ENABLE_TESTS=OFF",
        )
        shutil.copytree(
            tree / "hwy/contrib",
            root / "include/hwy/contrib",
            ignore=lambda folder, names: [
                name
                for name in names
                if not name.endswith(".h")
                and not (Path(folder) / name).is_dir()
            ],
        )

    major, minor = HIGHWAY_VERSION.split(".")[:2]
    export = f"libhwy >={HIGHWAY_VERSION},<{major}.{int(minor) + 1}.0a0"
    return Package(
        "libhwy",
        HIGHWAY_VERSION,
        fill=fill,
        made_from=(file_digest(sdist), compiler),
        depends=("libgcc", "libstdcxx"),
        run_exports={"weak": [export]},
    )


def check_debian() -> None:
    """GoogleTest is fetched with Debian's tools."""
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise StandinError(
                f"no {tool} on PATH: GoogleTest comes from Debian's package "
                "googletest, so this needs Debian, Ubuntu or a relative"
            )


def download_debian(folder: Path, package: str) -> Path:
    """A package of Debian's; needs no root."""
    words = ["download", "-q", package]
    try:
        run(["apt-get", *words], "apt-get download", cwd=folder)
    except StandinError:  # no list of packages yet, or an old one
        own = folder / "apt"
        options = [f"-oDir::State::Lists={own}/lists", f"-oDir::Cache={own}"]
        for name in ("lists/partial", "archives/partial"):
            (own / name).mkdir(parents=True)
        strict = "-oAPT::Update::Error-Mode=any"
        run(["apt-get", *options, strict, "update"], "apt-get update")
        run(["apt-get", *options, *words], "apt-get download", cwd=folder)
        shutil.rmtree(own)
    return next(folder.glob(f"{package}_*.deb"))


def unpack_debian(deb: Path, target: Path) -> None:
    """The files of a Debian package."""
    run(["dpkg-deb", "-x", deb, target], "dpkg-deb")


def gtest_package(
    deb: Path, tree: Path, compiler: Compiler, bin_folder: Path
) -> Package:
    """GoogleTest and gmock, shared, with their CMake files."""
    version = deb.name.split("_")[1].split("-")[0]

    def fill(root: Path) -> None:
        cmake_install(tree, root, compiler, bin_folder)

    return Package(
        "gtest",
        version,
        fill=fill,
        made_from=(file_digest(deb), compiler),
        depends=("libgcc", "libstdcxx"),
        run_exports={"weak": [f"gtest >={version},<{version}.1.0a0"]},
    )
