"""What a call on foo costs beside the work itself, and which way it takes.

``python torch-foo/tests/device/test_cost.py`` prints the table of
docs/device-backend.md, in microseconds. Times decide no test.
"""

import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch_foo.device
from torch_foo.device import _fallback

ENABLE = """
import gc, time, torch, torch_foo.device
gc.disable()  # as timeit does
start = time.process_time()
torch_foo.device.enable()
print(time.process_time() - start)
"""


def calls(device: str) -> dict[str, tuple[Callable[[], object], bool]]:
    """Return calls of one thing each, and whether Python lowers arguments."""
    a = torch.ones(4, device=device)
    b = torch.ones(2, 2, device=device)
    out = torch.ones(4, device=device)
    return {
        "a kernel of foo_core: `a * a`": (lambda: torch.mul(a, a), False),
        "a fallback in C++: `sin(a)`": (lambda: torch.sin(a), False),
        "the same, in place: `a.abs_()`": (lambda: a.abs_(), False),
        "the same, called from Python: `a + a`": (
            lambda: torch.add(a, a),
            False,
        ),
        "a fallback in Python: `a > 0`": (lambda: torch.gt(a, 0), True),
        "the same, with `out=`": (lambda: torch.sin(a, out=out), True),
        "a view, by ATen: `b.t()`": (lambda: b.t(), False),
        "a view, by a kernel: `a.view(2, 2)`": (lambda: a.view(2, 2), False),
        "a new tensor: `empty(4)`": (
            lambda: torch.empty(4, device=device),
            False,
        ),
        "a copy: `out.copy_(a)`": (lambda: out.copy_(a), True),
    }


def least(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: min(values) for name, values in times.items()}


@torch.no_grad()
def costs() -> list[tuple[str, float, float]]:
    """Return the least time of each call on foo and on the CPU."""
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
    return [(name, foo[name], cpu[name]) for name in foo]


def test_ways(monkeypatch):
    """Nothing else is lowered in Python, which costs three times as much."""
    ran = []
    lower = _fallback._lower

    def noted(tensors):
        ran.append(tensors)
        return lower(tensors)

    monkeypatch.setattr(_fallback, "_lower", noted)
    for name, (call, by_python) in calls("foo").items():
        ran.clear()
        call()
        assert bool(ran) == by_python, name
    ran.clear()


def seconds_to_enable() -> float:
    """Return what enable() takes of the processor; a warning is an error."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", ENABLE],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(done.stdout)


def test_enable_warns_of_nothing():
    assert seconds_to_enable() > 0


def main() -> None:
    print(f"enable(): {1000 * seconds_to_enable():.0f} ms\n")
    torch_foo.device.enable()
    torch.set_num_threads(1)
    print("| call | foo, µs | CPU, µs |\n|---|--:|--:|")
    for name, foo, cpu in costs():
        print(f"| {name} | {foo:.1f} | {cpu:.1f} |")


if __name__ == "__main__":
    main()
