"""Threads that share arguments, some of which change them, and interrupts."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

CALLS = 300


@contextmanager
def meanwhile(change: Callable[[], object]) -> Iterator[None]:
    """Call a function again and again in another thread."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            change()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def indices(args) -> list[Tensor]:
    return [a for a in args if isinstance(a, Tensor) and a.dtype == torch.int64]


def test_indices_that_change(case):
    """A call is refused or not, but reads and writes nothing out of bounds.

    AddressSanitizer sees more of it, in libfoo's tests.
    """
    leaves = [
        a.requires_grad_() if case.has_gradient and i in case.leaves else a
        for i, a in enumerate(case.args())
    ]
    changing = indices(leaves)
    if not changing:
        return
    good = [t.clone() for t in changing]

    def change() -> None:
        for tensor, values in zip(changing, good, strict=True):
            tensor.fill_(2**40)
            tensor.fill_(-(2**40))
            tensor.copy_(values)

    with meanwhile(change):
        for _ in range(CALLS):
            with suppress(RuntimeError, IndexError):
                result = tree_leaves(case.function(*leaves))[0]
                if result.requires_grad:
                    result.sum().backward()


def test_arguments_that_change(typical):
    """Other values while it computes are no fault of memory."""
    args = typical.args()
    floating = [args[i] for i in typical.leaves]
    with meanwhile(lambda: [t.normal_() for t in floating]):
        for _ in range(CALLS):
            typical.function(*args)


def test_threads_that_share_arguments(typical):
    """Results and gradients are those of one thread."""
    args = typical.args(requires_grad=True)
    leaves = [args[i] for i in typical.leaves]

    def call(_: int) -> list[Tensor]:
        results = tree_leaves(typical.function(*args))
        if not typical.has_gradient:
            return results
        total = sum((r.square().sum() for r in results), torch.zeros(()))
        return [*results, *torch.autograd.grad(total, leaves)]

    expected = call(0)
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(call, range(CALLS)):
            assert all(map(torch.equal, got, expected))


INTERRUPTED = """
import os, signal, threading
import torch, torch_foo
signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup ignores it
x = torch.randn(4096, 4096)
expected = torch_foo.rms_norm(x)
for delay in range(1, 30):
    timer = threading.Timer(delay / 2000, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()  # the signal may come before it returns
        for _ in range(10_000):
            torch_foo.rms_norm(x)
    except KeyboardInterrupt:
        pass
    else:
        raise SystemExit("no interrupt came")
    assert torch.equal(torch_foo.rms_norm(x), expected)
"""


def test_interrupt():
    """After Ctrl-C in a long call everything works."""
    subprocess.run([sys.executable, "-c", INTERRUPTED], check=True)
