"""Runs tools, and says why one failed."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from standin.files import cache_root, is_no_space, no_space
from standin.progress import StandinError, say


def run(
    command: Sequence[str | Path],
    what: str,
    show: Sequence[str] = (),
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> str:
    """Run a tool and return its output; a failure is a StandinError.

    Lines that begin with one of `show` are passed on as progress.
    """
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=cwd,
        env=env,
    )
    lines = []
    for line in process.stdout or ():
        lines.append(line)
        if show and line.lstrip().startswith(tuple(show)):
            say(f"  {line.strip()[:100]}")
    output = "".join(lines)
    if process.wait():
        if is_no_space(output):
            raise no_space(cache_root(), what)
        raise StandinError(f"{what} failed: {reason(lines)}")
    return output


def reason(lines: Sequence[str]) -> str:
    """What a tool's output says of its failure."""
    offline = ("name resolution", "Temporary failure", "unreachable")
    if any(word in line for line in lines for word in offline):
        return "there is no network, and this first run needs it"
    shown = [x for x in lines if x.startswith(("ERROR", "E:", "error"))]
    shown = shown[-3:] or list(lines[-12:])
    return "".join(f"\n    {line.rstrip()}" for line in shown)
