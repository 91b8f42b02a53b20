"""Turn wheels from PyPI into conda packages."""

from __future__ import annotations

import configparser
import functools
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename

from standin.files import file_digest
from standin.packages.conda import PLACEHOLDER, Package
from standin.progress import StandinError

LAUNCHER = """#!{prefix}/bin/python
import sys
from {module} import {head}
if __name__ == "__main__":
    sys.exit({function}())
"""


@dataclass(frozen=True)
class Python:
    """The Python that packages are made for, such as 3.11.7."""

    version: str

    @property
    def minor(self) -> str:
        """For example 3.11."""
        return ".".join(self.version.split(".")[:2])

    @property
    def tag(self) -> str:
        """For example 311."""
        return self.minor.replace(".", "")

    @property
    def site(self) -> str:
        """Where packages go, below an environment."""
        return f"lib/python{self.minor}/site-packages"

    @property
    def depends(self) -> tuple[str, ...]:
        """What a package built for this Python depends on."""
        return (
            f"python {self.minor}.*",
            f"python_abi {self.minor}.* *_cp{self.tag}",
        )


@dataclass(frozen=True)
class Names:
    """PyPI's names and conda-forge's."""

    conda_to_pypi: dict[str, str]

    def pypi(self, conda: str) -> str:
        """PyPI's name of a conda package."""
        return self.conda_to_pypi.get(conda, conda)

    def conda(self, pypi: str) -> str:
        """conda-forge's name of a PyPI project."""
        name = canonicalize_name(pypi)
        for conda, other in self.conda_to_pypi.items():
            if other == name:
                return conda
        return name


class EntryPoints(configparser.RawConfigParser):
    """The format of entry_points.txt: upper and lower case differ."""

    def optionxform(self, optionstr: str) -> str:
        """Keep a name as it is."""
        return optionstr


class Wheel:
    """A wheel file and what it says of itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        name, version, _, tags = parse_wheel_filename(path.name)
        self.name = name
        self.version = str(version).split("+")[0]
        self.pure = all(tag.platform == "any" for tag in tags)

    def satisfies(self, wanted: Requirement) -> bool:
        """Whether it is what a requirement asks for."""
        name = canonicalize_name(wanted.name)
        return self.name == name and wanted.specifier.contains(self.version)

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
    def scripts(self) -> dict[str, str]:
        """Its console scripts: name -> module:function."""
        parser = EntryPoints(delimiters=("=",))
        parser.read_string(self.read("entry_points.txt"))
        if not parser.has_section("console_scripts"):
            return {}
        return {
            name: target.split("[")[0].strip()
            for name, target in parser["console_scripts"].items()
        }

    def depends(self, names: Names) -> tuple[str, ...]:
        """Requires-Dist that holds here, as conda match specs."""
        specs = []
        for line in self.metadata.get_all("Requires-Dist", []):
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or marker.evaluate({"extra": ""}):
                version = conda_version(requirement.specifier)
                specs.append(f"{names.conda(requirement.name)} {version}")
        return tuple(sorted(spec.strip() for spec in specs))

    def unpack(
        self, root: Path, site: str, keep: Callable[[str], bool] | None = None
    ) -> None:
        """Unpack as an installer would; `keep` chooses among site's files."""
        folders = {
            "scripts": "bin",
            "data": ".",
            "purelib": site,
            "platlib": site,
            "headers": "include",
        }
        with zipfile.ZipFile(self.path) as archive:
            for member in archive.infolist():
                name = member.filename
                if member.is_dir():
                    continue
                moved = re.fullmatch(r"[^/]+\.data/(\w+)/(.*)", name)
                executable = bool(member.external_attr >> 16 & 0o111)
                if moved:
                    kind, rest = moved.groups()
                    target = root / folders[kind] / rest
                    executable = executable or kind == "scripts"
                elif keep is None or keep(name):
                    target = root / site / name
                else:
                    continue
                extract(archive, member, target, executable)
        info = root / site / self.info
        (info / "INSTALLER").write_text("conda\n")


def extract(
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    target: Path,
    executable: bool,
) -> None:
    """Write one member; scripts get this environment's Python."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("wb") as file:
        if executable:
            first = source.readline()
            if first.startswith(b"#!python"):
                first = f"#!{PLACEHOLDER}/bin/python\n".encode()
            file.write(first)
        shutil.copyfileobj(source, file, 1 << 20)
    if executable:
        target.chmod(0o755)


def conda_version(specifier: SpecifierSet) -> str:
    """PEP 440's version constraints in conda's words."""
    parts = []
    for part in specifier:
        version = part.version.split("+")[0]
        if part.operator in ("==", "===") and version.endswith(".*"):
            parts.append(version)
        else:
            operator = "==" if part.operator == "===" else part.operator
            parts.append(f"{operator}{version}")
    return ",".join(sorted(parts))


def pypi_version(spec: str, where: str) -> str:
    """A conda version constraint in PEP 440's words."""
    if spec == "*":
        return ""
    parts = []
    for part in spec.split(","):
        part = part.strip()
        if re.fullmatch(r"\d[\w.]*\*", part):
            parts.append(f"=={part.replace('.*', '*').replace('*', '.*')}")
        elif re.fullmatch(r"(>=|<=|==|!=|~=|>|<)\s*\d[\w.]*", part):
            parts.append(part.replace(" ", ""))
        else:
            raise StandinError(
                f"{where}: the stand-in understands plain version "
                f"constraints such as '>=1.2,<2', not {spec!r}"
            )
    return ",".join(parts)


def python_package(wheel: Wheel, names: Names, python: Python) -> Package:
    """The conda package of a wheel with nothing special about it."""
    name = names.conda(wheel.name)
    made_from = (file_digest(wheel.path), wheel.path.name)
    depends = wheel.depends(names)
    scripts = wheel.scripts
    if wheel.pure:
        return Package(
            name,
            wheel.version,
            fill=lambda root: wheel.unpack(root, "site-packages"),
            made_from=made_from,
            build="pyh{hash}_0",
            noarch="python",
            depends=("python", *depends),
            entry_points=tuple(f"{k} = {v}" for k, v in scripts.items()),
        )

    def fill(root: Path) -> None:
        wheel.unpack(root, python.site)
        write_launchers(root, scripts)

    return Package(
        name,
        wheel.version,
        fill=fill,
        made_from=made_from,
        build=f"py{python.tag}h{{hash}}_0",
        depends=(*python.depends, *depends),
    )


def write_launchers(root: Path, scripts: dict[str, str]) -> None:
    """Executables for console scripts."""
    for name, target in scripts.items():
        module, function = target.split(":")
        path = root / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            LAUNCHER.format(
                prefix=PLACEHOLDER,
                module=module,
                head=function.split(".")[0],
                function=function,
            )
        )
        path.chmod(0o755)
