"""The cache: its place, hashes, locks, folders written whole; and tools."""

import contextlib
import fcntl
import hashlib
import json
import os
import posixpath
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from standin.progress import StandinError, megabytes, say

WRITING = ".writing-"  # begins the name of what is not complete
RECORD = "sha256.json"
LARGEST = 4 << 30  # bytes that an archive may hold


def cache_root() -> Path:
    """The folder that all clones share; CI_PIXI_CACHE overrides it."""
    chosen = os.environ.get("CI_PIXI_CACHE")
    if not chosen:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        chosen = Path(caches) / "torch-foo-standin"
    folder = Path(chosen).absolute()
    check_path(folder, "set XDG_CACHE_HOME to another folder")
    return folder


def check_path(path: Path, remedy: str) -> None:
    """Refuse a path that a shell, a compiler or conda would take apart."""
    if odd := re.sub(r"[\w/.+@~=-]", "", str(path)):
        raise StandinError(
            f"{str(path)!r}: a path with {odd[0]!r} is not safe in conda's scripts "
            f"and compiler flags: {remedy}"
        )


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
        record(temporary)
        shutil.rmtree(target, ignore_errors=True)  # it is damaged
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def record(folder: Path) -> None:
    """Write down what a folder holds: the last step of making it."""
    write(folder / RECORD, json.dumps(contents(folder, {})))


def intact(folder: Path) -> bool:
    """Whether a folder still holds what was written down.

    Only files of another size or time are read; a copied cache has such.
    """
    known = read_json(folder / RECORD)
    found = contents(folder, known)
    same = {n: v[-1] for n, v in known.items()} == {
        n: v[-1] for n, v in found.items()
    }
    if same and known != found:
        with contextlib.suppress(OSError):  # the cache may be read-only
            write(folder / RECORD, json.dumps(found))
    return same and bool(known)


def contents(folder: Path, known: dict[str, Any]) -> dict[str, Any]:
    """The size, time and SHA-256 of each file, or the target of a link."""
    found: dict[str, Any] = {}
    for top, folders, names in os.walk(folder):
        for path in (Path(top, name) for name in (*names, *folders)):
            name, status = str(path.relative_to(folder)), path.lstat()
            if path.is_symlink():
                found[name] = [os.readlink(path)]
            elif path.is_file() and not name.startswith((RECORD, WRITING)):
                stamp = [status.st_size, status.st_mtime_ns]
                before = known.get(name, [])
                same = before[:2] == stamp
                found[name] = before if same else [*stamp, file_digest(path)]
    return found


def write(file: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    part = file.with_name(f"{WRITING}{os.getpid()}-{file.name}")
    part.write_text(text)
    part.replace(file)


def read_json(file: Path) -> dict[str, Any]:
    """What the file holds; nothing if it is damaged or missing."""
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, TypeError, ValueError):
        return {}


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
