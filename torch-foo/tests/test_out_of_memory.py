"""Memory that ends before each allocation of a call: an error, and no harm.

The calls are in a process of their own, whose address space is limited to a
little more each time.
"""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_foo
from torch.utils._pytree import tree_leaves
from torch_foo.operators import OPERATORS

SIZE = 2**22  # bytes of most results, more than malloc keeps
SHAPES = {
    "attention": (512, 16),
    "cross_entropy": (2**19, 4),
    "linear": (256, 1024),
    "quantize_int8_rowwise": (2048, 2048),
}


PUBLIC = [o for o in OPERATORS.values() if o.is_public()]


def calls(name: str) -> dict[str, Callable[[], Any]]:
    """Return calls of an operator with results of about SIZE bytes."""
    operator, function = OPERATORS[name], getattr(torch_foo, name)
    rows, columns = SHAPES.get(name, (1024, 1024))
    args = operator.benchmark(rows, columns).args()
    found = {name: lambda: function(*args)}
    if operator.backward is not None:
        first = args[0].clone().requires_grad_()
        results = tree_leaves(function(first, *args[1:]))
        grads = [torch.ones_like(r) for r in results]
        found[f"{name}'s gradient"] = lambda: torch.autograd.grad(
            results, first, grads, retain_graph=True
        )
    return found


def address_space() -> int:
    """Return the bytes of address space in use."""
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


def limited(call: Callable[[], Any], more: int) -> Any:
    """Call with so many bytes more than are in use."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + more, limits[1]))
    try:
        return call()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def check_message(message: str) -> None:
    assert "you tried to allocate " in message
    assert " bytes" in message
    assert "API call failed" not in message


def main() -> None:
    """Print each call with the number of allocations that have failed."""
    torch.manual_seed(0)
    for operator in PUBLIC:
        for name, call in calls(operator.__name__).items():
            expected = [r.clone() for r in tree_leaves(call())]
            failures = 0
            while True:
                try:
                    got = tree_leaves(limited(call, failures * SIZE // 2))
                except RuntimeError as error:
                    check_message(str(error))
                    failures += 1
                else:
                    break
                torch.testing.assert_close(tree_leaves(call()), expected)
            torch.testing.assert_close(got, expected)
            print(failures, name, flush=True)


def test_memory_ends_before_each_allocation():
    done = subprocess.run(
        [sys.executable, __file__],
        # Memory that is freed goes back to the system, and is asked for again.
        env=os.environ
        | {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_ARENA_MAX": "1"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    failures = dict(
        line.split(" ", 1)[::-1] for line in done.stdout.splitlines()
    )
    assert {o.__name__ for o in PUBLIC} <= failures.keys()
    # Some results find memory that malloc has kept; add's gradient needs none.
    assert sum(map(int, failures.values())) > len(failures), failures


if __name__ == "__main__":
    main()
