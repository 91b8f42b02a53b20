"""Answers for what PyTorch asks a backend's allocator and hooks in C++.

A backend in Python cannot register these (torch 2.11 to 2.15). Without them, a
new storage on foo is a segmentation fault, and torch.accelerator's functions
for memory fail. So this replaces the doors that lead there from Python: the
functions of torch._C behind torch.accelerator, methods of torch.UntypedStorage,
operators that pin memory, and what fake kernels take foo for. All of them go on
as before for other devices.
"""

# mypy: allow-untyped-calls
# (parts of torch have no types)

import ctypes
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor, UntypedStorage, _meta_registrations
from torch.multiprocessing.reductions import reduce_storage

import torch_foo.device
from torch_foo import _torch_internals as internals
from torch_foo.device import _module

_ops = torch.ops.torch_foo
_to_copy = internals.kernel(torch.ops.aten._to_copy.default, "CPU")


def register(aten: torch.library.Library) -> None:
    for answer in (
        _accelerator_emptyCache,
        _accelerator_exchangeDevice,
        _accelerator_getDeviceCapability,
        _accelerator_getDeviceStats,
        _accelerator_getMemoryInfo,
        _accelerator_isAllocatorInitialized,
        _accelerator_resetAccumulatedStats,
        _accelerator_resetPeakStats,
        _accelerator_setDeviceIndex,
        _accelerator_synchronizeDevice,
    ):
        setattr(torch._C, answer.__name__, answer)
    for method in (resize_, new):
        setattr(UntypedStorage, method.__name__, method)
    setattr(UntypedStorage, "__new__", new_storage)  # noqa: B010  mypy refuses
    setattr(_meta_registrations, "device_hint", device_hint)  # noqa: B010
    ForkingPickler.register(UntypedStorage, reduce)
    aten.impl("_pin_memory", pin_memory, "CPU")
    aten.impl("is_pinned", is_pinned, "CPU")
    aten.impl("_to_copy", to_copy, "PrivateUse1")
    aten.impl("record_stream", record_stream, "PrivateUse1")


# --- torch.accelerator ------------------------------------------------------
# The device is always foo: nothing goes before PrivateUse1 there.

# ruff: noqa: N802  (these are torch's names)


def _accelerator_isAllocatorInitialized() -> bool:
    return True


def _accelerator_emptyCache() -> None:
    """Do nothing: memory that is freed goes back to the system at once."""


def _accelerator_exchangeDevice(index: int) -> int:
    return _module.device_index(index)


def _accelerator_getDeviceCapability(index: int) -> dict[str, Any]:
    _module.device_index(index)
    dtypes = {x for x in vars(torch).values() if isinstance(x, torch.dtype)}
    return {"supported_dtypes": set(filter(_is_supported, dtypes))}


def _is_supported(dtype: torch.dtype) -> bool:
    try:
        torch.empty(0, dtype=dtype, device="foo")
    except (NotImplementedError, RuntimeError):
        return False
    return True


def _accelerator_getDeviceStats(index: int) -> dict[str, Any]:
    _module.device_index(index)
    allocated, peak, _ = _ops._device_memory()
    count = {"all": {"current": allocated, "peak": peak}}
    return {"allocated_bytes": count, "reserved_bytes": count}


def _accelerator_getMemoryInfo(index: int) -> tuple[int, int]:
    total = _module.get_device_properties(index).total_memory
    allocated, _, limit = _ops._device_memory()
    total = min(total, limit)
    return max(0, total - allocated), total


def _accelerator_resetPeakStats(index: int) -> None:
    _module.device_index(index)
    _ops._device_reset_peak()


def _accelerator_resetAccumulatedStats(index: int) -> None:
    """Do nothing but check: only current and peak bytes are counted."""
    _module.device_index(index)


def _accelerator_setDeviceIndex(index: int) -> None:
    _module.device_index(index)


def _accelerator_synchronizeDevice(index: int) -> None:
    _module.device_index(index)


# --- storages ---------------------------------------------------------------

_new_storage: Any = UntypedStorage.__new__
_resize: Any = UntypedStorage.resize_
_new: Any = UntypedStorage.new


def new_storage(
    cls: type[UntypedStorage], *args: Any, device: Any = None, **kwargs: Any
) -> UntypedStorage:
    if device is None or torch.device(device).type != "foo":
        if device is not None:
            kwargs["device"] = device
        storage: UntypedStorage = _new_storage(cls, *args, **kwargs)
        return storage
    (content,) = args or (0,)
    make = torch.empty if isinstance(content, int) else torch.tensor
    made: Tensor = make(content, dtype=torch.uint8, device=device)
    return made.untyped_storage()


def new(self: UntypedStorage) -> UntypedStorage:
    if self.device.type != "foo":
        made: UntypedStorage = _new(self)
        return made
    return UntypedStorage(0, device=self.device)


def resize_(self: UntypedStorage, size: int) -> UntypedStorage:
    if self.device.type != "foo":
        _resize(self, size)
    elif size != self.nbytes():
        raise RuntimeError(
            f"UntypedStorage.resize_: a storage on foo has {self.nbytes()} "
            f"bytes for good, and {size} were asked for; Tensor.resize_ can "
            "give a tensor another storage"
        )
    return self


def reduce(storage: UntypedStorage) -> Any:
    """Send a storage to another process: a copy of it, if it is on foo.

    An error here would leave the receiver waiting: a queue pickles in a thread.
    """
    if storage.device.type == "foo":
        copy = storage.cpu()
        return _receive, (ctypes.string_at(copy.data_ptr(), copy.nbytes()),)
    return reduce_storage(storage)


def _receive(content: bytes) -> Any:
    torch_foo.device.enable()
    copy = UntypedStorage(len(content))
    ctypes.memmove(copy.data_ptr(), content, len(content))
    return copy.to(device="foo")


# --- pinned memory ----------------------------------------------------------
# A real device would allocate it with its driver. Here, all of the host's
# memory is as near to foo, so pinning is a copy that remembers it is one.


def pin_memory(x: Tensor, device: torch.device | None = None) -> Tensor:
    pinned = torch.empty_like(x).copy_(x)
    setattr(pinned.untyped_storage(), "pinned_for_foo", True)  # noqa: B010
    return pinned


def is_pinned(x: Tensor, device: torch.device | None = None) -> bool:
    return hasattr(x.untyped_storage(), "pinned_for_foo")


def to_copy(x: Tensor, *, non_blocking: bool = False, **named: Any) -> Tensor:
    """Copy at once: PyTorch's would pin what it copies to without blocking."""
    copied: Tensor = _to_copy(x, **named)
    return copied


# --- streams ----------------------------------------------------------------


def record_stream(x: Tensor, stream: torch.Stream) -> None:
    """Do nothing: when memory is freed, no work that uses it is left."""


# --- fake kernels -----------------------------------------------------------
# What a device's kernels return decides; foo's are the CPU's.

_device_hint = _meta_registrations.device_hint


def device_hint(x: Any) -> str:
    """Return "cpu" for foo, where results have other layouts than on CUDA."""
    name: str = _device_hint(x)
    return "cpu" if name == "foo" else name
