"""Progress and errors, as people see them."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator


class StandinError(Exception):
    """Something the caller can mend: shown as one line, no traceback."""


def say(text: str) -> None:
    """Print a line about what ci/pixi does; stdout is left to the tasks."""
    sys.stderr.write(f"ci/pixi: {text}\n")  # one write: threads say things


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Say that a step begins and, when it is over, how long it took."""
    say(f"{text} ...")
    start = time.monotonic()
    yield
    say(f"{text}: {time.monotonic() - start:.1f} s")


def megabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e6:.1f} MB"
