"""Read pixi.toml: features, environments and tasks.

pixi's own schema says whether the file is right; what the stand-in does not
have is refused, never skipped.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from standin.progress import StandinError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PLATFORM = "linux-64"
FILE = "pixi.toml"
REFUSED = "ci/pixi does not support this key"
CALLED = {str: "a string", list: "a list", bool: "true or false"}
# The supported keys and the types of their values; "*" stands for any name.
FEATURE = {
    "dependencies": {"*": str},
    "platforms": list,
    "pypi-dependencies": {"*": str},
    "tasks": {
        "*": {
            "cmd": str,
            "default-environment": str,
            "depends-on": {"environment": str, "task": str},
            "description": str,
        }
    },
}
SUPPORTED = {
    "workspace": {
        "channels": list,
        "description": str,
        "name": str,
        "platforms": {"cuda": str, "name": str, "platform": str},
        "requires-pixi": str,
    },
    "environments": {"*": {"features": list, "no-default-feature": bool}},
    "feature": {"*": FEATURE},
    **{k: v for k, v in FEATURE.items() if k != "platforms"},
}


@dataclass(frozen=True)
class Task:
    """One entry of a tasks table."""

    name: str
    cmd: str | None
    depends_on: tuple[tuple[str, str | None], ...]  # task, environment
    default_environment: str | None
    description: str


@dataclass(frozen=True)
class Environment:
    """An environment: its features, the first one winning over later ones."""

    name: str
    features: tuple[dict[str, Any], ...]

    @property
    def specs(self) -> list[tuple[str, str]]:
        """Every (name, version) that is asked for; features add up."""
        return self.listed("dependencies")

    @property
    def pypi_specs(self) -> list[tuple[str, str]]:
        """The same for pip."""
        return self.listed("pypi-dependencies")

    def listed(self, key: str) -> list[tuple[str, str]]:
        """The entries of a table in all features."""
        return sorted(
            {e for f in self.features for e in f.get(key, {}).items()}
        )

    @property
    def tasks(self) -> dict[str, Task]:
        """Its tasks."""
        return {
            name: task(name, value)
            for feature in reversed(self.features)
            for name, value in feature.get("tasks", {}).items()
        }


def task(name: str, value: Any) -> Task:
    """A task from its entry: a command, a list of other tasks, or a table."""
    if not isinstance(value, dict):
        key = "cmd" if isinstance(value, str) else "depends-on"
        value = {key: value}
    before = value.get("depends-on", [])
    return Task(
        name,
        value.get("cmd"),
        tuple(
            (d, None)
            if isinstance(d, str)
            else (d["task"], d.get("environment"))
            for d in (before if isinstance(before, list) else [before])
        ),
        value.get("default-environment"),
        value.get("description", ""),
    )


class Manifest:
    """A whole pixi.toml, checked."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        try:
            table = read_toml(path)
        except OSError as error:
            raise StandinError(f"{path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise StandinError(f"{path}: not valid TOML: {error}") from error
        if "workspace" not in table:
            raise self.error("workspace", "this table is missing")
        self.check_keys(table, SUPPORTED, "")
        self.check_schema(table)
        workspace = table["workspace"]
        self.name: str = workspace.get("name", self.root.name)
        if workspace["channels"] != ["conda-forge"]:
            raise self.error(
                "workspace.channels", "the stand-in has conda-forge only"
            )
        # All of them are PLATFORM: nothing in the channel needs a GPU.
        platforms = {
            p if isinstance(p, str) else p.get("name", p["platform"])
            for p in workspace["platforms"]
        }
        if PLATFORM not in platforms:
            raise self.error(
                "workspace.platforms", f"the stand-in has {PLATFORM} only"
            )
        features = table.get("feature", {})
        for name, feature in features.items():
            for platform in feature.get("platforms", []):
                at = f"feature.{name}.platforms"
                self.check_name(at, "platform", platform, platforms)
        self.environments = {}
        for name, value in {
            "default": [],
            **table.get("environments", {}),
        }.items():
            value = {"features": value} if isinstance(value, list) else value
            wanted = value.get("features", [])
            for feature in wanted:
                at = f"environments.{name}.features"
                self.check_name(at, "feature", feature, features)
            parts = [features[feature] for feature in wanted]
            parts += [] if value.get("no-default-feature") else [table]
            self.environments[name] = Environment(name, tuple(parts))
        self.check_references()

    @property
    def root(self) -> Path:
        """The workspace's folder."""
        return self.path.parent

    @property
    def tasks(self) -> dict[str, dict[str, Task]]:
        """Each task's definition in each environment that has it."""
        found: dict[str, dict[str, Task]] = {}
        for environment in self.environments.values():
            for name, definition in environment.tasks.items():
                found.setdefault(name, {})[environment.name] = definition
        return found

    def environment(self, name: str) -> Environment:
        """The environment of that name."""
        self.check_name("environments", "environment", name, self.environments)
        return self.environments[name]

    def error(self, where: str, text: str) -> StandinError:
        """An error at a key."""
        return StandinError(f"{self.path}: {where}: {text}")

    def check_name(
        self, where: str, kind: str, name: str, known: Iterable[str]
    ) -> None:
        """Is it one of the known names?"""
        if name not in known:
            raise self.error(
                where, f"no {kind} {name!r}; {nearest(name, known)}"
            )

    def check_keys(self, value: Any, known: Any, at: str) -> None:
        """Refuse every key and type that the stand-in does not support."""
        if isinstance(known, type):
            if isinstance(value, dict):
                raise self.error(f"{at}.{next(iter(value), '')}", REFUSED)
            if not isinstance(value, known):
                raise self.error(at, f"must be {CALLED[known]}")
        elif isinstance(value, list):
            for i, entry in enumerate(value):
                self.check_keys(entry, known, f"{at}[{i}]")
        elif isinstance(value, dict):
            for key, inner in value.items():
                where = f"{at}.{key}".lstrip(".")
                if key not in known and "*" not in known:
                    hint = nearest(key, known)
                    raise self.error(where, f"{REFUSED}; {hint}")
                self.check_keys(inner, known.get(key, known.get("*")), where)

    def check_schema(self, table: dict[str, Any]) -> None:
        """Refuse what pixi's own schema does not allow."""
        import jsonschema

        file = Path(__file__).with_name("pixi-schema.json")
        schema = json.loads(file.read_text())
        errors = jsonschema.Draft7Validator(schema).iter_errors(table)
        error = jsonschema.exceptions.best_match(errors)
        if error is not None:
            where = re.sub(
                r"\.(\d+)(?=\.|$)",
                r"[\1]",
                ".".join(map(str, error.absolute_path)),
            )
            raise self.error(
                where or "workspace", error.message.splitlines()[0]
            )

    def check_references(self) -> None:
        """Every task and environment that a task names has to exist."""
        for name, definitions in self.tasks.items():
            for definition in definitions.values():
                at = f"tasks.{name}"
                if definition.cmd is None and not definition.depends_on:
                    raise self.error(at, "has neither cmd nor depends-on")
                home = definition.default_environment
                if home is not None:
                    at_home = f"{at}.default-environment"
                    self.check_name(
                        at_home, "environment", home, self.environments
                    )
                    kind = "environment with this task"
                    self.check_name(at_home, kind, home, definitions)
                for before, environment in definition.depends_on:
                    at_before = f"{at}.depends-on"
                    self.check_name(at_before, "task", before, self.tasks)
                    if environment is not None:
                        kind = f"environment with the task {before!r}"
                        self.check_name(
                            at_before, kind, environment, self.tasks[before]
                        )


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's content."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def nearest(name: str, known: Iterable[str]) -> str:
    """The names that a misspelt one may have meant, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"there is {', '.join(known) or 'none'}"


def find(start: Path, fallback: Path) -> Path:
    """The pixi.toml of the folder or the nearest one above it."""
    for folder in (start, *start.parents, fallback):
        if (folder / FILE).is_file():
            return folder / FILE
    raise StandinError(f"no {FILE} in {start} or a folder above it")
