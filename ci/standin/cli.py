"""The words of ci/pixi."""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from standin.files import cache_root
from standin.progress import StandinError, exit_status, say, say_times

if TYPE_CHECKING:
    from standin.manifest import Manifest

DESCRIPTION = """\
pixi's words on any machine. With a real pixi on PATH this hands over to it.
Without one, the same environments and tasks of pixi.toml are made from a
stand-in channel: conda packages written on the spot from PyPI wheels, Debian
packages and this machine's compiler and Python. Needs python3 >= 3.10 with
venv, g++ >= 8 and git. Tasks run with the network off.
"""
VARIABLES = """\
variables: XDG_CACHE_HOME (or CI_PIXI_CACHE) says where the channel is kept;
PIP_INDEX_URL, PIP_EXTRA_INDEX_URL and PIP_FIND_LINKS say where wheels come
from.
"""
COMMANDS = {
    "run": "run a task or a command in an environment",
    "install": "make an environment, or bring it up to date",
    "shell-hook": 'activate: eval "$(ci/pixi shell-hook)"',
    "task": "`task list`: every task, its environment and description",
    "lock": "choose new versions and hashes of what comes from PyPI",
    "clean": "delete all environments; `clean cache`: the shared cache",
}


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exits with help or an error."""
    parser = argparse.ArgumentParser(
        "ci/pixi",
        description=DESCRIPTION,
        epilog=VARIABLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND"
    )
    made = {}
    for name, text in COMMANDS.items():
        made[name] = commands.add_parser(name, help=text, description=text)
        if name not in ("lock", "clean"):
            made[name].add_argument("-e", "--environment", metavar="ENV")
    made["clean"].add_argument("what", nargs="?", choices=["cache"])
    made["task"].add_argument("action", choices=["list"])
    made["run"].add_argument(
        "words", nargs=argparse.REMAINDER, metavar="TASK-or-COMMAND [ARGS]"
    )
    return parser.parse_args(words)


def dispatch(args: argparse.Namespace) -> None:
    """Do what the words say, in the environment that bootstrap.py made."""
    from standin import environments, lock, manifest, tasks

    workspace = manifest.Manifest(manifest.nearest_file(Path.cwd()))
    if args.command == "clean":
        place = cache_root() if args.what else workspace.root / ".pixi"
        if place.exists():
            shutil.rmtree(place)
        say(f"deleted {place}")
        return
    if args.command == "lock":
        return lock.renew(manifest.Manifest(manifest.OWN))
    chosen = args.environment
    if chosen is not None:
        workspace.environment(chosen)
    if args.command == "task":
        list_tasks(workspace, chosen)
    elif args.command == "install":
        folder, _ = environments.activated(workspace, chosen or "default")
        say(f"the environment {folder.name!r} is ready in {folder}")
    elif args.command == "shell-hook":
        _, after = environments.activated(workspace, chosen or "default")
        print(environments.exports(after))
    else:
        words = args.words[1:] if args.words[:1] == ["--"] else args.words
        if not words:
            raise StandinError("run what? `ci/pixi task list` shows the tasks")
        tasks.Runner(workspace, chosen).run(*words)
        say_times()


def list_tasks(workspace: "Manifest", chosen: str | None) -> None:
    for name, found in sorted(workspace.tasks.items()):
        if chosen is None or chosen in found:
            task = next(iter(found.values()))
            home = task.default_environment or ", ".join(found)
            print(f"{name:<20} {home:<10} {task.description}")


if __name__ == "__main__":
    status = exit_status(lambda: dispatch(parse(sys.argv[1:])))
    sys.stderr.flush()
    # rattler may crash when Python shuts down, and threads may still run.
    os._exit(status)
