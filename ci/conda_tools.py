"""What the scripts beside this one share: channels, caches, environments."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import rattler
import rattler.shell

ROOT = Path(__file__).resolve().parent.parent
#: The channel with this repository's own packages.
DIST = ROOT / "dist" / "conda"
#: The packages that this repository builds, in the order of their dependency.
PACKAGES = ("libfoo-core", "torch-foo")
#: The name under which all other packages are looked for.
CHANNEL = "conda-forge"
PLATFORM = "linux-64"

# A cache of our own: see forget().
os.environ.setdefault("RATTLER_CACHE_DIR", str(ROOT / "build/rattler-cache"))


def channel_url() -> str:
    """Where CHANNEL is: conda-forge, or what stands in for it.

    conda's own variable for the place of channels that are given by name.
    """
    default = "https://conda.anaconda.org"
    alias = os.environ.get("CONDA_CHANNEL_ALIAS", default)
    return f"{alias.rstrip('/')}/{CHANNEL}"


def local_variants() -> dict[str, list[str]]:
    """What to build for instead of variants.yaml's oldest Python and torch.

    A stand-in for conda-forge, a channel on disk, has one of each: that one.
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

    The cache knows a package by name, version and build string, which a rebuilt
    package has in common with the one before: the old one may be installed, and
    tested, in its place. (rattler 0.28 was not deceived when this was taken
    out; earlier versions were. tests/packaging/test_recipes.py watches it.)
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
    # rattler's indexer may crash at interpreter exit, its work done: a child
    # process that leaves without one is not affected.
    code = (
        "import asyncio, os, sys\n"
        "from rattler.index import index_fs\n"
        "asyncio.run(index_fs(sys.argv[1], write_zst=False,"
        " write_shards=False))\n"
        "os._exit(0)\n"
    )
    (channel / "noarch").mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-c", code, str(channel)], check=True)


def create_environment(
    prefix: Path, specs: Sequence[str], channels: Sequence[str]
) -> list[str]:
    """Install `specs` into a new environment, as conda and pixi do.

    Returns what was installed, as name-version-build.
    """

    async def create() -> list[str]:
        records = await rattler.solve(
            list(channels),
            list(specs),
            virtual_packages=rattler.VirtualPackage.detect(),
        )
        await rattler.install(records, prefix.resolve(), show_progress=False)
        return [
            f"{record.name.normalized}-{record.version}-{record.build}"
            for record in records
        ]

    start = time.monotonic()
    if prefix.exists():
        shutil.rmtree(prefix)
    installed = asyncio.run(create())
    print(
        f"{prefix.name}: {len(installed)} packages"
        f" in {time.monotonic() - start:.1f} s",
        flush=True,
    )
    return installed


def environment_variables(prefix: Path) -> dict[str, str]:
    """The variables of a process that runs in the activated environment."""
    activation = rattler.shell.activate(
        prefix.resolve(),
        rattler.shell.ActivationVariables(
            None,
            os.environ["PATH"].split(os.pathsep),
            rattler.shell.PathModificationBehavior.Prepend,
        ),
        rattler.shell.Shell.bash,
    )
    output = subprocess.run(
        ["bash", "-c", f"{activation.script}\nenv -0"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return dict(
        line.split("=", 1) for line in output.split("\0") if "=" in line
    )
