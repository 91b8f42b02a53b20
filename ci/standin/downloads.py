"""Download what the channel is made from: wheels, sources, .deb files.

pip compares a wheel with the hash that the index gives, apt a .deb file with
the signed lists of Debian; the hash of the sources is in channel.toml.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import sysconfig
import tarfile
import tempfile
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from standin.files import (
    WRITING,
    cache_root,
    digest,
    file_digest,
    run,
    written_whole,
)
from standin.progress import StandinError, megabytes, say, step

PIP = [sys.executable, "-m", "pip"]
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
NO_TORCH = """\
pip finds no CPU build of PyTorch (torch{version}) for Python {python}, nor at
    {index}: set PIP_EXTRA_INDEX_URL to an index, or \
PIP_FIND_LINKS to a folder, that has it"""
NO_WHEEL = (
    "there is no wheel of {name} for this Python: is it misspelt in pixi.toml, "
    "or has PyPI another name for it (then see [pypi] in "
    "ci/standin/channel.toml)?"
)


def wheelhouse(requirements: Iterable[str], alone: Iterable[str]) -> Path:
    """A folder with wheels, downloaded if it is not there.

    Args:
        requirements: what pip resolves, together with its dependencies.
        alone: wheels for the folder `alone` in it, without dependencies.
    """
    lines, alone = sorted(requirements), sorted(alone)
    platform = sys.version_info[:2], sysconfig.get_platform()
    target = cache_root() / "wheelhouse" / digest(lines, alone, platform)
    if target.is_dir():
        return target
    with (
        step(f"downloading {len(lines)} projects of PyPI and what they need"),
        written_whole(target) as folder,
    ):
        download_wheels(folder, lines)
        (folder / "alone").mkdir()
        if alone:
            pip_download(folder / "alone", "--no-deps", *alone)
        sizes = [p.stat().st_size for p in folder.rglob("*.whl")]
        say(f"  {len(sizes)} wheels, {megabytes(sum(sizes))}")
    return target


def download_wheels(folder: Path, lines: list[str]) -> None:
    """Download wheels; PyTorch's own index is asked if no other has torch."""
    more: tuple[str, ...] = ()
    while True:
        try:
            return pip_download(folder, *more, *lines)
        except StandinError as problem:
            found = re.search(
                r"No matching distribution found for ([^\s=<>!~]+)(\S*)",
                str(problem),
            )
            if not found:
                raise
            name, version = found.groups()
            if name != "torch":
                raise StandinError(NO_WHEEL.format(name=name)) from problem
            if more:
                text = NO_TORCH.format(
                    version=version,
                    python=f"{sys.version_info[0]}.{sys.version_info[1]}",
                    index=TORCH_INDEX,
                )
                raise StandinError(text) from problem
        more = ("--extra-index-url", TORCH_INDEX)
        more += ("--retries", "1", "--timeout", "15")


def pip_download(folder: Path, *words: str) -> None:
    """`pip download`, wheels only."""
    options = ["--only-binary", ":all:", "--progress-bar", "off", "-d", folder]
    run([*PIP, "download", *options, *words], "pip download", ["Downloading"])


@dataclass(frozen=True)
class Sources:
    """The source trees of Highway and GoogleTest."""

    folder: Path
    highway_version: str

    @property
    def highway(self) -> Path:
        """Highway's source tree."""
        return self.folder / "highway"

    @property
    def googletest(self) -> Path:
        """GoogleTest's source tree."""
        return self.folder / "usr/src/googletest"

    @property
    def gtest_version(self) -> str:
        """GoogleTest's version."""
        (deb,) = self.folder.glob("*.deb")
        return deb.name.split("_")[1].split("-")[0]


