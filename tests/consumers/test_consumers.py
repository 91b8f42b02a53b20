"""Each way to use a C++ library, with foo_core: built and run.

The program is that of libfoo/tests/package/find_package, which the conda recipe
builds and runs, too. The commands are those of libfoo/README.md.
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
CMAKE_LISTS = (LIBFOO / "CMakeLists.txt").read_text()
VERSION = re.findall(r"^  VERSION (\S+)$", CMAKE_LISTS, re.MULTILINE)[0]
MINOR, PATCH = map(int, VERSION.split(".")[1:])
FIND_PACKAGE = LIBFOO / "tests/package/find_package"
PROJECTS = {  # by heading of libfoo/README.md
    "find_package": FIND_PACKAGE,
    "add_subdirectory": CONSUMERS / "add_subdirectory",
    "FetchContent": CONSUMERS / "fetch_content",
}
WARNINGS = "-Wall -Wextra -Wpedantic -Werror"
ENVIRONMENT = Path(os.environ["CONDA_PREFIX"])  # has libhwy
# Without optimization a library builds in a quarter of the time. Other tests
# check the optimized kernels.
QUICK = {"CMAKE_CXX_FLAGS_RELEASE": "-O0"}
HIGHWAY_INSIDE = {"FOO_CORE_FETCH_HIGHWAY": "ON"}
if tree := os.environ.get("FETCHCONTENT_SOURCE_DIR_HIGHWAY"):
    HIGHWAY_INSIDE["FETCHCONTENT_SOURCE_DIR_HIGHWAY"] = tree

VARIABLES = {
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_GENERATOR": "Ninja",
    # One SIMD target builds in a third of the time. The unit tests check all.
    "CXXFLAGS": os.environ.get("CXXFLAGS", "") + " -DHWY_COMPILE_ONLY_STATIC",
    # The environment may have a foo_core, too, which programs would find first
    # by its compilers' -rpath. LD_LIBRARY_PATH is searched last.
    "LDFLAGS": re.sub(r"-Wl,-rpath,\S+", "", os.environ.get("LDFLAGS", "")),
    "LD_LIBRARY_PATH": str(ENVIRONMENT / "lib"),
}


@dataclass(frozen=True)
class CMake:
    """CMake of one version."""

    run: Callable[..., str]
    program: Path

    def configure(
        self, source: Path, build: Path, **options: str | Path
    ) -> str:
        defines = [f"-D{name}={value}" for name, value in options.items()]
        command = [self.program, "-S", source, "-B", build]
        return self.run(*command, *defines, env=VARIABLES)

    def build(self, source: Path, build: Path, **options: str | Path) -> None:
        self.configure(source, build, **options)
        self.run(self.program, "--build", build, env=VARIABLES)

    def build_targets(self, build: Path, *targets: str) -> None:
        command = [self.program, "--build", build, "--target"]
        self.run(*command, *targets, env=VARIABLES)

    def install(self, build: Path, prefix: Path) -> Path:
        self.run(self.program, "--install", build, "--prefix", prefix)
        return prefix

    def test(self, build: Path, pattern: str = "") -> None:
        ctest = [self.program.with_name("ctest"), "--test-dir", build]
        flags = ["--output-on-failure", "--no-tests=error"]
        flags += ["-R", pattern] if pattern else []
        self.run(*ctest, *flags, env=VARIABLES)

    def check_finds(
        self, folder: Path, build: Path, **options: str | Path
    ) -> None:
        """Build and run a consumer, which must find foo_core in `folder`."""
        self.build(FIND_PACKAGE, build, **options)
        self.test(build)
        check_found(self.run, folder, build)


def check_found(run: Callable[..., str], folder: Path, build: Path) -> None:
    """Check that a consumer found, and loads, the foo_core in `folder`."""
    cache = (build / "CMakeCache.txt").read_text()
    found = re.search(r"^foo_core_DIR:.*=(.*)$", cache, re.MULTILINE)
    assert found
    assert Path(found[1]).is_relative_to(folder)
    for library in libraries(run, build / "app"):
        assert library.is_relative_to(folder)


def libraries(
    run: Callable[..., str], program: Path, name: str = "foo_core"
) -> list[Path]:
    """Return the shared libraries of that name that a program loads."""
    listed = run("ldd", program, env=VARIABLES)
    return [Path(p) for p in re.findall(rf"lib{name}\S* => (\S+)", listed)]


@pytest.fixture(scope="session")
def newest(run) -> CMake:
    """Return the environment's CMake."""
    program = shutil.which("cmake")
    assert program
    return CMake(run, Path(program))


