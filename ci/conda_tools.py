"""Channels, caches and environments, for the scripts in this folder."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import rattler

ROOT = Path(__file__).resolve().parent.parent
#: The channel with this repository's own packages.
DIST = ROOT / "dist" / "conda"
#: The packages that this repository builds, dependencies first.
PACKAGES = ("libfoo-core", "torch-foo")
#: The channel that has all other packages.
CHANNEL = "conda-forge"
PLATFORM = "linux-64"

# A separate cache: see forget().
os.environ.setdefault("RATTLER_CACHE_DIR", str(ROOT / "build/rattler-cache"))


def channel_url() -> str:
    """Return the URL of CHANNEL: conda-forge or the stand-in for it.

    CONDA_CHANNEL_ALIAS is conda's own variable for the location of channels.
    """
    default = "https://conda.anaconda.org"
    alias = os.environ.get("CONDA_CHANNEL_ALIAS", default)
    return f"{alias.rstrip('/')}/{CHANNEL}"


def local_variants() -> dict[str, list[str]]:
    """Return variants that replace those of variants.yaml, if any.

    The stand-in for conda-forge, a channel on disk, has one Python and one
    torch, which need not be the oldest.
    """
    channel = channel_url()
    if not channel.startswith("file://"):
        return {}
    repodata = json.loads(
        Path(
            channel.removeprefix("file://"), PLATFORM, "repodata.json"
        ).read_text()
    )
    oldest: dict[str, rattler.Version] = {}
    for record in repodata["packages.conda"].values():
        version = rattler.Version(record["version"])
        name = record["name"]
        oldest[name] = min(oldest.get(name, version), version)
    python = ".".join(str(oldest["python"]).split(".")[:2])
    pytorch = ".".join(str(oldest["pytorch"]).split(".")[:2])
    return {
        "python": [f"{python}.* *_cpython"],
        "python_min": [python],
        "pytorch": [pytorch],
    }


def forget(*names: str) -> None:
    """Remove packages from the package cache.

    The cache identifies a package by name, version and build string. A rebuilt
    package shares these with the one before, which could be installed and
    tested in its place. (rattler 0.28 was not deceived when these calls were
    removed; earlier versions were. tests/packaging/test_recipes.py tests it.)
    """
    for name in names:
        for path in Path(os.environ["RATTLER_CACHE_DIR"], "pkgs").glob(
            f"{name}-[0-9]*"
        ):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def index(channel: Path) -> None:
    """Write the repodata of a channel on disk."""
    # rattler's indexer may crash at interpreter exit, after its work is done. A
    # child process that skips the exit is not affected.
    code = (
        "import asyncio, os, sys\n"
        "from rattler.index import index_fs\n"
        "asyncio.run(index_fs(sys.argv[1], write_zst=False,"
        " write_shards=False))\n"
        "os._exit(0)\n"
    )
    (channel / "noarch").mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-c", code, str(channel)], check=True)


def has_cuda_driver() -> bool:
    """Whether this machine, or $CONDA_OVERRIDE_CUDA, has an NVIDIA driver."""
    overrides = rattler.VirtualPackageOverrides.from_env()
    detected = rattler.VirtualPackage.detect(overrides)
    generic = [package.into_generic() for package in detected]
    return any(package.name.normalized == "__cuda" for package in generic)


def solve(
    specs: Sequence[str], channels: Sequence[str]
) -> list[rattler.RepoDataRecord]:
    """Choose packages for this machine, or for $CONDA_OVERRIDE_CUDA."""
    overrides = rattler.VirtualPackageOverrides.from_env()
    return asyncio.run(
        rattler.solve(
            list(channels),
            list(specs),
            virtual_packages=rattler.VirtualPackage.detect(overrides),
        )
    )


def create_environment(
    prefix: Path, specs: Sequence[str], channels: Sequence[str]
) -> list[str]:
    """Install `specs` into a new environment, as conda and pixi do.

    Returns:
        The installed packages, as name-version-build.
    """
    if prefix.exists():
        shutil.rmtree(prefix)
    return update_environment(prefix, specs, channels)


def update_environment(
    prefix: Path, specs: Sequence[str], channels: Sequence[str]
) -> list[str]:
    """Make an environment hold `specs` and what they need, and nothing else.

    Returns:
        The installed packages, as name-version-build.
    """
    records = solve(specs, channels)
    asyncio.run(rattler.install(records, prefix.resolve(), show_progress=False))
    return [
        f"{record.name.normalized}-{record.version}-{record.build}"
        for record in records
    ]


def environment_variables(
    prefix: Path, start: dict[str, str] | None = None
) -> dict[str, str]:
    """Return the variables of a process in the activated environment.

    Args:
        prefix: The environment.
        start: The variables before it is activated; None stands for the
            variables of this process.

    Raises:
        subprocess.CalledProcessError: An activation script failed.
    """
    start = dict(os.environ) if start is None else start
    prefix = prefix.resolve()
    scripts = sorted(prefix.glob("etc/conda/activate.d/*.sh"))
    folders = [f"{prefix}/bin", start.get("PATH", os.defpath)]
    activated = {
        **start,
        "CONDA_PREFIX": str(prefix),
        "CONDA_SHLVL": "1",
        "PATH": os.pathsep.join(folders),
    }
    # rattler's own script would leave the names of folders to the shell.
    source = 'for script; do . "$script"; done; exec env -0'
    output = subprocess.run(
        ["bash", "-c", source, "bash", *scripts],
        env=activated,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout.decode(errors="surrogateescape")
    pairs = [line.split("=", 1) for line in output.split("\0") if "=" in line]
    return {k: v for k, v in pairs if k not in ("_", "SHLVL")}
