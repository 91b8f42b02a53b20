"""ci/pixi on machines that lack something, or that have a pixi."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CI_PIXI = Path(__file__).parents[2] / "pixi"
OUTSIDE = {"CI_PIXI_CHANNEL": None, "CC": None, "CXX": None}


def program(path: Path, text: str) -> Path:
    """Write an executable script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def path_with(folder: Path, *tools: str) -> str:
    """Return a PATH with only these tools of the machine."""
    folder.mkdir()
    for tool in ("python3", "bash", *tools):
        (folder / tool).symlink_to(shutil.which(tool))
    return str(folder)


def test_a_real_pixi_takes_over(workspace, tmp_path):
    real = program(tmp_path / "bin/pixi", 'echo "pixi got: $*"; exit 5')
    path = f"{real.parent}:{os.environ['PATH']}"
    result = workspace.pixi("run", "-e", "x", "task", "--flag", PATH=path)
    assert result.stdout == "pixi got: run -e x task --flag\n"
    assert result.returncode == 5
    assert f"ci/pixi: using {real}" in result.stderr


def test_ci_pixi_named_pixi_is_not_a_real_pixi(workspace, tmp_path):
    workspace.write('[tasks]\nhello = "echo hello"')
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/pixi").symlink_to(CI_PIXI)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    result = workspace.pixi("run", "hello", PATH=path)
    assert result.stdout == "hello\n"
    assert "using the stand-in" in result.stderr


def test_a_pixi_that_calls_ci_pixi_is_an_error(workspace, tmp_path):
    shim = program(tmp_path / "bin/pixi", f'exec {CI_PIXI} "$@"')
    path = f"{shim.parent}:{os.environ['PATH']}"
    message = workspace.fails("info", PATH=path)
    assert f"{shim} and ci/pixi call each other forever" in message


def test_old_python(tmp_path):
    # The script must load in an old Python; here the limit is raised instead.
    text = CI_PIXI.read_text().replace("(3, 10)", "(9, 9)")
    script = tmp_path / "pixi"
    script.write_text(text)
    result = subprocess.run(
        ["python3", script, "info"], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "but 9.9 or newer is needed: install" in result.stderr


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"]])
def test_help_needs_nothing(words, workspace, tmp_path):
    nothing = path_with(tmp_path / "bin", "env")
    lost = str(tmp_path / "cache")
    result = workspace.pixi(
        *words, PATH=nothing, CI_PIXI_CACHE=lost, CI_PIXI_TOOLS=None
    )
    assert result.returncode == 0
    assert "usage: ci/pixi" in result.stdout
    assert not Path(lost).exists()


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        (["git"], "no C++ compiler (g++ or clang++) on PATH: install one"),
        (["g++", "gcc"], "no git on PATH: install it"),
    ],
)
def test_no_compiler_or_no_git(tools, message, workspace, tmp_path):
    path = path_with(tmp_path / "bin", "env", *tools)
    workspace.write("")
    assert message in workspace.fails("install", PATH=path, **OUTSIDE)


def test_old_compiler(workspace, tmp_path):
    for name in ("g++", "gcc"):
        program(
            tmp_path / "bin" / name,
            'case "$*" in *version*) echo 4.8.5;; *) '
            "echo \"unrecognized '-std=c++17'\" >&2; exit 1;; esac",
        )
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    cache = str(tmp_path / "cache")
    message = workspace.write("").fails(
        "install", PATH=path, CI_PIXI_CACHE=cache, **OUTSIDE
    )
    assert "cannot build a C++17 program (unrecognized" in message


@pytest.fixture
def on_small_disk(workspace, tmp_path):
    """A function that runs ci/pixi with its cache on a small disk."""
    folder = tmp_path / "small"
    folder.mkdir()
    script = 'mount -t tmpfs -o size=8m small "$0" && exec "$@"'
    words = ["unshare", "-m", "sh", "-c", script, str(folder)]
    if subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a small disk")

    def run(**variables: str | None) -> str:
        environment = {**os.environ, "CI_PIXI_CACHE": str(folder), **variables}
        result = subprocess.run(
            [*words, CI_PIXI, "install"],
            cwd=workspace.folder,
            env={k: v for k, v in environment.items() if v is not None},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 1
        assert "error: no disk space left for" in result.stderr.splitlines()[-1]
        return result.stderr

    return run


def test_no_space_for_the_channel(workspace, on_small_disk):
    workspace.write("")
    shown = on_small_disk(**OUTSIDE)
    assert "free some, or set XDG_CACHE_HOME" in shown
    assert "downloading" not in shown


def test_no_space_for_an_environment(workspace, on_small_disk):
    workspace.write('[dependencies]\npython = "*"')
    on_small_disk()
    assert not (workspace.folder / ".pixi/envs/default").exists()
    # With enough space it goes on from where it stopped.
    workspace.passes("run", "python", "-c", "import ssl")
