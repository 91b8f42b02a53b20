"""The device "foo": a PyTorch backend whose native part is one binary.

``enable()`` makes ``torch.device("foo")``, ``tensor.to("foo")``,
``torch.accelerator`` and ``torch.foo`` work. A process can have one device of
this kind (PrivateUse1), which also goes before others in ``torch.accelerator``:
so nothing here happens on ``import torch_foo`` unless ``TORCH_FOO_DEVICE=1`` is
set.

The device's memory is the host's and its kernels are the CPU's, so that the
whole can be read and tested on any machine. docs/device-backend.md says how to
make a backend for a real device from it.
"""

import re
import threading

import torch

from torch_foo._torch_internals import backend_name

OLDEST_TORCH = (2, 11)  # the first with a Python interface for backends

_lock = threading.Lock()
_enabled = False


def is_enabled() -> bool:
    """Return whether ``enable`` has been called."""
    return _enabled


def enable() -> None:
    """Register the device "foo" with PyTorch; a second call does nothing.

    Call it before the first ``backward()`` of the process, on any device:
    autograd then makes its queues, one for each device that it knows, and
    fails with "INTERNAL ASSERT FAILED at engine.cpp" for one that comes later.

    A process that is not forked from this one, such as a ``DataLoader`` worker
    by spawn or forkserver, enables the device only when it is sent a tensor on
    it. If it makes tensors on foo itself, set ``TORCH_FOO_DEVICE=1``.

    Raises:
        RuntimeError: torch is older than 2.11, or another backend has taken
            PyTorch's only free device (PrivateUse1).
    """
    global _enabled
    with _lock:
        if _enabled:
            return
        reason = obstacle()
        if reason:
            raise RuntimeError(f"torch_foo.device.enable: {reason}")
        from torch_foo.device import _backend

        _backend.register()
        _enabled = True


def obstacle() -> str:
    """Return why ``enable`` cannot work in this process, or nothing."""
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if found and tuple(map(int, found.groups())) < OLDEST_TORCH:
        return (
            "needs torch >= 2.11, whose backends can be written in Python, but "
            f"torch {torch.__version__} is installed"
        )
    taken = backend_name()
    if taken != "privateuseone" or hasattr(torch, taken):
        return (
            "this process has another device of the kind PrivateUse1, "
            f'"{taken}", and PyTorch can have one'
        )
    return ""
