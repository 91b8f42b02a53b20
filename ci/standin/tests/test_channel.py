"""The stand-in channel: how packages are written, stored, found and used."""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def test_reissued_package_is_not_shadowed(in_standin, tmp_path):
    """Package caches compare only the name, version and build string."""
    script = """
import sys
from pathlib import Path
import conda_tools
from standin.files import link
from standin.packages.conda import Package, stored, text_files

top, text = Path(sys.argv[1]), sys.argv[2]
(top / "packages").mkdir(exist_ok=True)
package = Package(
    "demo", "1.0", files=text_files({"share/demo": text}), made_from=(text,)
)
file, new = stored(package, top / "packages", "code")
assert new
link(file, top / text / "linux-64" / file.name)
conda_tools.index(top / text)
channel = (top / text).as_uri()
conda_tools.create_environment(top / "env", ["demo 1.0.*"], [channel])
print((top / "env/share/demo").read_text())
"""
    for text in ("one", "two"):
        result = in_standin(script, tmp_path, text)
        assert result.stdout == f"{text}\n", result.stderr
    assert len(list(tmp_path.glob("packages/*.conda"))) == 2


def test_package_that_cannot_be_written_leaves_nothing(in_standin, tmp_path):
    script = """
import os, resource, sys
from pathlib import Path
from standin.packages.conda import File, Package, stored

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
large = [File("share/large", os.urandom(2 << 20))]
package = Package("demo", "1.0", files=lambda: large)
stored(package, Path(sys.argv[1]), "code")
"""
    result = in_standin(script, tmp_path)
    assert "OSError: [Errno 27] File too large" in result.stderr
    assert list(tmp_path.iterdir()) == []


WHEEL = """
import sys, zipfile
from pathlib import Path
from standin.packages.wheels import Wheel, python_package

path, info = Path(sys.argv[1]), "some_thing-1.5.dist-info"
with zipfile.ZipFile(path, "w") as archive:
    archive.writestr(sys.argv[2], "")
    archive.writestr("some_thing-1.5.data/scripts/run", "#!python\\n")
    archive.writestr(f"{info}/METADATA", '''Name: some-thing
Requires-Dist: torch (>=2.1,<3)
Requires-Dist: Typing_Extensions==4.*
Requires-Dist: never; sys_platform == "win32"
Requires-Dist: also-never; extra == "dev"
Requires-Dist: plain
''')
    archive.writestr(
        f"{info}/entry_points.txt", "[console_scripts]\\nSome = some_thing:main"
    )
package = python_package(Wheel(path, {"pytorch": "torch"}))
print(package.name, package.version, package.depends[2:])
for file in package.files():
    print(file.name, file.executable, file.content[:5])
"""


def test_wheel_becomes_a_conda_package(in_standin, tmp_path):
    wheel = tmp_path / "some_thing-1.5+cpu-py3-none-any.whl"
    result = in_standin(WHEEL, wheel, "some_thing.py")
    first, *files = result.stdout.splitlines()
    depends = "'plain', 'pytorch <3,>=2.1', 'typing-extensions 4.*'"
    assert first == f"some-thing 1.5 ({depends})", result.stderr
    assert re.fullmatch(r"lib/python3.*/some_thing.py False b''", files[0])
    assert files[1] == "bin/run True b'#!/op'"
    assert files[-1] == "bin/Some True b'#!/op'"


@pytest.mark.parametrize("name", ["../x", "a/../../x"])
def test_wheel_with_a_file_outside_is_refused(name, in_standin, tmp_path):
    wheel = tmp_path / "some_thing-1.5-py3-none-any.whl"
    result = in_standin(WHEEL, wheel, name)
    assert f"refused: its file {name} would be outside" in result.stderr


def test_sources_with_another_hash_are_refused(in_standin, tmp_path):
    script = """
import sys, requests
from pathlib import Path
from standin.downloads import download_sdist

class Answer:
    text, content = '"https://x.invalid/a-1.tar.gz"', b"other"
    def raise_for_status(self): ...

requests.get = lambda *args, **options: Answer()
download_sdist(
    Path(sys.argv[1]),
    {"project": "a", "file": "a-1.tar.gz", "sha256": "0" * 64},
)
"""
    result = in_standin(script, tmp_path)
    assert "SHA-256 mismatch for a-1.tar.gz: expected 000" in result.stderr


