"""Makes tensors of the device, from memory that device/memory.cc counts."""

# mypy: allow-untyped-calls
# (parts of torch have no types)

import ctypes
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from torch_foo import _torch_internals as internals
from torch_foo.device._module import device_index

ops = torch.ops.torch_foo
_device_empty = ops._device_empty.default._op
_view_dtype = torch.ops.aten.view.dtype.redispatch
_NEW_DTYPES = {torch.float8_e8m0fnu, torch.float4_e2m1fn_x2}
_CPU = internals.dispatch_keys("CPU")
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
    # The CPU's has no memory, which forward-mode AD knows and DLPack does not.
    aten.impl("_efficientzerotensor", torch.zeros, "PrivateUse1")


def adopt(managed: int, dtype: torch.dtype) -> Tensor:
    """Return the tensor of a DLManagedTensor in C++."""
    if managed == 0:  # C++ asks for the reason again, by device/_fallback.py
        raise torch.OutOfMemoryError("foo out of memory.")
    tensor: Tensor = internals.from_dlpack(_capsule(managed, b"dltensor", None))
    if tensor.dtype is dtype:
        return tensor
    tensor = _view_dtype(_CPU, tensor, dtype)
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
    stride = None  # contiguous
    if memory_format not in (None, torch.contiguous_format):
        stride = torch.empty(
            size, device="meta", memory_format=memory_format
        ).stride()
    return _new(size, stride, dtype, device, pin_memory)


def empty_strided(
    size: Sequence[int],
    stride: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Tensor:
    return _new(size, stride, dtype, device, pin_memory)


def _new(
    size: Sequence[int],
    stride: Sequence[int] | None,
    dtype: torch.dtype | None,
    device: torch.device | None,
    pin_memory: bool | None,
) -> Tensor:
    device_index(device)
    if pin_memory:
        raise RuntimeError("Only dense CPU tensors can be pinned, not foo's")
    dtype = dtype or torch.get_default_dtype()
    try:
        # The stable ABI does not carry the dtypes that it got after torch 2.10.
        carried = torch.uint8 if dtype in _NEW_DTYPES else dtype
        managed = _device_empty(size, stride, carried)
    except RuntimeError as error:
        if "ScalarType" in str(error):
            raise NotImplementedError(
                f"foo has no tensors of {dtype}"
            ) from None
        raise
    if managed == 0:
        fail_out_of_memory(size, stride, dtype)
    tensor = adopt(managed, dtype)
    if torch.are_deterministic_algorithms_enabled():
        _fill_uninitialized(tensor)
    return tensor


def _fill_uninitialized(tensor: Tensor) -> None:
    """Do what torch.utils.deterministic.fill_uninitialized_memory asks for."""
    settings: Any = torch.utils.deterministic  # a property, which mypy misses
    if not settings.fill_uninitialized_memory:
        return
    if tensor.is_floating_point() or tensor.is_complex():
        tensor.fill_(float("nan"))
    elif tensor.dtype is torch.bool:
        tensor.fill_(True)
    else:
        tensor.fill_(torch.iinfo(tensor.dtype).max)


def fail_out_of_memory(
    size: Sequence[int], stride: Sequence[int] | None, dtype: torch.dtype
) -> NoReturn:
    # These raise what PyTorch does if there is no such tensor anywhere.
    like = torch.empty(size, device="meta")
    if stride is None:
        stride = like.stride()
    torch.empty_strided(size, stride, device="meta")
    steps = zip(size, stride, strict=True)
    bytes = (1 + sum((n - 1) * s for n, s in steps)) * dtype.itemsize
    if not 0 < bytes < 2**63:
        raise RuntimeError(
            "Storage size calculation overflowed with "
            f"sizes={list(size)} and strides={list(stride)}"
        )
    allocated, _, limit = ops._device_memory()
    raise torch.OutOfMemoryError(
        f"foo out of memory. Tried to allocate {bytes} bytes. {allocated} "
        f"bytes are allocated, and the limit is {limit} bytes."
    )
