"""Read pixi.toml: features, environments and tasks.

pixi's own schema says whether the file is right; what the stand-in does not
have is refused, never skipped.
"""

import difflib
import graphlib
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import rattler
import rattler.exceptions

from standin.progress import StandinError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PLATFORM = "linux-64"
FILE = "pixi.toml"
HERE = Path(__file__).parent
OWN = HERE.parents[1] / FILE  # this repository's
REFUSED = "ci/pixi does not support this"
# The supported keys and the types of their values; "*" stands for any name.
TASK = {
    "cmd": str,
    "default-environment": str,
    "depends-on": {"environment": str, "task": str},
    "description": str,
}
FEATURE = {
    "dependencies": {"*": str},
    "pypi-dependencies": {"*": str},
    "tasks": {"*": TASK},
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
    "feature": {"*": {**FEATURE, "platforms": list}},
    **FEATURE,
}


# What names look like, by the table that has them.
NAMES = {
    "dependencies": (
        r"(?i)[a-z\d_][a-z\d_.-]*",
        "letters, digits, '_', '.', '-'",
    ),
    "environments": (r"[a-z\d-]+", "small letters, digits and '-'"),
    "feature": (r"[\w.-]+", "letters, digits, '_', '.' and '-'"),
    "tasks": (r"[^\s$\x00-\x1f\x7f]+", "no white space and no '$'"),
}
NAMES["pypi-dependencies"] = NAMES["dependencies"]
PIXI = "0.77"  # the version whose schema pixi-schema.json is


class Task(NamedTuple):
    cmd: str
    depends_on: list[dict[str, str]]
    default_environment: str | None
    description: str


class Environment(NamedTuple):
    name: str
    specs: list[tuple[str, str]]
    tasks: dict[str, Task]


def task(value: Any) -> Task:
    """A task from its entry: a command, a list of other tasks, or a table."""
    if not isinstance(value, dict):
        value = {"cmd" if isinstance(value, str) else "depends-on": value}
    before = value.get("depends-on", [])
    before = before if isinstance(before, list) else [before]
    return Task(
        value.get("cmd", ""),
        [{"task": d} if isinstance(d, str) else d for d in before],
        value.get("default-environment"),
        value.get("description", ""),
    )


def merged(name: str, features: list[dict[str, Any]]) -> Environment:
    """An environment: dependencies add up; the first feature's task wins."""

    def entries(key: str) -> list[tuple[str, Any]]:
        return [e for f in reversed(features) for e in f.get(key, {}).items()]

    return Environment(
        name,
        # The stand-in makes conda packages of both.
        sorted({*entries("dependencies"), *entries("pypi-dependencies")}),
        {name: task(value) for name, value in entries("tasks")},
    )


