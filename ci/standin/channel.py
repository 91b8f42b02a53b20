"""The stand-in channel of an environment: what it holds, when it is made."""

import contextlib
import functools
import itertools
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
    intact,
    locked,
    written_whole,
)
from standin.manifest import FILE, PLATFORM, Environment, Manifest, read_toml
from standin.packages import compilers, debian, python, pytorch, sources
from standin.packages.conda import Package, code, stored
from standin.packages.wheels import Wheel, python_package, tool_package
from standin.progress import StandinError, megabytes, say, step

KEPT_FOR = 14 * 24 * 3600  # seconds without use
SPACE_NEEDED = 3_000_000_000  # downloads, packages, and their unpacked copies


@functools.cache
def content() -> dict[str, Any]:
    return read_toml(Path(__file__).with_suffix(".toml"))


def prepared(manifest: Manifest, environment: Environment) -> Path:
    """The channel of an environment, made if it is not in the cache.

    Its folder has the channel itself (conda-forge/), and links to what tasks
    use, too (wheels/, sources/). Inside a task, which cannot download, the
    channel of the task stands in for one that is not in the cache.
    """
    given = os.environ.get("CI_PIXI_CHANNEL")
    if not shutil.which("git"):  # recipes and versions are read with it
        raise StandinError(
            "no git on PATH: install it (on Debian and Ubuntu: "
            "apt-get install git)"
        )
    compiler = compilers.find()
    wanted = requested(manifest, environment)
    machine = (compiler, sys.version, sys.base_prefix, str(cache_root()))
    locks = downloads.lock_files()
    key = digest(code(), content(), wanted, machine, *locks)
    folder = cache_root() / "channels" / key
    parts = (folder, folder / "wheels", folder / "sources")
    if not all(map(intact, parts)):
        if given:
            return Path(given)
        with locked(cache_root() / "channel.lock"):
            if not all(map(intact, parts)):
                make(folder, environment.name, wanted, compiler)
    for used in (folder, folder / "wheels"):
        with contextlib.suppress(OSError):  # the cache may be read-only
            os.utime(used)
    return folder


def requested(
    manifest: Manifest, environment: Environment
) -> list[tuple[str, str]]:
    """The dependencies of an environment and of its tasks: name, version."""
    tasks = content()["tasks"].get(environment.name, {})
    wanted = {tuple(f"{p} *".split()[:2]) for p in tasks.get("packages", [])}
    for name in (environment.name, *tasks.get("environments", [])):
        if name in manifest.environments:
            wanted.update(manifest.environments[name].specs)
    return sorted(wanted)


def requirements(wanted: Iterable[tuple[str, str]]) -> Iterator[str]:
    """What pip has to find for dependencies that are made of wheels."""
    about = content()
    local = python.packages() + compilers.packages(compilers.find())
    made = {"gtest", "libhwy", *about["debian"], *about["unavailable"]}
    made.update(package.name for package in local)
    for name, version in wanted:
        if name in made:
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
    prune(cache)
    check_space(SPACE_NEEDED)
    compilers.check(compiler)
    if not shutil.which("apt-get"):
        raise StandinError(
            "no apt-get on PATH: GoogleTest and some tools come from Debian's "
            "packages, so this needs Debian, Ubuntu or a relative of theirs"
        )
    store = cache / "packages"
    store.mkdir(exist_ok=True)
    names = {name for name, _ in wanted} | {"ccache"}
    local = python.packages() + compilers.packages(compiler)
    lines = sorted(set(requirements(wanted)))
    workers = ThreadPoolExecutor(3)
    with step(f"making the stand-in channel of the environment {name!r}"):
        try:
            alone = about["wheels"].get(name, [])
            coming = workers.submit(downloads.wheelhouse, lines, alone)
            trees = downloads.sources(about["sources"])
            built = sources.packages(trees, compiler)
            local += [package for package in built if package.name in names]
            for tool in sorted(names & {*about["debian"]}):
                entry = about["debian"][tool]
                files = downloads.debs(entry["package"])
                local += debian.packages(tool, entry, files)
            # Two tools may need the same package of Debian's.
            unique = {package.name: package for package in local}.values()
            first = [workers.submit(stored, p, store) for p in unique]
            wheels = coming.result()
            rest = [workers.submit(stored, p, store) for p in of_wheels(wheels)]
            packages = [future.result() for future in first + rest]
        except BaseException as error:
            # After Ctrl-C, nobody waits for a package that is being written.
            wait = not isinstance(error, KeyboardInterrupt)
            workers.shutdown(wait, cancel_futures=True)
            raise
        with written_whole(folder) as temporary:
            channel = temporary / conda_tools.CHANNEL
            (channel / PLATFORM).mkdir(parents=True)
            for file in packages:
                os.link(file, channel / PLATFORM / file.name)
            conda_tools.index(channel)
            for link, place in (("wheels", wheels), ("sources", trees)):
                (temporary / link).symlink_to(os.path.relpath(place, folder))
        total = sum(file.stat().st_size for file in packages)
        say(f"  {len(packages)} packages, {megabytes(total)}, in {folder}")


def of_wheels(folder: Path) -> list[Package]:
    """The packages made from a wheelhouse, the largest ones first."""
    about = content()
    files = sorted(folder.glob("*.whl"), key=lambda p: -p.stat().st_size)
    owners = {
        part: name
        for name, parts in about["projects"].items()
        for part in parts
    }
    packages = []
    for path in files:
        wheel = Wheel(path, about["pypi"])
        owner = owners.get(wheel.project, wheel.project)
        if owner in about["tools"]:
            packages.append(tool_package(wheel, about["tools"][owner]))
        elif wheel.project == "torch":
            packages += pytorch.packages(wheel)
        else:
            packages.append(python_package(wheel))
        if wheel.project == "nvidia-cuda-nvcc":
            parts = about["projects"]["cuda-nvcc"]
            packages += compilers.cuda_packages(wheel.version, parts)
    return packages


def prune(cache: Path) -> None:
    """Delete what a killed run left, and what was not used for long."""
    oldest = time.time() - KEPT_FOR
    unused = [
        path
        for kind in ("channels", "wheelhouse", "packages")
        for path in cache.glob(f"{kind}/*")
        if path.stat().st_mtime < oldest
    ]
    left = cache.glob(f"{WRITING}*"), cache.glob(f"*/{WRITING}*")
    for path in itertools.chain(unused, *left):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
