"""ci/pixi on machines that lack something, or that have a pixi."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

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


def test_a_path_that_a_shell_would_read_is_refused(new_workspace, tmp_path):
    folder = tmp_path / "a$HOME"
    folder.mkdir()
    message = new_workspace(folder).write("").fails("run", "true")
    assert "a shell would read the '$' in its path" in message


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
