"""The cache: its place, hashes, locks, folders written whole; and tools."""

import contextlib
import fcntl
import hashlib
import os
import posixpath
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from standin.progress import StandinError, megabytes, say

WRITING = ".writing-"  # begins the name of what is not complete
LARGEST = 4 << 30  # bytes that an archive may hold


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
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def inside(name: str) -> bool:
    """Whether a relative path stays below the folder that it starts from."""
    return posixpath.normpath(name).split("/")[0] not in ("", "..")


def check_size(archive: str, sizes: Iterable[int]) -> None:
    """Refuse an archive that would fill the memory when it is unpacked."""
    if (total := sum(sizes)) > LARGEST:
        raise StandinError(
            f"{archive}: refused: it holds {megabytes(total)}, more than "
            f"{megabytes(LARGEST)}"
        )


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


def check_space(needed: int) -> None:
    """Stop before a long build that the disk could not hold."""
    cache_root().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache_root()).free
    if free < needed:
        raise StandinError(
            f"No space left on device for {cache_root()}: "
            f"{megabytes(free)} are free, {megabytes(needed)} needed"
        )


def run(
    command: Sequence[str | Path],
    what: str,
    cwd: Path | None = None,
    **variables: str,
) -> str:
    """Run a tool and return its output; downloads are shown as progress."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C", **variables},
    )
    lines = []
    for line in process.stdout or ():
        lines.append(line.rstrip())
        if line.lstrip().startswith("Downloading"):
            say(f"  {line.strip()[:100]}")
    if process.wait() == 0:
        return "\n".join(lines)
    offline = "name resolution|Temporary failure|unreachable"
    if re.search(offline, "\n".join(lines)):
        reason = " there is no network, and this first run needs it"
    else:
        shown = [x for x in lines if x.startswith(("ERROR", "E:", "error"))]
        reason = "".join(f"\n    {x}" for x in shown[-3:] or lines[-12:])
    error = StandinError(f"{what} failed:{reason}")
    error.output = "\n".join(lines)
    raise error
