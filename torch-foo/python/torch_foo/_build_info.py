"""Versions and capabilities of the loaded libraries."""

from typing import NamedTuple

import torch


class BuildInfo(NamedTuple):
    """Versions and capabilities of the libraries that were really loaded."""

    torch_foo: str
    """Version of this package."""
    torch: str
    """Version of PyTorch."""
    foo_core: str
    """Version of the kernel library."""
    cuda: bool
    """Whether the kernel library has CUDA kernels."""
    simd_target: str
    """The instruction set of the CPU kernels, such as AVX2."""


def build_info() -> BuildInfo:
    """Return what is installed and what it runs on.

    >>> torch_foo.build_info().torch == torch.__version__
    True
    """
    native = torch.ops.torch_foo
    return BuildInfo(
        torch_foo=native._version(),
        torch=torch.__version__,
        foo_core=native._core_version(),
        cuda=native._core_has_cuda(),
        simd_target=native._simd_target(),
    )
