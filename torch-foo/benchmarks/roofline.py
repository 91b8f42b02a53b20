"""The memory roofline: probes that move the same bytes as an operator.

An operator must read its arguments and write its results. Forward and backward
together, it also reads the gradients of the results and the saved tensors, and
writes the gradients of the arguments. The probes move as many bytes between
warm buffers of int64, with functions of torch that do next to nothing else:

mix       reads and writes exactly as many bytes: bitwise_and (reads two, writes
          one), then copy_ for the remaining writes and sum for the remaining
          reads
copy      copy_ of half of all bytes
in place  bitwise_not_ of that half; only for operators in place, because it
          needs half the cache

The fastest probe is the roofline. Probes do not allocate, so an operator that
does is further from the roofline by the page faults of its result.

On a GPU the roofline is the time in which a large copy moves as many bytes.
"""

import statistics

import torch
from cases import Call
from measure import CudaTimer, measure


def probes(read: int, written: int) -> dict[str, Call]:
    """Return the probes for these numbers of bytes; `read` >= `written`."""
    words = torch.ones((read + written) // 8 + 1, dtype=torch.int64)
    r, w = read // 8, written // 8
    two = min(w, r - w)
    a, b, alone, c = words[: r + w].split([w, two, r - w - two, w])
    stages: list[Call] = []
    if two:
        a_two, c_two = a[:two], c[:two]
        stages.append(lambda: torch.bitwise_and(a_two, b, out=c_two))
    if two < w:
        a_one, c_one = a[two:], c[two:]
        stages.append(lambda: c_one.copy_(a_one))
    if len(alone):
        numbers = alone.view(torch.float32)
        stages.append(lambda: numbers.sum())
    half = (r + w) // 2
    source, target = words[:half], words[half : 2 * half]

    def mix() -> None:
        for stage in stages:
            stage()

    return {
        "mix": stages[0] if len(stages) == 1 else mix,
        "copy": lambda: target.copy_(source),
        "in place": lambda: source.bitwise_not_(),
    }


def copy_rate(size: int, seconds: float, timer: CudaTimer) -> float:
    """Return the bytes per second, read and written, of a copy of this size."""
    source, target = (torch.randn(size // 4, device="cuda") for _ in range(2))
    calls = {"copy": lambda: target.copy_(source)}
    times, _ = measure(calls, seconds, timer=timer)
    return 2 * source.nbytes / statistics.median(times["copy"])
