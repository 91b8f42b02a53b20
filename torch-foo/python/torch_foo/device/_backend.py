"""Registers the device: its name, hooks, guard, kernels and fallbacks.

A PyTorch backend has these parts. In the order in which a tensor meets them:
memory (_memory.py), metadata and views (_views.py), kernels (C++), what has no
kernel (_fallback.py and, in C++, device/fallback.cc), and the module torch.foo
(_module.py) with everything that users ask of a device: random numbers
(_random.py), autocast (_autocast.py) and Inductor (_inductor.py). What PyTorch
asks C++ hooks, it asks _hooks.py.
"""

# mypy: allow-untyped-calls
# (parts of torch have no types)

from typing import Any

import torch
from torch.utils.backend_registration import (
    _setup_privateuseone_for_python_backend,
    generate_methods_for_privateuse1_backend,
)

from torch_foo.device import (
    _autocast,
    _fallback,
    _hooks,
    _memory,
    _module,
    _random,
    _recurrent,
    _views,
)

# Kept alive here: registrations end with their Library.
libraries: list[torch.library.Library] = []


def register() -> None:
    _setup_privateuseone_for_python_backend("foo", backend_module=_module)
    generate_methods_for_privateuse1_backend(
        for_tensor=False,
        for_module=False,
        for_packed_sequence=False,
        for_storage=True,
    )
    _random.manual_seed(torch.initial_seed())  # which may be the user's
    _memory.register(library("torch_foo", "IMPL"))
    _memory.ops._device_enable()
    aten = library("aten", "IMPL")
    _views.register(aten)
    _memory.register_factories(aten)
    _fallback.register(aten)
    _fallback.register_collectives(library("c10d", "IMPL"))
    _hooks.register(aten)
    _autocast.register(aten)
    _recurrent.register(aten)
    everything = library("_", "IMPL")
    everything.fallback(_fallback.fallback, "PrivateUse1")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")


def library(name: str, kind: Any) -> torch.library.Library:
    libraries.append(torch.library.Library(name, kind))
    return libraries[-1]
