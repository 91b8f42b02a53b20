"""Tools from Debian's packages, in a folder of their own."""

from __future__ import annotations

import dataclasses
import io
import os
import posixpath
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from standin.packages.conda import PLACEHOLDER, File, Package, text_files

HOME = "lib/debian"
# Programs and what they load; neither documentation nor translations.
KEPT = re.compile(r"usr/(bin|include|lib|libexec|\w+-linux-gnu)/.*")
WRAPPER = f"""\
#!/bin/sh
root={PLACEHOLDER}/{HOME}
export LD_LIBRARY_PATH="$root/usr/lib/x86_64-linux-gnu"
"""
ACTIVATE = Path(__file__).parent / "activate"


def packages(
    name: str, about: dict[str, Any], debs: list[Path]
) -> list[Package]:
    """A package with a tool's programs, and one of each .deb file.

    Args:
        name: conda-forge's name of the tool.
        about: its entry in channel.toml.
        debs: the package of Debian's and what it depends on.
    """
    parts = [from_deb(deb, about.get("without", "(?!)")) for deb in debs]
    version = next(
        part.version
        for part in parts
        if part.name == part_name(about["debian"])
    )
    files = {
        f"bin/{program}": f"{WRAPPER}{command.strip()}\n"
        for program, command in about["programs"].items()
    }
    script = ACTIVATE / f"activate-{name}.sh"
    if script.is_file():
        files[f"etc/conda/activate.d/{script.name}"] = script.read_text()
    tool = Package(
        name,
        version,
        files=text_files(files),
        made_from=(files,),
        depends=tuple(f"{part.name} {part.version}" for part in parts),
    )
    return [tool, *parts]


def from_deb(deb: Path, left_out: str) -> Package:
    """A package with the files of Debian's, in a folder of their own."""
    name, version, _ = deb.name.split("_")
    upstream = re.sub(r"^\d+%3a|[-+~].*", "", version)
    return Package(
        part_name(name),
        upstream,
        files=lambda: (
            dataclasses.replace(file, name=f"{HOME}/{file.name}")
            for file in content(deb)
            if not re.search(left_out, file.name)
        ),
        made_from=(deb.name, left_out),
    )


def part_name(debian: str) -> str:
    """The name of a package of Debian's in the channel."""
    return f"debian-{debian.replace('+', 'x')}"


def content(deb: Path) -> Iterator[File]:
    """What a package of Debian's installs, without its documentation."""
    command = ["dpkg-deb", "--fsys-tarfile", deb]
    packed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            name = os.path.normpath(member.name)
            name = name if name.startswith("usr/") else f"usr/{name}"
            if not KEPT.fullmatch(name):
                continue
            if member.issym():
                link = member.linkname
                if link.startswith("/"):
                    link = posixpath.relpath(link[1:], posixpath.dirname(name))
                yield File(name, link=link)
            elif member.isreg() or member.islnk():
                file = archive.extractfile(member)
                assert file
                yield File(name, file.read(), bool(member.mode & 0o111))
