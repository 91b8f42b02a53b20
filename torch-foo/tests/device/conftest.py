"""Enables the device "foo", for this folder's tests only.

An enabled device goes before others in torch.accelerator, so these tests run in
processes of their own.
"""

import time

import pytest
import torch
import torch_foo.device

torch_foo.device.enable()
torch.set_num_threads(1)  # small tensors, and a worker on each core


@pytest.fixture
def settled():
    """Returns whether so many bytes are allocated, at least soon.

    Autograd has a thread for each accelerator, which frees what it no longer
    needs a little later.
    """

    def is_settled(bytes: int) -> bool:
        for _ in range(100):
            if torch.foo.memory_allocated() == bytes:
                return True
            time.sleep(0.01)
        return False

    return is_settled


@pytest.fixture(autouse=True)
def no_leak(settled):
    """A test that leaves memory of the device allocated has a leak."""
    before = torch.foo.memory_allocated()
    yield
    assert settled(before)
