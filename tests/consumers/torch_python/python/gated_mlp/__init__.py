"""A gated MLP with its norm, as a C++ module."""

import torch  # noqa: F401  loads libtorch_python, which _C is linked with

from gated_mlp._C import GatedMLP

__all__ = ["GatedMLP"]
