"""Solve, install and activate environments in .pixi/envs, as pixi does."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import conda_tools

from standin import channel as channels
from standin.channel import Channel
from standin.files import digest, is_no_space, locked, no_space, run
from standin.manifest import PLATFORM, Environment, Manifest, nearest
from standin.progress import StandinError, say, step

MARKER = "conda-meta/ci-pixi.json"
# The caller's settings that would make a task see another environment.
LEAKS = re.compile(
    "(CONDA|MAMBA_|PIP_|PIXI_|PYENV_|PYTHON|RATTLER_|UV_|VIRTUAL_ENV).*|"
    "AR|CC|CFLAGS|CMAKE_(ARGS|GENERATOR|PREFIX_PATH)|CPATH|CPPFLAGS|CXX|"
    "CXXFLAGS|DESTDIR|LD|LDFLAGS|LD_LIBRARY_PATH|LD_PRELOAD|LIBRARY_PATH|NM|"
    "PKG_CONFIG_PATH|RANLIB|STRIP"
)


@dataclass(frozen=True)
class Prefix:
    """An installed environment."""

    name: str
    folder: Path
    channel: Channel


def folder_of(manifest: Manifest, name: str) -> Path:
    """Where an environment is."""
    return manifest.root / ".pixi/envs" / name


def prepared(manifest: Manifest, environment: Environment) -> Prefix:
    """The environment, installed if it is missing or out of date."""
    folder = folder_of(manifest, environment.name)
    # Activation scripts do not quote it.
    if unsafe := re.search(r"[$`\"'\\\n]", str(folder)):
        raise StandinError(
            f"{manifest.root}: move this repository: a shell would read the "
            f"{unsafe[0]!r} in its path"
        )
    channel = channels.prepared(manifest, environment)
    specs, left_out = match_specs(environment)
    for name, reason in left_out.items():
        say(f"[{environment.name}] left out: {name} ({reason})")
    prefix = Prefix(environment.name, folder, channel)
    key = digest(
        channel.folder.name, specs, environment.pypi_specs, str(folder)
    )
    if installed_key(folder) == key:
        return prefix
    with locked(folder.parent / f".{environment.name}.lock"):
        if installed_key(folder) != key:
            try:
                install(prefix, environment, specs)
                (folder / MARKER).parent.mkdir(parents=True, exist_ok=True)
                (folder / MARKER).write_text(json.dumps({"key": key}))
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


def match_specs(environment: Environment) -> tuple[list[str], dict[str, str]]:
    """What the solver is asked for, and what cannot be had, with reasons."""
    unavailable = channels.content()["unavailable"]
    names = [name for name, _ in environment.specs]
    left_out = {n: unavailable[n] for n in names if n in unavailable}
    specs = [f"{n} {v}" for n, v in environment.specs if n not in left_out]
    return specs, left_out


def install(prefix: Prefix, environment: Environment, specs: list[str]) -> None:
    """Make the environment from nothing."""
    label, channel = f"environment {prefix.name!r}", prefix.channel
    shutil.rmtree(prefix.folder, ignore_errors=True)
    with step(f"solving and installing the {label}"):
        try:
            names = conda_tools.create_environment(
                prefix.folder, specs, [f"{channel.alias}/conda-forge"]
            )
        except Exception as error:  # rattler has many kinds
            text = " ".join(str(error).split())
            if is_no_space(text):
                raise no_space(prefix.folder, "installing packages") from error
            known = channel.names
            missing = [s.split()[0] for s in specs if s.split()[0] not in known]
            hints = [f"no package {n!r}: {nearest(n, known)}" for n in missing]
            if missing and "CI_PIXI_CHANNEL" in os.environ:
                hints.append(
                    "a task's channel is fixed: run this outside of it"
                )
            hints.append(f"{label} cannot be made: {text}")
            raise StandinError("; ".join(hints)) from error
        say(f"  {len(names)} packages in {prefix.folder}")
        if pypi := [f"{n}{v}".rstrip("*") for n, v in environment.pypi_specs]:
            command = [sys.executable, "-m", "pip", "--python"]
            command += [f"{prefix.folder}/bin/python", "install", "--no-index"]
            command += ["--find-links", str(channel.wheelhouse), *pypi]
            env = {
                **os.environ,
                "PIP_CONFIG_FILE": os.devnull,
                "PYTHONPATH": "",
            }
            run(command, "installing pypi-dependencies", env=env)


def variables(manifest: Manifest, prefix: Prefix) -> dict[str, str]:
    """Everything a task's process gets."""
    start = {k: v for k, v in os.environ.items() if not LEAKS.fullmatch(k)}
    outer = os.environ.get("CONDA_PREFIX") or os.environ.get("VIRTUAL_ENV")
    folders = start.get("PATH", os.defpath).split(os.pathsep)
    start["PATH"] = os.pathsep.join(f for f in folders if f != f"{outer}/bin")
    start |= pixi_variables(manifest, prefix)
    start |= standin_variables(prefix.channel)
    return conda_tools.environment_variables(prefix.folder, start)


def pixi_variables(manifest: Manifest, prefix: Prefix) -> dict[str, str]:
    """Those that pixi sets."""
    shown = manifest.name
    if prefix.name != "default":
        shown += f":{prefix.name}"
    return {
        "CONDA_DEFAULT_ENV": shown,
        "CONDA_PREFIX": str(prefix.folder),
        "INIT_CWD": os.getcwd(),
        "PIXI_ENVIRONMENT_NAME": prefix.name,
        "PIXI_ENVIRONMENT_PLATFORMS": PLATFORM,
        "PIXI_IN_SHELL": "1",
        "PIXI_PROJECT_MANIFEST": str(manifest.path),
        "PIXI_PROJECT_NAME": manifest.name,
        "PIXI_PROJECT_ROOT": str(manifest.root),
        "PIXI_PROMPT": f"({shown}) ",
    }


def standin_variables(channel: Channel) -> dict[str, str]:
    """Those that make tools find the stand-in instead of the internet."""
    wheels = (str(channel.wheelhouse), str(channel.wheelhouse / "alone"))
    return {
        "CI_PIXI_CHANNEL": str(channel.folder),
        "CI_PIXI_STANDIN": "1",
        "CI_PIXI_TOOLS": sys.prefix,
        "CONDA_CHANNEL_ALIAS": channel.alias,
        "FETCHCONTENT_SOURCE_DIR_GOOGLETEST": str(channel.sources.googletest),
        "FETCHCONTENT_SOURCE_DIR_HIGHWAY": str(channel.sources.highway),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_FIND_LINKS": " ".join(wheels),
        "PIP_NO_INDEX": "1",
        "RATTLER_CACHE_DIR": os.environ["RATTLER_CACHE_DIR"],
        "UV_FIND_LINKS": ",".join(wheels),
        "UV_NO_CONFIG": "1",
        "UV_NO_INDEX": "1",
        "UV_OFFLINE": "1",
        "UV_PYTHON_DOWNLOADS": "never",
    }


def exports(after: dict[str, str]) -> str:
    """Shell code that turns the caller's variables into these."""
    before = dict(os.environ)
    lines = [f"unset {name}" for name in sorted(before) if name not in after]
    lines += [
        f"export {name}={shlex.quote(value)}"
        for name, value in sorted(after.items())
        if before.get(name) != value
    ]
    return "\n".join(line for line in lines if "%" not in line.split("=")[0])
