"""The stand-in channel: how packages are written, stored and found."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_reissued_package_is_not_shadowed(in_standin, tmp_path):
    """Package caches compare only the name, version and build string."""
    script = """
import asyncio, subprocess, sys
from pathlib import Path
from standin.commands import run
from standin.channel import Channel, link
from standin.environments import solve_and_link
from standin.packages.conda import Package, stored, text_files
from standin.wheelhouse import Wheelhouse

top, text = Path(sys.argv[1]), sys.argv[2]
package = Package(
    "demo", "1.0", fill=text_files({"share/demo": text}), made_from=(text,)
)
file, new = stored(package, top / "packages", "code")
assert new
folder = top / text
link(file, folder / "conda-forge/linux-64" / file.name)
(folder / "conda-forge/noarch").mkdir()
run([sys.executable, "-m", "standin.index", folder / "conda-forge"], "index")
channel = Channel(folder, Wheelhouse(top))
asyncio.run(solve_and_link(top / "env", ["demo 1.0.*"], channel))
print((top / "env/share/demo").read_text())
"""
    for text in ("one", "two"):
        result = in_standin(script, tmp_path, text)
        assert result.stdout == f"{text}\n", result.stderr
    assert len(list(tmp_path.glob("packages/linux-64/*.conda"))) == 2


def test_package_that_cannot_be_written_leaves_nothing(in_standin, tmp_path):
    script = """
import resource, sys
from pathlib import Path
from standin.packages.conda import Package, stored, text_files

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
fill = text_files({"share/large": "x" * (2 << 20)})
stored(Package("demo", "1.0", fill=fill), Path(sys.argv[1]), "code")
"""
    store = tmp_path / "packages"
    store.mkdir()
    result = in_standin(script, store)
    assert "OSError: [Errno 27] File too large" in result.stderr
    left = [path for path in store.rglob("*") if path.is_file()]
    assert left == []
    assert not list(store.glob(".writing-*"))


def test_wheel_becomes_a_conda_package(in_standin, tmp_path):
    wheel = tmp_path / "some_thing-1.5+cpu-py3-none-any.whl"
    info = "some_thing-1.5.dist-info"
    script = """
import sys, zipfile
from pathlib import Path
from standin.packages.wheels import Names, Python, Wheel, python_package

path, info = Path(sys.argv[1]), sys.argv[2]
with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("some_thing.py", "")
    archive.writestr(f"{info}/METADATA", '''Name: some-thing
Requires-Dist: torch (>=2.1,<3)
Requires-Dist: Typing_Extensions==4.*
Requires-Dist: never; sys_platform == "win32"
Requires-Dist: also-never; extra == "dev"
Requires-Dist: plain
''')
    archive.writestr(
        f"{info}/entry_points.txt", "[console_scripts]\\nsome = some_thing:main"
    )
package = python_package(
    Wheel(path), Names({"pytorch": "torch"}), Python("3.11.7")
)
print(package.name, package.version, package.noarch)
print(package.depends)
print(package.entry_points)
"""
    result = in_standin(script, wheel, info)
    depends = "'python', 'plain', 'pytorch <3,>=2.1', 'typing-extensions 4.*'"
    assert result.stdout.splitlines() == [
        "some-thing 1.5 python",
        f"({depends})",
        "('some = some_thing:main',)",
    ], result.stderr


@pytest.fixture
def own_cache(standin):
    """A copy of the cache in use, without one package and the channel."""
    channel = Path(os.environ["CI_PIXI_CHANNEL"])
    cache = channel.parents[1]
    folder = Path(tempfile.mkdtemp(prefix="test-", dir=cache))
    shutil.copytree(
        cache / "packages", folder / "packages", copy_function=os.link
    )
    about = json.loads((channel / "channel.json").read_text())
    wheelhouse = Path(about["wheelhouse"])
    (folder / "wheelhouse").mkdir()
    (folder / "wheelhouse" / wheelhouse.name).symlink_to(wheelhouse)
    for package in folder.glob("packages/noarch/iniconfig-*.conda"):
        package.unlink()
    yield folder
    shutil.rmtree(folder)


def test_the_next_run_finishes_an_interrupted_channel(own_cache, tmp_path):
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    shutil.copy(ROOT / "pixi.toml", workspace)
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("CC", "CXX", "CI_PIXI_CHANNEL")
    }
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
    assert "iniconfig" in result.stderr
    assert "pytest" not in result.stderr.split("making the stand-in")[1]
    assert len(list(own_cache.glob("channels/*/channel.json"))) == 1
    assert not list(own_cache.glob("*/.writing-*"))


def test_unknown_package_is_named(workspace):
    workspace.write('[dependencies]\ncmke = "*"')
    message = workspace.fails("install")
    assert "no package 'cmke': did you mean 'cmake'" in message
    assert not (workspace.folder / ".pixi/envs/default").exists()


def test_an_unavailable_package_is_left_out_with_a_message(workspace):
    workspace.write('[dependencies]\nconda-build = "*"')
    result = workspace.pixi("install")
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
