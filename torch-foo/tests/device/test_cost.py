"""What a call on foo costs beside the work itself, in microseconds.

``python torch-foo/tests/device/test_cost.py`` prints the table of
docs/device-backend.md.
"""

import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch_foo.device

ENABLE = """
import gc, time, torch, torch_foo.device
gc.disable()  # as timeit does
start = time.process_time()
torch_foo.device.enable()
print(time.process_time() - start)
"""


def calls(device: str) -> dict[str, tuple[Callable[[], object], float]]:
    """Return calls of one thing each, with the most that it may cost."""
    a = torch.ones(4, device=device)
    b = torch.ones(2, 2, device=device)
    out = torch.ones(4, device=device)
    return {
        "a kernel of foo_core: `a * a`": (lambda: torch.mul(a, a), 15),
        "a fallback in C++: `sin(a)`": (lambda: torch.sin(a), 15),
        "the same, in place: `a.abs_()`": (lambda: a.abs_(), 15),
        "the same, called from Python: `a + a`": (
            lambda: torch.add(a, a),
            15,
        ),
        "a fallback in Python: `a > 0`": (lambda: torch.gt(a, 0), 60),
        "the same, with `out=`": (lambda: torch.sin(a, out=out), 60),
        "a view, by ATen: `b.t()`": (lambda: b.t(), 10),
        "a view, by a kernel: `a.view(2, 2)`": (lambda: a.view(2, 2), 10),
        "a new tensor: `empty(4)`": (
            lambda: torch.empty(4, device=device),
            10,
        ),
        "a copy: `out.copy_(a)`": (lambda: out.copy_(a), 60),
    }


def least(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: min(values) for name, values in times.items()}


@torch.no_grad()
def costs() -> list[tuple[str, float, float, float]]:
    """Return the least time of each call on foo and the CPU, and its bound."""
    per_repetition = 50
    both = {device: calls(device) for device in ("foo", "cpu")}
    times: dict[str, dict[str, list[float]]] = {
        device: {name: [] for name in both[device]} for device in both
    }
    for _ in range(60):  # interleaved, so that noise hits all
        for device, named in both.items():
            for name, (call, _) in named.items():
                start = time.perf_counter()
                for _ in range(per_repetition):
                    call()
                elapsed = time.perf_counter() - start
                times[device][name].append(elapsed / per_repetition * 1e6)
    foo, cpu = least(times["foo"]), least(times["cpu"])
    bounds = {name: bound for name, (_, bound) in both["foo"].items()}
    return [(name, foo[name], cpu[name], bounds[name]) for name in foo]


def test_costs():
    for name, foo, _, bound in costs():
        assert foo < bound, name


def test_enable():
    """It takes less than 100 ms of the processor, and warns of nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", ENABLE],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert float(done.stdout) < 0.1


def main() -> None:
    torch_foo.device.enable()
    torch.set_num_threads(1)
    print("| call | foo, µs | CPU, µs |\n|---|--:|--:|")
    for name, foo, cpu, _ in costs():
        print(f"| {name} | {foo:.1f} | {cpu:.1f} |")


if __name__ == "__main__":
    main()
