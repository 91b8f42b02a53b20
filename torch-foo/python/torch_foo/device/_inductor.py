"""What torch.compile's Inductor asks a device for: C++ for the CPU serves foo.

Its kernels take addresses, and foo's memory is the host's. A real device gives
its own code generator, or none; then backend="aot_eager" compiles.
"""

# mypy: allow-untyped-calls
# (parts of torch have no types)

import sys
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._dynamo.device_interface import (
    CpuInterface,
    register_interface_for_device,
)
from torch._inductor import ir, utils
from torch._inductor.codegen.common import (
    custom_backend_passes,
    register_device_op_overrides,
)
from torch._inductor.codegen.cpp import CppScheduling
from torch._inductor.codegen.cpu_device_op_overrides import (
    CpuDeviceOpOverrides,
)
from torch._inductor.codegen.wrapper import PythonWrapperCodegen as _Wrapper
from torch._inductor.codegen.wrapper_fxir import WrapperFxCodegen
from torch._inductor.custom_graph_pass import (
    CustomGraphModulePass,
    get_hash_for_files,
)
from torch._inductor.graph import GraphLowering
from torch._inductor.scheduler import BaseSchedulerNode
from torch._inductor.virtualized import V

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

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def device_count() -> int:
        return 1


register_interface_for_device("foo", Interface)
register_device_op_overrides("foo", CpuDeviceOpOverrides())


def is_cpu(node: BaseSchedulerNode) -> bool:
    """Let foo have only the fusions that the CPU has, for its C++."""
    device = node.get_device()
    return device is not None and device.type in ("cpu", "foo")


def current_backend(device_type: str | None = None) -> str:
    """Return "cpp" for foo, where PyTorch takes unknown devices for CUDA.

    Inductor then gives no dtype to the indices that it computes, and C++ makes
    garbage of them.
    """
    device = device_type or V.graph.get_current_device_or_throw().type
    name: str = "cpp" if device == "foo" else _current_backend(device)
    return name


def device_type(x: Any) -> str | None:
    """Return "cpu" for foo, for what depends on the code generator.

    The index of argmax in a transposed tensor does.
    """
    name: str | None = _device_type(x)
    return "cpu" if name == "foo" else name


def decide_layout_opt(graph: torch.fx.GraphModule, **how: Any) -> bool:
    """Keep convolutions on foo contiguous, as their fake kernel says they are.

    Channels-last layouts are for the CPU's mkldnn, which is not asked here.
    """
    values = (node.meta.get("val") for node in graph.graph.nodes)
    devices = {str(v.device.type) for v in values if isinstance(v, Tensor)}
    return "foo" not in devices and bool(_decide_layout_opt(graph, **how))


class CacheKey(CustomGraphModulePass):
    """Keeps Inductor's cache from code that another version of this file made.

    Kernels are also made for a number of threads, which PyTorch puts into the
    key for the CPU only.
    """

    def __call__(self, graph: torch.fx.GraphModule) -> None:
        pass

    def uuid(self) -> tuple[bytes, int]:
        return _source, torch.get_num_threads()


_source = get_hash_for_files((__file__,))
_current_backend = utils.get_current_backend
for _name, _module in list(sys.modules.items()):  # many import it by name
    if _name.startswith("torch._inductor.") and (
        getattr(_module, "get_current_backend", None) is _current_backend
    ):
        setattr(_module, "get_current_backend", current_backend)  # noqa: B010
_decide_layout_opt = GraphLowering.decide_layout_opt
setattr(GraphLowering, "decide_layout_opt", staticmethod(decide_layout_opt))  # noqa: B010
_device_type = ir.get_device_type
setattr(ir, "get_device_type", device_type)  # noqa: B010
# Not at "foo", whose entry PyTorch replaces after it has imported this file.
custom_backend_passes["torch_foo"] = CacheKey()
setattr(BaseSchedulerNode, "is_cpu", is_cpu)  # noqa: B010  mypy refuses
