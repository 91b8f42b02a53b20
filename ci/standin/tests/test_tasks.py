"""Tasks run as pixi runs them, each in its environment, without a network."""

import re
import socket
import subprocess

import pytest

TASKS = """
[tasks]
after = { cmd = "echo never", depends-on = ["fail"] }
both = { depends-on = ["who", { task = "who", environment = "other" }] }
fail = "exit 7"
home = { cmd = "echo $PIXI_ENVIRONMENT_NAME", default-environment = "third" }
one = { cmd = "echo 1; sleep 1", description = "Say one" }
pipe = "false | true"
text = "printf '%s|' one"
three = { cmd = "echo 3; sleep 1", depends-on = ["two", "one"] }
two = { cmd = "echo 2", depends-on = ["one"] }
where = "pwd"
who = "echo $PIXI_ENVIRONMENT_NAME"
[feature.other.tasks]
test = "echo task"  # there is a program of that name, too
who = "echo $PIXI_ENVIRONMENT_NAME"
[environments]
other = ["other"]
third = []
"""


@pytest.fixture
def tasks(workspace):
    return workspace.write(TASKS)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["three"], "1\n2\n3\n"),  # dependencies run first and once
        (["home"], "third\n"),
        (["both"], "default\nother\n"),
        (["-e", "other", "who"], "other\n"),
        (["text", "a b", "$HOME"], "one|a b|$HOME|"),
        (["echo", "-e", "x"], "x\n"),  # commands that are not tasks
        (["--", "bash", "-c", "echo y"], "y\n"),
    ],
)
def test_run(words, shown, tasks):
    assert tasks.passes("run", *words) == shown
    assert words != ["home"] or not tasks.prefix.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run tree", "neither a task 'tree' nor such a command"),
        ("run tree", "did you mean 'three'"),
        ("run -e default test", "'default' has no task 'test': it is in other"),
        ("shell-hook -e defalt", "no 'defalt'; did you mean 'default'?"),
    ],
)
def test_wrong_names(words, message, tasks):
    assert message in tasks.fails(*words.split())


def test_the_exit_status_is_that_of_the_task(tasks):
    result = tasks.pixi("run", "after")
    assert result.returncode == 7
    assert "never" not in result.stdout
    assert tasks.pixi("run", "pipe").returncode == 1


def test_the_times_of_the_steps_are_known_afterwards(tasks):
    shown = tasks.pixi("run", "three").stderr
    assert re.search(r"1 s  task one \(default\)\n +1 s  task three", shown)
    shown = tasks.pixi("run", "three").stderr
    assert "task one (default) (about 1 s)" in shown


def test_the_callers_python_does_not_leak(tasks):
    leaks = {"PYTHONPATH": "/x", "VIRTUAL_ENV": "/y", "PIP_INDEX_URL": "z"}
    shown = tasks.passes("run", "env", **leaks, KEPT="kept")
    names = {line.split("=")[0] for line in shown.split("\n")}
    assert "KEPT" in names
    assert not names & set(leaks)


def test_list(tasks):
    shown = tasks.passes("task", "list")
    assert re.search(r"^one +default, other, third +Say one$", shown, re.M)
    assert "test " not in tasks.passes("task", "list", "-e", "third")


def test_shell_hook_activates(workspace):
    workspace.write('[dependencies]\nninja = "*"')
    hook = workspace.passes("shell-hook")
    script = f'{hook}\necho "$CONDA_PREFIX"; command -v ninja'
    shown = subprocess.check_output(["bash", "-c", script], text=True)
    assert shown == f"{workspace.prefix}\n{workspace.prefix}/bin/ninja\n"


LOCALHOST = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    with socket.create_connection(server.getsockname(), timeout=5) as client:
        print(client.getpeername()[0])
"""


def test_a_task_has_no_network_but_localhost(tasks):
    result = tasks.pixi("run", "python3", "-c", LOCALHOST)
    if "the network stays on" in result.stderr:
        pytest.skip("this machine does not permit network namespaces")
    assert result.stdout == "127.0.0.1\n"
    # These tests are a task too. The address is reserved for documentation.
    with pytest.raises(OSError, match="unreachable"):
        socket.create_connection(("192.0.2.1", 80), timeout=5)


def test_nested_folders_find_the_workspace(tasks):
    inner = tasks.folder / "a/b"
    inner.mkdir(parents=True)
    shown = type(tasks)(inner).passes("run", "where")
    assert shown == f"{tasks.folder}\n"
