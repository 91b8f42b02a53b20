"""Tasks run as pixi runs them, each in its environment."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from pathlib import Path

import pytest
from standin.caching import selected


def test_dependencies_run_first_and_once(workspace):
    workspace.write("""
        [tasks]
        first = "echo first"
        second = { cmd = "echo second", depends-on = ["first"] }
        third = { cmd = "echo third", depends-on = ["second", "first"] }
    """)
    assert workspace.passes("run", "third").split() == [
        "first",
        "second",
        "third",
    ]


def test_dependency_in_another_environment(workspace):
    workspace.write("""
        [feature.other.tasks]
        who = "echo $PIXI_ENVIRONMENT_NAME"
        [environments]
        other = ["other"]
        [tasks]
        who = "echo $PIXI_ENVIRONMENT_NAME"
        both = { depends-on = [
          "who", { task = "who", environment = "other" },
        ] }
    """)
    assert workspace.passes("run", "both").split() == ["default", "other"]
    assert workspace.passes("run", "-e", "other", "who").split() == ["other"]


def test_default_environment(workspace):
    workspace.write("""
        [tasks.who]
        cmd = "echo $PIXI_ENVIRONMENT_NAME"
        default-environment = "other"
        [environments]
        other = []
    """)
    assert workspace.passes("run", "who").split() == ["other"]
    assert not (workspace.folder / ".pixi/envs/default").exists()


def test_arguments_are_appended_and_quoted(workspace):
    workspace.write("""
        [tasks]
        text = "printf '%s|' one"
        words = { cmd = ["printf", "%s|", "a b", "$HOME"] }
    """)
    assert workspace.passes("run", "text", "a b", "$HOME") == "one|a b|$HOME|"
    assert workspace.passes("run", "words", "-x") == "a b|$HOME|-x|"


def test_named_arguments(workspace):
    workspace.write("""
        [tasks.greet]
        cmd = "echo {{ greeting }}, {{ name }}"
        args = ["name", { arg = "greeting", default = "hello" }]
        [tasks.twice]
        depends-on = [
          { task = "greet", args = ["ann"] },
          { task = "greet", args = ["bob", "bye"] },
        ]
    """)
    assert workspace.passes("run", "greet", "me") == "hello, me\n"
    assert workspace.passes("run", "twice") == "hello, ann\nbye, bob\n"
    assert "task greet needs a value for name" in workspace.fails(
        "run", "greet"
    )


def test_folder_and_variables(workspace):
    (workspace.folder / "sub").mkdir()
    (workspace.folder / "script.sh").write_text("export FROM_SCRIPT=1\n")
    workspace.write("""
        [activation]
        scripts = ["script.sh"]
        env = { FROM_TABLE = "$PIXI_PROJECT_NAME" }
        [tasks.show]
        cmd = "echo ${PWD##*/} $FROM_SCRIPT $FROM_TABLE $OWN"
        cwd = "sub"
        env = { OWN = "in $CONDA_DEFAULT_ENV" }
    """)
    shown = workspace.passes("run", "show")
    assert shown == "sub 1 sample in sample\n"


def test_the_callers_python_does_not_leak(workspace):
    workspace.write("")
    leaks = {"PYTHONPATH": "/x", "VIRTUAL_ENV": "/y", "PIP_INDEX_URL": "z"}
    shown = workspace.passes("run", "env", **leaks, KEPT="kept").split("\n")
    names = {line.split("=")[0] for line in shown}
    assert "KEPT" in names
    assert not names & set(leaks)


def test_the_exit_status_is_that_of_the_task(workspace):
    workspace.write("""
        [tasks]
        fail = "exit 7"
        after = { cmd = "echo never", depends-on = ["fail"] }
        pipe = "false | true"
    """)
    result = workspace.pixi("run", "after")
    assert result.returncode == 7
    assert "never" not in result.stdout
    assert workspace.pixi("run", "pipe").returncode == 1


def test_commands_that_are_not_tasks(workspace):
    workspace.write('[tasks]\nbuild-core = "true"')
    assert workspace.passes("run", "echo", "-e", "x") == "x\n"
    assert workspace.passes("run", "--", "bash", "-c", "echo y") == "y\n"
    message = workspace.fails("run", "biuld-core")
    assert "neither a task 'biuld-core' nor such a command" in message
    assert "did you mean 'build-core'?" in message


def test_task_of_another_environment(workspace):
    workspace.write("""
        [feature.a.tasks]
        test = "echo task"  # there is a program of that name, too
        [environments]
        a = ["a"]
    """)
    message = workspace.fails("run", "-e", "default", "test")
    assert "'default' has no task 'test': it is in a" in message


def test_misspelt_environment(workspace):
    workspace.write("[environments]\npackaging = []")
    for words in (["run", "-e", "pakaging", "true"], ["install", "-e", "x"]):
        assert "has no environment" in workspace.fails(*words)
    message = workspace.fails("shell-hook", "-e", "pakaging")
    assert "did you mean 'packaging'?" in message


def test_list_leaves_hidden_tasks_out(workspace):
    workspace.write("""
        [tasks]
        _hidden = "true"
        shown = { cmd = "true", description = "Say so" }
    """)
    assert workspace.passes("task", "list").split() == [
        *("shown", "default", "Say", "so"),
    ]


def test_shell_hook_activates(workspace):
    workspace.write('[dependencies]\nninja = "*"')
    hook = workspace.passes("shell-hook")
    script = f'{hook}\necho "$CONDA_PREFIX"; command -v ninja'
    shown = subprocess.check_output(["bash", "-c", script], text=True)
    prefix = workspace.folder / ".pixi/envs/default"
    assert shown.split() == [str(prefix), str(prefix / "bin/ninja")]


CACHED = """
    [tasks.copy]
    cmd = "echo ran; cat in/*.txt > out.txt; echo"
    inputs = ["in/**", "!in/ignored.txt"]
    outputs = ["out.txt"]
