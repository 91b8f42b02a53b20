"""What memory allows: probes that move as many bytes as an operator.

An operator has to read its arguments and to write its results; forward and
backward together, the results' gradients and what was saved are read as well,
and the arguments' gradients are written. The probes move as many bytes with
functions of torch that do next to nothing else, between warm buffers of int64:

mix       reads and writes exactly these numbers of bytes: bitwise_and (reads
          two, writes one), copy_ for the rest of what is written, sum for the
          rest of what is read
copy      copy_ of half of the sum of both numbers
in place  bitwise_not_ of that half; only for operators in place, because it
          needs half of the cache that others need

The fastest is the roofline. No probe allocates, so that an operator which does
is further from it, by the page faults of its result.
"""

import torch
from cases import Call


def probes(read: int, written: int) -> dict[str, Call]:
    """For these numbers of bytes, of which no fewer are read than written."""
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
