"""Write real .conda packages: conda-forge's names, made from other sources."""

import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import posixpath
import re
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from conda_package_streaming.create import CondaTarFile, conda_builder

from standin.files import WRITING, digest, inside
from standin.manifest import PLATFORM
from standin.progress import StandinError, megabytes, say

# Replaced by the environment's folder when a package is installed.
PLACEHOLDER = "/opt/standin_placeholder_" + "p" * 120
LARGEST_TEXT = 1 << 20  # files above this are not searched for PLACEHOLDER


class File(NamedTuple):
    """A file of a package, or a symbolic link."""

    name: str
    content: bytes = b""
    executable: bool = False
    link: str = ""


@dataclass(frozen=True)
class Package:
    """A conda package: what it says of itself, and how its files are made.

    `build` holds "{hash}", which becomes the digest of everything that the
    content depends on, so that another content never has the same file name:
    the package caches of conda tools look at names only.
    """

    name: str
    version: str
    depends: tuple[str, ...] = ()
    constrains: tuple[str, ...] = ()
    run_exports: dict[str, list[str]] = field(default_factory=dict)
    build: str = "h{hash}_0"
    text: dict[str, str] = field(default_factory=dict)  # small files
    files: Callable[[], Iterable[File]] = tuple  # others
    made_from: tuple[object, ...] = ()  # what the others depend on


@functools.cache
def code() -> str:
    """The digest of the code that packages are made with."""
    files = Path(__file__).parent.glob("**/*.*")
    return digest(*sorted(p for p in files if p.suffix in (".py", ".sh")))


def stored(package: Package, store: Path) -> Path:
    """The package's file, which is written if the store lacks it."""
    start = time.monotonic()
    about = {k: v for k, v in vars(package).items() if k != "files"}
    build = package.build.format(hash=digest(code(), about)[:8])
    target = store / f"{package.name}-{package.version}-{build}.conda"
    with contextlib.suppress(FileNotFoundError, zipfile.BadZipFile):
        with zipfile.ZipFile(target) as archive:
            if archive.testzip() is None:
                os.utime(target)  # it is in use
                return target
    with tempfile.TemporaryDirectory(prefix=WRITING, dir=store) as folder:
        with conda_builder(target.stem, folder, compression_level=1) as archive:
            paths = []
            for file in checked(package):
                add(archive, file)
                paths.append(path_entry(file))
            for name, content in information(package, build, paths).items():
                encoded = json.dumps(content, indent=1).encode()
                add(archive, File(f"info/{name}.json", encoded))
        os.replace(Path(folder) / target.name, target)
    if (seconds := time.monotonic() - start) > 1:
        size = megabytes(target.stat().st_size)
        say(f"  {package.name} {package.version}: {size}, {seconds:.0f} s")
    return target


def checked(package: Package) -> Iterator[File]:
    """A package's files; what would leave the environment is refused."""
    start = f"{package.name} {package.version}: refused:"
    taken, folders = set(), set()
    text = (
        File(name, text.encode(), text.startswith("#!"))
        for name, text in package.text.items()
    )
    for file in itertools.chain(text, package.files()):
        name = file.name
        parents = {str(path) for path in PurePosixPath(name).parents}
        target = posixpath.join(posixpath.dirname(name), file.link)
        if posixpath.normpath(name) != name or not inside(name):
            problem = "would be outside of the environment"
        elif file.link and not inside(target):
            problem = f"is a link to {file.link!r}, outside of the environment"
        elif name in taken or name in folders:
            problem = "is there twice"
        elif parents & taken:
            problem = "would be behind another file"
        elif name.split("/")[0] in ("conda-meta", "info"):
            problem = "would replace what conda keeps of packages"
        else:
            taken.add(name)
            folders |= parents
            yield file
            continue
        raise StandinError(f"{start} its file {name!r} {problem}")


def add(archive: CondaTarFile, file: File) -> None:
    member = tarfile.TarInfo(file.name)
    member.mode = 0o755 if file.executable else 0o644
    if file.link:
        member.type, member.linkname = tarfile.SYMTYPE, file.link
    member.size = len(file.content)
    archive.addfile(member, io.BytesIO(file.content))


def path_entry(file: File) -> dict[str, Any]:
    """What paths.json says of one file."""
    name, content, _, link = file
    if link:
        return {"_path": name, "path_type": "softlink"}
    entry = {
        "_path": name,
        "path_type": "hardlink",
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_in_bytes": len(content),
    }
    if len(content) < LARGEST_TEXT and PLACEHOLDER.encode() in content:
        entry["prefix_placeholder"] = PLACEHOLDER
        entry["file_mode"] = "binary" if b"\0" in content else "text"
    return entry


def information(
    package: Package, build: str, paths: list[dict[str, Any]]
) -> dict[str, Any]:
    """The content of the folder info."""
    return {
        "about": {"summary": "a stand-in for conda-forge's"},
        "index": {
            "name": package.name,
            "version": package.version,
            "build": build,
            "build_number": 0,
            "depends": package.depends,
            "constrains": package.constrains,
            "subdir": PLATFORM,
        },
        "paths": {"paths": paths, "paths_version": 1},
        "run_exports": package.run_exports,
    }


def walk(
    folder: Path, below: str = "", left_out: str = "(?!)"
) -> Iterator[File]:
    """Every file and link below a folder, but for names like `left_out`."""
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder).as_posix()
        if re.fullmatch(left_out, inner):
            continue
        if path.is_symlink():
            yield File(below + inner, link=os.readlink(path))
        elif path.is_file():
            content, executable = path.read_bytes(), os.access(path, os.X_OK)
            yield File(below + inner, content, executable)