@pytest.fixture(scope="session")
def minimum(run, tmp_path_factory: pytest.TempPathFactory) -> CMake:
    """Return the oldest CMake that libfoo allows, from PyPI."""
    version = re.match(
        r"cmake_minimum_required\(VERSION (\d+\.\d+)", CMAKE_LISTS
    )
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
    """A build of foo_core and its installation."""

    build: Path
    prefix: Path
    needs: tuple[Path, ...] = ()  # where its users find libhwy


# Each library is built once for all tests, in the way of one of the consumers.


def new_project(heading: str, folder: Path) -> Path:
    """Copy a project and add the program and libfoo to it."""
    source = shutil.copytree(PROJECTS[heading], folder / "source")
    shutil.copy(FIND_PACKAGE / "main.cc", source)
    (source / "libfoo").symlink_to(LIBFOO)
    return source


@pytest.fixture(scope="session")
def shared(minimum: CMake, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Build a shared library by add_subdirectory, with the oldest CMake.

    Highway is inside. The parent asks for a unity build, which must not merge
    sources that Highway compiles once per SIMD target, and for libfoo's tests.
    """
    folder = tmp_path_factory.mktemp("shared")
    source = new_project("add_subdirectory", folder)
    build = folder / "build"
    minimum.configure(
        source,
        build,
        CMAKE_PREFIX_PATH=ENVIRONMENT,
        CMAKE_UNITY_BUILD="ON",
        FOO_CORE_INSTALL="ON",
        FOO_CORE_TESTS="ON",
        **HIGHWAY_INSIDE,
        **QUICK,
    )
    # All tests would take a minute.
    tests = ["foo_core_checks_test", "foo_core_math_test"]
    minimum.build_targets(build, "app", *tests)
    prefix = minimum.install(build, folder / "prefix")
    return Library(build / "libfoo", prefix)


@pytest.fixture(scope="session")
def static(shell, readme, tmp_path_factory) -> Library:
    """Build a static library by the README's lines; its users need libhwy."""
    folder = tmp_path_factory.mktemp("static")
    (folder / "libfoo").symlink_to(LIBFOO)
    prefix = folder / "prefix"
    env = {"PREFIX": str(prefix), "CMAKE_PREFIX_PATH": str(ENVIRONMENT)}
    lines = readme("Source")
    for name, value in QUICK.items():
        lines = lines.replace(" -S ", f" -D {name}={value} -S ")
    shell(lines, folder, VARIABLES | env)
    return Library(folder / "build", prefix, (ENVIRONMENT,))


@pytest.fixture(scope="session")
def standalone(
    newest: CMake, tmp_path_factory: pytest.TempPathFactory
) -> Library:
    """Build a static library by FetchContent, with Highway inside."""
    folder = tmp_path_factory.mktemp("standalone")
    source = new_project("FetchContent", folder)
    build = folder / "build"
    newest.build(
        source,
        build,
        BUILD_SHARED_LIBS="OFF",
        FETCHCONTENT_SOURCE_DIR_FOO_CORE=ROOT,
        FOO_CORE_INSTALL="ON",
        **HIGHWAY_INSIDE,
        **QUICK,
    )
    prefix = newest.install(build, folder / "prefix")
    return Library(build / "_deps/foo_core-build", prefix)


@pytest.fixture(scope="session")
def exporting(newest: CMake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a library that exports itself and a static foo_core, with LTO."""
    folder = tmp_path_factory.mktemp("exporting")
    source = shutil.copytree(CONSUMERS / "exporting_parent", folder / "source")
    (source / "libfoo").symlink_to(LIBFOO)
    # CMake looks for GCC's ar beside the compiler, where conda-forge has it.
    tools = {
        f"CMAKE_CXX_COMPILER_{tool.upper()}": path
        for tool in ("ar", "ranlib")
        if (path := shutil.which(f"gcc-{tool}"))
    }
    newest.build(
        source,
        folder / "build",
        BUILD_SHARED_LIBS="OFF",
        CMAKE_INTERPROCEDURAL_OPTIMIZATION="ON",
        CMAKE_PREFIX_PATH=ENVIRONMENT,
        **tools,
        **QUICK,
    )
    newest.install(folder / "build", folder / "prefix")
    return folder


@pytest.fixture(params=["shared", "static", "standalone"])
def library(request: pytest.FixtureRequest) -> Library:
    return request.getfixturevalue(request.param)


def test_add_subdirectory(minimum: CMake, shared: Library) -> None:
    build = shared.build.parent
    minimum.test(build, "app|unit.checks$|unit.math|odr.sees")
    (loaded,) = libraries(minimum.run, build / "app")
    assert loaded.is_relative_to(build)


def test_fetch_content(newest: CMake, standalone: Library) -> None:
    build = standalone.build.parents[1]
    newest.test(build)
    assert not libraries(newest.run, build / "app")


@pytest.mark.parametrize("found", ["prefix", "build"])
def test_parent_that_exports(
    newest: CMake, exporting: Path, tmp_path: Path, found: str
) -> None:
    """Link a library of a project that has libfoo, installed or not."""
    folder = exporting / found
    prefixes = f"{folder};{folder / 'libfoo'};{ENVIRONMENT}"
    user = exporting / "source/user"
    newest.build(user, tmp_path, CMAKE_PREFIX_PATH=prefixes)
    assert newest.run(tmp_path / "app", env=VARIABLES).strip() == VERSION
    assert not libraries(newest.run, tmp_path / "app")


@pytest.mark.parametrize(
    "options",
    [
        {"CMAKE_CXX_FLAGS": "-fno-exceptions"},
        {"CMAKE_CXX_FLAGS_RELEASE": "-fno-exceptions"},
        {"OPTIONS": "$<$<COMPILE_LANGUAGE:CXX>:-fno-exceptions>"},
    ],
)
def test_parent_without_exceptions(
    cmake: CMake, tmp_path: Path, options: dict[str, str]
) -> None:
    source = new_project("add_subdirectory", tmp_path)
    lists = source / "CMakeLists.txt"
    add = "add_subdirectory(libfoo)\n"
    text = lists.read_text()
    assert add in text
    lists.write_text(
        text.replace(add, "add_compile_options(${OPTIONS})\n" + add)
    )
    build = tmp_path / "build"
    found = {"CMAKE_PREFIX_PATH": str(ENVIRONMENT)}
    with pytest.raises(pytest.fail.Exception) as error:
        cmake.configure(source, build, **found, **options)
    said = " ".join(str(error.value).split())
    assert "Remove -fno-exceptions from the flags of the project" in said
    # The same build folder works when the flags do.
    cmake.configure(source, build, **found, **dict.fromkeys(options, ""))


def test_shared_library(cmake: CMake, shared: Library, tmp_path: Path) -> None:
    cmake.check_finds(shared.prefix, tmp_path, CMAKE_PREFIX_PATH=shared.prefix)
    assert libraries(cmake.run, tmp_path / "app")


def test_static_library(cmake: CMake, static: Library, tmp_path: Path) -> None:
    prefixes = f"{static.prefix};{ENVIRONMENT}"
    cmake.check_finds(static.prefix, tmp_path, CMAKE_PREFIX_PATH=prefixes)
    assert not libraries(cmake.run, tmp_path / "app")
    assert libraries(cmake.run, tmp_path / "app", "hwy")


def test_static_library_with_highway_inside(
    newest: CMake, standalone: Library, tmp_path: Path
) -> None:
    newest.check_finds(
        standalone.prefix,
        tmp_path,
        CMAKE_DISABLE_FIND_PACKAGE_hwy="ON",
        CMAKE_PREFIX_PATH=standalone.prefix,
    )
    assert not libraries(newest.run, tmp_path / "app")
    assert not libraries(newest.run, tmp_path / "app", "hwy")


def test_prefix_moved_before_use(
    minimum: CMake, newest: CMake, shared: Library, tmp_path: Path
) -> None:
    old = minimum.install(shared.build, tmp_path / "old")
    new = old.rename(tmp_path / "new")
    newest.check_finds(new, tmp_path / "build", CMAKE_PREFIX_PATH=new)


def test_build_tree(newest: CMake, library: Library, tmp_path: Path) -> None:
    prefixes = ";".join(map(str, [library.build, *library.needs]))
    newest.check_finds(library.build, tmp_path, CMAKE_PREFIX_PATH=prefixes)


def test_pkg_config(
    run, shell, readme, library: Library, tmp_path: Path
) -> None:
    folders = [f"{p}/lib" for p in (library.prefix, *library.needs)]
    env = {
        "CXX": f"{os.environ.get('CXX', 'c++')} {WARNINGS}",
        "LDFLAGS": "",
        "LD_LIBRARY_PATH": ":".join(folders),
        # These replace pkg-config's own folders, which may have a libhwy.
        "PKG_CONFIG_LIBDIR": ":".join(f"{p}/pkgconfig" for p in folders),
        "PKG_CONFIG_PATH": "",
    }
    shutil.copy(FIND_PACKAGE / "main.cc", tmp_path)
    shell(readme("pkg-config"), tmp_path, env)
    run(tmp_path / "app", env=env)
    listed = run("ldd", tmp_path / "app", env=env)
    is_shared = (library.prefix / "lib/libfoo_core.so").exists()
    assert (f"{folders[0]}/libfoo_core.so" in listed) == is_shared
    assert ("libhwy" in listed) == bool(library.needs)


def test_wheel(newest: CMake, shell, readme, tmp_path: Path) -> None:
    site = tmp_path / "site"
    defines = ";".join(f"{k}={v}" for k, v in (HIGHWAY_INSIDE | QUICK).items())
    env = {
        "PYTHONPATH": str(site),
        "SKBUILD_BUILD_DIR": str(tmp_path / "wheel"),
        "SKBUILD_CMAKE_DEFINE": defines,
    }
    consumer = shutil.copytree(FIND_PACKAGE, tmp_path / "consumer")
    # It comes from this checkout instead of PyPI, into a folder of the test.
    install = "pip install libfoo-core"
    here = f"pip install --no-deps --no-build-isolation -t {site} {LIBFOO}"
    lines = readme("pip")
    assert install in lines
    lines = lines.replace(install, here)
    shell(lines, consumer, VARIABLES | env)
    newest.build(consumer, consumer / "build")
    newest.test(consumer / "build")
    check_found(newest.run, site, consumer / "build")


@pytest.mark.parametrize("heading", PROJECTS)
def test_readme_shows_the_project(readme, heading: str) -> None:
    assert readme(heading) in (PROJECTS[heading] / "CMakeLists.txt").read_text()


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (f"0.{MINOR + 1}", f"version: {VERSION}"),
        (f"0.{MINOR}.{PATCH + 1}", f"version: {VERSION}"),
        ("1.0", f"version: {VERSION}"),
        (f"0.{MINOR - 1}.9", f"version: {VERSION} (0.{MINOR - 1}.9 includes"),
        (f"0.{MINOR + 1}...<1", f"(older than 0.{MINOR + 1}...<1)"),
        (f"0.1...<0.{MINOR}", f"(newer than 0.1...<0.{MINOR})"),
        ("0.0...0.1", "(newer than 0.0...0.1)"),
        ("0.1...<1", "(0.1...<1 includes versions with another interface"),
        (
            f"0.{MINOR}...0.{MINOR + 1}",
            f"write 0.{MINOR} or 0.{MINOR}...<0.{MINOR + 1})",
        ),
        (f"0.{MINOR} COMPONENTS cuda", "built without CUDA"),
        (
            f"0.{MINOR} COMPONENTS cpu gpu",
            "no component gpu, only cpu and cuda",
        ),
    ],
)
def test_refused(
    cmake: CMake, shared: Library, tmp_path: Path, wanted: str, reason: str
) -> None:
    """Check that FOUND is FALSE and that CMake says why."""
    said = ask(cmake, shared, tmp_path, wanted)
    assert "foo_core_FOUND: 0" in said
    assert reason in said
    assert str(shared.prefix) in said


@pytest.mark.parametrize(
    "wanted",
    [
        f"0.{MINOR}",
        VERSION,
        f"{VERSION} EXACT",
        f"0.{MINOR}...<0.{MINOR + 1}",
        f"0.{MINOR}...{VERSION}",
        f"{VERSION}...0.{MINOR}.99",
        "COMPONENTS cpu",
        f"0.{MINOR} OPTIONAL_COMPONENTS cuda gpu",
    ],
)
def test_accepted(
    newest: CMake, shared: Library, tmp_path: Path, wanted: str
) -> None:
    assert "foo_core_FOUND: 1" in ask(newest, shared, tmp_path, wanted)


def test_readmes_request(
    newest: CMake, readme, shared: Library, tmp_path: Path
) -> None:
    shown = readme("Versions and components")
    wanted = re.search(r"find_package\(foo_core (.*)\)", shown)
    assert wanted
    said = ask(newest, shared, tmp_path, wanted[1])
    assert "foo_core_FOUND: 1" in said
    assert "foo_core_cuda_FOUND: FALSE" in said


def test_static_library_without_libhwy(
    newest: CMake, static: Library, tmp_path: Path
) -> None:
    said = ask(
        newest, static, tmp_path, VERSION, CMAKE_DISABLE_FIND_PACKAGE_hwy="ON"
    )
    assert "foo_core_FOUND: 0" in said or "foo_core_FOUND: FALSE" in said
    assert "dependency hwy could not be found" in said


def ask(
    cmake: CMake, library: Library, build: Path, wanted: str, **options: str
) -> str:
    """Return what find_package(foo_core {wanted}) prints, in one line."""
    said = cmake.configure(
        CONSUMERS / "request",
        build,
        CMAKE_PREFIX_PATH=library.prefix,
        WANTED=wanted.replace(" ", ";"),
        **options,
    )
    return " ".join(said.split())
