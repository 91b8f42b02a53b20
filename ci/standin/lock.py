"""Renew the lock: names, versions and SHA-256 of all that comes from PyPI.

The files in lock/ are requirements files of pip, which checks the hashes. uv
chooses the versions, for every Python at once.
"""

import json
import os
import re
import tempfile
from pathlib import Path

from packaging.specifiers import SpecifierSet

from standin import channel, downloads
from standin.files import run
from standin.manifest import Manifest, tomllib
from standin.progress import StandinError, say, step

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
HERE = (
    "implementation_name == 'cpython' and platform_machine == 'x86_64' "
    "and sys_platform == 'linux'"
)
# Wheels of other systems and Pythons, which uv does not leave out.
OTHERS = re.compile(r"-cp\d+t-|-pp\d|-musllinux|graalpy")
PROJECT = """\
[project]
name = "locked"
version = "0"
requires-python = ">=3.10,<3.15"
dependencies = {lines}
[dependency-groups]
own = {own}
[tool.uv]
environments = ["{here}"]
no-build = true
"""
HEADER = "# {about}. `ci/pixi lock` writes this file.\n"
UV_OPTIONS = ("--no-annotate", "--no-header", "--quiet")


def renew(manifest: Manifest) -> None:
    """Choose the newest versions that pixi.toml and channel.toml allow."""
    about = channel.content()
    lines = {*about["own"]}
    for environment in manifest.environments.values():
        wanted = channel.requested(manifest, environment)
        python = dict(environment.specs).get("python", "").strip("*")
        oldest = next(v for v in PYTHONS if v in SpecifierSet(python))
        where = f"; python_version >= '{oldest}'"
        lines.update(x + where for x in channel.requirements(wanted))
    alone = sorted({x for part in about["wheels"].values() for x in part})
    torch = f"torch{about['pins']['torch']}"
    with step("renewing the lock"), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hashes, needs = torch_builds(torch, folder)
        own = json.dumps(about["own"])
        others = sorted(x for x in lines if not x.startswith(torch))
        every = json.dumps(others + needs)
        text = PROJECT.format(lines=every, own=own, here=HERE)
        (folder / "pyproject.toml").write_text(text)
        (folder / "alone.in").write_text("\n".join(alone))
        pip = [*downloads.PIP, "install", "--target", folder / "uv"]
        run([*pip, "-c", downloads.LOCK / "channel.txt", "uv"], "pip install")

        def uv(*words: str) -> str:
            index = os.environ.get("PIP_INDEX_URL", "")
            variables = {"UV_DEFAULT_INDEX": index} if index else {}
            command = [folder / "uv/bin/uv", *words]
            return run(command, f"uv {words[0]}", folder, **variables)

        uv("lock", "--quiet")
        resolved = tomllib.loads((folder / "uv.lock").read_text())
        wheels = {
            wheel["hash"]
            for package in resolved["package"]
            for wheel in package.get("wheels", ())
            if not OTHERS.search(wheel["url"])
        }
        export = ("export", "--format=requirements-txt", *UV_OPTIONS)
        every = uv(*export, "--no-dev").splitlines()
        every.append(f"{torch} \\")
        every += [f"    --hash=sha256:{h}" for h in sorted(hashes)]
        own = uv(*export, "--only-group=own").splitlines()
        words = ("pip", "compile", "alone.in", "--no-deps", "--generate-hashes")
        words += ("--only-binary=:all:", "--universal", "--python-version=3.10")
        rest = uv(*words, *UV_OPTIONS).splitlines()
        wheels |= {f"sha256:{h}" for h in hashes}
        for kind, title, found, allowed in (
            ("channel", "What channels are made from", every, wheels),
            ("own", "What is in ci/pixi's own environment", own, wheels),
            ("alone", "[wheels] of channel.toml", rest, None),
        ):
            target = downloads.LOCK / f"{kind}.txt"
            target.write_text(HEADER.format(about=title) + tidy(found, allowed))
            say(f"  {target}")


def tidy(lines: list[str], allowed: set[str] | None) -> str:
    """Sort the entries; leave out what holds everywhere, and other hashes."""
    entries: list[list[str]] = []
    for line in lines:
        line = line.removesuffix(" \\")
        if not line.startswith(" "):
            line = line.replace(f" and {HERE}", "").replace(f" ; {HERE}", "")
            entries.append([line])
        elif allowed is None or line.partition("=")[2] in allowed:
            entries[-1].append(line)
    if empty := [entry[0] for entry in entries if len(entry) == 1]:
        raise StandinError(f"no wheel for Linux on x86-64: {', '.join(empty)}")
    return "".join(" \\\n".join(entry) + "\n" for entry in sorted(entries))


def torch_builds(requirement: str, folder: Path) -> tuple[set[str], list[str]]:
    """The hashes of PyTorch's CPU builds, and what they need.

    No index may have all of them, so those that were known are kept.
    """
    before = (downloads.LOCK / "channel.txt").read_text()
    entry = re.search(rf"^{re.escape(requirement)} (.*\n +.*)*", before, re.M)
    hashes = set(re.findall("sha256:([0-9a-f]+)", entry[0] if entry else ""))
    needs: set[str] = set()
    report = folder / "report.json"
    words = ("install", "--dry-run", "--ignore-installed", "--no-deps")
    words += ("--only-binary=:all:", "--platform=manylinux_2_28_x86_64")
    words += ("--target", folder, "--report", report, *downloads.TORCH_INDEX)
    for python in PYTHONS:
        command = [*downloads.PIP, *words, "--python-version", python]
        try:
            run([*command, requirement], "pip install")
        except StandinError:
            say(f"  no {requirement} for Python {python} is found here")
            continue
        (found,) = json.loads(report.read_text())["install"]
        hashes.add(found["download_info"]["archive_info"]["hashes"]["sha256"])
        needs.update(found["metadata"].get("requires_dist", ()))
    return hashes, sorted(line for line in needs if "extra ==" not in line)
