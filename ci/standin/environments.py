"""Solve, install and activate environments in .pixi/envs, as pixi does."""

import functools
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import conda_tools

from standin import channel as channels
from standin.files import cache_root, check_path, digest, locked, write
from standin.manifest import Environment, Manifest
from standin.progress import StandinError, say, step

# The caller's settings that would make a task see another environment.
LEAKS = re.compile(
    "(CONDA|MAMBA_|PIP_|PIXI_|PYENV_|PYTHON|RATTLER_|UV_|VIRTUAL_ENV).*|"
    "AR|CC|CFLAGS|CMAKE_(ARGS|GENERATOR|PREFIX_PATH)|CPATH|CPPFLAGS|CXX|"
    "CXXFLAGS|DESTDIR|LD|LDFLAGS|LD_LIBRARY_PATH|LD_PRELOAD|LIBRARY_PATH|NM|"
    "PKG_CONFIG_PATH|RANLIB|STRIP"
)

NAME = "[A-Za-z_][A-Za-z0-9_]*"  # of a variable that a shell knows


@functools.cache
def activated(manifest: Manifest, name: str) -> tuple[Path, dict[str, str]]:
    """An environment's folder, installed if need be, and its variables."""
    environment = manifest.environment(name)
    folder = manifest.root / ".pixi/envs" / name
    check_path(manifest.root, "move this repository")
    channel = channels.prepared(manifest, environment)
    unavailable = channels.content()["unavailable"]
    specs = []
    for package, version in environment.specs:
        if package in unavailable:
            say(f"[{name}] left out: {package} ({unavailable[package]})")
        else:
            specs.append(f"{package} {version}")
    key = digest(channel.name, specs, str(folder))
    installed = folder / "conda-meta" / f"ci-pixi-{key}"
    if not complete(installed):
        with locked(folder.parent / f".{name}.lock"):
            if not complete(installed):
                try:
                    install(environment, folder, channel, specs)
                except BaseException:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
                files = (str(p) for p in folder.rglob("*") if p.is_file())
                installed.parent.mkdir(parents=True, exist_ok=True)
                write(installed, "\n".join(sorted(files)))
    return folder, variables(manifest.root, folder, channel)


def complete(installed: Path) -> bool:
    """Whether an environment was installed, and has all of its files."""
    try:
        return all(map(os.path.exists, installed.read_text().splitlines()))
    except OSError:
        return False


def install(
    environment: Environment, folder: Path, channel: Path, specs: list[str]
) -> None:
    """Make the environment from nothing."""
    label = f"the environment {environment.name!r}"
    with step(f"solving and installing {label}"):
        try:
            names = conda_tools.create_environment(
                folder, specs, [f"{channel.as_uri()}/conda-forge"]
            )
        except Exception as error:  # rattler has many kinds
            text = f"{label} cannot be made: {' '.join(str(error).split())}"
            if "CI_PIXI_CHANNEL" in os.environ:
                text += "; a task cannot download: run this outside of it"
            raise StandinError(text) from error
        say(f"  {len(names)} packages in {folder}")


def variables(root: Path, folder: Path, channel: Path) -> dict[str, str]:
    """Everything a task's process gets."""
    start = {k: v for k, v in os.environ.items() if not LEAKS.fullmatch(k)}
    outer = os.environ.get("CONDA_PREFIX") or os.environ.get("VIRTUAL_ENV")
    folders = start.get("PATH", os.defpath).split(os.pathsep)
    wheels = (channel / "wheels").resolve()
    sources = (channel / "sources").resolve()
    links = (wheels.as_uri(), (wheels / "alone").as_uri())
    start |= {
        "PATH": os.pathsep.join(f for f in folders if f != f"{outer}/bin"),
        # Those of pixi's that our tasks use.
        "CONDA_DEFAULT_ENV": folder.name,
        "CONDA_PREFIX": str(folder),
        "INIT_CWD": os.getcwd(),
        "PIXI_ENVIRONMENT_NAME": folder.name,
        "PIXI_PROJECT_ROOT": str(root),
        # Those that make tools find the stand-in instead of the internet.
        "CCACHE_BASEDIR": "/",
        "CCACHE_DIR": str(cache_root() / "ccache"),
        "CI_PIXI_CHANNEL": str(channel),
        "CI_PIXI_STANDIN": "1",
        "CI_PIXI_TOOLS": sys.prefix,
        "CONDA_CHANNEL_ALIAS": f"file://{channel}",
        "FETCHCONTENT_SOURCE_DIR_GOOGLETEST": f"{sources}/googletest",
        "FETCHCONTENT_SOURCE_DIR_HIGHWAY": f"{sources}/highway",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_FIND_LINKS": " ".join(links),
        "PIP_NO_INDEX": "1",
        "RATTLER_CACHE_DIR": os.environ["RATTLER_CACHE_DIR"],
        "UV_FIND_LINKS": ",".join(links),
        "UV_NO_CONFIG": "1",
        "UV_NO_INDEX": "1",
        "UV_OFFLINE": "1",
        "UV_PYTHON_DOWNLOADS": "never",
    }
    return conda_tools.environment_variables(folder, start)


def exports(after: dict[str, str]) -> str:
    """Shell code that turns the caller's variables into these."""
    names = {n for n in {*os.environ, *after} if re.fullmatch(NAME, n)}
    return "\n".join(
        f"export {name}={shlex.quote(after[name])}"
        if name in after
        else f"unset {name}"
        for name in sorted(names)
        if after.get(name) != os.environ.get(name)
    )
