"""Make the private virtual environment of ci/pixi, once, and restart in it."""

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from standin.downloads import LOCK as LOCKS
from standin.downloads import pip
from standin.files import (
    cache_root,
    check_space,
    digest,
    intact,
    locked,
    record,
    run,
)
from standin.progress import START, StandinError, say, step

LOCK = LOCKS / "own.txt"
SPACE_NEEDED = 400_000_000  # twice what it takes


def own_environment() -> Path:
    """The environment's folder, made if it is not there yet."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise StandinError(
            "the stand-in is for Linux on x86-64, and this is "
            f"{sys.platform} on {platform.machine()}: install pixi instead"
        )
    if given := os.environ.get("CI_PIXI_TOOLS"):  # inside a task
        return Path(given)
    key = digest(LOCK, sys.version, sys.base_prefix)
    folder = cache_root() / "tools" / key
    if intact(folder):
        return folder
    with locked(cache_root() / "tools.lock"):
        if not intact(folder):
            shutil.rmtree(folder, ignore_errors=True)
            check_space(SPACE_NEEDED)
            words = [folder / "bin/python", "-m", "pip", "install"]
            words += ["--only-binary", ":all:", "--no-deps", "--require-hashes"]
            with step("making ci/pixi's own environment"):
                run([sys.executable, "-m", "venv", folder], "python3 -m venv")
                pip([*words, "-r", LOCK])
            record(folder)
    return folder


def restart(words: Sequence[str]) -> None:
    """Replace this process by the stand-in; returns only by an exception."""
    python = own_environment() / "bin/python"
    say("using the stand-in (no pixi on PATH): environments from PyPI wheels")
    environment = {
        **os.environ,
        "CI_PIXI_START": str(START),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        # A package cache of its own: conda's and pixi's are left alone.
        "RATTLER_CACHE_DIR": str(cache_root() / "rattler"),
    }
    command = [str(python), "-m", "standin.cli", *words]
    os.execve(python, command, environment)