def sources(about: dict[str, Any]) -> Sources:
    """The source trees that channel.toml describes."""
    target = cache_root() / "sources" / digest(about)
    if not target.is_dir():
        with (
            step("downloading the sources of Highway and GoogleTest"),
            written_whole(target) as folder,
        ):
            apt("download", about["debian"], cwd=folder)
            for deb in folder.glob("*.deb"):
                run(["dpkg-deb", "-x", deb, folder], "dpkg-deb")
            sdist = download_sdist(folder, about)
            unpack_highway(sdist, folder / "highway")
            sdist.unlink()
    return Sources(target, about["version"])


def download_sdist(folder: Path, about: dict[str, Any]) -> Path:
    """A source distribution, unbuilt: `pip download` would build it."""
    import requests

    shown = run([*PIP, "config", "list"], "pip config")
    index = re.findall(r"\.index-url='(.*)'", shown) or [
        "https://pypi.org/simple"
    ]
    page = f"{index[-1].rstrip('/')}/{about['project']}/"
    verify = os.environ.get("PIP_CERT", True)
    try:
        listed = requests.get(page, verify=verify, timeout=60)
        listed.raise_for_status()
        link = re.search(rf'"([^"#]*/{about["file"]})["#]', listed.text)
        if not link:
            raise StandinError(f"{page} has no {about['file']}")
        url = urllib.parse.urljoin(page, link[1])
        say(f"  Downloading {about['file']}")
        answer = requests.get(url, verify=verify, timeout=60)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise StandinError(
            f"cannot download {about['file']}: {error}"
        ) from error
    target = folder / about["file"]
    target.write_bytes(answer.content)
    if (found := file_digest(target)) != about["sha256"]:
        raise StandinError(
            f"SHA-256 mismatch for {target.name}: expected "
            f"{about['sha256']}, got {found}"
        )
    return target


def unpack_highway(sdist: Path, target: Path) -> None:
    """Highway's source tree, out of NumPy's source distribution."""
    start = f"{sdist.name.removesuffix('.tar.gz')}/numpy/_core/src/highway/"
    with tarfile.open(sdist) as archive:
        for member in archive:
            if member.name.startswith(start) and member.isfile():
                member.name = member.name.removeprefix(start)
                archive.extract(member, target)
    if not (target / "CMakeLists.txt").is_file():
        raise StandinError(f"{sdist.name} has no {start}")


def debs(name: str) -> list[Path]:
    """A package of Debian's and what it needs, as files.

    What g++ needs is left out, because the machine has it.
    """
    store = cache_root() / "debs"
    store.mkdir(parents=True, exist_ok=True)
    names = sorted(needed(name) - needed("g++"))
    if missing := [n for n in names if not list(store.glob(f"{n}_*.deb"))]:
        say(f"  Downloading Debian's package {name} and what it needs")
        with tempfile.TemporaryDirectory(prefix=WRITING, dir=store) as folder:
            apt("download", *missing, cwd=Path(folder))
            for file in Path(folder).glob("*.deb"):
                file.replace(store / file.name)
    return [next(store.glob(f"{n}_*.deb")) for n in names]


@functools.cache
def needed(name: str) -> set[str]:
    """A package of Debian's and all that it depends on."""
    text = apt("install", "-s", "--no-install-recommends", name)
    return {*re.findall(r"^Inst (\S+)", text, re.MULTILINE)}


def apt(*words: str, cwd: Path | None = None) -> str:
    """apt-get with lists of packages of its own, so it needs no root."""
    own = cache_root() / "apt"
    options = [
        f"-oDir::State::Lists={own}/lists",
        f"-oDir::Cache={own}",
        "-oDir::State::status=/dev/null",
        "-oAPT::Update::Error-Mode=any",
    ]

    def call(*words: str) -> str:
        return run(["apt-get", "-q", *options, *words], words[0], cwd=cwd)

    for name in ("lists/partial", "archives/partial"):
        (own / name).mkdir(parents=True, exist_ok=True)
    if list(own.glob("lists/*Packages*")):
        try:
            return call(*words)
        except StandinError:  # the lists may be old
            pass
    call("update")
    return call(*words)
