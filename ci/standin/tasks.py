"""Run pixi.toml's tasks: dependencies first, each once, without a network."""

import ctypes
import fcntl
import functools
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from standin.environments import activated
from standin.manifest import Manifest, nearest
from standin.progress import StandinError, say, step

STRICT_BASH = ("bash", "-euo", "pipefail", "-c")
LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1


def isolate() -> None:
    """Give this process a network namespace, in which only localhost works."""
    user, group = os.getuid(), os.getgid()
    if LIBC.unshare(CLONE_NEWNET | (CLONE_NEWUSER if user else 0)):
        raise OSError(ctypes.get_errno(), "unshare")
    if user:  # keep the same user in the namespace
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sH14x", b"lo", IFF_UP)
        fcntl.ioctl(handle, SIOCSIFFLAGS, request)


@functools.cache
def without_network() -> Callable[[], None] | None:
    """What a new process does first: `isolate`, where that is permitted."""
    try:
        subprocess.run(["true"], preexec_fn=isolate, check=True)
    except subprocess.SubprocessError:
        say("the network stays on for tasks: no namespaces are permitted here")
        return None
    return isolate


class Runner:
    """Runs tasks of one manifest; each at most once."""

    def __init__(self, manifest: Manifest, chosen: str | None) -> None:
        self.manifest, self.chosen = manifest, chosen
        self.done: set[tuple[str, str]] = set()

    def run(self, name: str, *args: str) -> None:
        """Run a task, or a command if no task has that name."""
        if found := self.manifest.tasks.get(name):
            if self.chosen not in (None, *found):
                raise StandinError(
                    f"the environment {self.chosen!r} has no task {name!r}: "
                    f"it is in {', '.join(found)}"
                )
            self.task(name, self.chosen, args)
            return
        folder, variables = activated(self.manifest, self.chosen or "default")
        if not shutil.which(name, path=variables["PATH"]):
            raise StandinError(
                f"there is neither a task {name!r} nor such a command in the "
                f"environment {folder.name!r}; tasks: "
                + nearest(name, self.manifest.tasks)
            )
        call(name, [name, *args], Path.cwd(), variables)

    def task(
        self, name: str, environment: str | None, args: Sequence[str] = ()
    ) -> None:
        """Run a task after those it depends on; `args` follow its command."""
        home = self.home(name, environment)
        if (name, home) in self.done:
            return
        self.done.add((name, home))
        task = self.manifest.tasks[name][home]
        for before in task.depends_on:
            self.task(before["task"], before.get("environment", self.chosen))
        if task.cmd:
            line = " ".join([task.cmd.rstrip(), *map(shlex.quote, args)])
            _, variables = activated(self.manifest, home)
            label, root = f"task {name} ({home})", self.manifest.root
            with step(label, " ".join(line.split())):
                call(label, [*STRICT_BASH, line], root, variables)

    def home(self, name: str, environment: str | None) -> str:
        """The environment that a task runs in."""
        found = self.manifest.tasks[name]
        of_task = next(iter(found.values())).default_environment
        for home in (environment, of_task, "default"):
            if home in found:
                return home
        if len(found) > 1:
            raise StandinError(
                f"the task {name!r} is in the environments "
                f"{', '.join(found)}: choose one with -e"
            )
        return next(iter(found))


def call(
    label: str, command: list[str], folder: Path, variables: dict[str, str]
) -> None:
    """Run a process to its end; its exit status becomes that of ci/pixi."""
    process = subprocess.Popen(
        command, cwd=folder, env=variables, preexec_fn=without_network()
    )
    # Ctrl-C reaches the process too: let it end in its own way.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = process.wait()
    signal.signal(signal.SIGINT, before)
    if status:
        status = status if status > 0 else 128 - status
        error = StandinError(f"{label} failed with exit status {status}")
        error.status = status
        raise error
