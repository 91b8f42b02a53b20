"""The variables that a task sees in an activated environment."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

from standin.channel import Channel
from standin.environments import Prefix, rattler_cache
from standin.manifest import PLATFORM, Environment, Manifest
from standin.progress import StandinError

# The caller's settings that would make a task see another environment.
LEAKS = (
    "CONDA",
    "MAMBA_",
    "PIP_",
    "PIXI_",
    "PYENV_",
    "PYTHON",
    "RATTLER_",
    "UV_",
    "VIRTUAL_ENV",
)
LEAKED_NAMES = {
    "AR",
    "CC",
    "CFLAGS",
    "CMAKE_ARGS",
    "CMAKE_GENERATOR",
    "CMAKE_PREFIX_PATH",
    "CPATH",
    "CPPFLAGS",
    "CXX",
    "CXXFLAGS",
    "DESTDIR",
    "LD",
    "LDFLAGS",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "LIBRARY_PATH",
    "NM",
    "PKG_CONFIG_PATH",
    "RANLIB",
    "STRIP",
}


def clean(environment: dict[str, str]) -> dict[str, str]:
    """The caller's variables, less those that must not reach a task."""
    kept = {
        key: value
        for key, value in environment.items()
        if not key.startswith(LEAKS) and key not in LEAKED_NAMES
    }
    inner = environment.get("CONDA_PREFIX") or environment.get("VIRTUAL_ENV")
    if inner:
        folders = kept.get("PATH", "").split(os.pathsep)
        kept["PATH"] = os.pathsep.join(
            folder for folder in folders if folder != f"{inner}/bin"
        )
    return kept


def variables(
    manifest: Manifest,
    environment: Environment,
    prefix: Prefix,
    channel: Channel,
) -> dict[str, str]:
    """Everything a task's process gets."""
    start = clean(dict(os.environ))
    start.update(workspace_variables(manifest, prefix))
    start.update(standin_variables(channel))
    script = activation_script(prefix, start)
    for feature in reversed(environment.features):
        for name in feature.activation_scripts:
            path = manifest.root / name
            if not path.is_file():
                raise StandinError(
                    f"{manifest.path}: no activation script {name}"
                )
            script += f"\n. {shlex.quote(str(path))}"
        for name, value in feature.activation_env.items():
            script += f'\nexport {name}="{value}"'
    return sourced(script, start)


def workspace_variables(manifest: Manifest, prefix: Prefix) -> dict[str, str]:
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
        "PIXI_PROJECT_VERSION": manifest.version,
        "PIXI_PROMPT": f"({shown}) ",
    }


def standin_variables(channel: Channel) -> dict[str, str]:
    """Those that make tools find the stand-in instead of the internet."""
    wheelhouse = str(channel.wheelhouse.folder)
    return {
        "CI_PIXI_CHANNEL": str(channel.folder),
        "CI_PIXI_STANDIN": "1",
        "CI_PIXI_TOOLS": sys.prefix,
        "CONDA_CHANNEL_ALIAS": channel.alias,
        "FETCHCONTENT_SOURCE_DIR_GOOGLETEST": str(
            channel.wheelhouse.googletest
        ),
        "FETCHCONTENT_SOURCE_DIR_HIGHWAY": str(channel.wheelhouse.highway),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_FIND_LINKS": wheelhouse,
        "PIP_NO_INDEX": "1",
        "RATTLER_CACHE_DIR": str(rattler_cache()),
        "UV_FIND_LINKS": wheelhouse,
        "UV_NO_CONFIG": "1",
        "UV_NO_INDEX": "1",
        "UV_OFFLINE": "1",
        "UV_PYTHON_DOWNLOADS": "never",
    }


def activation_script(prefix: Prefix, start: dict[str, str]) -> str:
    """What rattler says activates an environment."""
    from rattler.shell import (
        ActivationVariables,
        PathModificationBehavior,
        Shell,
        activate,
    )

    path = start.get("PATH", os.defpath).split(os.pathsep)
    settings = ActivationVariables(None, path, PathModificationBehavior.Prepend)
    return str(activate(prefix.folder, settings, Shell.bash).script)


def sourced(script: str, start: dict[str, str]) -> dict[str, str]:
    """The variables after a shell has run the script."""
    result = subprocess.run(
        ["bash", "-c", f"{script}\nexec env -0"],
        env=start,
        stdout=subprocess.PIPE,
        check=False,
    )
    if result.returncode:
        raise StandinError("an activation script failed; its message is above")
    pairs = result.stdout.decode(errors="surrogateescape").split("\0")
    found = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return {k: v for k, v in found.items() if k not in ("_", "SHLVL")}


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
