"""Makes tensors of the device, from memory that device/memory.cc counts."""

# mypy: allow-untyped-calls
# (parts of torch have no types)

import ctypes
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

_ops = torch.ops.torch_foo
_from_dlpack = torch._C._from_dlpack
_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_capsule: Any = ctypes.pythonapi.PyCapsule_New
_capsule.restype = ctypes.py_object
_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def register(own: torch.library.Library) -> None:
    """Register what C++ makes tensors with."""
    own.impl("_adopt", adopt, "CompositeExplicitAutograd")
    for key in ("Conjugate", "Negative"):
        # Their fallbacks copy, and copies call these.
        for name in ("_device_to_cpu", "_device_to_foo"):
            own.impl(name, torch.library.fallthrough_kernel, key)


def register_factories(aten: torch.library.Library) -> None:
    aten.impl("empty.memory_format", empty, "PrivateUse1")
    aten.impl("empty_strided", empty_strided, "PrivateUse1")


def adopt(managed: int, bytes: int, dtype: torch.dtype) -> Tensor:
    """Return the tensor of a DLManagedTensor in C++; 0 is out of memory."""
    if managed == 0:
        fail_out_of_memory(bytes)
    tensor: Tensor = _from_dlpack(_capsule(managed, b"dltensor", None))
    if tensor.dtype is dtype:
        return tensor
    tensor = torch.ops.aten.view.dtype.redispatch(_CPU, tensor, dtype)
    return tensor


def empty(
    size: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    stride = torch.empty(
        size, device="meta", memory_format=memory_format
    ).stride()
    return empty_strided(
        size, stride, dtype=dtype, layout=layout, pin_memory=pin_memory
    )


def empty_strided(
    size: Sequence[int],
    stride: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Tensor:
    dtype = dtype or torch.get_default_dtype()
    managed = _ops._device_empty(size, stride, dtype)
    if managed == 0:
        count = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        fail_out_of_memory(count * dtype.itemsize)
    return adopt(managed, 0, dtype)


def fail_out_of_memory(bytes: int) -> NoReturn:
    allocated, _, limit = _ops._device_memory()
    raise torch.OutOfMemoryError(
        f"foo out of memory. Tried to allocate {bytes} bytes. "
        f"{allocated} bytes are allocated, and the limit is {limit} bytes."
    )
