"""Download what the channel is made from: wheels, sources, .deb files.

pip checks a wheel against its hash in lock/, apt a .deb file against the lists
that Debian signs; the hash of the sources is in channel.toml.
"""

import functools
import os
import re
import shutil
import sys
import sysconfig
import tarfile
import tempfile
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from standin.files import (
    WRITING,
    cache_root,
    check_size,
    digest,
    file_digest,
    inside,
    intact,
    run,
    written_whole,
)
from standin.progress import StandinError, megabytes, say, step

PIP = (sys.executable, "-m", "pip")
LOCK = Path(__file__).with_name("lock")
TORCH_AT = "https://download.pytorch.org/whl/cpu"
TORCH_INDEX = ("--extra-index-url", TORCH_AT, "--retries=1")
NO_TORCH = """\
pip finds no CPU build of PyTorch (torch{version}) for Python {python}, nor at
    {index}: set PIP_EXTRA_INDEX_URL to an index, or \
PIP_FIND_LINKS to a folder, that has it"""
# What pip says of files that are not in the lock, and this does in one line.
UNLOCKED = {
    r"^ +(\S+) from .*\n +Expected sha256 (\w+(?:\n +Expected +or \w+)*)"
    r"\n +Got +(\w+)": "SHA-256 mismatch for {0}: expected {1}, got {2}",
    r"pinned with ==.*\n +([\w.-]+).* from ": (
        "{0} is not in ci/standin/lock: run `ci/pixi lock`"
    ),
    r"ERROR: Cannot install (\S+) because": (
        "pixi.toml and ci/standin/lock disagree about {0}: run `ci/pixi lock`"
    ),
}
NO_WHEEL = (
    "there is no wheel of {name} for this Python: is it misspelt in pixi.toml, "
    "or has PyPI another name for it (then see [pypi] in "
    "ci/standin/channel.toml)?"
)


def wheelhouse(lines: list[str], alone: list[str]) -> Path:
    """A folder with wheels, downloaded if it is not there.

    Args:
        lines: what pip resolves, together with its dependencies.
        alone: wheels for the folder `alone` in it, without dependencies.
    """
    platform = sys.version_info[:2], sysconfig.get_platform()
    key = digest(lines, alone, platform, *lock_files())
    target = cache_root() / "wheelhouse" / key
    if intact(target):
        return target
    with (
        step(f"downloading {len(lines)} projects of PyPI and what they need"),
        written_whole(target) as folder,
    ):
        download_wheels(folder, lines)
        (folder / "alone").mkdir()
        if alone:
            pip_download("alone", folder / "alone", "--no-deps", *alone)
        sizes = [p.stat().st_size for p in folder.rglob("*.whl")]
        say(f"  {len(sizes)} wheels, {megabytes(sum(sizes))}")
    return target


def download_wheels(folder: Path, lines: list[str]) -> None:
    """Download wheels; PyTorch's own index is asked if no other has torch."""
    for more in ((), TORCH_INDEX):
        try:
            return pip_download("channel", folder, *more, *lines)
        except StandinError as problem:
            pattern = r"No matching distribution found for ([^\s=<>!~]+)(\S*)"
            found = re.search(pattern, str(problem))
            if not found:
                raise
            if found[1] != "torch":
                raise StandinError(NO_WHEEL.format(name=found[1])) from problem
    python = ".".join(map(str, sys.version_info[:2]))
    raise StandinError(
        NO_TORCH.format(version=found[2], python=python, index=TORCH_AT)
    )


def pip_download(lock: str, folder: Path, *words: str) -> None:
    """Download wheels that are in a file of lock/; any other is an error."""
    options = ("--only-binary", ":all:", "--progress-bar", "off", "-d", folder)
    options += ("--require-hashes", "-c", LOCK / f"{lock}.txt")
    pip([*PIP, "download", *options, *words])


def pip(command: Sequence[str | Path]) -> None:
    """Run pip; a file that is not in the lock becomes one line."""
    try:
        run(command, f"pip {command[3]}")
    except StandinError as problem:
        for pattern, text in UNLOCKED.items():
            if found := re.search(pattern, problem.output, re.M):
                words = (
                    re.sub(r"\n +Expected +", " ", x) for x in found.groups()
                )
                raise StandinError(text.format(*words)) from problem
        raise


def lock_files() -> list[Path]:
    return sorted(LOCK.glob("*.txt"))