def test_no_cpu_build_of_torch(in_standin, tmp_path):
    """PyTorch's own index is asked before this explains what to set."""
    script = """
import sys
from pathlib import Path
from standin import downloads
from standin.progress import StandinError

def run(command, *rest):
    print("asked", downloads.TORCH_INDEX in command)
    raise StandinError("No matching distribution found for torch==2.13.0+cpu")

downloads.run = run
try:
    downloads.download_wheels(Path(sys.argv[1]), ["torch==2.13.0+cpu"])
except StandinError as problem:
    print(problem)
"""
    shown = in_standin(script, tmp_path).stdout.splitlines()
    assert shown[:2] == ["asked False", "asked True"]
    assert len(shown) == 4
    assert "no CPU build of PyTorch (torch==2.13.0+cpu)" in shown[2]
    assert "set PIP_EXTRA_INDEX_URL to an index" in shown[3]


@pytest.fixture
def own_cache(new_workspace):
    """A copy of the cache in use, without one package and the channel."""
    channel = Path(os.environ["CI_PIXI_CHANNEL"])
    cache = channel.parents[1]
    folder = Path(tempfile.mkdtemp(prefix="test-", dir=cache))
    for name in ("packages", "debs", "apt"):
        shutil.copytree(cache / name, folder / name, copy_function=os.link)
    about = json.loads((channel / "channel.json").read_text())
    for place in map(Path, about.values()):
        target = folder / place.relative_to(cache)
        target.parent.mkdir()
        target.symlink_to(place)
    for package in folder.glob("packages/iniconfig-*.conda"):
        package.unlink()
    yield folder
    shutil.rmtree(folder)


