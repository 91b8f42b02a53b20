"""The stand-in channel of an environment: what it holds, when it is made."""

from __future__ import annotations

import functools
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import conda_tools
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from standin import downloads
from standin.files import (
    WRITING,
    cache_root,
    check_space,
    digest,
    link,
    locked,
    written_whole,
)
from standin.manifest import FILE, Environment, Manifest, read_toml
from standin.packages import compilers, debian, python, pytorch, sources
from standin.packages.conda import SUBDIR, Package, stored
from standin.packages.wheels import Wheel, python_package, tool_package
from standin.progress import StandinError, megabytes, say, step

HERE = Path(__file__).parent
KEPT_FOR = 7 * 24 * 3600  # seconds
SPACE_NEEDED = 3_000_000_000  # downloads, packages, and their unpacked copies
TOOLS = {  # wheels of programs that need no Python, and where they put them
    "cmake": {"cmake/data/bin/": "bin/", "cmake/data/share/": "share/"},
    "ninja": {"bin/": "bin/"},
}


@dataclass(frozen=True)
class Channel:
    """A finished channel, and the downloads that tasks use, too."""

    folder: Path
    wheelhouse: Path
    sources: downloads.Sources

    @property
    def alias(self) -> str:
        """The URL below which "conda-forge" is found."""
        return f"file://{self.folder}"

    @property
    def names(self) -> set[str]:
        """Every package's name."""
        files = (self.folder / conda_tools.CHANNEL / SUBDIR).glob("*.conda")
        return {file.name.rsplit("-", 2)[0] for file in files}


@functools.cache
def content() -> dict[str, Any]:
    """channel.toml."""
    return read_toml(HERE / "channel.toml")


@functools.cache
def code() -> str:
    """The digest of the code that packages are made with."""
    files = [
        p for p in HERE.glob("packages/**/*") if p.suffix in (".py", ".sh")
    ]
    return digest(*sorted(files), HERE / "channel.py")


def prepared(manifest: Manifest, environment: Environment) -> Channel:
    """The channel of an environment, made if it is not in the cache.

    Inside a task, it is the channel of the ci/pixi that runs the task.
    """
    if given := os.environ.get("CI_PIXI_CHANNEL"):
        return opened(Path(given))
    if not shutil.which("git"):  # recipes and versions are read with it
        raise StandinError(
            "no git on PATH: install it (on Debian and Ubuntu: "
            "apt-get install git)"
        )
    compiler = compilers.find()
    wanted = requested(manifest, environment)
    key = digest(
        code(), content(), wanted, compiler, sys.version, sys.base_prefix
    )
    folder = cache_root() / "channels" / key
    if not folder.is_dir():
        with locked(cache_root() / "channel.lock"):
            if not folder.is_dir():
                make(folder, environment.name, wanted, compiler)
    os.utime(folder)
    return opened(folder)


def opened(folder: Path) -> Channel:
    """A channel that is there."""
    try:
        about = json.loads((folder / "channel.json").read_text())
    except OSError as error:
        raise StandinError(f"no stand-in channel in {folder}") from error
    version = content()["sources"]["version"]
    source = downloads.Sources(Path(about["sources"]), version)
    return Channel(folder, Path(about["wheelhouse"]), source)


def requested(
    manifest: Manifest, environment: Environment
) -> list[tuple[str, str]]:
    """The dependencies of an environment and of its tasks: name, version."""
    tasks = content()["tasks"].get(environment.name, {})
    wanted = {tuple(f"{p} *".split()[:2]) for p in tasks.get("packages", [])}
    for name in (environment.name, *tasks.get("environments", [])):
        if name in manifest.environments:
            wanted.update(manifest.environments[name].specs)
            wanted.update(manifest.environments[name].pypi_specs)
    return sorted(wanted)


def requirements(
    wanted: Iterable[tuple[str, str]], made: set[str]
) -> Iterator[str]:
    """What pip has to find for dependencies that are made of wheels."""
    about = content()
    for name, version in wanted:
        if name in made or name in about["unavailable"]:
            continue
        version = f"=={version}" if version[0].isdigit() else version
        constraint = "" if version == "*" else version
        try:
            SpecifierSet(constraint)
        except InvalidSpecifier as error:
            raise StandinError(
                f"{FILE}: dependency {name}: the stand-in understands "
                f"versions such as '>=1.2,<2' or '1.2.*', not {version!r}"
            ) from error
        project = about["pypi"].get(name, name)
        for part in about["projects"].get(name, [project]):
            yield f"{part}{about['pins'].get(part, constraint)}"


