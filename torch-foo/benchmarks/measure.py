"""Time calls in turn, in random order."""

import random
import time
from collections.abc import Callable

from cases import Call

MIN_ROUNDS = 5
MAX_SECONDS = 5.0  # for a single call; slower ones are skipped


def measure(
    calls: dict[str, Call],
    seconds: float,
    before: Callable[[str], object] = lambda name: None,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return the times of each call in seconds, and why others were skipped.

    `before` receives the name of a call before it is timed.
    """
    repeats, skipped = {}, {}
    for name, call in calls.items():
        before(name)
        try:
            call()  # compiles
        except Exception as error:
            if name != "compile":
                raise
            skipped[name] = str(error).strip().split("\n")[0]
            continue
        call()
        start = time.perf_counter()
        call()
        once = time.perf_counter() - start
        if once > MAX_SECONDS:
            skipped[name] = f"a call takes {once:.0f} s"
            continue
        # Enough calls to hide the cost of the clock.
        repeats[name] = max(1, int(5e-5 / max(once, 1e-7)))
    names = list(repeats)
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    rounds = 0
    while time.perf_counter() < end or rounds < MIN_ROUNDS:
        random.shuffle(names)
        for name in names:
            call, n = calls[name], repeats[name]
            before(name)
            call()  # warms the caches after the call before
            start = time.perf_counter()
            for _ in range(n):
                call()
            times[name].append((time.perf_counter() - start) / n)
        rounds += 1
    return times, skipped
