"""The stand-in channel: how packages are written, stored, found and used."""

import hashlib
import io
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import tarfile
import tempfile
import types
import zipfile
from pathlib import Path

import pytest

pytest.importorskip(
    "conda_package_streaming",
    reason="a real pixi is in use, not ci/pixi's stand-in",
)
import conda_tools
from standin import downloads, files
from standin.packages import debian
from standin.packages.conda import File, Package, stored
from standin.packages.python import check_layout
from standin.packages.wheels import Wheel, python_package
from standin.progress import StandinError

ROOT = Path(__file__).parents[3]


def test_reissued_package_is_not_shadowed(tmp_path):
    """Package caches compare only the name, version and build string."""
    for text in ("one", "two"):
        package = Package("demo", "1.0", text={"share/demo": text})
        folder = tmp_path / text / "linux-64"
        folder.mkdir(parents=True)
        stored(package, folder)
        conda_tools.index(folder.parent)
        channels = [folder.parent.as_uri()]
        conda_tools.create_environment(tmp_path / "env", ["demo"], channels)
        assert (tmp_path / "env/share/demo").read_text() == text


def test_package_that_cannot_be_written_leaves_nothing(tmp_path):
    large = [File("share/large", os.urandom(2 << 20))]
    package = Package("demo", "1.0", files=lambda: large)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            stored(package, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


METADATA = """\
Name: some-thing
Requires-Dist: torch (>=2.1,<3)
Requires-Dist: Typing_Extensions==4.*
Requires-Dist: never; sys_platform == "win32"
Requires-Dist: also-never; extra == "dev"
Requires-Dist: plain
"""


def package_of_wheel(folder: Path, file: str) -> Package:
    path = folder / "some_thing-1.5+cpu-py3-none-any.whl"
    info = "some_thing-1.5.dist-info"
    entry_points = "[console_scripts]\nSome = some_thing:main"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(file, "")
        archive.writestr("some_thing-1.5.data/scripts/run", "#!python\n")
        archive.writestr(f"{info}/METADATA", METADATA)
        archive.writestr(f"{info}/entry_points.txt", entry_points)
    return python_package(Wheel(path, {"pytorch": "torch"}))


def test_wheel_becomes_a_conda_package(tmp_path):
    package = package_of_wheel(tmp_path, "some_thing.py")
    assert (package.name, package.version) == ("some-thing", "1.5")
    wanted = ("plain", "pytorch <3,>=2.1", "typing-extensions 4.*")
    assert package.depends[2:] == wanted
    module, script, *_, launcher = package.files()
    assert re.fullmatch(r"lib/python3.*/some_thing.py", module.name)
    for file, name in ((script, "bin/run"), (launcher, "bin/Some")):
        assert file.name == name
        assert file.executable
        assert file.content.startswith(b"#!/opt/standin_placeholder")


OUTSIDE = "would be outside of the environment"
HOSTILE = {
    "../x": OUTSIDE,
    "/x": OUTSIDE,
    "a/../../x": OUTSIDE,
    "a//x": OUTSIDE,
    "x -> ../y": "is a link to '../y', outside of the environment",
    "a/x -> /y": "is a link to '/y', outside of the environment",
    "a x -> .. x/y": "would be behind another file",
    "a x a": "is there twice",
    "a/b a": "is there twice",
    "info/index.json": "would replace what conda keeps of packages",
    "conda-meta/x": "would replace what conda keeps of packages",
}


@pytest.mark.parametrize("names", HOSTILE)
def test_a_file_that_is_not_a_package_s_own_is_refused(names, tmp_path):
    """Nothing is written, inside or outside of the store."""
    found = re.findall(r"(\S+)(?: -> (\S+))?", names)
    files = [File(name, link=link) for name, link in found]
    package = Package("demo", "1.0", files=lambda: files)
    if names == "a x -> .. x/y":
        files[1] = File("x", link="b/../a")
    store = tmp_path / "store"
    store.mkdir()
    with pytest.raises(StandinError) as caught:
        stored(package, store)
    message = str(caught.value)
    assert message.startswith("demo 1.0: refused: its file '")
    assert message.endswith(HOSTILE[names])
    assert list(tmp_path.rglob("*")) == [store]


def zipped(path: Path, *members: zipfile.ZipInfo | str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some_thing-1.dist-info/METADATA", "Name: some-thing")
        for member in members:
            archive.writestr(member, "x" * 99)
    return path


def test_a_wheel_that_is_none_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "some_thing-1-py3-none-any.whl"
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    device = zipfile.ZipInfo("device")
    device.external_attr = (stat.S_IFCHR | 0o666) << 16
    for member in (link, device):
        wheel = Wheel(zipped(path, member), {})
        with pytest.raises(StandinError, match="is no plain file"):
            list(wheel.files())
    wheel = Wheel(zipped(path, "file"), {})
    content = path.read_bytes()
    path.write_bytes(content.replace(b"x" * 99, b"y" * 99))
    with pytest.raises(StandinError, match="refused: Bad CRC-32 for file"):
        list(wheel.files())
    monkeypatch.setattr(files, "LARGEST", 50)
    with pytest.raises(StandinError, match="refused: it holds"):
        Wheel(path, {})
    path.write_bytes(content[:-30])
    with pytest.raises(StandinError, match="refused: File is not a zip file"):
        Wheel(path, {})
    with zipfile.ZipFile(path, "w"):
        pass
    with pytest.raises(StandinError, match="refused: it has no"):
        Wheel(path, {})


def tar(*members: tarfile.TarInfo, mode: str = "w") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return packed.getvalue()


def test_a_package_of_debian_s_with_strange_files(tmp_path, monkeypatch):
    """dpkg-deb only prints the archive, which this replaces."""
    device, link = tarfile.TarInfo("./usr/bin/x"), tarfile.TarInfo("usr/lib/x")
    device.type, link.type = tarfile.CHRTYPE, tarfile.SYMTYPE
    link.linkname = "../../../../../../etc/passwd"
    name = f"{tmp_path}/x_1_amd64.deb"
    for member, message in (
        (device, "'./usr/bin/x' is no plain file"),
        (link, "is a link to '../../../../../../etc/passwd', outside"),
    ):
        answer = types.SimpleNamespace(stdout=tar(member))
        monkeypatch.setattr("subprocess.run", lambda *_, a=answer, **__: a)
        package = debian.from_deb(Path(name), "(?!)")
        with pytest.raises(StandinError, match=re.escape(message)):
            stored(package, tmp_path)
    outside = tarfile.TarInfo("../../etc/passwd")
    answer = types.SimpleNamespace(stdout=tar(outside))
    monkeypatch.setattr("subprocess.run", lambda *_, **__: answer)
    assert not list(debian.content(Path(name), re.compile("(?!)")))


def test_sources_with_a_file_outside_are_refused(tmp_path, monkeypatch):
    top = "numpy-1/numpy/_core/src/highway/"
    about = {"inside": top.removeprefix("numpy-1"), "debian": "x"}

    def apt(*words, cwd):
        (cwd / "x.deb").touch()
        (cwd / "usr/src/googletest").mkdir(parents=True)

    monkeypatch.setenv("CI_PIXI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "apt", apt)
    monkeypatch.setattr(downloads, "run", lambda *words: "")
    for name in ("../x", f"{top}../../../../../../x", f"{top}/x"):
        sdist = tmp_path / "numpy.tar.gz"
        sdist.write_bytes(tar(tarfile.TarInfo(name), mode="w:gz"))
        monkeypatch.setattr(downloads, "download_sdist", lambda *_, s=sdist: s)
        with pytest.raises(StandinError, match=r"its file .* would be outside"):
            downloads.sources(about)
    assert not [path for path in tmp_path.rglob("*") if path.name == "x"]


def test_sources_with_another_hash_are_refused(tmp_path, monkeypatch):
    answer = types.SimpleNamespace(
        text='"https://x.invalid/a-1.tar.gz"',
        content=b"other",
        raise_for_status=bool,
    )
    monkeypatch.setattr("requests.get", lambda *args, **options: answer)
    about = {"project": "a", "file": "a-1.tar.gz", "sha256": "0" * 64}
    with pytest.raises(StandinError, match="SHA-256 mismatch for a-1"):
        downloads.download_sdist(tmp_path, about)


def test_debian_packages_that_are_missing(tmp_path, monkeypatch):
    """Apt lists the files in an order of its own."""
    specs = {"a=1": "a_1_all.deb", "b=1:2": "b_1%3a2_all.deb", "c=1": "c_1.deb"}
    asked = []

    def apt(*words, cwd=None):
        wanted = [word for word in words if "=" in word]
        if "--print-uris" in words:
            shas = {s: hashlib.sha256(s.encode()).hexdigest() for s in wanted}
            lines = [f"'uri' {specs[s]} 1 SHA256:{shas[s]}" for s in wanted]
            return "\n".join([*lines[1:], lines[0]])
        asked.append(wanted)
        for spec in wanted:
            (cwd / specs[spec]).write_text(spec)

    monkeypatch.setattr(downloads, "apt", apt)
    monkeypatch.setattr(downloads, "cache_root", lambda: tmp_path)
    needed = {tuple(spec.split("=")) for spec in specs}
    monkeypatch.setattr(downloads, "needed", {"x": needed, "g++": set()}.get)
    paths = downloads.debs("x")
    assert {path.name for path in paths} == {*specs.values()}
    paths[0].write_text("damaged")  # b
    assert downloads.debs("x") == paths
    assert asked == [["a=1", "b=1:2", "c=1"], ["b=1:2"]]


def test_no_cpu_build_of_torch(tmp_path, monkeypatch):
    """PyTorch's own index is asked before this explains what to set."""
    asked = []

    def run(command, what):
        asked.append(downloads.TORCH_AT in command)
        raise StandinError("No matching distribution found for torch==2+cpu")

    monkeypatch.setattr(downloads, "run", run)
    with pytest.raises(StandinError) as caught:
        downloads.download_wheels(tmp_path, ["torch==2+cpu"])
    assert asked == [False, True]
    first, second = str(caught.value).splitlines()
    assert "no CPU build of PyTorch (torch==2+cpu)" in first
    assert "set PIP_EXTRA_INDEX_URL to an index" in second


def test_python_that_cannot_be_copied(tmp_path):
    with pytest.raises(StandinError, match=r"has no include.*: use another"):
        check_layout(tmp_path)
    with pytest.raises(StandinError, match="the distribution's own"):
        check_layout(Path("/usr"))


@pytest.fixture
def own_cache(new_workspace):
    """A copy of the cache in use, without one package and the channel."""
    channel = Path(os.environ["CI_PIXI_CHANNEL"])
    cache = channel.parents[1]
    folder = Path(tempfile.mkdtemp(prefix="test-", dir=cache))
    for name in ("packages", "debs", "apt"):
        shutil.copytree(cache / name, folder / name, copy_function=os.link)
    for name in ("wheels", "sources"):
        place = (channel / name).resolve()
        target = folder / place.relative_to(cache)
        target.parent.mkdir()
        target.symlink_to(place)
    for package in folder.glob("packages/iniconfig-*.conda"):
        package.unlink()
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_next_run_finishes_an_interrupted_channel(
    number, own_cache, tmp_path
):
    shutil.copy(ROOT / "pixi.toml", tmp_path)
    environment = {**os.environ, "CI_PIXI_CACHE": str(own_cache)}
    del environment["CI_PIXI_CHANNEL"]
    options = {"cwd": tmp_path, "env": environment, "text": True}
    command = [ROOT / "ci/pixi", "install", "-e", "packaging"]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        # A shell's background jobs ignore SIGINT, and so do their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    ) as process:
        for line in process.stderr:
            if "making the stand-in channel" in line:
                process.send_signal(number)
    assert process.returncode == {9: -9, 2: 130}[number]
    assert not list(own_cache.glob("channels/*"))
    # A kill at the worst moments leaves these behind.
    for name in ("packages", "channels"):
        (own_cache / name / ".writing-left").mkdir(parents=True)

    result = subprocess.run(command, capture_output=True, **options)
    assert result.returncode == 0, result.stderr
    assert len(list(own_cache.glob("packages/iniconfig-*.conda"))) == 1
    assert len(list(own_cache.glob("channels/*"))) == 1
    assert not list(own_cache.glob("*/.writing-*"))


def test_packages_that_cannot_be_had(workspace):
    message = workspace.write('[dependencies]\ncmke = "*"').fails("install")
    assert "No candidates were found for cmke" in message
    assert not workspace.prefix.exists()
    workspace.write('[dependencies]\nconda-build = "*"')
    assert "left out: conda-build (" in workspace.pixi("install").stderr


def test_an_environment_is_made_again_only_if_necessary(workspace):
    workspace.write('[dependencies]\nninja = "*"')
    made = "solving and installing"
    assert made in workspace.pixi("install").stderr
    assert made not in workspace.pixi("install").stderr
    (marker,) = workspace.prefix.glob("conda-meta/ci-pixi-*")
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


def test_pip(full):
    """All dependencies are met, and tasks install from the wheelhouse."""
    assert "No broken requirements" in full.passes("run", "pip", "check")
    assert "editables" in full.passes("run", "pip", "list")
    words = ["run", "pip", "install", "--dry-run", "pathspec"]
    shown = full.passes(*words, PIP_NO_INDEX=None, PIP_FIND_LINKS=None)
    assert "Would install" in shown
    assert "Looking in links" in shown
    assert "Looking in indexes" not in shown


def test_cmake_project_finds_everything_in_the_environment(full):
    source = full.folder / "source"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(CMAKE)
    (source / "sample.cpp").write_text(SOURCE)
    build = "cmake -G Ninja -S source -B build $CMAKE_ARGS"
    full.passes("run", "bash", "-c", f"{build} && cmake --build build")
    full.passes("run", "ctest", "--test-dir", "build")
    command = ["ldd", full.folder / "build/sample"]
    linked = subprocess.check_output(command, text=True)
    for name in ("libhwy.so.1", "libgtest.so", "libstdc++.so.6"):
        assert f"=> {full.prefix}/lib/{name}" in linked
    cache = (full.folder / "build/CMakeCache.txt").read_text()
    assert "/bin/x86_64-conda-linux-gnu-c++" in cache
    shown = full.passes("run", "pkg-config", "--cflags", "libhwy")
    assert f"-I{full.prefix}/include" in shown


def test_torch_has_the_layout_of_conda_forge(full):
    full.passes("install")
    assert (full.prefix / "share/cmake/Torch/TorchConfig.cmake").is_file()
    inner = next(full.prefix.glob("lib/python3.*/site-packages/torch"))
    for name in ("lib/libtorch_cpu.so", "include/ATen", "lib/libc10.so"):
        assert os.path.samefile(inner / name, full.prefix / name)
        assert (inner / name).is_symlink()


def test_tasks_find_the_channel_and_the_sources(full):
    shown = full.passes("run", "env")
    variables = dict(re.findall("^(\\w+)=(.*)", shown, re.M))
    alias = variables["CONDA_CHANNEL_ALIAS"].removeprefix("file://")
    assert Path(alias, "conda-forge/linux-64/repodata.json").is_file()
    for name, file in (
        ("GOOGLETEST", "googletest/include/gtest/gtest.h"),
        ("HIGHWAY", "hwy/highway.h"),
    ):
        source = variables[f"FETCHCONTENT_SOURCE_DIR_{name}"]
        assert Path(source, file).is_file()
