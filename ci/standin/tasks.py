"""Run pixi.toml's tasks: dependencies first, each once, without a network."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from standin import activation, environments, offline
from standin.caching import Record
from standin.channel import Channel
from standin.channel import prepared as prepared_channel
from standin.environments import Prefix
from standin.manifest import Manifest, Task, nearest
from standin.progress import StandinError, say

STRICT_BASH = ("bash", "-euo", "pipefail", "-c")


class TaskFailedError(Exception):
    """A task's command ended with another status than 0."""

    def __init__(self, task: str, status: int) -> None:
        super().__init__(f"{task} failed with exit status {status}")
        self.status = status


@functools.cache
def without_network() -> tuple[str, ...]:
    """Words before a command that take its network away, where possible."""
    words = (sys.executable, "-S", offline.__file__)
    tried = subprocess.run([*words, "true"], capture_output=True, text=True)
    if tried.returncode == 0:
        return words
    say(
        "the network stays on for tasks: this machine permits no network "
        f"namespaces ({tried.stderr.strip()})"
    )
    return ()


class Runner:
    """Runs tasks of one manifest; each at most once."""

    def __init__(self, manifest: Manifest, environment: str | None) -> None:
        self.manifest = manifest
        self.chosen = environment
        if environment is not None:
            manifest.environment(environment)
        self.done: set[tuple[str, str, tuple[str, ...]]] = set()
        self.ready: dict[str, tuple[Prefix, dict[str, str]]] = {}

    @functools.cached_property
    def channel(self) -> Channel:
        """The channel, made when the first environment needs it."""
        return prepared_channel(self.manifest)

    def environment(self, name: str) -> tuple[Prefix, dict[str, str]]:
        """An environment, installed and activated."""
        if name not in self.ready:
            wanted = self.manifest.environment(name)
            prefix = environments.prepared(self.manifest, wanted, self.channel)
            variables = activation.variables(
                self.manifest, wanted, prefix, self.channel
            )
            self.ready[name] = prefix, variables
        return self.ready[name]

    def run(self, words: Sequence[str]) -> None:
        """Run a task, or a command if no task has that name."""
        name, *args = words
        found = self.manifest.tasks().get(name, {})
        if self.chosen is not None and found and self.chosen not in found:
            raise StandinError(
                f"the environment {self.chosen!r} has no task {name!r}: "
                f"it is in {', '.join(sorted(found))}"
            )
        if found:
            self.task(name, self.chosen, tuple(args))
        else:
            self.command(name, args)

    def command(self, name: str, args: Sequence[str]) -> None:
        """Run a program in the environment."""
        prefix, variables = self.environment(self.chosen or "default")
        if not shutil.which(name, path=variables["PATH"]):
            tasks = self.manifest.tasks()
            raise StandinError(
                f"there is neither a task {name!r} nor such a command in the "
                f"environment {prefix.name!r}; tasks: {nearest(name, tasks)}"
            )
        self.call(name, [name, *args], Path.cwd(), variables)

    def task(
        self, name: str, environment: str | None, args: tuple[str, ...]
    ) -> None:
        """Run a task after those it depends on."""
        home = self.home(name, environment)
        if (name, home, args) in self.done:
            return
        self.done.add((name, home, args))
        task = self.manifest.tasks()[name][home]
        named, extra = named_args(task, args)
        for before in task.depends_on:
            self.task(
                before.task,
                before.environment or self.chosen,
                tuple(substituted(a, named, name) for a in before.args),
            )
        if task.cmd is not None:
            self.execute(task, home, named, extra)

    def home(self, name: str, environment: str | None) -> str:
        """The environment that a task runs in."""
        found = self.manifest.tasks()[name]
        if environment is not None and environment in found:
            return environment
        for task in found.values():
            if task.default_environment is not None:
                return task.default_environment
        if "default" in found:
            return "default"
        if len(found) == 1:
            return next(iter(found))
        raise StandinError(
            f"the task {name!r} is in the environments "
            f"{', '.join(sorted(found))}: choose one with -e"
        )

    def execute(
        self, task: Task, home: str, named: dict[str, str], extra: list[str]
    ) -> None:
        """Run one task's own command, unless nothing has changed."""
        line = command_line(task, named, extra)
        prefix, variables = self.environment(home)
        root = self.manifest.root

        def globs(texts: Sequence[str]) -> tuple[str, ...]:
            return tuple(substituted(t, named, task.name) for t in texts)

        record = Record(
            root,
            f"{home}-{task.name}",
            globs(task.inputs),
            globs(task.outputs),
            line,
            task.env,
            task.cwd,
            prefix.key,
        )
        if record.fresh():
            say(f"task {task.name} ({home}): cache hit, nothing changed")
            return
        record.forget()
        say(f"task {task.name} ({home}): {' '.join(line.split())}")
        own = {
            key: expanded(value, variables) for key, value in task.env.items()
        }
        folder = root / task.cwd
        if not folder.is_dir():
            raise StandinError(f"task {task.name}: no folder {folder}")
        self.call(
            f"task {task.name} ({home})",
            [*STRICT_BASH, line],
            folder,
            {**variables, **own},
        )
        if record.kept:
            if record.missing():
                say(f"task {task.name}: none of its outputs was written")
            else:
                record.write()

    def call(
        self,
        label: str,
        command: list[str],
        folder: Path,
        variables: dict[str, str],
    ) -> None:
        """Run a process to its end; TaskFailedError tells its exit status."""
        process = subprocess.Popen(
            [*without_network(), *command], cwd=folder, env=variables
        )
        # Ctrl-C reaches the process too: let it end in its own way.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            status = process.wait()
        finally:
            signal.signal(signal.SIGINT, before)
        if status:
            raise TaskFailedError(label, status if status > 0 else 128 - status)


