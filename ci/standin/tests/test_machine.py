"""ci/pixi on machines that lack something, or that have a pixi."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from standin import bootstrap, progress

CI_PIXI = Path(__file__).parents[2] / "pixi"


def program(path: Path, text: str) -> str:
    """Write an executable script; return a PATH with its folder first."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return f"{path.parent}:{os.environ['PATH']}"


def path_with(folder: Path, *tools: str) -> str:
    """Return a PATH with only these tools of the machine."""
    folder.mkdir()
    for tool in ("python3", "bash", "env", *tools):
        (folder / tool).symlink_to(shutil.which(tool))
    return str(folder)


def test_a_real_pixi_takes_over(workspace, tmp_path):
    path = program(tmp_path / "bin/pixi", 'echo "pixi got: $*"; exit 5')
    result = workspace.pixi("run", "-e", "x", "task", "--flag", PATH=path)
    assert result.stdout == "pixi got: run -e x task --flag\n"
    assert result.returncode == 5
    assert f"ci/pixi: using {tmp_path}/bin/pixi" in result.stderr


def test_ci_pixi_named_pixi_is_not_a_real_pixi(workspace, tmp_path):
    workspace.write('[tasks]\nhello = "echo hello"')
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/pixi").symlink_to(CI_PIXI)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    assert workspace.passes("run", "hello", PATH=path) == "hello\n"


def test_a_pixi_that_calls_ci_pixi_is_an_error(workspace, tmp_path):
    path = program(tmp_path / "bin/pixi", f'exec {CI_PIXI} "$@"')
    message = workspace.fails("install", PATH=path)
    assert "bin/pixi and ci/pixi call each other forever" in message


def test_old_python(tmp_path):
    # The script must load in an old Python; here the limit is raised instead.
    text = CI_PIXI.read_text().replace("(3, 10)", "(9, 9)")
    script = tmp_path / "pixi"
    script.write_text(text)
    command = ["python3", script, "install"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert "but 9.9 or newer is needed: install" in result.stderr


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"]])
def test_help_needs_nothing(words, workspace, tmp_path):
    cache, nothing = tmp_path / "cache", path_with(tmp_path / "bin")
    outside = {"CI_PIXI_CACHE": str(cache), "CI_PIXI_TOOLS": None}
    shown = workspace.passes(*words, PATH=nothing, **outside)
    assert "usage: ci/pixi" in shown
    assert not cache.exists()


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        (["git"], "no C++ compiler (gcc and g++) on PATH: install it"),
        (["g++", "gcc"], "no git on PATH: install it"),
    ],
)
def test_no_compiler_or_no_git(tools, message, workspace, tmp_path):
    path = path_with(tmp_path / "bin", *tools)
    assert message in workspace.write("").fails("install", PATH=path)


def test_old_compiler(workspace, tmp_path):
    refuse = "echo \"unrecognized '-std=c++17'\" >&2; exit 1"
    script = f'case "$*" in *version*) echo 4.8.5;; *) {refuse};; esac'
    for name in ("gcc", "g++"):
        path = program(tmp_path / "bin" / name, script)
    outside = {"CI_PIXI_CACHE": str(tmp_path), "CI_PIXI_CHANNEL": None}
    message = workspace.write("").fails("install", PATH=path, **outside)
    assert "cannot build a C++17 program (unrecognized" in message


