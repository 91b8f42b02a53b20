"""The words of ci/pixi."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from standin.files import NO_SPACE, cache_root, no_space
from standin.progress import StandinError, megabytes, say, say_times

if TYPE_CHECKING:
    from standin.manifest import Manifest

REPOSITORY = Path(__file__).resolve().parents[2]
DESCRIPTION = """\
pixi's words on any machine. With a real pixi on PATH this hands over to it.
Without one, the same environments and tasks of pixi.toml are made from a
stand-in channel: conda packages written on the spot from PyPI wheels, Debian
packages and this machine's compiler and Python. Needs python3 >= 3.10 with
venv, a C++17 compiler and git. Tasks run with the network off.
"""
VARIABLES = """\
variables: XDG_CACHE_HOME (or CI_PIXI_CACHE) says where the channel is kept;
PIP_INDEX_URL, PIP_EXTRA_INDEX_URL and PIP_FIND_LINKS say where wheels come
from; CC and CXX choose the compiler.
"""
DEFAULT = "the environment (default: `default`)"
COMMANDS = {  # what it does, and what -e means
    "run": (
        "run a task or a command in an environment",
        "the environment (default: the task's own, else `default`)",
    ),
    "install": ("make an environment, or bring it up to date", DEFAULT),
    "shell-hook": ('activate: eval "$(ci/pixi shell-hook)"', DEFAULT),
    "task": (
        "`task list`: every task, its environment and description",
        "only the tasks of this environment",
    ),
    "info": ("what is used, where it is kept and how large it is", ""),
    "clean": (
        "delete environments, or with `cache` the shared cache",
        "only this environment",
    ),
}
ARGUMENTS: dict[str, dict[str, dict[str, Any]]] = {
    "run": {
        "words": {
            "nargs": argparse.REMAINDER,
            "metavar": "TASK-or-COMMAND [ARGS]",
            "help": "a task, or a program of the environment, and its words",
        }
    },
    "task": {"action": {"choices": ["list"]}},
    "clean": {
        "what": {
            "nargs": "?",
            "choices": ["cache"],
            "help": "the channel, all downloads and ci/pixi's own tools",
        }
    },
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

    for name, (text, environment) in COMMANDS.items():
        made = commands.add_parser(name, help=text, description=text)
        made.add_argument(
            "--manifest-path",
            metavar="PATH",
            type=Path,
            help="the pixi.toml to use (default: the nearest one above)",
        )
        if environment:
            made.add_argument(
                "-e", "--environment", metavar="ENV", help=environment
            )
        for argument, options in ARGUMENTS.get(name, {}).items():
            made.add_argument(argument, **options)
    return parser.parse_args(words)


def main() -> int:
    """Run in the environment that bootstrap.py made."""
    args = parse(sys.argv[1:])
    try:
        return dispatch(args)
    except StandinError as problem:
        say(f"error: {problem}")
    except OSError as error:
        if error.errno in NO_SPACE:
            where = Path(error.filename or cache_root())
            say(f"error: {no_space(where, error.strerror or 'full')}")
        else:
            say(f"error: {error}")
    except KeyboardInterrupt:
        say("interrupted; the next run takes it up again")
        return 130
    return 1


def dispatch(args: argparse.Namespace) -> int:
    """Do what the words say; the exit status."""
    from standin import environments, manifest, tasks

    path = args.manifest_path
    if path is None:
        path = manifest.find(Path.cwd(), REPOSITORY)
    elif path.is_dir():
        path = path / manifest.FILE
    workspace = manifest.Manifest(path)
    chosen = getattr(args, "environment", None)
    if args.command == "info":
        return info(workspace)
    if args.command == "clean":
        return clean(workspace, chosen, args.what)
    runner = tasks.Runner(workspace, chosen)
    if args.command == "task":
        return list_tasks(workspace, chosen)
    if args.command == "install":
        prefix, _ = runner.environment(chosen or "default")
        say(f"the environment {prefix.name!r} is ready in {prefix.folder}")
        return 0
    if args.command == "shell-hook":
        _, variables = runner.environment(chosen or "default")
        print(environments.exports(variables))
        return 0
    words = args.words[1:] if args.words[:1] == ["--"] else args.words
    if not words:
        raise StandinError("run what? `ci/pixi task list` shows the tasks")
    try:
        runner.run(words)
    except tasks.TaskFailedError as failed:
        say(f"error: {failed}")
        return failed.status
    say_times()
    return 0


def list_tasks(workspace: Manifest, chosen: str | None) -> int:
    """`task list`; without names that begin with _, as pixi."""
    rows = []
    for name, definitions in sorted(workspace.tasks.items()):
        task = next(iter(definitions.values()))
        hidden = name.startswith("_")
        if hidden or (chosen is not None and chosen not in definitions):
            continue
        home = task.default_environment or ", ".join(definitions)
        rows.append((name, home, task.description))
    widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
    for name, home, text in rows:
        print(f"{name:{widths[0]}}  {home:{widths[1]}}  {text}")
    return 0


def info(workspace: Manifest) -> int:
    """`info`."""
    from standin import environments, tasks

    isolated = "off" if tasks.without_network() else "on (not permitted)"
    print(f"pixi:         none on PATH, the stand-in is used ({sys.prefix})")
    print(f"workspace:    {workspace.path}")
    print(f"cache:        {cache_root()} ({megabytes(size(cache_root()))})")
    print(f"python:       {sys.version.split()[0]} of {sys.base_prefix}")
    print(f"network:      {isolated} while tasks run")
    for name, environment in workspace.environments.items():
        folder = environments.folder_of(workspace, name)
        made = "installed" if environments.installed_key(folder) else "not made"
        _, left_out = environments.match_specs(environment)
        text = "".join(f"; without {package}" for package in left_out)
        print(f"environment:  {name}: {made}{text}")
    return 0


def size(folder: Path) -> int:
    """Bytes on disk below a folder; a file with two names counts once."""
    seen = {}
    for base, _, files in os.walk(folder):
        for name in files:
            status = os.lstat(os.path.join(base, name))
            seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def clean(workspace: Manifest, chosen: str | None, what: str | None) -> int:
    """`clean`."""
    from standin import environments

    if what == "cache":
        folder = cache_root()
    elif chosen is not None:
        workspace.environment(chosen)
        folder = environments.folder_of(workspace, chosen)
    else:
        folder = workspace.root / ".pixi"
    if folder.exists():
        shutil.rmtree(folder)
        say(f"deleted {folder}")
    else:
        say(f"nothing to delete: there is no {folder}")
    return 0