def named_args(
    task: Task, args: tuple[str, ...]
) -> tuple[dict[str, str], list[str]]:
    """Values of a task's own arguments, and the words that are left."""
    if not task.args:
        return {}, list(args)
    if len(args) > len(task.args):
        raise StandinError(
            f"task {task.name} takes {len(task.args)} arguments "
            f"({', '.join(a.name for a in task.args)}), not {len(args)}"
        )
    values = {}
    for position, argument in enumerate(task.args):
        value = args[position] if position < len(args) else argument.default
        if value is None:
            raise StandinError(
                f"task {task.name} needs a value for {argument.name}"
            )
        if argument.choices and value not in argument.choices:
            raise StandinError(
                f"task {task.name}: {argument.name} is one of "
                f"{', '.join(argument.choices)}, not {value!r}"
            )
        values[argument.name] = value
    return values, []


def substituted(text: str, named: dict[str, str], task: str) -> str:
    """Put values in the place of {{ name }}."""

    def value(found: re.Match[str]) -> str:
        name = found[1].strip()
        if name not in named:
            raise StandinError(
                f"task {task}: {found[0]} is no argument of it; ci/pixi "
                f"supports plain names only; {nearest(name, named)}"
            )
        return named[name]

    return re.sub(r"\{\{(.*?)\}\}", value, text) if named else text


def command_line(task: Task, named: dict[str, str], extra: list[str]) -> str:
    """The line that bash runs."""
    cmd = task.cmd or ""
    if isinstance(cmd, str):
        line = substituted(cmd, named, task.name).rstrip()
    else:
        line = shlex.join(substituted(word, named, task.name) for word in cmd)
    return " ".join([line, *map(shlex.quote, extra)])


def expanded(value: str, variables: dict[str, str]) -> str:
    """$NAME and ${NAME} in a task's env."""
    return re.sub(
        r"\$(?:(\w+)|\{(\w+)\})",
        lambda found: variables.get(found[1] or found[2], ""),
        value,
    )
