"""Run pixi.toml's tasks: dependencies first, each once, without a network."""

from __future__ import annotations

import functools
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from standin import environments, offline
from standin.environments import Prefix
from standin.manifest import Manifest, nearest
from standin.progress import StandinError, say, step

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
        self.done: set[tuple[str, str]] = set()
        self.ready: dict[str, tuple[Prefix, dict[str, str]]] = {}

    def environment(self, name: str) -> tuple[Prefix, dict[str, str]]:
        """An environment, installed and activated."""
        if name not in self.ready:
            wanted = self.manifest.environment(name)
            prefix = environments.prepared(self.manifest, wanted)
            variables = environments.variables(self.manifest, prefix)
            self.ready[name] = prefix, variables
        return self.ready[name]

    def run(self, words: Sequence[str]) -> None:
        """Run a task, or a command if no task has that name."""
        name, *args = words
        found = self.manifest.tasks.get(name, {})
        if self.chosen is not None and found and self.chosen not in found:
            raise StandinError(
                f"the environment {self.chosen!r} has no task {name!r}: "
                f"it is in {', '.join(sorted(found))}"
            )
        if found:
            self.task(name, self.chosen, args)
        else:
            self.command(name, args)

    def command(self, name: str, args: Sequence[str]) -> None:
        """Run a program in the environment."""
        prefix, variables = self.environment(self.chosen or "default")
        if not shutil.which(name, path=variables["PATH"]):
            raise StandinError(
                f"there is neither a task {name!r} nor such a command in the "
                f"environment {prefix.name!r}; tasks: "
                + nearest(name, self.manifest.tasks)
            )
        self.call(name, [name, *args], Path.cwd(), variables)

    def task(
        self, name: str, environment: str | None, args: Sequence[str] = ()
    ) -> None:
        """Run a task after those it depends on; `args` follow its command."""
        home = self.home(name, environment)
        if (name, home) in self.done:
            return
        self.done.add((name, home))
        task = self.manifest.tasks[name][home]
        for before, where in task.depends_on:
            self.task(before, where or self.chosen)
        if task.cmd is not None:
            line = " ".join([task.cmd.rstrip(), *map(shlex.quote, args)])
            _, variables = self.environment(home)
            label = f"task {name} ({home})"
            with step(label, " ".join(line.split())):
                command = [*STRICT_BASH, line]
                self.call(label, command, self.manifest.root, variables)

    def home(self, name: str, environment: str | None) -> str:
        """The environment that a task runs in."""
        found = self.manifest.tasks[name]
        if environment is not None and environment in found:
            return environment
        for task in found.values():
            if task.default_environment is not None:
                return task.default_environment
        if "default" in found or len(found) == 1:
            return "default" if "default" in found else next(iter(found))
        raise StandinError(
            f"the task {name!r} is in the environments "
            f"{', '.join(sorted(found))}: choose one with -e"
        )

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
