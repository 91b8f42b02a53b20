"""What torch.compile's Inductor asks a device for: C++ for the CPU serves foo.

Its kernels take addresses, and foo's memory is the host's. A real device gives
its own code generator, or none; then backend="aot_eager" compiles.
"""

# mypy: allow-untyped-calls
# (parts of torch have no types)

from typing import Any, NoReturn

import torch
from torch._dynamo.device_interface import (
    CpuInterface,
    register_interface_for_device,
)
from torch._inductor.codegen.common import register_device_op_overrides
from torch._inductor.codegen.cpp import CppScheduling, CppVecKernel
from torch._inductor.codegen.cpu_device_op_overrides import (
    CpuDeviceOpOverrides,
)
from torch._inductor.codegen.wrapper import PythonWrapperCodegen as _Wrapper
from torch._inductor.codegen.wrapper_fxir import WrapperFxCodegen
from torch._inductor.scheduler import BaseSchedulerNode

__all__ = [
    "CppWrapperCodegen",
    "PythonWrapperCodegen",
    "Scheduling",
    "WrapperFxCodegen",
]

Scheduling = CppScheduling


class PythonWrapperCodegen(_Wrapper):
    """Calls kernels on foo as those on the CPU."""

    @staticmethod
    def create(is_subgraph: bool, *args: Any) -> _Wrapper:
        if is_subgraph:
            wrapper: _Wrapper = _Wrapper.create(is_subgraph, *args)
            return wrapper
        return PythonWrapperCodegen()

    def _generate_kernel_call_helper(
        self, *args: Any, device: torch.device | None = None, **named: Any
    ) -> None:
        super()._generate_kernel_call_helper(
            *args, device=torch.device("cpu"), **named
        )


class CppWrapperCodegen(_Wrapper):
    """Refuses: wrappers in C++ know PyTorch's own devices only."""

    @staticmethod
    def create(*args: Any) -> NoReturn:
        raise NotImplementedError(
            "torch.compile: cpp_wrapper and AOTInductor need a device of "
            "PyTorch's own, got foo; compile without them"
        )


class Interface(CpuInterface):
    """What Dynamo asks a device for."""

    class Worker(CpuInterface.Worker):
        @staticmethod
        def current_device() -> int:
            return 0


register_interface_for_device("foo", Interface)
register_device_op_overrides("foo", CpuDeviceOpOverrides())


def is_cpu(node: BaseSchedulerNode) -> bool:
    """Let foo have only the fusions that the CPU has, for its C++."""
    device = node.get_device()
    return device is not None and device.type in ("cpu", "foo")


def arange(kernel: CppVecKernel, index: Any, stride: Any) -> Any:
    """Name the dtype of an index that random numbers are made from.

    Inductor leaves it out, since it asks the CPU's eager kernels for these.
    """
    index.dtype = index.dtype or torch.int32
    return _arange(kernel, index, stride)


_arange = CppVecKernel.arange
setattr(CppVecKernel, "arange", arange)  # noqa: B010  mypy refuses
setattr(BaseSchedulerNode, "is_cpu", is_cpu)  # noqa: B010  mypy refuses
