"""Turn wheels from PyPI into conda packages."""

import contextlib
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from importlib.metadata import PathDistribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import Specifier
from packaging.utils import canonicalize_name, parse_wheel_filename

from standin.files import check_size, file_digest
from standin.packages.conda import PLACEHOLDER, File, Package
from standin.packages.python import PYTHON, SITE, TAG
from standin.progress import StandinError

SHEBANG = f"#!{PLACEHOLDER}/bin/python"
LAUNCHER = f"""{SHEBANG}
import sys
from {{module}} import {{head}}
if __name__ == "__main__":
    sys.exit({{function}}())
"""


class Wheel:
    """A wheel file and what it says of itself.

    Args:
        path: the file.
        names: conda-forge's names and PyPI's, where they differ.
    """

    def __init__(self, path: Path, names: dict[str, str]) -> None:
        self.path, self.names = path, names
        self.project, version, _, _ = parse_wheel_filename(path.name)
        self.version = version.public
        self.name = self.conda(self.project)
        self.made_from = (file_digest(path), path.name)
        with self.archive() as archive:
            listed = "\n".join(archive.namelist())
        info = re.search(r"^[^/\n]+\.dist-info/", listed, re.M)
        if not info:
            raise StandinError(f"{path.name}: refused: it has no .dist-info")
        self.info = info[0]
        self.about = PathDistribution(zipfile.Path(path, self.info))

    @contextlib.contextmanager
    def archive(self) -> Iterator[zipfile.ZipFile]:
        """The open file; one that is damaged or too large is refused."""
        name = self.path.name
        try:
            with zipfile.ZipFile(self.path) as archive:
                check_size(name, (m.file_size for m in archive.infolist()))
                yield archive
        except (EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise StandinError(f"{name}: refused: {error}") from error

    def conda(self, project: str) -> str:
        """conda-forge's name of a PyPI project."""
        pypi = canonicalize_name(project)
        return next((c for c, p in self.names.items() if p == pypi), pypi)

    @property
    def depends(self) -> tuple[str, ...]:
        """Requires-Dist that holds here, as conda match specs."""
        specs = []
        for line in self.about.requires or ():
            needed = Requirement(line)
            if not needed.marker or needed.marker.evaluate({"extra": ""}):
                version = ",".join(sorted(map(conda, needed.specifier)))
                specs.append(f"{self.conda(needed.name)} {version}".strip())
        return tuple(sorted(specs))

    def files(self, keep: Callable[[str], bool] = bool) -> Iterator[File]:
        """As an installer places them; `keep` chooses by the wheel's names."""
        folders = {"scripts": "bin/", "data": "", "headers": "include/"}
        with self.archive() as archive:
            for member in archive.infolist():
                name = member.filename
                if member.is_dir() or not keep(name):
                    continue
                mode = member.external_attr >> 16
                if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                    raise StandinError(
                        f"{self.path.name}: refused: {name!r} is no plain file"
                    )
                content = archive.read(member)
                executable = bool(mode & 0o111)
                target = f"{SITE}/{name}"
                if moved := re.fullmatch(r"[^/]+\.data/(\w+)/(.*)", name):
                    kind, rest = moved.groups()
                    target = folders.get(kind, f"{SITE}/") + rest
                    executable = executable or kind == "scripts"
                    content = re.sub(
                        rb"\A#!pythonw?", SHEBANG.encode(), content
                    )
                yield File(target, content, executable)
        yield File(f"{SITE}/{self.info}INSTALLER", b"conda\n")
        for script in self.about.entry_points.select(group="console_scripts"):
            text = LAUNCHER.format(
                module=script.module,
                head=script.attr.split(".")[0],
                function=script.attr,
            )
            yield File(f"bin/{script.name}", text.encode(), True)


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
        depends=(*PYTHON, *wheel.depends),
        build=f"py{TAG}h{{hash}}_0",
        files=wheel.files,
        made_from=wheel.made_from,
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
                    target = new + name.removeprefix(old)
                    executable = file.executable or "bin/" in new
                    yield File(target, file.content, executable)

    return Package(
        wheel.name,
        wheel.version,
        files=files,
        made_from=(wheel.made_from, moves),
    )