def make(
    folder: Path,
    name: str,
    wanted: list[tuple[str, str]],
    compiler: compilers.Compiler,
) -> None:
    """Make every package that is not in the store yet, and the channel."""
    about, cache = content(), cache_root()
    store = cache / "packages"
    check_space(cache, SPACE_NEEDED)
    compilers.check(compiler)
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise StandinError(
            "no apt-get and dpkg-deb on PATH: GoogleTest and some tools come "
            "from Debian's packages, so this needs Debian, Ubuntu or a relative"
        )
    names = {name for name, _ in wanted} | {"ccache"}
    local = python.packages() + compilers.packages(compiler)
    made = {p.name for p in local} | {"gtest", "libhwy", *about["debian"]}
    lines = sorted(set(requirements(wanted, made)))
    alone = about["wheels"].get(name, [])
    with (
        step(f"making the stand-in channel of the environment {name!r}"),
        ThreadPoolExecutor(3) as workers,
    ):
        store.mkdir(parents=True, exist_ok=True)
        for left in cache.glob(f"*/{WRITING}*"):  # by a killed run
            shutil.rmtree(left)
        try:
            coming = workers.submit(downloads.wheelhouse, lines, alone)
            trees = downloads.sources(about["sources"])
            local += [
                p for p in sources.packages(trees, compiler) if p.name in names
            ]
            for tool in sorted(names & {*about["debian"]}):
                entry = about["debian"][tool]
                files = downloads.debs(entry["debian"])
                local += debian.packages(tool, entry, files)
            first = workers.map(write, unique(local), itertools.repeat(store))
            wheels = coming.result()
            rest = from_wheels(wheels, about)
            made_files = [
                *first,
                *workers.map(write, rest, itertools.repeat(store)),
            ]
        except BaseException:
            workers.shutdown(cancel_futures=True)
            raise
        with written_whole(folder) as temporary:
            channel = temporary / conda_tools.CHANNEL
            for file in made_files:
                link(file, channel / SUBDIR / file.name)
            conda_tools.index(channel)
            places = {"wheelhouse": str(wheels), "sources": str(trees.folder)}
            (temporary / "channel.json").write_text(json.dumps(places))
        total = sum(file.stat().st_size for file in made_files)
        say(f"  {len(made_files)} packages, {megabytes(total)}, in {folder}")
    prune(cache)


def write(package: Package, store: Path) -> Path:
    """The file of a package, which is written if the store lacks it."""
    start = time.monotonic()
    file, new = stored(package, store, code())
    if new and (seconds := time.monotonic() - start) > 1:
        size = megabytes(file.stat().st_size)
        say(f"  {package.name} {package.version}: {size}, {seconds:.0f} s")
    return file


def from_wheels(folder: Path, about: dict[str, Any]) -> list[Package]:
    """The packages made from a wheelhouse, the largest ones first."""
    files = sorted(folder.glob("*.whl"), key=lambda p: -p.stat().st_size)
    wheels = [Wheel(path, about["pypi"]) for path in files]
    packages = []
    for wheel in wheels:
        if wheel.project == "torch":
            packages += pytorch.packages(wheel)
        elif wheel.project in TOOLS:
            packages.append(tool_package(wheel, TOOLS[wheel.project]))
        elif wheel.project not in about["projects"]["cuda-nvcc"]:
            packages.append(python_package(wheel))
    cuda = [w for w in wheels if w.project in about["projects"]["cuda-nvcc"]]
    return packages + (compilers.cuda_packages(cuda) if cuda else [])


def unique(packages: list[Package]) -> list[Package]:
    """Two tools may need the same package of Debian's."""
    return list({package.name: package for package in packages}.values())


def prune(cache: Path) -> None:
    """Delete channels not used for long, and what only they were made of."""
    oldest = time.time() - KEPT_FOR
    for folder in cache.glob("channels/*"):
        if folder.stat().st_mtime < oldest:
            shutil.rmtree(folder)
    used = {opened(f).wheelhouse for f in cache.glob("channels/*")}
    for folder in cache.glob("wheelhouse/*"):
        if folder not in used:
            shutil.rmtree(folder)
    for file in cache.glob("packages/*.conda"):
        if file.stat().st_nlink == 1 and file.stat().st_mtime < oldest:
            file.unlink()
