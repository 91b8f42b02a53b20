"""What people see of ci/pixi: lines of progress, times and errors."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# bootstrap.py hands it on to the process that takes over.
START = float(os.environ.pop("CI_PIXI_START", time.monotonic()))
TOOK: dict[str, float] = {}  # the seconds of each step of this run
DISK_IS_FULL = re.compile("No space left|Disk quota exceeded|File too large")


class StandinError(Exception):
    """Something the caller can mend: shown without a traceback."""

    status = 1
    output = ""  # that of the tool which failed


def exit_status(action: Callable[[], None]) -> int:
    """Run the action; an error that people can mend becomes one message."""
    try:
        action()
        sys.stdout.flush()
    except KeyboardInterrupt:
        say("interrupted; the next run takes it up again")
        return 130
    except (StandinError, OSError, subprocess.CalledProcessError) as error:
        text = str(error)
        if DISK_IS_FULL.search(text):
            text = f"no disk space left ({text}): free some, or set "
            text += "XDG_CACHE_HOME to a folder on another disk"
        say(f"error: {text}")
        return getattr(error, "status", 1)
    return 0


def say(text: str) -> None:
    """Print a line with the time; stdout is left to the tasks."""
    minutes, seconds = divmod(int(time.monotonic() - START), 60)
    # One write: threads say things.
    sys.stderr.write(f"ci/pixi: [{minutes}:{seconds:02}] {text}\n")


@contextlib.contextmanager
def step(name: str, detail: str = "...") -> Iterator[None]:
    """Say that a step begins, and how long it takes here or elsewhere."""
    from standin.files import cache_root, read_json, write

    shipped = Path(__file__).with_name("seconds.json")
    own = cache_root() / "seconds.json"
    seconds = {**read_json(shipped), **read_json(own)}.get(name)
    known = isinstance(seconds, int | float)
    about = f" (about {seconds:.0f} s)" if known else ""
    say(f"{name}{about}: {detail}")
    start = time.monotonic()
    yield
    TOOK[name] = time.monotonic() - start
    with contextlib.suppress(OSError):  # a full disk has its own message
        write(own, json.dumps({**read_json(own), name: TOOK[name]}))


def say_times() -> None:
    """Print how long the steps took; a short one is not worth a line."""
    lines = [f"{s:6.0f} s  {name}" for name, s in TOOK.items() if s >= 1]
    if len(lines) > 1:
        lines.append(f"{time.monotonic() - START:6.0f} s  in all")
        say("where the time went\n" + "\n".join(lines))


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
