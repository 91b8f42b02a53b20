"""Make the private virtual environment of ci/pixi, once, and restart in it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from standin.files import (
    NO_SPACE,
    cache_root,
    check_space,
    digest,
    locked,
    no_space,
    run,
)
from standin.progress import START, StandinError, say, step

PIP_INSTALL = ["-m", "pip", "install", "--only-binary", ":all:", "-r"]
SPACE_NEEDED = 400_000_000  # twice what it takes


def own_environment(requirements: Path) -> Path:
    """The environment's folder, made if it is not there yet."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise StandinError(
            "the stand-in is for Linux on x86-64, and this is "
            f"{sys.platform} on {platform.machine()}: install pixi instead"
        )
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            raise StandinError(
                f"{sys.executable} has no {module} module: install it (on "
                "Debian and Ubuntu: apt-get install python3-venv)"
            )
    if given := os.environ.get("CI_PIXI_TOOLS"):  # inside a task
        return Path(given)
    key = digest(requirements, sys.version, sys.base_prefix)
    folder = cache_root() / "tools" / key
    done = folder / "complete"
    if done.exists():
        return folder
    with locked(cache_root() / "tools.lock"):
        if done.exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        check_space(cache_root(), SPACE_NEEDED)
        with step("making ci/pixi's own environment"):
            try:
                run([sys.executable, "-m", "venv", folder], "python3 -m venv")
                run(
                    [folder / "bin/python", *PIP_INSTALL, requirements],
                    "installing ci/standin/requirements.txt",
                    show=["Downloading"],
                )
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        done.touch()
    return folder


def restart_in_own_environment(ci: Path, words: Sequence[str]) -> None:
    """Replace this process by the stand-in; returns only by an exception."""
    try:
        folder = own_environment(ci / "standin/requirements.txt")
    except OSError as error:
        if error.errno in NO_SPACE:
            sys.exit(f"ci/pixi: error: {no_space(cache_root(), str(error))}")
        sys.exit(f"ci/pixi: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except StandinError as problem:
        sys.exit(f"ci/pixi: error: {problem}")
    say("using the stand-in (no pixi on PATH): environments from PyPI wheels")
    environment = dict(os.environ, PYTHONPATH=str(ci))
    environment["CI_PIXI_START"] = str(START)
    # Kept so that tasks get what the caller had, not what ci/pixi uses.
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    # A package cache of its own: conda's and pixi's are left alone.
    environment["RATTLER_CACHE_DIR"] = str(cache_root() / "rattler")
    python = folder / "bin/python"
    os.execve(python, [str(python), "-m", "standin", *words], environment)
