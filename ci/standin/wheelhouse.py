"""Download what the channel is made from: wheels, Highway, GoogleTest."""

from __future__ import annotations

import re
import sys
import sysconfig
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from standin.commands import run
from standin.files import digest, file_digest, written_whole
from standin.packages.sources import (
    download_debian,
    unpack_debian,
    unpack_highway,
)
from standin.progress import StandinError, megabytes, say, step

PIP_DOWNLOAD = [
    "-m",
    "pip",
    "download",
    "--only-binary",
    ":all:",
    "--progress-bar",
    "off",
    "-d",
]


@dataclass(frozen=True)
class Wheelhouse:
    """A folder of downloads."""

    folder: Path

    @property
    def wheels(self) -> list[Path]:
        """Every wheel, for pip's --find-links."""
        return sorted(self.folder.glob("*.whl"))

    @property
    def highway(self) -> Path:
        """Highway's source tree."""
        return self.folder / "highway"

    @property
    def sdist(self) -> Path:
        """The source distribution that Highway came in."""
        return next(self.folder.glob("sources/*.tar.gz"))

    @property
    def googletest(self) -> Path:
        """GoogleTest's source tree."""
        return self.folder / "googletest/usr/src/googletest"

    @property
    def deb(self) -> Path:
        """Debian's package that GoogleTest came in."""
        return next(self.folder.glob("sources/*.deb"))


def download(
    cache: Path, requirements: Sequence[str], content: dict[str, Any]
) -> Wheelhouse:
    """The wheelhouse of these requirements, downloaded if it is not there.

    Args:
        cache: the folder that all clones share.
        requirements: what pip resolves, together with its dependencies.
        content: channel.toml.
    """
    key = digest(
        sorted(requirements),
        content["extras"]["wheels"],
        content["sources"],
        sys.version_info[:2],
        sysconfig.get_platform(),
    )
    target = cache / "wheelhouse" / key
    if target.is_dir():
        return Wheelhouse(target)
    with (
        step(f"downloading {len(requirements)} projects and what they need"),
        written_whole(target) as folder,
    ):
        sources = folder / "sources"
        sources.mkdir()
        deb = download_debian(sources, content["sources"]["debian"])
        unpack_debian(deb, folder / "googletest")
        sdist = download_sdist(sources, content["sources"])
        unpack_highway(sdist, folder / "highway")
        download_wheels(folder, requirements, content["missing"])
        pip_download(folder, "--no-deps", *content["extras"]["wheels"])
        files = [p for p in folder.iterdir() if p.is_file()]
        total = sum(p.stat().st_size for p in files)
        say(f"  {len(files)} wheels, {megabytes(total)}")
    return Wheelhouse(target)


def download_wheels(
    folder: Path, requirements: Sequence[str], missing: dict[str, str]
) -> None:
    """Resolve all requirements together and download the result."""
    try:
        pip_download(folder, *requirements)
    except StandinError as problem:
        found = re.search(
            r"No matching distribution found for (\S+)", str(problem)
        )
        if not found:
            raise
        name = re.split("[=<>!~ ]", found[1])[0]
        general = (
            f"there is no wheel of {found[1]} for this Python: is it misspelt "
            "in pixi.toml, or has PyPI another name for it (then see "
            "pypi-names in ci/standin/channel.toml)?"
        )
        raise StandinError(missing.get(name, general)) from problem


def pip_download(folder: Path, *words: str) -> None:
    """`pip download`, wheels only."""
    run(
        [sys.executable, *PIP_DOWNLOAD, folder, *words],
        "pip download",
        show=["Downloading", "Processing"],
    )


def download_sdist(folder: Path, source: dict[str, str]) -> Path:
    """A source distribution, unbuilt: `pip download` would build it.

    pip's own finder (the version is pinned) knows the user's index.
    """
    from pip._internal.commands import create_command

    command: Any = create_command("download")
    with command.main_context():
        options, _ = command.parse_args(["--no-binary", ":all:"])
        session = command.get_default_session(options)
        finder = command._build_package_finder(options, session)
        for candidate in finder.find_all_candidates(source["project"]):
            link = candidate.link
            name = urllib.parse.unquote(link.filename)
            if name == source["file"]:
                say(f"  Downloading {name}")
                target = folder / name
                target.write_bytes(
                    session.get(link.url_without_fragment).content
                )
                if file_digest(target) != source["sha256"]:
                    raise StandinError(
                        f"{name} has not the hash of channel.toml"
                    )
                return target
    raise StandinError(f"pip's index has no {source['file']}")
