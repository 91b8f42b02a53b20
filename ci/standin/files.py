"""Hashes, locks, folders that are written whole, and the disk's space."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from standin.progress import StandinError, megabytes, say

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def digest(*parts: object) -> str:
    """A short hash of the parts; a Path stands for the file's content."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            total.update(file_digest(part).encode())
        else:
            total.update(repr(part).encode())
        total.update(b"\0")
    return total.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def cache_root() -> Path:
    """The folder that all clones share; CI_PIXI_CACHE overrides it."""
    if chosen := os.environ.get("CI_PIXI_CACHE"):
        return Path(chosen).absolute()
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches).absolute() / "torch-foo-standin"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; a second process says that it waits, and waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another ci/pixi to release {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `target` if all goes well.

    On an error nothing of it stays, and what a killed run left beside it is
    deleted. Callers hold a lock, so nobody else writes into that place.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(".writing-*"):
        shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        if target.is_dir():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_space(folder: Path, needed: int) -> None:
    """Stop before a long build that the disk could not hold."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise no_space(
            folder, f"{megabytes(free)} are free, {megabytes(needed)} needed"
        )


def no_space(folder: Path, detail: str) -> StandinError:
    """The error for a full disk, wherever it shows."""
    return StandinError(
        f"no disk space left for {folder} ({detail}): free some, or set "
        "XDG_CACHE_HOME to a folder on another disk"
    )


def is_no_space(text: str) -> bool:
    """Does a tool's message say that the disk is full?"""
    known = [os.strerror(number).lower() for number in NO_SPACE]
    return any(sentence in text.lower() for sentence in known)
