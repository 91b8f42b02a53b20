"""Views and other changes of a tensor's metadata.

The CPU's kernels of these look at sizes, strides and storage only, so they work
on any device's tensor. The dispatcher is told to go on there.
"""

# mypy: allow-untyped-calls
# (parts of torch have no types)

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_foo._torch_internals import OpOverload, dispatch_keys, results

CPU = dispatch_keys("CPU")
_aten = torch.ops.aten
_set = _aten.set_.source_Storage_storage_offset


def register(aten: torch.library.Library) -> None:
    aten.impl("resize_", resize_, "PrivateUse1")
    aten.impl("set_", set_, "PrivateUse1")
    aten.impl("_has_compatible_shallow_copy_type", can_replace, "PrivateUse1")


def overload_of(name: str) -> OpOverload | None:
    """Return the operator of a name such as "aten::add.Tensor"."""
    namespace, _, name = name.rpartition("::")
    packet, _, overload = name.partition(".")
    operators = getattr(torch.ops, namespace or "aten")
    try:
        found: OpOverload = getattr(
            getattr(operators, packet), overload or "default"
        )
        return found
    except AttributeError:  # not in this torch
        return None


def is_of_metadata(overload: OpOverload) -> bool:
    """Return whether its kernel for the CPU looks at metadata only."""
    name = overload.name().partition(".")[0]
    if name in ("aten::is_set_to", "aten::set_"):
        return True
    return torch.Tag.inplace_view in overload.tags or any(
        r.alias_info is not None and not r.alias_info.is_write
        for r in results(overload)
    )


def set_storage(tensor: Tensor, source: Tensor) -> Tensor:
    """Let a tensor have another one's storage and geometry."""
    return _set_to(tensor, source.untyped_storage(), source)


def set_geometry(tensor: Tensor, source: Tensor) -> Tensor:
    """Let a tensor have another one's geometry in its own storage."""
    return _set_to(tensor, tensor.untyped_storage(), source)


def _set_to(
    tensor: Tensor, storage: torch.UntypedStorage, geometry: Tensor
) -> Tensor:
    result: Tensor = _set.redispatch(
        CPU,
        tensor,
        storage,
        geometry.storage_offset(),
        list(geometry.shape),
        list(geometry.stride()),
    )
    return result


def set_(self: Tensor) -> Tensor:
    """Let a tensor have no elements."""
    return set_storage(
        self, torch.empty(0, dtype=self.dtype, device=self.device)
    )


def resize_(
    self: Tensor,
    size: Sequence[int],
    *,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """Resize in place; a storage that is too small is replaced by a new one."""
    if self.shape == torch.Size(size) and memory_format is None:
        return self
    strides = torch.empty(
        size, device="meta", memory_format=memory_format
    ).stride()
    count = torch.Size(size).numel()
    have = self.untyped_storage().nbytes() // self.element_size()
    if count <= have - self.storage_offset():
        view = _aten.as_strided.default.redispatch(
            CPU, self, size, strides, self.storage_offset()
        )
        return set_storage(self, view)
    new = torch.empty_strided(
        size, strides, dtype=self.dtype, device=self.device
    )
    kept = self.numel()
    if kept:
        # What is behind the old elements in memory stays there.
        old = _aten.as_strided.default.redispatch(
            CPU, self, [kept], [1], self.storage_offset()
        )
        flat = _aten.as_strided.default.redispatch(CPU, new, [kept], [1], 0)
        flat.copy_(old)
    return set_storage(self, new)


def can_replace(self: Tensor, by: Tensor) -> bool:
    """Return whether ``self.data = by`` can make self the other tensor.

    Module.to asks this, and then keeps its Parameter objects, so that weights
    stay tied and optimizers keep theirs. PyTorch says yes for its own devices.
    """
    return all(
        x.device.type in ("cpu", "foo")
        and x.layout is torch.strided
        and not x.is_nested
        for x in (self, by)
    )
