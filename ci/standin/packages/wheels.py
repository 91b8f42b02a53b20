"""Turn wheels from PyPI into conda packages."""

from __future__ import annotations

import configparser
import functools
import re
import zipfile
from collections.abc import Callable, Iterator
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement
from packaging.specifiers import Specifier
from packaging.utils import canonicalize_name, parse_wheel_filename

from standin.files import file_digest
from standin.packages.conda import PLACEHOLDER, File, Package
from standin.packages.python import PYTHON, SITE, TAG
from standin.progress import StandinError

Names = dict[str, str]  # conda-forge's name = PyPI's, where they differ
LAUNCHER = """#!{prefix}/bin/python
import sys
from {module} import {head}
if __name__ == "__main__":
    sys.exit({function}())
"""


class Wheel:
    """A wheel file and what it says of itself."""

    def __init__(self, path: Path, names: Names) -> None:
        self.path, self.names = path, names
        self.project, version, _, _ = parse_wheel_filename(path.name)
        self.version = str(version).split("+")[0]
        self.name = self.conda(self.project)
        self.made_from = (file_digest(path), path.name)

    def conda(self, project: str) -> str:
        """conda-forge's name of a PyPI project."""
        pypi = canonicalize_name(project)
        return next((c for c, p in self.names.items() if p == pypi), pypi)

    @functools.cached_property
    def info(self) -> str:
        """The name of the .dist-info folder."""
        with zipfile.ZipFile(self.path) as archive:
            for member in archive.namelist():
                if re.fullmatch(r"[^/]+\.dist-info/METADATA", member):
                    return member.split("/")[0]
        raise StandinError(f"{self.path.name} is no wheel: it has no METADATA")

    def read(self, name: str) -> str:
        """A file of the .dist-info folder, or nothing."""
        with zipfile.ZipFile(self.path) as archive:
            try:
                return archive.read(f"{self.info}/{name}").decode()
            except KeyError:
                return ""

    @functools.cached_property
    def metadata(self) -> Message:
        """The core metadata."""
        return HeaderParser().parsestr(self.read("METADATA"))

    @property
    def depends(self) -> tuple[str, ...]:
        """Requires-Dist that holds here, as conda match specs."""
        specs = []
        for line in self.metadata.get_all("Requires-Dist", []):
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or marker.evaluate({"extra": ""}):
                version = ",".join(sorted(map(conda, requirement.specifier)))
                specs.append(f"{self.conda(requirement.name)} {version}")
        return tuple(sorted(spec.strip() for spec in specs))

    def files(self, keep: Callable[[str], bool] = bool) -> Iterator[File]:
        """As an installer would place them; `keep` chooses by a wheel's name.

        Raises:
            StandinError: A file would be outside of the environment.
        """
        folders = {"scripts": "bin/", "data": "", "headers": "include/"}
        with zipfile.ZipFile(self.path) as archive:
            for member in archive.infolist():
                name = member.filename
                if member.is_dir() or not keep(name):
                    continue
                content = archive.read(member)
                executable = bool(member.external_attr >> 16 & 0o111)
                target = f"{SITE}/{name}"
                if moved := re.fullmatch(r"[^/]+\.data/(\w+)/(.*)", name):
                    kind, rest = moved.groups()
                    target = folders.get(kind, f"{SITE}/") + rest
                    executable = executable or kind == "scripts"
                    content = re.sub(
                        rb"\A#!pythonw?",
                        f"#!{PLACEHOLDER}/bin/python".encode(),
                        content,
                    )
                if target[0] == "/" or ".." in PurePosixPath(target).parts:
                    raise StandinError(
                        f"{self.path.name}: refused: its file {name} would be "
                        "outside of the environment"
                    )
                yield File(target, content, executable)
        yield File(f"{SITE}/{self.info}/INSTALLER", b"conda\n")
        yield from self.launchers()

    def launchers(self) -> Iterator[File]:
        """Executables for console scripts."""
        parser = configparser.RawConfigParser(delimiters=("=",))
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        parser.read_string(self.read("entry_points.txt"))
        if not parser.has_section("console_scripts"):
            return
        for name, target in parser["console_scripts"].items():
            module, function = target.split("[")[0].strip().split(":")
            text = LAUNCHER.format(
                prefix=PLACEHOLDER,
                module=module,
                head=function.split(".")[0],
                function=function,
            )
            yield File(f"bin/{name}", text.encode(), executable=True)


def conda(part: Specifier) -> str:
    """One of PEP 440's version constraints in conda's words."""
    version = part.version.split("+")[0]
    operator = part.operator.replace("===", "==")
    exact = operator == "==" and version.endswith(".*")
    return version if exact else f"{operator}{version}"


def python_package(wheel: Wheel) -> Package:
    """The conda package of a wheel with nothing special about it."""
    return Package(
        wheel.name,
        wheel.version,
        files=wheel.files,
        made_from=wheel.made_from,
        build=f"py{TAG}h{{hash}}_0",
        depends=(*PYTHON, *wheel.depends),
    )


def tool_package(wheel: Wheel, moves: dict[str, str]) -> Package:
    """A package of programs that need no Python.

    Args:
        wheel: the wheel that has them.
        moves: the beginnings of names in the wheel, and what replaces them.
    """

    def files() -> Iterator[File]:
        for file in wheel.files(lambda name: ".dist-info/" not in name):
            name = file.name.removeprefix(f"{SITE}/")
            for old, new in moves.items():
                if name.startswith(old):
                    tool = "bin/" in new
                    target = new + name.removeprefix(old)
                    yield File(target, file.content, file.executable or tool)

    return Package(
        wheel.name, wheel.version, files=files, made_from=wheel.made_from
    )
