"""Registers the device: its name, hooks, guard, kernels and fallbacks.

A PyTorch backend has these parts. In the order in which a tensor meets them:
memory (_memory.py), metadata and views (_views.py), kernels (C++), what has no
kernel (_fallback.py and, in C++, device/fallback.cc), and the module torch.foo
(_module.py) with everything that users ask of a device.
"""

# mypy: allow-untyped-calls
# (parts of torch have no types)

from typing import Any

import torch
from torch.utils.backend_registration import (
    _setup_privateuseone_for_python_backend,
)

from torch_foo.device import _fallback, _memory, _views
from torch_foo.device._module import FooModule

# Kept alive here: registrations end with their Library.
libraries: list[torch.library.Library] = []


def register() -> None:
    _setup_privateuseone_for_python_backend(
        "foo", backend_module=FooModule("torch.foo")
    )
    _memory.register(library("torch_foo", "IMPL"))
    torch.ops.torch_foo._device_enable(_fallback.usable())
    aten = library("aten", "IMPL")
    _views.register(aten)
    _memory.register_factories(aten)
    _fallback.register(aten)
    everything = library("_", "IMPL")
    everything.fallback(_fallback.fallback, "PrivateUse1")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")


def library(name: str, kind: Any) -> torch.library.Library:
    libraries.append(torch.library.Library(name, kind))
    return libraries[-1]
