"""Random numbers of the device: a stream of its own, seeded as the CPU's is.

A real device returns its generators from C++ hooks, and torch.Generator("foo")
asks them for one. Hooks in Python cannot answer, so foo's generator is one of
the CPU, which gives the same numbers there and here for the same seed. A
torch.Generator() of the CPU can be given to operators on foo.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import RLock

import torch
from torch import Tensor

#: What operators on foo draw from when they are given no generator.
generator = torch.Generator()

_lock = RLock()


def manual_seed(seed: int) -> None:
    generator.manual_seed(int(seed))


def seed() -> None:
    generator.seed()


def initial_seed() -> int:
    return generator.initial_seed()


def get_rng_state() -> Tensor:
    return generator.get_state()


def set_rng_state(new_state: Tensor) -> None:
    generator.set_state(new_state)


def get_rng_state_all() -> list[Tensor]:
    return [get_rng_state()]


def set_rng_state_all(new_states: Iterable[Tensor]) -> None:
    (new_state,) = new_states
    set_rng_state(new_state)


@contextmanager
def lent_to_cpu() -> Iterator[None]:
    """Let the CPU's kernels that take no generator draw from foo's stream."""
    cpu = torch.default_generator
    with _lock:
        state = cpu.get_state()
        cpu.set_state(generator.get_state())
        try:
            yield
        finally:
            generator.set_state(cpu.get_state())
            cpu.set_state(state)
