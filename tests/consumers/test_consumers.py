"""foo_core in every way that people use a C++ library: each built and run.

The program is that of libfoo/tests/package/find_package, the consumer that the
conda recipe builds and runs in an environment of the package's own.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

CONSUMERS = Path(__file__).parent
ROOT = CONSUMERS.parents[1]
LIBFOO = ROOT / "libfoo"
FIND_PACKAGE = LIBFOO / "tests/package/find_package"
ENVIRONMENT = Path(os.environ["CONDA_PREFIX"])  # has libhwy
FETCH_HIGHWAY = {"FOO_CORE_FETCH_HIGHWAY": "ON"}
if tree := os.environ.get("FETCHCONTENT_SOURCE_DIR_HIGHWAY"):
    FETCH_HIGHWAY["FETCHCONTENT_SOURCE_DIR_HIGHWAY"] = tree

VARIABLES = {
    "CMAKE_BUILD_TYPE": "Release",
    # One SIMD target, in a third of the time: the unit tests see to the rest.
    "CXXFLAGS": os.environ.get("CXXFLAGS", "") + " -DHWY_COMPILE_ONLY_STATIC",
    # The environment may have a foo_core, too, which its compilers' -rpath
    # would make programs find first. LD_LIBRARY_PATH is searched last.
    "LDFLAGS": re.sub(r"-Wl,-rpath,\S+", "", os.environ.get("LDFLAGS", "")),
    "LD_LIBRARY_PATH": str(ENVIRONMENT / "lib"),
}


@dataclass(frozen=True)
class CMake:
    """One version of CMake."""

    run: Callable[..., str]
    program: Path

    def configure(
        self, source: Path, build: Path, **options: str | Path
    ) -> str:
        defines = [f"-D{name}={value}" for name, value in options.items()]
        command = [self.program, "-G", "Ninja", "-S", source, "-B", build]
        return self.run(*command, *defines, env=VARIABLES)

    def build(self, source: Path, build: Path, **options: str | Path) -> None:
        self.configure(source, build, **options)
        self.run(self.program, "--build", build, env=VARIABLES)

    def install(self, build: Path, prefix: Path) -> Path:
        self.run(self.program, "--install", build, "--prefix", prefix)
        return prefix

    def check(self, source: Path, build: Path, **options: str | Path) -> None:
        """Build a consumer and run its test."""
        self.build(source, build, **options)
        ctest = [self.program.with_name("ctest"), "--test-dir", build]
        flags = ["--output-on-failure", "--no-tests=error"]
        self.run(*ctest, *flags, env=VARIABLES)

    def check_finds(
        self, folder: Path, build: Path, **options: str | Path
    ) -> None:
        """The same with find_package, which takes the foo_core of `folder`."""
        self.check(FIND_PACKAGE, build, **options)
        cache = (build / "CMakeCache.txt").read_text()
        found = re.search(r"^foo_core_DIR:.*=(.*)$", cache, re.MULTILINE)
        assert found
        assert Path(found[1]).is_relative_to(folder)
        for library in libraries(self.run, build / "main"):
            assert library.is_relative_to(folder)


def libraries(run: Callable[..., str], program: Path) -> list[Path]:
    """The shared libraries of foo_core that a program loads."""
    listed = run("ldd", program, env=VARIABLES)
    return [Path(p) for p in re.findall(r"libfoo_core\S* => (\S+)", listed)]


@pytest.fixture(scope="session")
def newest(run) -> CMake:
    """The environment's."""
    program = shutil.which("cmake")
    assert program
    return CMake(run, Path(program))


@pytest.fixture(scope="session")
def minimum(run, tmp_path_factory: pytest.TempPathFactory) -> CMake:
    """The oldest that libfoo allows, from PyPI."""
    text = (LIBFOO / "CMakeLists.txt").read_text()
    version = re.match(r"cmake_minimum_required\(VERSION (\d+\.\d+)", text)
    assert version
    folder = tmp_path_factory.mktemp("cmake")
    pip = [sys.executable, "-m", "pip", "install", "--target", folder]
    run(*pip, f"cmake=={version[1]}.*")
    cmake = CMake(run, folder / "cmake/data/bin/cmake")
    assert f"version {version[1]}." in run(cmake.program, "--version")
    return cmake


@pytest.fixture(params=["newest", "minimum"])
def cmake(request: pytest.FixtureRequest) -> CMake:
    return request.getfixturevalue(request.param)


@dataclass(frozen=True)
class Library:
    """A build of foo_core and where it is installed."""

    build: Path
    prefix: Path