HOSTILE = ["$(touch x)", "`touch x`", "a b", "it's", '"', "a\\", "a\nb", "*"]
HOSTILE += ["[a]", "a;touch x", "a|b", "a&b", "a:b", "a,b", "#", "%s", "\x07"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_path_that_a_tool_would_take_apart_is_refused(
    name, new_workspace, tmp_path
):
    """Of the repository or of the cache, and nothing in it is executed."""
    folder = tmp_path / name
    folder.mkdir()
    message = new_workspace(folder).write("").fails("run", "true")
    assert "is not safe in conda's scripts" in message
    assert message.endswith(": move this repository")
    plain = new_workspace(tmp_path).write("")
    outside = {"CI_PIXI_TOOLS": None, "CI_PIXI_CHANNEL": None}
    outside["CI_PIXI_CACHE"] = str(folder / "cache")
    message = plain.fails("run", "true", **outside)
    assert message.endswith(": set XDG_CACHE_HOME to another folder")
    assert {*tmp_path.iterdir()} == {folder, tmp_path / "pixi.toml"}
    assert not any(folder.glob("[!p]*"))


def test_a_hostile_folder_on_path_is_not_executed(workspace, tmp_path):
    """Also of a temporary folder, and with the folder of the task."""
    folder = tmp_path / "a $(touch x) `touch y`'\""
    folder.mkdir()
    program(folder / "greet", "echo hello")
    workspace.write('[dependencies]\npip = "*"\n[tasks]\nhi = "greet"')
    path = f"{folder}:{os.environ['PATH']}"
    options = {"PATH": path, "TMPDIR": str(folder)}
    assert workspace.passes("run", "hi", **options) == "hello\n"
    assert "pip" in workspace.passes("run", "pip", "--version", **options)
    script = 'eval "$(cat)"; greet; echo "$PATH"'
    hook = workspace.passes("shell-hook", **options)
    command = ["bash", "-c", script]
    shown = subprocess.check_output(command, input=hook, text=True, cwd=folder)
    assert shown.startswith("hello\n")
    assert str(folder) in shown
    assert sorted(path.name for path in folder.iterdir()) == ["greet"]


def test_paths_that_are_long_or_foreign_are_fine(new_workspace, tmp_path):
    """A script's first line holds at most 127 or 255 bytes."""
    folder = tmp_path / "größe" / ("x" * 120) / ("y" * 120) / "a@b+c~d=e-f"
    folder.mkdir(parents=True)
    workspace = new_workspace(folder).write('[dependencies]\npip = "*"')
    assert str(folder) in workspace.passes("run", "pip", "--version")


def test_ci_pixis_own_environment(tmp_path, monkeypatch):
    """It is made once, and again after it was damaged or half-made."""
    made = []

    def pip(command):
        made.append(command)
        assert "--require-hashes" in command
        (command[0].parent / "tool").write_text("a tool")

    def run(command, what):
        (command[-1] / "bin").mkdir(parents=True)

    monkeypatch.setenv("CI_PIXI_CACHE", str(tmp_path))
    monkeypatch.delenv("CI_PIXI_TOOLS", raising=False)
    monkeypatch.setattr(bootstrap, "pip", pip)
    monkeypatch.setattr(bootstrap, "run", run)
    monkeypatch.setattr(bootstrap, "check_space", lambda needed: None)
    tool = bootstrap.own_environment() / "bin/tool"
    bootstrap.own_environment()
    assert len(made) == 1
    record = tool.parents[1] / "sha256.json"
    for number, damage in enumerate(
        (
            tool.unlink,
            lambda: tool.write_text("a fool"),
            record.unlink,
            lambda: record.write_text("[1]"),
            lambda: record.write_text(record.read_text()[:-5]),
        )
    ):
        damage()
        bootstrap.own_environment()
        assert tool.read_text() == "a tool"
        assert len(made) == number + 2


@pytest.mark.parametrize("text", ["", "[]", "1", '{"a": []}', '{"a": "1"}'])
def test_times_that_are_damaged_are_forgotten(text, tmp_path, monkeypatch):
    monkeypatch.setenv("CI_PIXI_CACHE", str(tmp_path))
    (tmp_path / "seconds.json").write_text(text)
    with progress.step("a"):
        pass
    assert json.loads((tmp_path / "seconds.json").read_text())["a"] >= 0


@pytest.mark.parametrize("channel", ["", os.environ.get("CI_PIXI_CHANNEL", "")])
def test_disk_full(channel, workspace, tmp_path):
    """Before a channel, or while an environment is made; then it recovers."""
    workspace.write('[dependencies]\npython = "*"')
    small = tmp_path / "small"
    small.mkdir()
    script = 'mount -t tmpfs -o size=8m small "$0" && exec "$@"'
    words = ["unshare", "-m", "sh", "-c", script, small]
    if subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    environment = {"CI_PIXI_CACHE": str(small), "CI_PIXI_CHANNEL": channel}
    result = subprocess.run(
        [*words, CI_PIXI, "install"],
        cwd=workspace.folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "error: no disk space left (" in result.stderr
    assert "free some, or set XDG_CACHE_HOME" in result.stderr
    assert "downloading" not in result.stderr
    assert not workspace.prefix.exists()
    workspace.passes("run", "python", "-c", "import ssl")
