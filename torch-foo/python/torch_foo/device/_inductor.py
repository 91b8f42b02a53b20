"""What torch.compile's Inductor asks a device for: C++ for the CPU serves foo.

Its kernels take addresses, and foo's memory is the host's. A real device gives
its own code generator, or none; then backend="aot_eager" compiles.
"""

# mypy: allow-untyped-calls
# (parts of torch have no types)

from typing import Any

import torch
from torch._dynamo.device_interface import (
    CpuInterface,
    register_interface_for_device,
)
from torch._inductor.codegen.common import register_device_op_overrides
from torch._inductor.codegen.cpp import CppScheduling
from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu
from torch._inductor.codegen.cpu_device_op_overrides import (
    CpuDeviceOpOverrides,
)
from torch._inductor.codegen.wrapper import PythonWrapperCodegen as _Wrapper
from torch._inductor.codegen.wrapper_fxir import WrapperFxCodegen

__all__ = [
    "CppWrapperCodegen",
    "PythonWrapperCodegen",
    "Scheduling",
    "WrapperFxCodegen",
]


class PythonWrapperCodegen(_Wrapper):
    """Calls kernels on foo as those on the CPU."""

    @staticmethod
    def create(is_subgraph: bool, *args: Any) -> _Wrapper:
        if is_subgraph:
            return _Wrapper.create(is_subgraph, *args)
        return PythonWrapperCodegen()

    def _generate_kernel_call_helper(
        self, *args: Any, device: torch.device | None = None, **named: Any
    ) -> None:
        super()._generate_kernel_call_helper(
            *args, device=torch.device("cpu"), **named
        )


Scheduling = CppScheduling
CppWrapperCodegen = CppWrapperCpu

register_interface_for_device("foo", CpuInterface)
register_device_op_overrides("foo", CpuDeviceOpOverrides())
