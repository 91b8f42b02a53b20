"""Write real .conda packages: conda-forge's names, made from other sources."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conda_package_streaming.create import conda_builder

from standin.files import digest

# Replaced by the environment's folder when a package is installed.
PLACEHOLDER = "/opt/standin_placeholder_" + "p" * 120
LARGEST_TEXT = 1 << 20  # files above this are not searched for PLACEHOLDER


@dataclass(frozen=True)
class Package:
    """A conda package: what it says of itself, and how its files are made.

    `build` holds "{hash}", which becomes the digest of everything that the
    content depends on, so that another content never has the same file name:
    the package caches of conda tools look at names only.
    """

    name: str
    version: str
    fill: Callable[[Path], None] = lambda root: None
    made_from: tuple[object, ...] = ()
    build: str = "h{hash}_0"
    noarch: str | None = None
    depends: tuple[str, ...] = ()
    constrains: tuple[str, ...] = ()
    run_exports: dict[str, list[str]] = field(default_factory=dict)
    entry_points: tuple[str, ...] = ()
    license: str = "LicenseRef-see-upstream"

    @property
    def subdir(self) -> str:
        """The channel's folder it belongs into."""
        return "noarch" if self.noarch else "linux-64"

    def build_string(self, code: str) -> str:
        """The build string, with the digest in it."""
        made_from = (
            code,
            self.name,
            self.version,
            self.build,
            self.noarch,
            self.depends,
            self.constrains,
            self.run_exports,
            self.entry_points,
            self.made_from,
        )
        return self.build.format(hash=digest(*made_from)[:8])


def stored(package: Package, store: Path, code: str) -> tuple[Path, bool]:
    """The package's file in the store, and whether it had to be written."""
    build = package.build_string(code)
    stem = f"{package.name}-{package.version}-{build}"
    target = store / package.subdir / f"{stem}.conda"
    if target.exists():
        return target, False
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=store) as folder:
        root = Path(folder) / "root"
        root.mkdir()
        package.fill(root)
        write_info(package, root, build)
        pack(root, Path(folder), stem)
        os.replace(Path(folder) / f"{stem}.conda", target)
    return target, True


def write_info(package: Package, root: Path, build: str) -> None:
    """The info folder: index.json and its neighbours."""
    paths = [path_entry(path, root) for path in files_of(root)]
    index = {
        "name": package.name,
        "version": package.version,
        "build": build,
        "build_number": 0,
        "depends": list(package.depends),
        "constrains": list(package.constrains),
        "license": package.license,
        "subdir": package.subdir,
        "timestamp": 1767225600000,
    }
    if package.noarch:
        index["noarch"] = package.noarch
    else:
        index.update(arch="x86_64", platform="linux")
    about = {"summary": f"stand-in for conda-forge's {package.name}"}
    contents: dict[str, Any] = {
        "index.json": index,
        "paths.json": {"paths": paths, "paths_version": 1},
        "about.json": about,
    }
    if package.run_exports:
        contents["run_exports.json"] = package.run_exports
    if package.noarch == "python":
        contents["link.json"] = {
            "noarch": {
                "type": "python",
                "entry_points": list(package.entry_points),
            },
            "package_metadata_version": 1,
        }
    info = root / "info"
    info.mkdir()
    for name, content in contents.items():
        (info / name).write_text(json.dumps(content, indent=1))


def files_of(root: Path) -> list[Path]:
    """Every file and link below a folder."""
    found = []
    for folder, folders, files in os.walk(root):
        links = [n for n in folders if (Path(folder) / n).is_symlink()]
        found += [Path(folder) / name for name in files + links]
    return sorted(found)


def path_entry(path: Path, root: Path) -> dict[str, Any]:
    """What paths.json says of one file."""
    entry: dict[str, Any] = {"_path": path.relative_to(root).as_posix()}
    if path.is_symlink():
        content = path.read_bytes() if path.is_file() else b""
        entry["path_type"] = "softlink"
    else:
        content = path.read_bytes()
        entry["path_type"] = "hardlink"
        if len(content) < LARGEST_TEXT and PLACEHOLDER.encode() in content:
            entry["prefix_placeholder"] = PLACEHOLDER
            entry["file_mode"] = "binary" if b"\0" in content else "text"
    entry["sha256"] = hashlib.sha256(content).hexdigest()
    entry["size_in_bytes"] = len(content)
    return entry


def pack(root: Path, folder: Path, stem: str) -> None:
    """Pack a folder with the payload and info/ into folder/stem.conda."""

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with conda_builder(
        stem, folder, compression_level=1, compression_threads=2
    ) as archive:
        for entry in sorted(root.iterdir(), key=lambda p: p.name == "info"):
            archive.add(entry, entry.name, filter=anonymous)


def text_files(files: dict[str, str]) -> Callable[[Path], None]:
    """Fill a package with small files; what begins with #! is executable."""

    def fill(root: Path) -> None:
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755 if text.startswith("#!") else 0o644)

    return fill


def copy_library(source: Path, target: Path) -> None:
    """Copy a shared library under the name that its users ask for."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755)
