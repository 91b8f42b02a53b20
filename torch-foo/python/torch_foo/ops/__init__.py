"""The operators, one module per family.

A module holds the public functions of its family and what the dispatcher needs
beside the kernels in ``_C``: fake kernels, gradients, vmap and autocast rules.
"""

from torch_foo.ops._elementwise import add, mul, muladd
from torch_foo.ops._rms_norm import rms_norm

__all__ = ["add", "mul", "muladd", "rms_norm"]