@pytest.fixture(scope="session")
def shared(newest: CMake, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """A shared library that has Highway inside."""
    folder = tmp_path_factory.mktemp("shared")
    build = folder / "build"
    newest.build(LIBFOO, build, FOO_CORE_TESTS="OFF", **FETCH_HIGHWAY)
    return Library(build, newest.install(build, folder / "prefix"))


@pytest.fixture(scope="session")
def static(newest: CMake, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """A static library, whose users need libhwy."""
    folder = tmp_path_factory.mktemp("static")
    build = folder / "build"
    newest.build(
        LIBFOO,
        build,
        CMAKE_PREFIX_PATH=ENVIRONMENT,
        FOO_CORE_SHARED="OFF",
        FOO_CORE_TESTS="OFF",
    )
    return Library(build, newest.install(build, folder / "prefix"))


def test_shared_library(cmake: CMake, shared: Library, tmp_path: Path) -> None:
    cmake.check_finds(shared.prefix, tmp_path, CMAKE_PREFIX_PATH=shared.prefix)
    assert libraries(cmake.run, tmp_path / "main")


def test_static_library(cmake: CMake, static: Library, tmp_path: Path) -> None:
    prefixes = f"{static.prefix};{ENVIRONMENT}"
    cmake.check_finds(static.prefix, tmp_path, CMAKE_PREFIX_PATH=prefixes)
    assert not libraries(cmake.run, tmp_path / "main")


def test_prefix_moved_before_use(
    newest: CMake, shared: Library, tmp_path: Path
) -> None:
    old = newest.install(shared.build, tmp_path / "old")
    new = old.rename(tmp_path / "new")
    newest.check_finds(new, tmp_path / "build", CMAKE_PREFIX_PATH=new)


@pytest.mark.parametrize("kind", ["shared", "static"])
def test_build_tree(
    newest: CMake, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    library: Library = request.getfixturevalue(kind)
    prefixes = f"{library.build};{ENVIRONMENT}"
    newest.check_finds(library.build, tmp_path, CMAKE_PREFIX_PATH=prefixes)


def test_add_subdirectory(minimum: CMake, tmp_path: Path) -> None:
    """Also that the oldest CMake builds the library."""
    source = CONSUMERS / "add_subdirectory"
    minimum.check(source, tmp_path, CMAKE_PREFIX_PATH=ENVIRONMENT)
    (library,) = libraries(minimum.run, tmp_path / "main")
    assert library.is_relative_to(tmp_path)


def test_fetch_content(newest: CMake, tmp_path: Path) -> None:
    """Also a static library that has Highway inside."""
    newest.check(
        CONSUMERS / "fetch_content",
        tmp_path,
        BUILD_SHARED_LIBS="OFF",
        FETCHCONTENT_SOURCE_DIR_FOO_CORE=ROOT,
        **FETCH_HIGHWAY,
    )
    assert not libraries(newest.run, tmp_path / "main")


PKG_CONFIG = shutil.which("pkg-config")


@pytest.mark.skipif(PKG_CONFIG is None, reason="there is no pkg-config here")
@pytest.mark.parametrize("kind", ["shared", "static"])
def test_pkg_config(
    run, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    prefix: Path = request.getfixturevalue(kind).prefix
    metadata = f"{prefix}/lib/pkgconfig:{ENVIRONMENT}/lib/pkgconfig"
    paths = {"PKG_CONFIG_PATH": metadata}
    flags = run(PKG_CONFIG, "--cflags", "--libs", "foo_core", env=paths)
    program = tmp_path / "main"
    run(
        os.environ.get("CXX", "c++"),
        *("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror"),
        *(FIND_PACKAGE / "main.cpp", "-o", program),
        *flags.split(),
        *VARIABLES["LDFLAGS"].split(),
    )
    found = {"LD_LIBRARY_PATH": f"{prefix}/lib:{ENVIRONMENT}/lib"}
    run(program, env=found)
    listed = run("ldd", program, env=found)
    assert (f"{prefix}/lib/libfoo_core.so" in listed) == (kind == "shared")


def test_wheel(newest: CMake, run, tmp_path: Path) -> None:
    site = tmp_path / "site"
    defines = ";".join(f"{k}={v}" for k, v in FETCH_HIGHWAY.items())
    skbuild = {
        "SKBUILD_BUILD_DIR": str(tmp_path / "wheel"),
        "SKBUILD_CMAKE_DEFINE": defines,
    }
    pip = [sys.executable, "-m", "pip", "install", "--target", site]
    here = ["--no-deps", "--no-build-isolation", LIBFOO]
    run(*pip, *here, env=VARIABLES | skbuild)
    code = "import foo_core; print(*foo_core.__path__)"
    path = {"PYTHONPATH": str(site)}
    where = run(sys.executable, "-c", code, env=path).strip()
    newest.check_finds(site, tmp_path / "build", foo_core_ROOT=where)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("0.2", "version: 0.1.0"),
        ("0.1.1", "version: 0.1.0"),
        ("1.0", "version: 0.1.0"),
        ("0.0.9", "version: 0.1.0"),
        ("0.1 COMPONENTS cuda", "built without CUDA"),
        ("0.1 COMPONENTS cpu gpu", "no component gpu, only cpu and cuda"),
    ],
)
def test_refused(
    cmake: CMake, shared: Library, tmp_path: Path, wanted: str, reason: str
) -> None:
    """FOUND is FALSE, and CMake says why."""
    said = ask(cmake, shared, tmp_path, wanted)
    assert "foo_core_FOUND: 0" in said
    assert reason in said
    assert str(shared.prefix) in said


@pytest.mark.parametrize(
    "wanted",
    ["0.1", "0.1.0", "COMPONENTS cpu", "0.1 OPTIONAL_COMPONENTS cuda gpu"],
)
def test_accepted(
    newest: CMake, shared: Library, tmp_path: Path, wanted: str
) -> None:
    assert "foo_core_FOUND: 1" in ask(newest, shared, tmp_path, wanted)


def ask(cmake: CMake, library: Library, build: Path, wanted: str) -> str:
    """What CMake prints when it is to find that, its lines joined."""
    said = cmake.configure(
        CONSUMERS / "request",
        build,
        CMAKE_PREFIX_PATH=library.prefix,
        WANTED=wanted.replace(" ", ";"),
    )
    return " ".join(said.split())
