"""What pixi.toml says: features, environments and tasks (see parser.py)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from standin.progress import StandinError

PLATFORM = "linux-64"
FILE = "pixi.toml"


@dataclass(frozen=True)
class Argument:
    """A task's named argument."""

    name: str
    default: str | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dependency:
    """A task that has to run before."""

    task: str
    environment: str | None = None
    args: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """One entry of a tasks table."""

    name: str
    cmd: str | tuple[str, ...] | None = None
    depends_on: tuple[Dependency, ...] = ()
    default_environment: str | None = None
    description: str = ""
    cwd: str = "."
    env: dict[str, str] = field(default_factory=dict)
    args: tuple[Argument, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    @property
    def hidden(self) -> bool:
        """Left out of `task list`, as pixi does."""
        return self.name.startswith("_")


@dataclass
class Feature:
    """Dependencies, tasks and activation that environments are made of."""

    dependencies: dict[str, str] = field(default_factory=dict)
    pypi: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    activation_env: dict[str, str] = field(default_factory=dict)
    activation_scripts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Environment:
    """An environment: its features, the first one winning over later ones."""

    name: str
    features: tuple[Feature, ...]

    def merged(self, key: str) -> dict[str, Any]:
        """One table of all features."""
        together: dict[str, Any] = {}
        for feature in reversed(self.features):
            together.update(getattr(feature, key))
        return together

    @property
    def specs(self) -> list[tuple[str, str]]:
        """Every (name, version) that is asked for; features add up."""
        return sorted(
            {spec for f in self.features for spec in f.dependencies.items()}
        )

    @property
    def pypi_specs(self) -> list[str]:
        """Requirements for pip, as PEP 508 has them."""
        return sorted({spec for f in self.features for spec in f.pypi.values()})


@dataclass(frozen=True)
class Manifest:
    """A whole pixi.toml."""

    path: Path
    name: str
    version: str
    channels: tuple[str, ...]
    environments: dict[str, Environment]

    @property
    def root(self) -> Path:
        """The workspace's folder."""
        return self.path.parent

    def environment(self, name: str) -> Environment:
        """The environment of that name."""
        if name not in self.environments:
            raise StandinError(
                f"{FILE} has no environment {name!r}; "
                + nearest(name, self.environments)
            )
        return self.environments[name]

    def tasks(self) -> dict[str, dict[str, Task]]:
        """Each task's definition in each environment that has it."""
        found: dict[str, dict[str, Task]] = {}
        for environment in self.environments.values():
            for name, task in environment.merged("tasks").items():
                found.setdefault(name, {})[environment.name] = task
        return found


def nearest(name: str, known: Iterable[str]) -> str:
    """The names that a misspelt one may have meant, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"there is {', '.join(known) or 'none'}"


def find(start: Path, fallback: Path) -> Path:
    """The pixi.toml of the folder or the nearest one above it."""
    for folder in (start, *start.parents):
        if (folder / FILE).is_file():
            return folder / FILE
    if (fallback / FILE).is_file():
        return fallback / FILE
    raise StandinError(f"no {FILE} in {start} or a folder above it")
