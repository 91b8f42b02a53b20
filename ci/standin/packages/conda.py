"""Write real .conda packages: conda-forge's names, made from other sources."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conda_package_streaming.create import CondaTarFile, conda_builder

from standin.files import WRITING, digest

SUBDIR = "linux-64"
# Replaced by the environment's folder when a package is installed.
PLACEHOLDER = "/opt/standin_placeholder_" + "p" * 120
LARGEST_TEXT = 1 << 20  # files above this are not searched for PLACEHOLDER


@dataclass(frozen=True)
class File:
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
    files: Callable[[], Iterable[File]] = tuple
    made_from: tuple[object, ...] = ()
    build: str = "h{hash}_0"
    depends: tuple[str, ...] = ()
    constrains: tuple[str, ...] = ()
    run_exports: dict[str, list[str]] = field(default_factory=dict)

    def build_string(self, code: str) -> str:
        """The build string, with the digest in it."""
        others = {k: v for k, v in vars(self).items() if k != "files"}
        return self.build.format(hash=digest(code, others)[:8])


def stored(package: Package, store: Path, code: str) -> tuple[Path, bool]:
    """The package's file in the store, and whether it had to be written."""
    build = package.build_string(code)
    target = store / f"{package.name}-{package.version}-{build}.conda"
    if target.exists():
        return target, False
    with tempfile.TemporaryDirectory(prefix=WRITING, dir=store) as folder:
        with conda_builder(target.stem, folder, compression_level=1) as archive:
            paths = []
            for file in package.files():
                add(archive, file)
                paths.append(path_entry(file))
            for name, content in information(package, build, paths).items():
                text = json.dumps(content, indent=1)
                add(archive, File(f"info/{name}.json", text.encode()))
        os.replace(Path(folder) / target.name, target)
    return target, True


def add(archive: CondaTarFile, file: File) -> None:
    """Add a file to a package."""
    member = tarfile.TarInfo(file.name)
    member.mode = 0o755 if file.executable else 0o644
    if file.link:
        member.type, member.linkname = tarfile.SYMTYPE, file.link
    member.size = len(file.content)
    archive.addfile(member, io.BytesIO(file.content))


def path_entry(file: File) -> dict[str, Any]:
    """What paths.json says of one file."""
    if file.link:
        return {"_path": file.name, "path_type": "softlink"}
    entry = {
        "_path": file.name,
        "path_type": "hardlink",
        "sha256": hashlib.sha256(file.content).hexdigest(),
        "size_in_bytes": len(file.content),
    }
    if (
        len(file.content) < LARGEST_TEXT
        and PLACEHOLDER.encode() in file.content
    ):
        entry["prefix_placeholder"] = PLACEHOLDER
        entry["file_mode"] = "binary" if b"\0" in file.content else "text"
    return entry


def information(
    package: Package, build: str, paths: list[dict[str, Any]]
) -> dict[str, Any]:
    """The content of the folder info."""
    summary = f"stand-in for conda-forge's {package.name}"
    return {
        "about": {"summary": summary},
        "index": {
            "name": package.name,
            "version": package.version,
            "build": build,
            "build_number": 0,
            "depends": list(package.depends),
            "constrains": list(package.constrains),
            "license": "LicenseRef-see-upstream",
            "subdir": SUBDIR,
            "timestamp": 1767225600000,
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
        name = below + inner
        if re.fullmatch(left_out, inner):
            continue
        if path.is_symlink():
            yield File(name, link=os.readlink(path))
        elif path.is_file():
            yield File(name, path.read_bytes(), os.access(path, os.X_OK))


def text_files(files: dict[str, str]) -> Callable[[], list[File]]:
    """Small files; what begins with #! is executable."""
    return lambda: [
        File(name, text.encode(), text.startswith("#!"))
        for name, text in files.items()
    ]
