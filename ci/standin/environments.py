"""Solve and install environments into .pixi/envs, as pixi does."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from standin.channel import Channel, content
from standin.commands import run
from standin.files import cache_root, digest, is_no_space, locked, no_space
from standin.manifest import Environment, Manifest, nearest
from standin.progress import StandinError, say, step

MARKER = "conda-meta/ci-pixi.json"


@dataclass(frozen=True)
class Prefix:
    """An installed environment."""

    name: str
    folder: Path
    key: str  # changes whenever the environment is made anew


def rattler_cache() -> Path:
    """A package cache of its own: conda's and pixi's are left alone."""
    return cache_root() / "rattler"


def folder_of(manifest: Manifest, name: str) -> Path:
    """Where an environment is."""
    return manifest.root / ".pixi/envs" / name


def prepared(
    manifest: Manifest, environment: Environment, channel: Channel
) -> Prefix:
    """The environment, installed if it is missing or out of date."""
    specs, left_out = match_specs(environment)
    for name, reason in left_out.items():
        say(f"[{environment.name}] left out: {name} ({reason})")
    folder = folder_of(manifest, environment.name)
    key = digest(
        channel.folder.name, specs, environment.pypi_specs, str(folder)
    )
    prefix = Prefix(environment.name, folder, key)
    if installed_key(folder) == key:
        return prefix
    with locked(folder.parent / f".{environment.name}.lock"):
        if installed_key(folder) != key:
            try:
                install(prefix, environment, specs, channel)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    return prefix


def installed_key(folder: Path) -> str | None:
    """The key of what is installed; None for nothing or half of it."""
    try:
        return str(json.loads((folder / MARKER).read_text())["key"])
    except (OSError, ValueError, KeyError):
        return None


def match_specs(
    environment: Environment,
) -> tuple[list[str], dict[str, str]]:
    """What the solver is asked for, and what cannot be had, with reasons."""
    unavailable = content()["unavailable"]
    specs, left_out = [], {}
    for name, version in environment.specs:
        if name in unavailable:
            left_out[name] = unavailable[name]
        else:
            specs.append(f"{name} {version}")
    return specs, left_out


def install(
    prefix: Prefix, environment: Environment, specs: list[str], channel: Channel
) -> None:
    """Make the environment from nothing."""
    os.environ["RATTLER_CACHE_DIR"] = str(rattler_cache())
    label = f"[{prefix.name}]"
    shutil.rmtree(prefix.folder, ignore_errors=True)
    with step(f"{label} solving and installing {len(specs)} dependencies"):
        try:
            names = asyncio.run(solve_and_link(prefix.folder, specs, channel))
        except Exception as error:  # rattler has many kinds
            text = str(error)
            if is_no_space(text):
                raise no_space(prefix.folder, "installing packages") from error
            reason = explain(text, specs, channel)
            raise StandinError(f"{label} {reason}") from error
        say(f"{label} {len(names)} packages in {prefix.folder}")
    if environment.pypi_specs:
        with step(f"{label} installing {', '.join(environment.pypi_specs)}"):
            install_from_pypi(prefix.folder, environment, channel)
    (prefix.folder / MARKER).parent.mkdir(parents=True, exist_ok=True)
    about = {"key": prefix.key, "specs": specs, "made": time.time()}
    (prefix.folder / MARKER).write_text(json.dumps(about))


async def solve_and_link(
    folder: Path, specs: list[str], channel: Channel
) -> list[str]:
    """Solve with rattler, and link the packages into the folder."""
    import rattler

    config = rattler.ChannelConfig(channel_alias=channel.alias)
    records = await rattler.solve(
        [rattler.Channel("conda-forge", config)],
        specs,
        gateway=rattler.Gateway(cache_dir=rattler_cache()),
        platforms=["linux-64", "noarch"],
        virtual_packages=rattler.VirtualPackage.detect(),
    )
    await rattler.install(
        records,
        folder,
        cache_dir=rattler_cache() / "pkgs",
        show_progress=False,
    )
    return [record.name.normalized for record in records]


def explain(text: str, specs: list[str], channel: Channel) -> str:
    """The solver's message, and near names for packages it does not know."""
    known = {file.name.rsplit("-", 2)[0] for file in channel.packages}
    missing = [s.split()[0] for s in specs if s.split()[0] not in known]
    hints = [f"no package {name!r}: {nearest(name, known)}" for name in missing]
    if missing and "CI_PIXI_CHANNEL" in os.environ:
        hints.append("a task's channel is fixed: run this outside of the task")
    return "; ".join([*hints, f"cannot be made: {' '.join(text.split())}"])


def install_from_pypi(
    folder: Path, environment: Environment, channel: Channel
) -> None:
    """Add [pypi-dependencies] from the wheelhouse, after the packages."""
    run(
        [
            *(sys.executable, "-m", "pip"),
            *("--python", folder / "bin/python", "install", "--no-index"),
            *("--find-links", channel.wheelhouse.folder),
            *environment.pypi_specs,
        ],
        "installing pypi-dependencies",
        env={**os.environ, "PIP_CONFIG_FILE": os.devnull, "PYTHONPATH": ""},
    )