class Manifest:
    """A whole pixi.toml, checked."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.root = self.path.parent
        try:
            table = read_toml(path)
        except (ValueError, RecursionError) as error:
            raise StandinError(f"{path}: not valid TOML: {error}") from error
        self.check_keys(table, SUPPORTED, "")
        self.check_schema(table)
        workspace = table.get("workspace", {})
        if workspace.get("channels") != ["conda-forge"]:
            raise self.error("workspace.channels", "must be conda-forge alone")
        # A platform with CUDA is the same: nothing in the channel needs a GPU.
        if PLATFORM not in workspace.get("platforms", ()):
            raise self.error("workspace.platforms", f"{PLATFORM} is missing")
        at, wanted = "workspace.requires-pixi", workspace.get("requires-pixi")
        stands_for = rattler.Version(PIXI)
        if wanted and not self.version(at, wanted).matches(stands_for):
            text = f"{wanted!r}, but this stands in for pixi {PIXI}"
            raise self.error(at, text)
        features = table.get("feature", {})
        self.environments: dict[str, Environment] = {}
        listed = {"default": [], **table.get("environments", {})}
        for name, value in listed.items():
            value = {"features": value} if isinstance(value, list) else value
            wanted = value.get("features", [])
            for feature in wanted:
                self.check_name(f"environments.{name}", feature, features)
            parts = [features[feature] for feature in wanted]
            parts += [] if value.get("no-default-feature") else [table]
            self.environments[name] = merged(name, parts)
            for package, version in self.environments[name].specs:
                self.version(f"dependencies.{package}", version)
        # Each task's definition in each environment that has it.
        self.tasks: dict[str, dict[str, Task]] = {}
        for environment in self.environments.values():
            for name, definition in environment.tasks.items():
                found = self.tasks.setdefault(name, {})
                found[environment.name] = definition
        self.check_references()

    def environment(self, name: str) -> Environment:
        self.check_name("environments", name, self.environments)
        return self.environments[name]

    def error(self, where: str, text: str) -> StandinError:
        return StandinError(f"{self.path}: {where}: {text}")

    def check_name(self, where: str, name: str, known: Iterable[str]) -> None:
        if name not in known:
            raise self.error(where, f"no {name!r}; {nearest(name, known)}")

    def version(self, where: str, text: str) -> rattler.VersionSpec:
        """The versions that a text allows; a build string may follow it."""
        try:
            if re.match(r"[<>=!~ ]*(\d|\*)", text):
                return rattler.VersionSpec(text.split()[0])
            problem = ""
        except rattler.exceptions.InvalidVersionSpecError as error:
            problem = f" ({error})"
        form = "versions such as '>=1.2,<2' are expected"
        raise self.error(where, f"{text!r} is no version{problem}; {form}")

    def check_keys(self, value: Any, known: Any, at: str) -> None:
        """Refuse every key and type that the stand-in does not support."""
        if isinstance(value, str) and "\0" in value:
            raise self.error(at, "a null character is not allowed")
        if isinstance(known, type):
            if isinstance(value, dict):
                at = ".".join([at, *list(value)[:1]])
            if not isinstance(value, known):
                raise self.error(
                    at, f"{REFUSED}; a {known.__name__} is expected"
                )
        elif isinstance(value, list):
            for entry in value:
                self.check_keys(entry, known, at)
        elif isinstance(value, dict):
            for key, inner in value.items():
                where = f"{at}.{key}".lstrip(".")
                below = known.get(key, known.get("*"))
                pattern, form = (
                    NAMES[at.split(".")[-1]] if "*" in known else (".*", "")
                )
                if not re.fullmatch(pattern, key):
                    text = f"{key!r} is no name; {form} are expected"
                    raise self.error(at, text)
                if below is None:
                    raise self.error(where, f"{REFUSED}; {nearest(key, known)}")
                self.check_keys(inner, below, where)

    def check_schema(self, table: dict[str, Any]) -> None:
        """Refuse what pixi's own schema does not allow."""
        import jsonschema

        schema = json.loads((HERE / "pixi-schema.json").read_text())
        errors = jsonschema.Draft7Validator(schema).iter_errors(table)
        if error := jsonschema.exceptions.best_match(errors):
            where = ".".join(map(str, error.absolute_path)) or "workspace"
            raise self.error(where, error.message.splitlines()[0])

    def check_references(self) -> None:
        """Every task and environment that a task names has to exist."""
        for name, definitions in self.tasks.items():
            for definition in definitions.values():
                at, home = f"tasks.{name}", definition.default_environment
                if not definition.cmd and not definition.depends_on:
                    raise self.error(at, "has neither cmd nor depends-on")
                if home is not None:
                    self.check_name(
                        f"{at}.default-environment", home, definitions
                    )
                for before in definition.depends_on:
                    where = f"{at}.depends-on"
                    self.check_name(where, before["task"], self.tasks)
                    if "environment" in before:
                        homes = self.tasks[before["task"]]
                        self.check_name(where, before["environment"], homes)
        self.check_cycles()

    def check_cycles(self) -> None:
        """No task may need itself."""
        graph: dict[tuple[str, str | None], set[tuple[str, str | None]]] = {}
        for name, definitions in self.tasks.items():
            graph[name, None] = set()
            for home, definition in definitions.items():
                before = {
                    (b["task"], b.get("environment"))
                    for b in definition.depends_on
                }
                graph[name, home] = before
                graph[name, None] |= before
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            names = [name for name, _ in reversed(error.args[1])]
            text = f"it needs itself: {' -> '.join(names)}"
            at = f"tasks.{names[0]}.depends-on"
            raise self.error(at, text) from error


def read_toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def nearest(name: str, known: Iterable[str]) -> str:
    """The names that a misspelt one may have meant, or all of them."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"there is {', '.join(sorted(known)) or 'none'}"


def nearest_file(start: Path) -> Path:
    """The pixi.toml of the folder or above it, else this repository's."""
    files = [folder / FILE for folder in (start, *start.parents)]
    return next(file for file in (*files, OWN) if file.is_file())