def test_the_next_run_finishes_an_interrupted_channel(own_cache, tmp_path):
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    shutil.copy(ROOT / "pixi.toml", workspace)
    inner = ("CC", "CXX", "CI_PIXI_CHANNEL")
    environment = {k: v for k, v in os.environ.items() if k not in inner}
    environment["CI_PIXI_CACHE"] = str(own_cache)
    command = [ROOT / "ci/pixi", "install", "-e", "packaging"]
    with subprocess.Popen(
        command,
        cwd=workspace,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        seen = []
        for line in process.stderr:
            seen.append(line)
            if "making the stand-in channel" in line:
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "".join(seen)
    assert not list(own_cache.glob("channels/*/channel.json"))
    # A kill at the worst moments leaves these behind.
    for name in ("packages", "channels"):
        (own_cache / name / ".writing-left").mkdir(parents=True)

    result = subprocess.run(
        command, cwd=workspace, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert len(list(own_cache.glob("packages/iniconfig-*.conda"))) == 1
    assert len(list(own_cache.glob("channels/*/channel.json"))) == 1
    assert not list(own_cache.glob("*/.writing-*"))


def test_packages_that_cannot_be_had(workspace):
    workspace.write('[dependencies]\ncmke = "*"')
    message = workspace.fails("install")
    assert "no package 'cmke': did you mean 'cmake'" in message
    assert not (workspace.folder / ".pixi/envs/default").exists()
    result = workspace.write('[dependencies]\nconda-build = "*"').pixi(
        "install"
    )
    assert result.returncode == 0
    assert "left out: conda-build (" in result.stderr


def test_an_environment_is_made_again_only_if_necessary(workspace):
    workspace.write('[dependencies]\nninja = "*"')
    made = "solving and installing"
    assert made in workspace.pixi("install").stderr
    assert made not in workspace.pixi("install").stderr
    marker = workspace.folder / ".pixi/envs/default/conda-meta/ci-pixi.json"
    marker.unlink()  # as after an interrupted installation
    assert made in workspace.pixi("install").stderr
    workspace.write('[dependencies]\nninja = ">=1"')
    assert made in workspace.pixi("install").stderr


# --- what environments are good for -------------------------------------------

MANIFEST = """
[dependencies]
cmake = "*"
cxx-compiler = "*"
gtest = "*"
libhwy = "*"
ninja = "*"
pip = "*"
pkg-config = "*"
python = "*"
pytorch = "*"
[pypi-dependencies]
editables = "*"
"""
CMAKE = """
cmake_minimum_required(VERSION 3.26)
project(sample LANGUAGES CXX)
find_package(GTest REQUIRED)
find_package(hwy 1.1 REQUIRED)
add_executable(sample sample.cpp)
target_link_libraries(sample PRIVATE GTest::gtest_main hwy::hwy)
enable_testing()
include(GoogleTest)
gtest_discover_tests(sample)
"""
SOURCE = """
#include <gtest/gtest.h>
#include <hwy/contrib/math/math-inl.h>
#include <hwy/targets.h>
TEST(Sample, Runs) { EXPECT_NE(hwy::SupportedTargets(), 0); }
"""


@pytest.fixture(scope="module")
def full(tmp_path_factory, new_workspace):
    """A workspace with all of the above installed."""
    return new_workspace(tmp_path_factory.mktemp("full")).write(MANIFEST)


def test_dependencies_of_all_packages_are_met(full):
    assert "No broken requirements" in full.passes("run", "pip", "check")


def test_pypi_dependency_is_installed_by_pip(full):
    assert "editables" in full.passes("run", "pip", "list")
    packages = full.folder / ".pixi/envs/default/conda-meta"
    assert not list(packages.glob("editables-*.json"))
    assert list(packages.glob("pytorch-*.json"))


def test_cmake_project_finds_everything_in_the_environment(full):
    source = full.folder / "source"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(CMAKE)
    (source / "sample.cpp").write_text(SOURCE)
    build = "cmake -G Ninja -S source -B build $CMAKE_ARGS"
    full.passes("run", "bash", "-c", f"{build} && cmake --build build")
    full.passes("run", "ctest", "--test-dir", "build")
    linked = subprocess.check_output(
        ["ldd", full.folder / "build/sample"], text=True
    )
    libraries = full.folder / ".pixi/envs/default/lib"
    for name in ("libhwy.so.1", "libgtest.so", "libstdc++.so.6"):
        assert f"=> {libraries}/{name}" in linked
    cache = (full.folder / "build/CMakeCache.txt").read_text()
    assert "/bin/x86_64-conda-linux-gnu-c++" in cache


def test_pkg_config_finds_the_environment(full):
    prefix = full.passes("run", "printenv", "CONDA_PREFIX").strip()
    shown = full.passes("run", "pkg-config", "--cflags", "libhwy")
    assert f"-I{prefix}/include" in shown


def test_torch_has_the_layout_of_conda_forge(full):
    prefix = full.folder / ".pixi/envs/default"
    assert (prefix / "share/cmake/Torch/TorchConfig.cmake").is_file()
    inner = next(prefix.glob("lib/python3.*/site-packages/torch"))
    for name in ("lib/libtorch_cpu.so", "include/ATen", "lib/libc10.so"):
        assert os.path.samefile(inner / name, prefix / name)
        assert (inner / name).is_symlink()


def test_pip_in_a_task_uses_the_wheelhouse(full):
    words = ["run", "pip", "install", "--dry-run", "pathspec"]
    shown = full.passes(*words, PIP_NO_INDEX=None, PIP_FIND_LINKS=None)
    assert "Would install" in shown
    assert "Looking in links" in shown
    assert "Looking in indexes" not in shown


def test_tasks_find_the_channel_and_the_sources(full):
    shown = full.passes("run", "env")
    variables = dict(x.split("=", 1) for x in shown.splitlines() if "=" in x)
    alias = variables["CONDA_CHANNEL_ALIAS"].removeprefix("file://")
    assert Path(alias, "conda-forge/linux-64/repodata.json").is_file()
    for name, file in (
        ("GOOGLETEST", "googletest/include/gtest/gtest.h"),
        ("HIGHWAY", "hwy/highway.h"),
    ):
        source = variables[f"FETCHCONTENT_SOURCE_DIR_{name}"]
        assert Path(source, file).is_file()
