"""Skip a task whose inputs, outputs, command and environment are as before."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from standin.files import digest, file_digest


def pattern(glob: str) -> re.Pattern[str]:
    """A gitignore-style glob, relative to the workspace, as an expression.

    `*` and `?` stay within a name, `**` crosses folders, `[a-z]` is a set, and
    a name with nothing after it also means everything below that folder.
    """
    text = glob.lstrip("/").rstrip("/")
    parts = []
    position = 0
    while position < len(text):
        rest = text[position:]
        if rest.startswith("**/"):
            parts.append("(?:.*/)?")
            position += 3
        elif rest.startswith("**"):
            parts.append(".*")
            position += 2
        elif found := re.match(r"\[(!?)([^\]]+)\]", rest):
            negated = "^" if found[1] else ""
            parts.append(f"[{negated}{found[2]}]")
            position += found.end()
        else:
            wild = {"*": "[^/]*", "?": "[^/]"}
            parts.append(wild.get(rest[0], re.escape(rest[0])))
            position += 1
    return re.compile("".join(parts) + r"(?:/.*)?")


def selected(root: Path, globs: Iterable[str]) -> list[str]:
    """The files that the globs choose; the last glob that fits decides."""
    rules = [(not g.startswith("!"), pattern(g.lstrip("!"))) for g in globs]
    found = []
    for name in sorted(candidates(root, globs)):
        chosen = False
        for wanted, expression in rules:
            if expression.fullmatch(name):
                chosen = wanted
        if chosen:
            found.append(name)
    return found


def candidates(root: Path, globs: Iterable[str]) -> set[str]:
    """Every file below the folders that the globs begin with."""
    found = set()
    for glob in globs:
        if glob.startswith("!"):
            continue
        plain = re.split(r"[^/]*[*?\[]", glob.strip("/"))[0]
        if (root / plain).is_file():
            found.add(plain)
        for folder, folders, files in os.walk(root / plain):
            if Path(folder) == root:
                folders[:] = set(folders) - {".git", ".pixi"}
            for name in files:
                found.add((Path(folder) / name).relative_to(root).as_posix())
    return found


def fingerprint(root: Path, globs: Iterable[str]) -> dict[str, str]:
    """The chosen files and their hashes."""
    return {
        name: file_digest(root / name)
        for name in selected(root, globs)
        if (root / name).is_file()
    }


class Record:
    """What a task was run with the last time, in .pixi/task-cache."""

    def __init__(
        self,
        root: Path,
        label: str,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        *others: object,
    ) -> None:
        self.root, self.inputs, self.outputs = root, inputs, outputs
        self.others = digest(inputs, outputs, *others)
        name = re.sub(r"[^\w.-]", "_", label)
        self.file = root / ".pixi/task-cache" / f"{name}.json"

    @property
    def kept(self) -> bool:
        """Does the task say what it reads or writes?"""
        return bool(self.inputs or self.outputs)

    def state(self) -> dict[str, object]:
        """How things are now."""
        return {
            "others": self.others,
            "inputs": fingerprint(self.root, self.inputs),
            "outputs": fingerprint(self.root, self.outputs),
        }

    def fresh(self) -> bool:
        """Is everything as it was after the last successful run?"""
        if not self.kept or not self.file.is_file():
            return False
        try:
            return bool(json.loads(self.file.read_text()) == self.state())
        except ValueError:
            return False

    def forget(self) -> None:
        """Before a run: a failure must not leave an old record."""
        self.file.unlink(missing_ok=True)

    def missing(self) -> bool:
        """Did the task leave none of the files that it says it writes?"""
        return bool(self.outputs) and not selected(self.root, self.outputs)

    def write(self) -> None:
        """After a successful run."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_suffix(".new")
        temporary.write_text(json.dumps(self.state()))
        temporary.replace(self.file)
