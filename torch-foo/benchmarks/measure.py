"""Time calls in turn, in random order."""

import random
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from cases import Call

HOST = "host: "
MIN_ROUNDS = 5
MAX_SECONDS = 5.0  # for a single call; slower ones are skipped


class HostTimer:
    """Time calls by the clock of the host."""

    warm_up = 0.0  # seconds of calls before the first measurement

    def once(self, call: Call) -> float:
        """Return the seconds of a call from beginning to end."""
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def repeats(self, once: float) -> int:
        """Return the number of calls that hides the cost of the clock."""
        return max(1, int(5e-5 / max(once, 1e-7)))

    def time(self, call: Call, n: int) -> float:
        """Return the seconds of one of n calls."""
        call()  # warms the caches after the call before
        start = time.perf_counter()
        for _ in range(n):
            call()
        return (time.perf_counter() - start) / n

    def host_times(self, call: Call) -> list[float] | None:
        """Return the times to enqueue a call, if another device runs it."""
        return None


class CudaTimer(HostTimer):
    """Time the kernels of calls by events on the current stream.

    The GPU first waits until all n calls are in its queue, so that the kernels
    follow each other as in a replay of a CUDA graph. The time to enqueue a call
    is known where the wait was long enough, so never for a call that
    synchronizes; the time of such a call includes the work of the host.
    """

    BLOCK = 2e-3  # seconds of n calls; 1024 launches would fill the queue
    MAX_REPEATS = 32
    WAIT = 4e-3  # seconds, enough to enqueue a block
    CYCLES = 2e9  # per second, no less than a GPU has

    def __init__(self, warm_up: float) -> None:
        self.warm_up = warm_up
        self.enqueued: dict[Call, list[float]] = defaultdict(list)

    def once(self, call: Call) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def repeats(self, once: float) -> int:
        return max(1, min(self.MAX_REPEATS, int(self.BLOCK / once)))

    def time(self, call: Call, n: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int(self.WAIT * self.CYCLES))
        begin.record()
        start = time.perf_counter()
        for _ in range(n):
            call()
        enqueued = (time.perf_counter() - start) / n
        has_waited = not begin.query()
        end.record()
        end.synchronize()
        if has_waited:
            self.enqueued[call].append(enqueued)
        return begin.elapsed_time(end) * 1e-3 / n

    def host_times(self, call: Call) -> list[float]:
        return self.enqueued[call]


def measure(
    calls: dict[str, Call],
    seconds: float,
    before: Callable[[str], object] = lambda name: None,
    timer: HostTimer | None = None,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return the times of each call in seconds, and why others were skipped.

    `before` receives the name of a call before it is timed. Times to enqueue a
    call have the name of the call after HOST.
    """
    timer = timer or HostTimer()
    repeats, skipped = {}, {}
    for name, call in calls.items():
        before(name)
        try:
            timer.once(call)  # compiles
        except Exception as error:  # of the compiler, or too little memory
            if "torch_foo" in name:
                raise
            skipped[name] = str(error).strip().split("\n")[0]
            continue
        call()
        once = timer.once(call)
        if once > MAX_SECONDS:
            skipped[name] = f"a call takes {once:.0f} s"
            continue
        repeats[name] = timer.repeats(once)
    names = list(repeats)
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + timer.warm_up
    while time.perf_counter() < end:
        for name in names:  # the first ones also waited for memory
            n = timer.repeats(timer.once(calls[name]))
            repeats[name] = max(repeats[name], n)
    end = time.perf_counter() + seconds
    rounds = 0
    while time.perf_counter() < end or rounds < MIN_ROUNDS:
        random.shuffle(names)
        for name in names:
            before(name)
            times[name].append(timer.time(calls[name], repeats[name]))
        rounds += 1
    for name in names:
        host = timer.host_times(calls[name])
        if host is not None:
            times[HOST + name] = host
    return times, skipped
