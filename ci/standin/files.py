"""The cache, hashes, locks, folders written whole, tools, a full disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from standin.progress import StandinError, megabytes, say

WRITING = ".writing-"  # begins the name of what is not complete
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def cache_root() -> Path:
    """The folder that all clones share; CI_PIXI_CACHE overrides it."""
    if chosen := os.environ.get("CI_PIXI_CACHE"):
        return Path(chosen).absolute()
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches).absolute() / "torch-foo-standin"


def digest(*parts: object) -> str:
    """A short hash of the parts; a Path stands for the file's content."""
    total = hashlib.sha256()
    for part in parts:
        text = file_digest(part) if isinstance(part, Path) else repr(part)
        total.update(text.encode() + b"\0")
    return total.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


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
    """Give a temporary folder that becomes `target` if all goes well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=WRITING, dir=target.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where there can be none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


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


def run(
    command: Sequence[str | Path],
    what: str,
    show: Sequence[str] = (),
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> str:
    """Run a tool and return its output; a failure is a StandinError.

    Lines that begin with one of `show` are passed on as progress.
    """
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=cwd,
        env=env,
    )
    lines = []
    for line in process.stdout or ():
        lines.append(line)
        if show and line.lstrip().startswith(tuple(show)):
            say(f"  {line.strip()[:100]}")
    output = "".join(lines)
    if process.wait():
        if is_no_space(output):
            raise no_space(cache_root(), what)
        raise StandinError(f"{what} failed: {reason(lines)}")
    return output


def reason(lines: Sequence[str]) -> str:
    """What a tool's output says of its failure."""
    offline = ("name resolution", "Temporary failure", "unreachable")
    if any(word in line for line in lines for word in offline):
        return "there is no network, and this first run needs it"
    shown = [x for x in lines if x.startswith(("ERROR", "E:", "error"))]
    shown = shown[-3:] or list(lines[-12:])
    return "".join(f"\n    {line.rstrip()}" for line in shown)
