"""Read pixi.toml strictly: what is not understood is an error, never skipped.

Every message is one line with the file and the key, and for a misspelt name
the nearest ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from standin.manifest import (
    PLATFORM,
    Argument,
    Dependency,
    Environment,
    Feature,
    Manifest,
    Task,
    nearest,
)
from standin.progress import StandinError
from standin.strict import Checker

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TARGETS = ("unix", "linux", PLATFORM)  # those that hold here, widest first
OTHER_TARGETS = ("win", "win-64", "osx", "osx-64", "osx-arm64", "linux-aarch64")
FEATURE_KEYS = [
    "activation",
    "dependencies",
    "platforms",
    "pypi-dependencies",
    "target",
    "tasks",
]
TARGET_KEYS = ["activation", "dependencies", "pypi-dependencies", "tasks"]
WORKSPACE_KEYS = [
    "authors",
    "channels",
    "description",
    "documentation",
    "homepage",
    "license",
    "license-file",
    "name",
    "platforms",
    "readme",
    "repository",
    "requires-pixi",
    "version",
]
TASK_KEYS = [
    "args",
    "cmd",
    "cwd",
    "default-environment",
    "depends-on",
    "description",
    "env",
    "inputs",
    "outputs",
]


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's content."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def load(path: Path) -> Manifest:
    """Parse and check a pixi.toml."""
    try:
        table = read_toml(path)
    except OSError as error:
        raise StandinError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StandinError(f"{path}: not valid TOML: {error}") from error
    return Parser(path).manifest(table)


class Parser(Checker):
    """Turns the tables of a pixi.toml into the classes of manifest.py."""

    def manifest(self, table: dict[str, Any]) -> Manifest:
        """The whole file."""
        self.keys(
            table,
            "",
            ["workspace", "environments", "feature", "target", *TARGET_KEYS],
        )
        if "workspace" not in table:
            raise self.fail("workspace", "this table is missing")
        workspace = self.keys(table["workspace"], "workspace", WORKSPACE_KEYS)
        for key in ("name", "channels", "platforms"):
            if key not in workspace:
                raise self.fail(f"workspace.{key}", "this key is missing")
        self.platforms = self.rich_platforms(workspace["platforms"])
        channels = self.texts(workspace["channels"], "workspace.channels")
        if channels != ("conda-forge",):
            raise self.fail(
                "workspace.channels", "the stand-in has conda-forge only"
            )
        base = {k: v for k, v in table.items() if k in FEATURE_KEYS}
        default = self.feature(base, "")
        features = {
            name: self.feature(value, f"feature.{name}")
            for name, value in self.table_at(table, "feature").items()
        }
        environments = self.environments(
            self.table_at(table, "environments"), features, default
        )
        manifest = Manifest(
            path=self.path.absolute(),
            name=self.text(workspace["name"], "workspace.name"),
            version=self.text(
                workspace.get("version", "0.0.0"), "workspace.version"
            ),
            channels=channels,
            environments=environments,
        )
        self.check_references(manifest)
        return manifest

    def rich_platforms(self, value: Any) -> list[str]:
        """The names of the platforms; one may say that it has CUDA.

        All of them are PLATFORM: nothing in the channel needs a GPU.
        """
        at = "workspace.platforms"
        names = []
        for platform in self.typed(value, at, list, "a list"):
            if isinstance(platform, str):
                platform = {"name": platform, "platform": platform}
            self.keys(platform, at, ["cuda", "name", "platform"])
            if platform.get("platform") == PLATFORM:
                names.append(self.text(platform.get("name", PLATFORM), at))
        if PLATFORM not in names:
            raise self.fail(at, f"the stand-in has {PLATFORM} only")
        return names

    def table_at(self, table: dict[str, Any], key: str) -> dict[str, Any]:
        """A table that may be missing."""
        return dict(self.typed(table.get(key, {}), key, dict, "a table"))

    def environments(
        self,
        table: dict[str, Any],
        features: dict[str, Feature],
        default: Feature,
    ) -> dict[str, Environment]:
        """The environments; there is always one called default."""
        made = {}
        for name, value in {"default": {}, **table}.items():
            where = f"environments.{name}"
            if isinstance(value, list):
                value = {"features": value}
            self.keys(value, where, ["features", "no-default-feature"])
            parts = []
            for wanted in self.texts(
                value.get("features", []), f"{where}.features"
            ):
                if wanted not in features:
                    raise self.fail(
                        f"{where}.features",
                        f"no feature {wanted!r}; " + nearest(wanted, features),
                    )
                parts.append(features[wanted])
            alone = self.typed(
                value.get("no-default-feature", False),
                f"{where}.no-default-feature",
                bool,
                "true or false",
            )
            if not alone:
                parts.append(default)
            made[name] = Environment(name, tuple(parts))
        return made

    def feature(self, table: Any, where: str) -> Feature:
        """A feature, with the target tables that hold on this platform."""
        self.keys(table, where, FEATURE_KEYS)
        feature = Feature()
        self.fill(feature, table, where)
        for name in self.texts(table.get("platforms", []), where):
            self.check_name(
                f"{where}.platforms", "platform", name, self.platforms
            )
        at = f"{where}.target".lstrip(".")
        targets = self.keys(
            table.get("target", {}), at, [*TARGETS, *OTHER_TARGETS]
        )
        for name in targets:
            where_target = f"{at}.{name}"
            self.keys(targets[name], where_target, TARGET_KEYS)
            self.fill(Feature(), targets[name], where_target)
        for name in TARGETS:
            if name in targets:
                self.fill(feature, targets[name], f"{at}.{name}")
        return feature

    def fill(self, feature: Feature, table: dict[str, Any], where: str) -> None:
        """Add one table's content to a feature."""

        def each(
            key: str, parse: Callable[[str, Any, str], Any]
        ) -> dict[str, Any]:
            at = f"{where}.{key}".lstrip(".")
            entries = self.typed(table.get(key, {}), at, dict, "a table")
            return {n: parse(n, v, f"{at}.{n}") for n, v in entries.items()}

        feature.dependencies.update(each("dependencies", self.conda_spec))
        feature.pypi.update(each("pypi-dependencies", self.pypi_spec))
        feature.tasks.update(each("tasks", self.task))
        at = f"{where}.activation".lstrip(".")
        activation = self.keys(
            table.get("activation", {}), at, ["env", "scripts"]
        )
        feature.activation_env.update(
            self.text_table(activation.get("env", {}), f"{at}.env")
        )
        feature.activation_scripts.extend(
            self.texts(activation.get("scripts", []), f"{at}.scripts")
        )

    def conda_spec(self, name: str, value: Any, where: str) -> str:
        """The version and build of a conda dependency."""
        if isinstance(value, str):
            return value or "*"
        self.keys(value, where, ["version", "build", "channel"])
        if value.get("channel", "conda-forge") != "conda-forge":
            raise self.fail(
                f"{where}.channel", "the stand-in has conda-forge only"
            )
        version = self.text(value.get("version", "*"), f"{where}.version")
        build = self.text(value.get("build", ""), f"{where}.build")
        return f"{version} {build}".strip()

    def pypi_spec(self, name: str, value: Any, where: str) -> str:
        """A PyPI dependency as a PEP 508 requirement."""
        if isinstance(value, str):
            value = {"version": value}
        self.keys(value, where, ["version", "extras"])
        version = self.text(value.get("version", "*"), f"{where}.version")
        extras = self.texts(value.get("extras", []), f"{where}.extras")
        return (
            name
            + (f"[{','.join(extras)}]" if extras else "")
            + ("" if version == "*" else version)
        )

    def task(self, name: str, value: Any, where: str) -> Task:
        """A task: a command, or a table."""
        if isinstance(value, str):
            value = {"cmd": value}
        elif isinstance(value, list):
            value = {"depends-on": value}
        self.keys(value, where, TASK_KEYS)
        cmd = value.get("cmd")
        if isinstance(cmd, list):
            cmd = self.texts(cmd, f"{where}.cmd")
        elif cmd is not None:
            cmd = self.text(cmd, f"{where}.cmd")
        before = value.get("depends-on", [])
        if isinstance(before, (str, dict)):
            before = [before]
        self.typed(before, f"{where}.depends-on", list, "a list")
        if cmd is None and not before:
            raise self.fail(where, "has neither cmd nor depends-on")
        environment = value.get("default-environment")
        if environment is not None:
            self.text(environment, f"{where}.default-environment")
        args = self.typed(
            value.get("args", []), f"{where}.args", list, "a list"
        )
        return Task(
            name=name,
            cmd=cmd,
            depends_on=tuple(
                self.dependency(d, f"{where}.depends-on[{i}]")
                for i, d in enumerate(before)
            ),
            default_environment=environment,
            description=self.text(
                value.get("description", ""), f"{where}.description"
            ),
            cwd=self.text(value.get("cwd", "."), f"{where}.cwd"),
            env=self.text_table(value.get("env", {}), f"{where}.env"),
            args=tuple(
                self.argument(a, f"{where}.args[{i}]")
                for i, a in enumerate(args)
            ),
            inputs=self.texts(value.get("inputs", []), f"{where}.inputs"),
            outputs=self.texts(value.get("outputs", []), f"{where}.outputs"),
        )

    def dependency(self, value: Any, where: str) -> Dependency:
        """One entry of depends-on."""
        if isinstance(value, str):
            return Dependency(value)
        self.keys(value, where, ["task", "environment", "args"])
        if "task" not in value:
            raise self.fail(f"{where}.task", "this key is missing")
        environment = value.get("environment")
        if environment is not None:
            self.text(environment, f"{where}.environment")
        return Dependency(
            self.text(value["task"], f"{where}.task"),
            environment,
            self.texts(value.get("args", []), f"{where}.args"),
        )

    def argument(self, value: Any, where: str) -> Argument:
        """One entry of args."""
        if isinstance(value, str):
            return Argument(value)
        self.keys(value, where, ["arg", "default", "choices"])
        if "arg" not in value:
            raise self.fail(f"{where}.arg", "this key is missing")
        default = value.get("default")
        if default is not None:
            self.text(default, f"{where}.default")
        return Argument(
            self.text(value["arg"], f"{where}.arg"),
            default,
            self.texts(value.get("choices", []), f"{where}.choices"),
        )

    def check_references(self, manifest: Manifest) -> None:
        """Every task and environment that a task names has to exist."""
        tasks = manifest.tasks()
        for name, definitions in tasks.items():
            for task in definitions.values():
                self.check_task(manifest, tasks, f"tasks.{name}", task)

    def check_task(
        self,
        manifest: Manifest,
        tasks: dict[str, dict[str, Task]],
        where: str,
        task: Task,
    ) -> None:
        """Check what one task refers to."""
        home = task.default_environment
        if home is not None:
            self.check_name(
                f"{where}.default-environment",
                "environment",
                home,
                manifest.environments,
            )
            self.check_name(
                f"{where}.default-environment",
                "environment with this task",
                home,
                tasks[task.name],
            )
        at = f"{where}.depends-on"
        for before in task.depends_on:
            self.check_name(at, "task", before.task, tasks)
            if before.environment is not None:
                self.check_name(
                    at,
                    f"environment with the task {before.task!r}",
                    before.environment,
                    tasks[before.task],
                )

    def check_name(
        self, where: str, kind: str, name: str, known: Iterable[str]
    ) -> None:
        """Is it one of the known names?"""
        known = list(known)
        if name not in known:
            raise self.fail(
                where, f"no {kind} {name!r}; {nearest(name, known)}"
            )
