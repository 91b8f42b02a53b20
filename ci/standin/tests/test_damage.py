"""Whatever kills ci/pixi or damages its cache, the next run ends right.

These runs take every step of the real ones, over inputs that are small: two
wheels, two sources and a Python without files.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip(
    "conda_package_streaming",
    reason="a real pixi is in use, not ci/pixi's stand-in",
)
CI = Path(__file__).parents[2]
KILLS = 10
# Make the channel and the environment. argv: how many changes of the disk are
# allowed before the process kills itself; it prints how many there were.
RUN = """
import itertools
import os
import shutil
import signal
import sys
from pathlib import Path

sys.path[:] = eval(os.environ["TEST_PATH"])
changes = itertools.count(1)
CHANGES = {"mkdir", "rename", "link", "symlink", "remove", "rmdir", "utime"}


def watch(event, arguments):
    kind, _, name = event.partition(".")
    opened = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if opened or (kind == "os" and name in CHANGES):
        if next(changes) == int(sys.argv[1]):
            os.kill(os.getpid(), 9)


from standin import channel, downloads, environments, files, manifest
from standin.packages import compilers, python
from standin.packages.conda import Package
from standin.progress import exit_status

WHEELS = Path("wheels").absolute()
about = dict.fromkeys(channel.content(), {})
channel.content = lambda: {**about, "sources": {"project": "none"}}
compilers.check = compilers.packages = lambda *arguments: []
abi = f"8_cp{python.TAG}"
python.packages = lambda: [
    Package("python", python.VERSION, text={"bin/python": "#!/bin/sh\\n"}),
    Package("python_abi", python.MINOR, build=abi),
]


def pip_download(lock, folder, *words):
    print("downloaded")
    shutil.copytree(WHEELS, folder, dirs_exist_ok=True)


def sources(about):
    target = files.cache_root() / "sources/key"
    if not files.intact(target):
        with files.written_whole(target) as folder:
            for name in ("highway", "googletest"):
                (folder / name).mkdir()
                text = "project(hwy VERSION 1.0) GOOGLETEST_VERSION 1.0"
                (folder / name / "CMakeLists.txt").write_text(text)
    return target


downloads.pip_download, downloads.sources = pip_download, sources
workspace = manifest.Manifest(Path("pixi.toml"))
sys.addaudithook(watch)
status = exit_status(lambda: environments.activated(workspace, "default"))
print(next(changes))
sys.stdout.flush()
os._exit(status)
"""
MANIFEST = """\
[workspace]
channels = ["conda-forge"]
platforms = ["linux-64"]
[dependencies]
one = "*"
two = "*"
"""


class Machine:
    """A folder with a workspace, wheels and a cache."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        (folder / "pixi.toml").write_text(MANIFEST)
        (folder / "wheels").mkdir()
        for name in ("one", "two"):
            path = folder / f"wheels/{name}-1-py3-none-any.whl"
            with zipfile.ZipFile(path, "w") as archive:
                info = f"{name}-1.dist-info/METADATA"
                archive.writestr(info, f"Name: {name}\nVersion: 1\n")
                archive.writestr(f"{name}.py", f"this is {name}")

    def run(self, kill: int = 0) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "CI_PIXI_CACHE": str(self.cache),
            "RATTLER_CACHE_DIR": str(self.cache / "rattler"),
            "TEST_PATH": repr(sys.path),
        }
        environment.pop("CI_PIXI_CHANNEL", None)
        return subprocess.run(
            [sys.executable, "-c", RUN, str(kill)],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
        )

    def ends_right(self) -> subprocess.CompletedProcess[str]:
        """Run to the end: all is there, and nothing half-made is left."""
        result = self.run()
        assert result.returncode == 0, result.stderr
        assert "Traceback" not in result.stderr
        prefix = self.folder / ".pixi/envs/default"
        for name in ("one", "two"):
            (file,) = prefix.glob(f"lib/python3.*/site-packages/{name}.py")
            assert file.read_text() == f"this is {name}"
        (channel,) = self.cache.glob("channels/*")
        assert len(list(channel.glob("conda-forge/linux-64/*.conda"))) == 4
        assert not list(self.cache.rglob(".writing-*"))
        return result


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_a_kill_at_any_point(machine):
    """Ten points between the first change of the disk and the last one."""
    changes = int(machine.ends_right().stdout.split()[-1])
    assert changes > 5 * KILLS
    for point in range(1, KILLS + 1):
        shutil.rmtree(machine.cache)
        shutil.rmtree(machine.folder / ".pixi")
        at = random.randrange(changes * (point - 1), changes * point) // KILLS
        killed = machine.run(max(at, 1))
        assert killed.returncode == -signal.SIGKILL, (at, killed.stderr)
        machine.ends_right()


def spoil(path: Path, way: str) -> None:
    """Damage a file, which may share its content with another name."""
    content = bytearray(path.read_bytes())
    path.unlink()
    if way == "cut off":
        path.write_bytes(content[: len(content) // 2])
    elif way == "flipped":
        if content:
            content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif way == "emptied":
        path.write_bytes(b"")


@pytest.mark.parametrize("way", ["cut off", "flipped", "emptied", "deleted"])
def test_damage_is_noticed_and_mended(way, machine):
    """Of each folder of the cache alone, and of all of them together."""
    machine.ends_right()
    every = sorted(path.name for path in machine.cache.iterdir())
    assert {"channels", "packages", "rattler", "wheelhouse"} < {*every}
    for places in (*([place] for place in every), every):
        for place in places:
            top = machine.cache / place
            for path in [top, *top.rglob("*")]:
                if path.is_file() and not path.is_symlink():
                    spoil(path, way)
        shutil.rmtree(machine.folder / ".pixi")
        machine.ends_right()


def test_an_environment_that_lost_a_file_is_made_anew(machine):
    machine.ends_right()
    for file in ("bin/python", "lib/python3.*/site-packages/one.py"):
        (path,) = machine.folder.glob(f".pixi/envs/default/{file}")
        path.unlink()
        assert "solving and installing" in machine.ends_right().stderr
        assert path.exists()
    assert "solving and installing" not in machine.ends_right().stderr


def test_a_cache_that_was_moved_or_copied_is_used(machine):
    assert "downloaded" in machine.ends_right().stdout
    for move in (shutil.move, shutil.copytree):
        shutil.rmtree(machine.cache / "channels")
        before, machine.cache = machine.cache, machine.folder / move.__name__
        move(before, machine.cache)
        assert "downloaded" not in machine.ends_right().stdout


def test_two_at_once(machine):
    """Neither disturbs the other, and the work is done once."""
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda _: machine.run(), range(2)))
    assert [result.returncode for result in results] == [0, 0]
    assert "".join(result.stdout for result in results).count("downloaded") == 1
    machine.ends_right()
