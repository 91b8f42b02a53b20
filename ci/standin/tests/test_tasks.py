"""Tasks run as pixi runs them, each in its environment, without a network."""

import errno
import os
import re
import socket
import subprocess

import pytest


def test_dependencies_run_first_and_once(workspace):
    workspace.write("""
        [tasks]
        first = "echo first"
        second = { cmd = "echo second", depends-on = ["first"] }
        third = { cmd = "echo third", depends-on = ["second", "first"] }
    """)
    shown = workspace.passes("run", "third").split()
    assert shown == ["first", "second", "third"]


def test_environments_of_tasks(workspace):
    workspace.write("""
        [feature.other.tasks]
        who = "echo $PIXI_ENVIRONMENT_NAME"
        [tasks]
        who = "echo $PIXI_ENVIRONMENT_NAME"
        both = { depends-on = [
          "who", { task = "who", environment = "other" },
        ] }
        [tasks.home]
        cmd = "echo $PIXI_ENVIRONMENT_NAME"
        default-environment = "third"
        [environments]
        other = ["other"]
        third = []
    """)
    assert workspace.passes("run", "home").split() == ["third"]
    assert not (workspace.folder / ".pixi/envs/default").exists()
    assert workspace.passes("run", "both").split() == ["default", "other"]
    assert workspace.passes("run", "-e", "other", "who").split() == ["other"]


def test_arguments_are_appended_and_quoted(workspace):
    workspace.write("""[tasks]\ntext = "printf '%s|' one" """)
    assert workspace.passes("run", "text", "a b", "$HOME") == "one|a b|$HOME|"


def test_the_callers_python_does_not_leak(workspace):
    leaks = {"PYTHONPATH": "/x", "VIRTUAL_ENV": "/y", "PIP_INDEX_URL": "z"}
    shown = workspace.write("").passes("run", "env", **leaks, KEPT="kept")
    names = {line.split("=")[0] for line in shown.split("\n")}
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


def test_the_times_of_the_steps_are_known_afterwards(workspace):
    workspace.write("""
        [tasks]
        one = "sleep 1"
        two = { cmd = "sleep 1.1", depends-on = ["one"] }
    """)
    shown = workspace.pixi("run", "two").stderr
    assert re.search(r"1 s  task one \(default\)\n +1 s  task two", shown)
    assert re.search(
        r"task one \(default\) \(last time 1 s\)",
        (workspace.pixi("run", "two").stderr),
    )


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
    message = workspace.fails("shell-hook", "-e", "defalt")
    assert "no environment 'defalt'; did you mean 'default'?" in message


def test_list_leaves_hidden_tasks_out(workspace):
    workspace.write("""
        [tasks]
        _hidden = "true"
        shown = { cmd = "true", description = "Say so" }
    """)
    shown = workspace.passes("task", "list").split()
    assert shown == ["shown", "default", "Say", "so"]


def test_shell_hook_activates(workspace):
    workspace.write('[dependencies]\nninja = "*"')
    hook = workspace.passes("shell-hook")
    script = f'{hook}\necho "$CONDA_PREFIX"; command -v ninja'
    shown = subprocess.check_output(["bash", "-c", script], text=True)
    prefix = workspace.folder / ".pixi/envs/default"
    assert shown.split() == [str(prefix), str(prefix / "bin/ninja")]


LOCALHOST = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    with socket.create_connection(server.getsockname(), timeout=5) as client:
        print(client.getpeername()[0])
"""


def test_a_task_has_no_network_but_localhost(workspace):
    workspace.write("")
    result = workspace.pixi("run", "readlink", "/proc/self/ns/net")
    if "the network stays on" in result.stderr:
        pytest.skip("this machine does not permit network namespaces")
    assert result.stdout.strip() != os.readlink("/proc/self/ns/net")
    # These tests are a task too. The address is reserved for documentation.
    with pytest.raises(OSError, match="unreachable") as caught:
        socket.create_connection(("192.0.2.1", 80), timeout=5)
    assert caught.value.errno == errno.ENETUNREACH
    shown = workspace.passes("run", "python3", "-c", LOCALHOST)
    assert shown == "127.0.0.1\n"


def test_nested_folders_find_the_workspace(workspace, tmp_path):
    workspace.write('[tasks]\nwhere = "pwd"')
    inner = workspace.folder / "a/b"
    inner.mkdir(parents=True)
    inside = type(workspace)(inner)
    assert inside.passes("run", "where").strip() == str(workspace.folder)


def test_a_path_that_a_shell_would_read_is_refused(new_workspace, tmp_path):
    folder = tmp_path / "a$HOME"
    folder.mkdir()
    message = new_workspace(folder).write("").fails("run", "true")
    assert "a shell would read the '$' in its path" in message
