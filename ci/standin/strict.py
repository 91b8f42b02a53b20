"""Checks of single values of a TOML file, with errors that name the key."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from standin.manifest import nearest
from standin.progress import StandinError


class Checker:
    """Checks values of one file; knows its name for the errors."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, where: str, text: str) -> StandinError:
        """An error at a key."""
        return StandinError(f"{self.path}: {where}: {text}")

    def keys(self, table: Any, where: str, known: Iterable[str]) -> Any:
        """Check that it is a table and has none but these keys."""
        self.typed(table, where, dict, "a table")
        known = list(known)
        for key in table:
            if key not in known:
                full = f"{where}.{key}" if where else key
                raise self.fail(
                    full,
                    "ci/pixi does not support this key; " + nearest(key, known),
                )
        return table

    def typed(self, value: Any, where: str, kind: type, called: str) -> Any:
        """Check a value's type."""
        if not isinstance(value, kind):
            raise self.fail(
                where, f"must be {called}, not {type(value).__name__}"
            )
        return value

    def text(self, value: Any, where: str) -> str:
        """A string."""
        return str(self.typed(value, where, str, "a string"))

    def texts(self, value: Any, where: str) -> tuple[str, ...]:
        """A list of strings."""
        self.typed(value, where, list, "a list of strings")
        return tuple(self.text(v, f"{where}[{i}]") for i, v in enumerate(value))

    def text_table(self, value: Any, where: str) -> dict[str, str]:
        """A table of strings."""
        self.typed(value, where, dict, "a table of strings")
        return {k: self.text(v, f"{where}.{k}") for k, v in value.items()}