def sources(about: dict[str, Any]) -> Path:
    """A folder with the source trees `highway` and `googletest`."""
    target = cache_root() / "sources" / digest(about)
    if intact(target):
        return target
    with (
        step("downloading the sources of Highway and GoogleTest"),
        written_whole(target) as folder,
    ):
        apt("download", about["debian"], cwd=folder)
        (deb,) = folder.glob("*.deb")
        run(["dpkg-deb", "-x", deb, folder], "dpkg-deb")
        (folder / "usr/src/googletest").rename(folder / "googletest")
        sdist = download_sdist(folder, about)
        with tarfile.open(sdist) as archive:
            check_size(sdist.name, (member.size for member in archive))
            for member in archive:
                _, found, name = member.name.partition(about["inside"])
                if not inside(member.name) or not inside(name or "."):
                    text = f"refused: its file {member.name!r} would be outside"
                    raise StandinError(f"{sdist.name}: {text}")
                if found and member.isfile():
                    member.name = name
                    archive.extract(member, folder / "highway")
        sdist.unlink()
    return target


def download_sdist(folder: Path, about: dict[str, Any]) -> Path:
    """A source distribution, unbuilt: `pip download` would build it."""
    import requests

    # The help has pip's own default.
    shown = run([*PIP, "download", "--help"], "pip download --help")
    shown += run([*PIP, "config", "list"], "pip config list")
    index = re.findall(r"(?:\.index-url='|\(default\s+)(http[^\s')]*)", shown)
    page = f"{index[-1].rstrip('/')}/{about['project']}/"

    def get(url: str) -> requests.Response:
        verify = os.environ.get("PIP_CERT", True)
        answer = requests.get(url, verify=verify, timeout=60)
        answer.raise_for_status()
        return answer

    say(f"  Downloading {about['file']}")
    link = re.search(rf'"([^"#]*/{about["file"]})["#]', get(page).text)
    if not link:
        raise StandinError(f"{page} has no {about['file']}")
    target = folder / about["file"]
    target.write_bytes(get(urllib.parse.urljoin(page, link[1])).content)
    if (found := file_digest(target)) != about["sha256"]:
        raise StandinError(
            f"SHA-256 mismatch for {target.name}: expected "
            f"{about['sha256']}, got {found}"
        )
    return target


def debs(name: str) -> list[Path]:
    """A package of Debian's and what it needs, as files.

    What g++ needs is left out, because the machine has it.
    """
    store = cache_root() / "debs"
    store.mkdir(exist_ok=True)
    specs = sorted(f"{n}={v}" for n, v in needed(name) - needed("g++"))
    shown = apt("download", "--print-uris", *specs)  # in an order of apt's
    files = re.findall(r"^'.*' (\S+) \d+ SHA256:(\w+)", shown, re.MULTILINE)
    by_name = {file.partition("_")[0]: (file, sha) for file, sha in files}

    def is_stored(file: str, expected: str) -> bool:
        path = store / file
        return path.is_file() and file_digest(path) == expected

    def missing() -> list[str]:
        return [
            s for s in specs if not is_stored(*by_name[s.partition("=")[0]])
        ]

    if wanted := missing():
        say(f"  Downloading Debian's package {name} and what it needs")
        with tempfile.TemporaryDirectory(prefix=WRITING, dir=store) as folder:
            apt("download", *wanted, cwd=Path(folder))
            for path in Path(folder).glob("*.deb"):
                path.replace(store / path.name)
    if wanted := missing():
        raise StandinError(f"SHA-256 mismatch for Debian's {wanted[0]}")
    return [store / file for file, _ in files]


@functools.cache
def needed(name: str) -> set[tuple[str, str]]:
    """A package of Debian's and all that it depends on, with versions."""
    text = apt("install", "-s", "--no-install-recommends", name)
    return {*re.findall(r"^Inst (\S+) \((\S+)", text, re.MULTILINE)}


def apt(*words: str, cwd: Path | None = None) -> str:
    """apt-get with lists of packages of its own, so it needs no root."""
    own = cache_root() / "apt"
    command = [
        "apt-get",
        "-q",
        f"-oDir::State::Lists={own}/lists",
        f"-oDir::Cache={own}",
        "-oDir::State::status=/dev/null",
        "-oAPT::Update::Error-Mode=any",
        "-oAcquire::AllowInsecureRepositories=false",
        "-oAPT::Get::AllowUnauthenticated=false",
    ]
    for name in ("lists/partial", "archives/partial"):
        (own / name).mkdir(parents=True, exist_ok=True)
    if list(own.glob("lists/*Packages*")):
        try:
            return run([*command, *words], words[0], cwd)
        except StandinError:  # the lists are old or damaged
            shutil.rmtree(own / "lists")
            (own / "lists/partial").mkdir(parents=True)
    run([*command, "update"], "apt-get update")
    return run([*command, *words], f"apt-get {words[0]}", cwd)
