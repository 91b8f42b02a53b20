"""Tools from Debian's packages, in a folder of their own."""

import io
import os
import posixpath
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from standin.files import check_size
from standin.packages.compilers import activation
from standin.packages.conda import PLACEHOLDER, File, Package
from standin.progress import StandinError

HOME = "lib/debian"
# Programs and what they load; neither documentation nor translations.
KEPT = re.compile(r"usr/(bin|include|lib|libexec|\w+-linux-gnu)/.*")
WRAPPER = f"""\
#!/bin/sh
root="{PLACEHOLDER}/{HOME}"
export LD_LIBRARY_PATH="$root/usr/lib/x86_64-linux-gnu"
: "${{PKG_CONFIG_LIBDIR:={PLACEHOLDER}/lib/pkgconfig}}"
export PKG_CONFIG_LIBDIR
exec "$root/usr/bin/"\
"""


def packages(
    name: str, about: dict[str, Any], debs: list[Path]
) -> list[Package]:
    """A package with a tool's programs, and one of each .deb file.

    Args:
        name: conda-forge's name of the tool.
        about: its entry in channel.toml.
        debs: the package of Debian's and what it depends on.
    """
    parts = {
        deb.name.split("_")[0]: from_deb(deb, about.get("without", "(?!)"))
        for deb in debs
    }
    programs = {
        f"bin/{program}": f'{WRAPPER}{command} "$@"\n'
        for program, command in about["programs"].items()
    }
    tool = Package(
        name,
        parts[about["package"]].version,
        depends=tuple(f"{p.name} {p.version}" for p in parts.values()),
        text=programs | activation(name),
    )
    return [tool, *parts.values()]


def from_deb(deb: Path, left_out: str) -> Package:
    """A package with the files of Debian's."""
    name, version, _ = deb.name.split("_")
    return Package(
        f"debian-{name.replace('+', 'x')}",
        re.sub(r"^\d+%3a|[-+~].*", "", version),
        files=lambda: content(deb, re.compile(left_out)),
        made_from=(deb.name, left_out),
    )


def content(deb: Path, left_out: re.Pattern[str]) -> Iterator[File]:
    """What a package of Debian's installs, without its documentation."""
    command = ["dpkg-deb", "--fsys-tarfile", deb]
    packed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    check_size(deb.name, [len(packed)])
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            name = os.path.normpath(member.name)
            name = name if name.startswith("usr/") else f"usr/{name}"
            if not KEPT.fullmatch(name) or left_out.search(name):
                continue
            if member.issym():
                link = member.linkname
                if link.startswith("/"):
                    link = posixpath.relpath(link[1:], posixpath.dirname(name))
                yield File(f"{HOME}/{name}", link=link)
            elif file := archive.extractfile(member):
                executable = bool(member.mode & 0o111)
                yield File(f"{HOME}/{name}", file.read(), executable)
            elif not member.isdir():
                text = f"{deb.name}: refused: {member.name!r} is no plain file"
                raise StandinError(text)