"""


def test_unchanged_task_is_skipped_and_a_change_runs_it(workspace):
    workspace.write(CACHED)
    folder = workspace.folder / "in"
    folder.mkdir()
    file, ignored = folder / "a.txt", folder / "ignored.txt"
    file.write_text("1")
    ignored.write_text("1")

    def runs(*words: str) -> bool:
        result = workspace.pixi("run", "copy", *words)
        assert result.returncode == 0
        assert ("cache hit" in result.stderr) != ("ran" in result.stdout)
        return "ran" in result.stdout

    assert runs()
    assert not runs()
    ignored.write_text("2")
    assert not runs()
    file.write_text("2")
    assert runs()
    assert not runs()
    (folder / "new.txt").write_text("3")
    assert runs()
    (workspace.folder / "out.txt").write_text("by hand")
    assert runs()
    (workspace.folder / "out.txt").unlink()
    assert runs()
    assert not runs()
    assert runs("file")
    assert runs()
    workspace.write(CACHED.replace("echo ran;", "echo ran; true;"))
    assert runs()
    assert not runs()


def test_failed_task_is_run_again(workspace):
    workspace.write("""
        [tasks.fail]
        cmd = "echo ran; echo x > out; test ! -e stop"
        outputs = ["out"]
    """)
    stop = workspace.folder / "stop"
    assert workspace.passes("run", "fail") == "ran\n"
    (workspace.folder / "out").write_text("changed")
    stop.touch()
    for _ in range(2):
        assert workspace.pixi("run", "fail").stdout == "ran\n"
    stop.unlink()
    assert workspace.passes("run", "fail") == "ran\n"
    assert workspace.passes("run", "fail") == ""


def network() -> str:
    """Return the network namespace of this process."""
    return os.readlink("/proc/self/ns/net")


def test_a_task_has_no_network(workspace):
    workspace.write("[environments]")
    result = workspace.pixi("run", "readlink", "/proc/self/ns/net")
    if "the network stays on" in result.stderr:
        pytest.skip("this machine does not permit network namespaces")
    assert result.stdout.strip() != network()
    # These tests are a task too. The address is reserved for documentation.
    with pytest.raises(OSError, match="unreachable") as caught:
        socket.create_connection(("192.0.2.1", 80), timeout=5)
    assert caught.value.errno == errno.ENETUNREACH


LOCALHOST = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    with socket.create_connection(server.getsockname(), timeout=5) as client:
        print(client.getpeername()[0])
"""


def test_localhost_works_in_a_task(workspace):
    workspace.write("")
    shown = workspace.passes("run", "python3", "-c", LOCALHOST)
    assert shown == "127.0.0.1\n"


def test_nested_folders_find_the_workspace(workspace):
    workspace.write('[tasks]\nwhere = "pwd"')
    inner = workspace.folder / "a/b"
    inner.mkdir(parents=True)
    root = Path(__file__).parents[2]
    shown = subprocess.check_output(
        [root / "ci/pixi", "run", "where"], cwd=inner, text=True
    )
    assert shown.strip() == str(workspace.folder)


@pytest.mark.parametrize(
    ("globs", "names"),
    [
        (["a.txt"], "a.txt"),
        (["*.txt"], "a.txt"),
        (["**/*.txt"], "a.txt sub/b.txt sub/deep/c.txt"),
        (["/sub/*.txt"], "sub/b.txt"),
        (["sub"], "sub/b.txt sub/b.x sub/deep/c.txt"),
        (["sub/**", "!**/deep/**"], "sub/b.txt sub/b.x"),
        (["sub/**", "!sub/**", "sub/?.x"], "sub/b.x"),
        (["sub/b.[a-w]*"], "sub/b.txt"),
        (["sub/b.[!a-w]*"], "sub/b.x"),
        (["s*/deep/c.txt"], "sub/deep/c.txt"),
        (["missing/**"], ""),
    ],
)
def test_globs(globs, names, tmp_path):
    for name in ("a.txt", "sub/b.txt", "sub/b.x", "sub/deep/c.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / ".pixi").mkdir()
    (tmp_path / ".pixi/e.txt").touch()
    assert selected(tmp_path, globs) == names.split()
