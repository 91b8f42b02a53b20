"""Views and other changes of a tensor's metadata.

The CPU's kernels of these look at sizes, strides and storage only, so they work
on any device's tensor. The dispatcher is told to go on there.
"""

# mypy: allow-untyped-calls
# (parts of torch have no types)

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from torch_foo._torch_internals import OpOverload, dispatch_keys

_CPU = dispatch_keys("CPU")
_aten = torch.ops.aten
_set = _aten.set_.source_Storage_storage_offset


def register(aten: torch.library.Library) -> None:
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("aten::") and _has_cpu_kernel(name):
            overload = overload_of(name)
            if overload is not None and _is_of_metadata(overload):
                aten.impl(
                    name, partial(overload.redispatch, _CPU), "PrivateUse1"
                )
    aten.impl("resize_", resize_, "PrivateUse1")


def overload_of(name: str) -> OpOverload | None:
    """Return torch.ops.aten.NAME.OVERLOAD of "aten::NAME.OVERLOAD"."""
    packet, _, overload = name.removeprefix("aten::").partition(".")
    try:
        found: OpOverload = getattr(
            getattr(_aten, packet), overload or "default"
        )
        return found
    except AttributeError:  # with types that Python does not have
        return None


def _has_cpu_kernel(name: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")


def _is_of_metadata(overload: OpOverload) -> bool:
    schema = overload._schema
    if torch.Tag.inplace_view in overload.tags or schema.name == "aten::set_":
        return schema.name != "aten::resize_"
    return any(
        r.alias_info is not None and not r.alias_info.is_write
        for r in schema.returns
    )


def set_storage(tensor: Tensor, source: Tensor) -> Tensor:
    """Let a tensor have another one's storage and geometry."""
    result: Tensor = _set.redispatch(
        _CPU,
        tensor,
        source.untyped_storage(),
        source.storage_offset(),
        list(source.shape),
        list(source.stride()),
    )
    return result


def resize_(
    self: Tensor,
    size: Sequence[int],
    *,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """Resize in place; a storage that is too small is replaced by a new one."""
    strides = torch.empty(
        size, device="meta", memory_format=memory_format
    ).stride()
    count = torch.Size(size).numel()
    have = self.untyped_storage().nbytes() // self.element_size()
    if count <= have - self.storage_offset():
        view = _aten.as_strided.default.redispatch(
            _CPU, self, size, strides, self.storage_offset()
        )
        return set_storage(self, view)
    new = torch.empty_strided(
        size, strides, dtype=self.dtype, device=self.device
    )
    kept = self.numel()
    if kept:
        # What is behind the old elements in memory stays there.
        old = _aten.as_strided.default.redispatch(
            _CPU, self, [kept], [1], self.storage_offset()
        )
        flat = _aten.as_strided.default.redispatch(_CPU, new, [kept], [1], 0)
        flat.copy_(old)
    return set_storage(self, new)
