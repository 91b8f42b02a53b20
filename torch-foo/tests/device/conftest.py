"""Enables the device "foo", for this folder's tests only.

An enabled device goes before others in torch.accelerator, so these tests run in
processes of their own.
"""

import pytest
import torch
import torch_foo.device

torch_foo.device.enable()


@pytest.fixture(autouse=True)
def no_leak():
    """A test that leaves memory of the device allocated has a leak."""
    before = torch.foo.memory_allocated()
    yield
    assert torch.foo.memory_allocated() == before
