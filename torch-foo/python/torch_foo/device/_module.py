"""The module torch.foo, with the names of torch.cuda.

There is one device and one stream, on which all work is done when a call
returns. So what selects a device or a stream only checks its argument, and what
waits has nothing to wait for; on a real device these call its driver.
"""

# mypy: allow-untyped-calls
# (parts of torch have no types)

import os
import time
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.accelerator import (
    empty_cache,
    get_memory_info,
    max_memory_allocated,
    max_memory_reserved,
    memory_allocated,
    memory_reserved,
    memory_stats,
    reset_accumulated_memory_stats,
    reset_peak_memory_stats,
)

from torch_foo.device import _random
from torch_foo.device._random import (
    get_rng_state_all,
    initial_seed,
    manual_seed,
    seed,
    set_rng_state_all,
)

__all__ = [
    "DeviceProperties",
    "Event",
    "Stream",
    "current_device",
    "current_stream",
    "default_generators",
    "default_stream",
    "device",
    "device_count",
    "device_of",
    "empty_cache",
    "get_amp_supported_dtype",
    "get_device_name",
    "get_device_properties",
    "get_rng_state",
    "get_rng_state_all",
    "init",
    "initial_seed",
    "is_available",
    "is_bf16_supported",
    "is_initialized",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "reset_accumulated_memory_stats",
    "reset_peak_memory_stats",
    "seed",
    "seed_all",
    "set_device",
    "set_memory_limit",
    "set_per_process_memory_fraction",
    "set_rng_state",
    "set_rng_state_all",
    "set_stream",
    "stream",
    "synchronize",
]

_ops = torch.ops.torch_foo

Device = torch.device | str | int | None


# --- devices ----------------------------------------------------------------


class DeviceProperties(NamedTuple):
    name: str
    total_memory: int


def device_index(device: Device) -> int:
    """Return 0, or raise for what is not the device foo:0."""
    if device is None or device == -1:  # "leave the current one", as in cuda
        return 0
    asked = torch.device("foo", device) if isinstance(device, int) else device
    asked = torch.device(asked)
    if asked.type != "foo":
        raise ValueError(f"torch.foo: expected a device foo, got {asked}")
    if asked.index not in (None, 0):
        raise RuntimeError(
            f"torch.foo: expected foo:0, the only device of foo, got {asked}"
        )
    return 0


_initialized = True  # what torch.utils.checkpoint looks at


def init() -> None:
    pass


def is_initialized() -> bool:
    return True


def is_available() -> bool:
    return True


def device_count() -> int:
    return 1


def current_device() -> int:
    return 0


def set_device(device: Device) -> None:
    device_index(device)


class device:  # noqa: N801  torch.cuda's name
    """Select a device for a block: there is one, so nothing changes."""

    def __init__(self, device: Device) -> None:
        self.idx = device_index(device)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass


class device_of(device):  # noqa: N801  torch.cuda's name
    """Select the device of a tensor for a block, if that is a foo tensor."""

    def __init__(self, obj: Tensor) -> None:
        super().__init__(obj.device if obj.device.type == "foo" else None)


def get_device_name(device: Device = None) -> str:
    return get_device_properties(device).name


def get_device_properties(device: Device = None) -> DeviceProperties:
    device_index(device)
    return DeviceProperties("foo, on the CPU", _host_memory())


def _is_in_bad_fork() -> bool:
    """Say that a child of fork may go on: foo's memory is the host's."""
    return False


# --- streams and events -----------------------------------------------------


class Stream(torch.Stream):
    """The stream of foo; every stream is the same one."""

    def __new__(cls, device: Device = None, priority: int = 0) -> "Stream":
        device_index(device)
        stream: Stream = super().__new__(cls, device="foo", priority=priority)
        return stream

    def record_event(self, event: Any = None) -> Any:
        event = event or Event()
        event.record(self)
        return event


class Event(torch.Event):
    """A point in time, at which all work until then was done."""

    def __new__(
        cls,
        enable_timing: bool = False,
        blocking: bool = False,
        interprocess: bool = False,
    ) -> "Event":
        event: Event = super().__new__(cls, "foo", enable_timing=enable_timing)
        event.recorded = None
        event.enable_timing = enable_timing
        return event

    recorded: float | None
    enable_timing: bool

    def record(self, stream: torch.Stream | None = None) -> None:
        self.recorded = time.perf_counter()

    def wait(self, stream: torch.Stream | None = None) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end_event: torch.Event) -> float:
        """Return the milliseconds from this event to the other one."""
        if not (
            isinstance(end_event, Event)
            and self.enable_timing
            and end_event.enable_timing
        ):
            raise RuntimeError(
                "torch.foo.Event.elapsed_time: expected two torch.foo.Event "
                "with enable_timing=True, got another one"
            )
        if self.recorded is None or end_event.recorded is None:
            raise RuntimeError(
                "torch.foo.Event.elapsed_time: expected two recorded events, "
                "got one that is not"
            )
        return 1000 * (end_event.recorded - self.recorded)


def current_stream(device: Device = None) -> Stream:
    return Stream(device)


default_stream = current_stream


def set_stream(stream: torch.Stream) -> None:
    device_index(stream.device)


def stream(
    stream: torch.Stream | None,
) -> AbstractContextManager[object]:
    """Select a stream for a block."""
    return nullcontext() if stream is None else stream


def synchronize(device: Device = None) -> None:
    device_index(device)


# --- memory, all in bytes ---------------------------------------------------

mem_get_info = get_memory_info


def set_memory_limit(bytes: int | None) -> None:
    """Set from where on an allocation raises torch.OutOfMemoryError.

    torch_foo's own operators raise RuntimeError, as their kernels are C++ of
    the stable ABI. None removes the limit.
    """
    limit = 2**63 - 1 if bytes is None else bytes
    if not isinstance(limit, int) or not 0 <= limit < 2**63:
        raise ValueError(
            "torch.foo.set_memory_limit: expected a number of bytes, an int of "
            f"at least 0, or None, got {bytes!r}"
        )
    _ops._device_set_limit(limit)


def set_per_process_memory_fraction(
    fraction: float, device: Device = None
) -> None:
    device_index(device)
    if not 0 <= fraction <= 1:
        raise ValueError(
            "torch.foo.set_per_process_memory_fraction: expected a fraction "
            f"from 0 to 1, got {fraction}"
        )
    set_memory_limit(int(fraction * _host_memory()))


def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# --- random numbers ---------------------------------------------------------

default_generators = (_random.generator,)
manual_seed_all = manual_seed
seed_all = seed


def get_rng_state(device: Device = "foo") -> Tensor:
    device_index(device)
    return _random.get_rng_state()


def set_rng_state(new_state: Tensor, device: Device = "foo") -> None:
    device_index(device)
    _random.set_rng_state(new_state)


# --- autocast ---------------------------------------------------------------


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.bfloat16, torch.float16]


def is_bf16_supported(including_emulation: bool = True) -> bool:
    return True


# --- torch.compile ----------------------------------------------------------


def __getattr__(name: str) -> Any:
    """Return what Inductor asks a device for, without importing it before."""
    if name.endswith(("Scheduling", "Codegen")):
        from torch_foo.device import _inductor

        return getattr(_inductor, name)
    raise AttributeError(f"module 'torch.foo' has no attribute {name!r}")
